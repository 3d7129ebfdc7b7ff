"""The launchers: what they would run, what they run, and what they make of mistakes."""

import fnmatch
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, environment

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
TOOLS = ("gcloud", "kubectl", "srun", "scontrol", "python")
MAIN = ["--config=configs/digits.py", "--config.w_range=(0.0, 4.0)", "--workdir=/shared/a run"]
SLICE = ["--name=slice", "--zone=zone", "--type=v5litepod-16"]
POD = ["--name=run", "--image=image:1", "--claim=disk"]


@pytest.fixture
def launch(tmp_path):
    """Runs a launcher with stand-ins for all tools, which note what they are called with.

    `answers` maps a tool to the body of its stand-in, which sees its arguments.
    """
    calls = tmp_path / "calls"

    def launch(script, *arguments, answers=(), start=subprocess.run):
        calls.write_text("")
        for tool in {*TOOLS, *dict(answers)}:
            stub = tmp_path / "bin" / tool
            stub.parent.mkdir(exist_ok=True)
            body = dict(answers).get(tool, "exit 0")
            stub.write_text(f"#!/bin/bash\nprintf '%s\\0' {tool} \"$@\" '' >> {calls}\n{body}\n")
            stub.chmod(0o755)
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        return start(
            ["bash", LAUNCH / script, *arguments],
            cwd=ROOT,
            env={key: value for key, value in environment.items() if key != "PYTHON"},
            **(dict(capture_output=True, text=True) if start is subprocess.run else {}),
        )

    launch.calls = lambda: [call.split("\0") for call in calls.read_text().split("\0\0") if call]
    return launch


def commands_of(output):
    return [shlex.split(line) for line in output.replace(" \\\n    ", " ").splitlines()]


def assert_main_gets(command):
    """The arguments of main, blanks and brackets included, end a command."""
    assert command[-len(MAIN) :] == MAIN


def test_printed_commands_are_read_back_whole_by_a_shell():
    words = ["", "a b", "it's", '"', "$HOME `id`", "~", "*.py", "#", "a\\b", "--key=b c", "--key="]
    words += ["KEY='x y'", "x\ny", "é…", "!x", "(0.0, 4.0)", "&;|<>", "{a,b}", *"abcdefghij" * 20]
    script = f'source {LAUNCH}/common.sh; dry_run=true; run printf "%s\\0" "$@"'
    printed = subprocess.check_output(["bash", "-c", script, "-", *words], text=True)
    assert subprocess.check_output(["bash", "-c", printed], text=True).split("\0")[:-1] == words
    assert shlex.split(printed.replace(" \\\n    ", " "))[2:] == words
    assert "--key='b c'" in printed and all(len(line) <= 110 for line in printed.splitlines())


def test_a_short_command_is_a_line_and_a_long_one_has_a_line_an_option(launch):
    short = launch("tpu_vm.sh", *SLICE[:2], "--delete", "--dry_run").stdout
    assert short == "gcloud compute tpus tpu-vm delete slice --quiet --zone=zone\n"
    long = launch("virtual_devices.sh", "--dry_run", "4", *MAIN).stdout.splitlines()
    assert all(line.endswith(" \\") for line in long[:-1])
    assert "    '--config.w_range" not in long and "    --config.w_range='(0.0, 4.0)' \\" in long


@pytest.mark.parametrize("order", [("--dry_run", "8"), ("8", "--dry_run")], ids=str)
def test_virtual_devices_are_cpu_devices_of_one_process(launch, order):
    (command,) = commands_of(launch("virtual_devices.sh", *order, *MAIN).stdout)
    assert_main_gets(command)
    assert command[:2] == ["env", "JAX_PLATFORMS=cpu"] and launch.calls() == []
    assert command[2].endswith("--xla_force_host_platform_device_count=8")
    done = launch("virtual_devices.sh", "8", *MAIN, answers={"python": "echo $XLA_FLAGS; exit 3"})
    assert done.returncode == 3 and done.stdout.endswith("device_count=8\n")
    assert_main_gets(launch.calls()[0])


def test_local_processes_differ_in_their_number_alone(launch):
    done = launch("local_multiprocess.sh", "--dry_run", "--processes=3", "--", *MAIN)
    commands = commands_of(done.stdout)
    assert len(commands) == 3 and launch.calls() == []
    for k, command in enumerate(commands):
        assert_main_gets(command)
        assert f"--process_id={k}" in command and "--num_processes=3" in command
        rest = [[a for a in c if not a.startswith("--process_id")] for c in (command, commands[0])]
        assert rest[0] == rest[1]


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0), 0), ((0, 3), 3), ((75, 1), 1), ((75, 137), 137), ((75, 0), 75)]
)
def test_local_processes_end_with_the_code_that_says_why(launch, codes, expected):
    body = f'case "$*" in *process_id=0*) exit {codes[0]};; *process_id=1*) exit {codes[1]};; esac'
    done = launch("local_multiprocess.sh", "--", *MAIN, answers={"python": body})
    assert done.returncode == expected
    started = [call for call in launch.calls() if "guided_distill.main" in call]
    assert {call[5] for call in started} == {"--process_id=0", "--process_id=1"}
    assert len({call[3] for call in started}) == 1  # One place to meet at.


def test_a_signal_reaches_every_local_process(launch, tmp_path):
    body = f"""case "$*" in *process_id=*)
        trap 'echo stopped >> {tmp_path}/stopped; exit 143' TERM
        echo up >> {tmp_path}/up; while true; do sleep 0.05; done;; esac"""
    process = launch(
        "local_multiprocess.sh", "--", answers={"python": body}, start=subprocess.Popen
    )
    up = tmp_path / "up"
    while not up.exists() or up.read_text().count("up") < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert (tmp_path / "stopped").read_text().count("stopped") == 2


@pytest.mark.parametrize(("script", "workers"), [("tpu_pod.sh", "all"), ("tpu_vm.sh", "0")])
def test_tpu_commands_create_install_start_and_follow(launch, script, workers):
    done = launch(script, "--dry_run", "--spot", "--project=p", *SLICE, "--", *MAIN)
    assert done.returncode == 0 and launch.calls() == []
    commands = commands_of(done.stdout)
    create, pack, copy, install, start, follow = commands
    calls = [create, copy, install, start, follow]
    assert [call[4] for call in calls] == ["create", "scp", "ssh", "ssh", "ssh"]
    assert all("--zone=zone" in call and "--project=p" in call for call in calls)
    assert {"slice", "--accelerator-type=v5litepod-16", "--spot"} < set(create)
    assert pack[pack.index("-czf") + 1] == copy[5]
    assert "slice:guided_distill.tar.gz" in copy and f"--worker={workers}" in copy
    assert f"--worker={workers}" in install and f"--worker={workers}" in start
    assert "--worker=0" in follow
    script_on_worker = next(a for a in start if a.startswith("--command="))
    assert ("--distributed" in script_on_worker) == (workers == "all")


def test_main_gets_its_arguments_whole_on_the_workers(launch, tmp_path):
    """What the start command does on a worker, done here with a stand-in for the interpreter."""
    done = launch("tpu_pod.sh", "--dry_run", *SLICE, "--", *MAIN)
    start = commands_of(done.stdout)[-2]
    on_worker = next(a for a in start if a.startswith("--command=")).removeprefix("--command=")
    interpreter = tmp_path / "guided_distill" / "venv" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\nexit 3\n")
    interpreter.chmod(0o755)
    subprocess.run(["bash", "-c", on_worker], cwd=tmp_path, check=True)
    code = tmp_path / "guided_distill" / "exit_code"
    while not code.exists() or not code.read_text():
        time.sleep(0.02)
    assert code.read_text().strip() == "3"
    log = (tmp_path / "guided_distill" / "log.txt").read_text().splitlines()
    assert log == ["-m", "guided_distill.main", "--distributed", *MAIN]


def gcloud(tmp_path, states, codes):
    """A slice that is in these states when asked, and main's exit codes when followed."""
    (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    take = "x=$(head -n 1 {0}); sed -i 1d {0}"
    return f"""case "$*" in
        *" describe "*) {take.format(tmp_path / "states")}
            case $x in ABSENT) echo "ERROR: NOT_FOUND: no $4" >&2; exit 1;;
                OFFLINE) echo "ERROR: no network" >&2; exit 1;; esac; echo "$x";;
        *"tail -n"*) {take.format(tmp_path / "codes")}; exit "$x";;
    esac"""


def steps(calls):
    """What was done to the slice, in order: create, delete, or a followed run."""
    done = []
    for call in calls:
        if call[4] in ("create", "delete"):
            done.append(call[4])
        if any("tail -n" in argument for argument in call):
            done.append("follow")
    return done


TREE = {  # Which of these a worker gets.
    "setup.py": True,
    "a file.txt": True,
    "it's here/and more.txt": True,
    "-x/file": True,
    ".hidden": True,
    ".git/HEAD": False,
    "runs/digits/log.txt": False,
    "venv/pyvenv.cfg": False,
    "my env/pyvenv.cfg": False,
    "build/lib/a.py": False,
    "dist/a.whl": False,
    ".ruff_cache/x": False,
    "guided_distill.egg-info/PKG-INFO": False,
    "guided_distill/a.py": True,
    "guided_distill/runs/a.py": True,
    "guided_distill/build/a.py": True,
    "guided_distill/__pycache__/a.pyc": False,
}


@pytest.mark.parametrize("tar", ["tar", "bsdtar"])
def test_workers_get_the_source_and_run_it(launch, tmp_path, tar):
    """The whole way, on a worker that is a folder here."""
    if not shutil.which(tar):
        pytest.skip(f"{tar} is not installed")
    source, worker = tmp_path / "a project", tmp_path / "worker"
    for path in TREE:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).touch()
    worker.mkdir()
    interpreter = "mkdir -p venv/bin && printf '#!/bin/bash\\necho \"$@\"' > venv/bin/python"
    answers = {
        "tar": f'{shutil.which(tar)} "$@"',
        "sudo": "exit 0",
        "python3.11": f"{interpreter} && chmod +x venv/bin/python",
        "gcloud": f"""cd {worker}; case $4 in describe) echo READY;; scp) cp "$5" "${{6#*:}}";;
            ssh) for a; do [[ $a != --command=* ]] || bash -c "${{a#--command=}}" || exit; done;; esac""",
    }
    done = launch("tpu_vm.sh", *SLICE, f"--source={source}", "--", "--x=a b", answers=answers)
    assert done.returncode == 0, done.stderr
    assert "-m guided_distill.main --x=a b\n" in done.stdout
    folder = worker / "guided_distill"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    of_the_run = {"log.txt", "pid", "exit_code", "venv/bin/python"}
    assert found == of_the_run | {path for path, copied in TREE.items() if copied}


def test_images_are_built_of_what_workers_get():
    """Of the same tree, but for environments of any name; no part of the package is left out."""
    patterns = (ROOT / ".dockerignore").read_text().split()

    def ignored(path):
        return any(
            fnmatch.fnmatch(part.name if "**/" in pattern else str(part), pattern.split("/")[-1])
            for part in [path, *path.parents]
            for pattern in patterns
        )

    for path, copied in TREE.items():
        assert ignored(pathlib.PurePath(path)) != copied or path.startswith("my env")


def test_an_image_installs_from_the_paths_that_it_copies(tmp_path):
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:] for line in lines if line.startswith("COPY ")]
    for *sources, target in copies:
        for source in sources:
            assert (ROOT / source).exists(), source
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, tmp_path / target)
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    init = (ROOT / "guided_distill" / "__init__.py").read_text()
    assert f'__version__ = "{done.stdout.strip().splitlines()[-1]}"' in init
    assert (tmp_path / "configs" / "cifar10.py").exists()
    entry = next(line for line in lines if line.startswith("ENTRYPOINT"))
    assert re.search(r"\[(.*)\]", entry)[1] in (LAUNCH / "pod.yaml").read_text()


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-32", "v2-alpha-tpuv6e"),
        ("v2-8", "tpu-ubuntu2204-base"),
        ("v3-32", "tpu-ubuntu2204-base"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ],
)
def test_the_runtime_version_goes_by_the_type(launch, kind, version):
    asked = ["--dry_run", *SLICE[:2], f"--type={kind}"]
    assert f"--version={version}" in commands_of(launch("tpu_vm.sh", *asked).stdout)[0]
    queued = commands_of(launch("tpu_vm.sh", *asked, "--queued").stdout)[0]
    assert f"--runtime-version={version}" in queued
    assert "--version=own" in commands_of(launch("tpu_vm.sh", *asked, "--version=own").stdout)[0]


@pytest.mark.parametrize(
    ("states", "codes", "expected", "code"),
    [
        (["ABSENT", "ACCEPTED", "ACTIVE"], [0], ["create", "follow"], 0),
        (["ACTIVE"], [1], ["follow"], 1),
        (["PROVISIONING", "OFFLINE", "ACTIVE"], [0], ["follow"], 0),
        (["SUSPENDED", "ACTIVE"], [0], ["delete", "create", "follow"], 0),
        (["ACTIVE", "SUSPENDING", "ACTIVE"], [255, 0],
         ["follow", "delete", "create", "follow"], 0),
        (["WAITING_FOR_RESOURCES", "FAILED"], [], [], 1),
        (["OFFLINE"], [], [], 1),
    ],
    ids=str,
)  # fmt: skip
def test_a_request_is_waited_for_and_made_anew_after_preemption(
    launch, tmp_path, states, codes, expected, code
):
    answers = {"gcloud": gcloud(tmp_path, states, codes)}
    done = launch(
        "tpu_pod.sh", *SLICE, "--queued", "--spot", "--poll_seconds=0", "--", *MAIN, answers=answers
    )
    assert steps(launch.calls()) == expected, done.stderr
    assert done.returncode == code and (tmp_path / "states").read_text() == ""
    for call in launch.calls():
        if call[4] in ("create", "describe", "delete"):
            assert call[3:6] == ["queued-resources", call[4], "slice"] and "--zone=zone" in call
        if call[4] == "create":
            assert {"--node-id=slice", "--accelerator-type=v5litepod-16", "--spot"} < set(call)
        if call[4] == "delete":
            assert {"--force", "--quiet"} < set(call)
    if "FAILED" in states:
        assert done.stderr.splitlines()[-1].startswith("error: the request slice failed")
        assert "--queued --delete" in done.stderr


@pytest.mark.parametrize(
    ("states", "codes", "expected", "code"),
    [
        (["ABSENT"], [0], ["create", "follow"], 0),
        (["CREATING", "READY"], [0], ["follow"], 0),
        (["OFFLINE"], [], [], 1),
        (["READY"], [0], ["follow"], 0),
        (["READY"], [1], ["follow"], 1),  # A mistake is not tried again.
        (["READY", "READY"], [75, 0], ["follow", "follow"], 0),
        (["READY", "PREEMPTED"], [255, 0], ["follow", "delete", "create", "follow"], 0),
        (["READY", "ABSENT"], [143, 0], ["follow", "create", "follow"], 0),
        (["READY"] * 3, [75, 75, 75], ["follow"] * 3, 75),  # max_restarts
        (["REPAIRING"], [], [], 1),
    ],
    ids=str,
)
def test_a_pod_is_restarted_after_preemption_and_deleted_for_nothing_else(
    launch, tmp_path, states, codes, expected, code
):
    answers = {"gcloud": gcloud(tmp_path, states, codes)}
    done = launch(
        "tpu_pod.sh", *SLICE, "--max_restarts=2", "--poll_seconds=0", "--", *MAIN, answers=answers
    )
    assert steps(launch.calls()) == expected, done.stderr
    assert done.returncode == code


@pytest.mark.parametrize("script", ["tpu_pod.sh", "tpu_vm.sh"])
def test_a_slice_is_deleted_on_request(launch, script):
    assert launch(script, "--name=slice", "--zone=zone", "--delete").returncode == 0
    assert [call[3:6] for call in launch.calls()] == [["tpu-vm", "delete", "slice"]]
    assert launch(script, "--name=slice", "--zone=zone", "--queued", "--delete").returncode == 0
    assert [call[3:6] for call in launch.calls()] == [["queued-resources", "delete", "slice"]]
    assert "--force" in launch.calls()[0]


def test_slurm_starts_main_with_its_arguments(launch):
    done = launch("slurm.sbatch", "--dry_run", *MAIN)
    command, requeue = commands_of(done.stdout)
    assert command[:5] == ["srun", "python", "-m", "guided_distill.main", "--distributed"]
    assert_main_gets(command)
    assert requeue[:2] == ["scontrol", "requeue"] and launch.calls() == []


@pytest.mark.parametrize(("code", "queued"), [(0, False), (1, False), (75, True), (143, True)])
def test_slurm_queues_again_what_goes_on(launch, code, queued):
    done = launch("slurm.sbatch", *MAIN, answers={"srun": f"exit {code}"})
    assert done.returncode == code
    assert_main_gets(launch.calls()[0])
    assert [call[0] for call in launch.calls()[1:]] == ["scontrol"] * queued


def test_kubernetes_gets_one_pod_per_host(launch):
    filled = [*POD, "--hosts=16", "--topology=8x8", "--dry_run"]
    done = launch("gke.sh", *filled, "--", *MAIN, 'a "quoted" \\ &\n@name@')
    assert launch.calls() == []
    service, job = yaml.safe_load_all(done.stdout)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completions"] == spec["parallelism"] == 16
    assert service["metadata"]["name"] == pod["subdomain"] == job["metadata"]["name"] == "run"
    assert service["spec"]["selector"] == {"job-name": "run"}
    container = pod["containers"][0]
    assert container["command"][3] == "--distributed"
    assert container["command"][4:] == [*MAIN, 'a "quoted" \\ &\n@name@']
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "8x8"
    fail, ignore = spec["podFailurePolicy"]["rules"]
    assert fail["onExitCodes"]["values"] == [1] and ignore["action"] == "Ignore"


def test_a_jobset_starts_the_same_pods_together(launch):
    job = list(yaml.safe_load_all(launch("gke.sh", *POD, "--dry_run", "--", *MAIN).stdout))[-1]
    asked = [*POD, "--max_restarts=7", "--jobset", "--dry_run", "--", *MAIN]
    jobset = yaml.safe_load(launch("gke.sh", *asked).stdout)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (topology,) = jobset["metadata"]["annotations"].items()
    assert topology[0].endswith("/exclusive-topology") and topology[1].endswith("/gke-nodepool")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    (replicated,) = jobset["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    assert replicated["replicas"] == 1 and spec["backoffLimit"] == 0
    assert spec["podFailurePolicy"]["rules"] == job["spec"]["podFailurePolicy"]["rules"][:1]
    for key in ("template", "completions", "parallelism", "completionMode"):
        assert spec[key] == job["spec"][key]


@pytest.mark.parametrize("jobset", [[], ["--jobset"]], ids=str)
def test_spot_machines_are_chosen_and_tolerated(launch, jobset):
    pods = []
    for spot in ([], ["--spot"]):
        asked = [*POD, *jobset, *spot, "--dry_run"]
        spec = list(yaml.safe_load_all(launch("gke.sh", *asked).stdout))[-1]["spec"]
        if jobset:
            spec = spec["replicatedJobs"][0]["template"]["spec"]
        pods.append(spec["template"]["spec"])
    plain, spot = pods
    assert spot["nodeSelector"].pop("cloud.google.com/gke-spot") == "true"
    (toleration,) = spot.pop("tolerations")
    assert toleration == {
        "key": "cloud.google.com/gke-spot",
        "operator": "Equal",
        "value": "true",
        "effect": "NoSchedule",
    }
    assert spot == plain


def kubectl(tmp_path, looks):
    """A run whose end, and whose pods of process 0, are these at each look."""
    for number, (ended, *pods) in enumerate(looks):
        (tmp_path / f"ended{number}").write_text(ended)
        (tmp_path / f"pods{number}").write_text("".join(f"{pod}\n" for pod in pods))
    (tmp_path / "look").write_text("0")
    return f"""cd {tmp_path}; case "$1 $2" in "apply "*) cat > applied;; "get pods")
        look=$(cat look); cat pods$look; echo $((look + 1)) > look;; get*) cat ended$(cat look);;
    logs*) echo "log of ${{!#}}"; exit 1;; esac"""


@pytest.mark.parametrize(
    ("looks", "logs", "code"),
    [
        ([("", "a Succeeded"), ("Complete",)], "a", 0),
        ([("",), ("", "a Pending"), ("", "a Running"), ("Failed", "a Failed")], "a", 1),
        # A lost connection, then a new pod in the place of a lost one.
        ([("", "a Running"), ("", "a Running"), ("", "a Failed"), ("", "a Failed", "b Running"),
          ("SuccessCriteriaMet Completed", "a Failed", "b Succeeded")], "aab", 0),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("jobset", [False, True])
def test_kubernetes_applies_the_manifest_and_follows_process_0(
    launch, tmp_path, looks, logs, code, jobset
):
    switches = ["--poll_seconds=0", *["--jobset"] * jobset]
    answers = {"kubectl": kubectl(tmp_path, looks)}
    done = launch("gke.sh", *POD, *switches, "--", *MAIN, answers=answers)
    assert done.returncode == code, done.stderr
    assert done.stdout == "".join(f"log of {pod}\n" for pod in logs)
    calls = launch.calls()
    assert calls[0][1] == "apply" and calls[1][2] == ("jobset" if jobset else "job")
    selector = next(a for a in calls[2] if a.startswith("--selector="))
    assert ("jobset-name=run," if jobset else "job-name=run,") in selector
    since = [a for call in calls for a in call if a.startswith("--since-time=")]
    assert since[0].endswith("1970-01-01T00:00:00Z") and since == sorted(since)
    kinds = [part["kind"] for part in yaml.safe_load_all((tmp_path / "applied").read_text())]
    assert kinds == (["JobSet"] if jobset else ["Service", "Job"])


@pytest.mark.parametrize(("jobset", "kinds"), [([], "job,service"), (["--jobset"], "jobset")])
def test_kubernetes_deletes_what_it_made(launch, jobset, kinds):
    assert launch("gke.sh", "--name=run", *jobset, "--delete").returncode == 0
    assert launch.calls() == [["kubectl", "delete", kinds, "run"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["local_multiprocess.sh", "--processes=0"], "--processes must be a whole number"),
        (["local_multiprocess.sh", "--devices_per_process=x"], "--devices_per_process must be"),
        (["local_multiprocess.sh", "--config=a"], "unknown option --config"),
        (["local_multiprocess.sh", "four"], "unexpected argument four"),
        (["tpu_pod.sh", "--zone=z", "--type=t"], "--name is missing"),
        (["tpu_pod.sh", "--name=n", "--zone=z"], "--type is missing"),
        (["tpu_pod.sh", "--name=n", "--delete"], "--zone is missing"),
        (["tpu_vm.sh", "--workers=2"], "unknown option --workers"),
        (["tpu_vm.sh", "--name", "--zone=z"], "--name needs a value"),
        (["tpu_vm.sh", *SLICE, "--spot=yes"], "--spot is a switch"),
        (["tpu_vm.sh", *SLICE[:2], "--type=v9-8"], "--type=v9-8: name one with --version"),
        (["tpu_vm.sh", *SLICE, "--source=docs"], "--source=docs holds no setup.py"),
        (["tpu_vm.sh", *SLICE, "--queued", "--poll_seconds=soon"], "--poll_seconds must be"),
        (["virtual_devices.sh"], "number of devices is missing"),
        (["virtual_devices.sh", "four", "--config=a"], "number of devices must be"),
        (["virtual_devices.sh", "--devices=4"], "unknown option --devices"),
        (["gke.sh", "--name=n", "--image=i"], "--claim is missing"),
        (["gke.sh", "--name=n", "--image=i", "--claim=c", "--hosts=0"], "--hosts must be"),
        (["gke.sh", *POD, "--hosts=8"], "--topology=4x4 must have as many chips"),
        (["gke.sh", *POD, "--topology=16"], "--topology must be as 4x4"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_and_run_nothing(launch, arguments, message):
    done = launch(*arguments)
    assert done.returncode == 1 and launch.calls() == []
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


def printed_commands():
    """`(place, command)` of the launchers in the pages and at the launchers' heads."""
    for path in [ROOT / "README.md", ROOT / "docs" / "machines.md"]:
        text = re.sub(r"\[(`[^`]*`)\]\([^)]*\)", r"\1", path.read_text("utf-8"))  # links
        blocks = "".join(re.findall(r"```bash\n(.*?)```", text, re.S)).replace("\\\n", "")
        text = re.sub(r"```.*?```", "", text, flags=re.S)
        rows = [row.replace("`", "") for row in re.findall(r"^\| (.*?) \|", text, re.M)]
        spans = re.findall(r"`([^`]+)`", re.sub(r"^\|.*", "", text, flags=re.M))
        for command in [*rows, *blocks.splitlines(), *spans]:
            if re.match(r"((sbatch|bash|python) .*)?launch/\S+\.(sh|sbatch|py) ", command):
                yield path.name, command
    for script in SCRIPTS:
        head = re.match(r"(#.*\n)+", script.read_text())[0].replace("\\\n#", "")
        for command in re.findall(r"^#   (.*launch/.*)", head, re.M):
            yield script.name, re.sub(r"[][]", "", command)


PRINTED = list(printed_commands())


@pytest.mark.parametrize(("place", "command"), PRINTED, ids=str)
def test_launchers_take_the_commands_that_are_printed(launch, place, command):
    words = shlex.split(command)
    at = next(k for k, word in enumerate(words) if word.startswith("launch/"))
    script, arguments = words[at].removeprefix("launch/"), ["--dry_run", *words[at + 1 :]]
    if script == "sweep.py":
        command = [sys.executable, LAUNCH / script, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    else:
        done = launch(script, *arguments)
        assert launch.calls() == []
        assert at > 0 or os.access(LAUNCH / script, os.X_OK)
    assert done.returncode == 0, done.stderr
    assert "guided_distill.main" in done.stdout or "--delete" in words


def test_every_launcher_is_printed_on_the_page_and_at_its_head():
    scripts = {path.name for path in SCRIPTS} - {"common.sh", "tpu_common.sh"}
    on_the_page = " ".join(command for place, command in PRINTED if place == "machines.md")
    assert all(f"launch/{name} " in on_the_page for name in scripts | {"sweep.py"})
    assert {place for place, _ in PRINTED} == scripts | {"README.md", "machines.md"}


@pytest.mark.parametrize(
    "script",
    ["virtual_devices.sh", "local_multiprocess.sh", "tpu_pod.sh", "tpu_vm.sh", "gke.sh"],
)
def test_help_is_the_comment_at_the_top(launch, script):
    done = launch(script, "--help")
    assert done.returncode == 0 and f"launch/{script} " in done.stdout
    assert "set -euo" not in done.stdout and "#" not in done.stdout


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    done = subprocess.run(
        ["shellcheck", "-x", script.name], cwd=LAUNCH, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
