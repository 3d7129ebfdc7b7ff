"""The launchers: what they would run, what they run, and what they make of mistakes."""

import os
import shlex
import shutil
import signal
import subprocess
import time

import pytest
import yaml
from conftest import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
TOOLS = ("gcloud", "kubectl", "srun", "scontrol", "python")
MAIN = ["--config=configs/digits.py", "--config.w_range=(0.0, 4.0)", "--workdir=/shared/a run"]
SLICE = ["--name=slice", "--zone=zone", "--type=v5litepod-16"]


@pytest.fixture
def launch(tmp_path):
    """Runs a launcher with stand-ins for all tools, which note what they are called with.

    `answers` maps a tool to the body of its stand-in, which sees its arguments.
    """
    calls = tmp_path / "calls"

    def launch(script, *arguments, answers=(), start=subprocess.run):
        calls.write_text("")
        for tool in TOOLS:
            stub = tmp_path / "bin" / tool
            stub.parent.mkdir(exist_ok=True)
            body = dict(answers).get(tool, "exit 0")
            stub.write_text(f"#!/bin/bash\nprintf '%s\\0' {tool} \"$@\" '' >> {calls}\n{body}\n")
            stub.chmod(0o755)
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        return start(
            ["bash", LAUNCH / script, *arguments],
            env={key: value for key, value in environment.items() if key != "PYTHON"},
            **(dict(capture_output=True, text=True) if start is subprocess.run else {}),
        )

    launch.calls = lambda: [call.split("\0") for call in calls.read_text().split("\0\0") if call]
    return launch


def commands_of(output):
    return [shlex.split(line) for line in output.splitlines()]


def assert_main_gets(command):
    """The arguments of main, blanks and brackets included, end a command."""
    assert command[-len(MAIN) :] == MAIN


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
    assert [command[4] for command in commands] == ["create", "scp", "ssh", "ssh", "ssh"]
    assert all("--zone=zone" in command and "--project=p" in command for command in commands)
    create, copy, install, start, follow = commands
    assert {"slice", "--accelerator-type=v5litepod-16", "--spot"} < set(create)
    assert "slice:guided_distill" in copy and f"--worker={workers}" in copy
    assert f"--worker={workers}" in install and f"--worker={workers}" in start
    assert "--worker=0" in follow
    script_on_worker = next(a for a in start if a.startswith("--command="))
    assert ("--distributed" in script_on_worker) == (workers == "all")


def test_main_gets_its_arguments_whole_on_the_workers(launch, tmp_path):
    """What the start command does on a worker, done here with a stand-in for the interpreter."""
    done = launch("tpu_pod.sh", "--dry_run", *SLICE, "--", *MAIN)
    start = commands_of(done.stdout)[3]
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
            [[ $x == ABSENT ]] && exit 1; echo "$x";;
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


@pytest.mark.parametrize(
    ("states", "codes", "expected", "code"),
    [
        (["ABSENT"], [0], ["create", "follow"], 0),
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
    done = launch("tpu_pod.sh", *SLICE, "--max_restarts=2", "--", *MAIN, answers=answers)
    assert steps(launch.calls()) == expected, done.stderr
    assert done.returncode == code


@pytest.mark.parametrize("script", ["tpu_pod.sh", "tpu_vm.sh"])
def test_a_slice_is_deleted_on_request(launch, script):
    assert launch(script, "--name=slice", "--zone=zone", "--delete").returncode == 0
    assert [call[4:6] for call in launch.calls()] == [["delete", "slice"]]


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
    filled = ["--name=run", "--image=image:1", "--claim=disk", "--hosts=16", "--topology=8x8"]
    done = launch("gke.sh", "--dry_run", *filled, "--", *MAIN)
    assert launch.calls() == [] and "@" not in done.stdout
    service, job = yaml.safe_load_all(done.stdout)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completions"] == spec["parallelism"] == 16
    assert service["metadata"]["name"] == pod["subdomain"] == job["metadata"]["name"] == "run"
    assert service["spec"]["selector"] == {"job-name": "run"}
    container = pod["containers"][0]
    assert container["command"][3] == "--distributed"
    assert_main_gets(container["command"])
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "8x8"
    fail, ignore = spec["podFailurePolicy"]["rules"]
    assert fail["onExitCodes"]["values"] == [1] and ignore["action"] == "Ignore"


def test_kubernetes_applies_the_manifest(launch, tmp_path):
    answers = {"kubectl": f"[[ $1 == apply ]] && cat > {tmp_path / 'applied'}; exit 0"}
    launch("gke.sh", "--name=run", "--image=i", "--claim=c", "--", *MAIN, answers=answers)
    assert [call[1] for call in launch.calls()] == ["apply", "logs"]
    kinds = [part["kind"] for part in yaml.safe_load_all((tmp_path / "applied").read_text())]
    assert kinds == ["Service", "Job"]


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
        (["gke.sh", "--name=n", "--image=i"], "--claim is missing"),
        (["gke.sh", "--name=n", "--image=i", "--claim=c", "--hosts=0"], "--hosts must be"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_and_run_nothing(launch, arguments, message):
    done = launch(*arguments)
    assert done.returncode == 1 and launch.calls() == []
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.parametrize("script", ["local_multiprocess.sh", "tpu_pod.sh", "tpu_vm.sh", "gke.sh"])
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
