"""Several processes on loopback: the params of one, and what happens when one of them fails."""

import pathlib
import shutil
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import optax
import pytest
from conftest import ROOT, command, environment, params_hashes

from guided_distill.system import processes
from guided_distill.system.files import load_params, read_json
from guided_distill.system.watch import LOST_EXIT

STAGES = ("teacher", "step_one")
LONGER = ("--config.teacher.num_updates=40", "--config.checkpoint_every=8")  # To be stopped in.
TOLERANCE = 1e-5  # of the whole tree: the gradient's sum is taken in another order


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts one process of a run, with virtual devices; its log is the file `process.log`."""
    base = tmp_path_factory.mktemp("logs")
    started = []

    def start(workdir, *arguments, devices=2, cwd=None):
        path = base / f"{len(started)}.txt"
        with open(path, "w") as log:
            process = subprocess.Popen(
                command(workdir, *LONGER, *arguments), env=environment(devices), cwd=cwd,
                stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip
        process.log = path
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture(scope="module")
def start_two(start):
    """Starts both processes of a run."""

    def start_two(workdir, *arguments, differing=()):
        meet = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
        return [
            start(workdir, *meet, f"--process_id={k}", *arguments, *(differing if k else ()))
            for k in range(2)
        ]

    return start_two


def finish(*running):
    """(exit codes, logs) of processes, once all have ended."""
    codes = [process.wait(timeout=300) for process in running]
    return codes, [process.log.read_text() for process in running]


def wait_for_checkpoint(workdir, update, process):
    folder = workdir / "teacher" / "checkpoints"
    while not any(p.name.isdigit() and int(p.name) >= update for p in folder.glob("*")):
        assert process.poll() is None, process.log.read_text()
        time.sleep(0.02)


def params_of(workdir, stage):
    folder = workdir / stage
    return load_params(folder / "params", read_json(folder / "stage.json")["params_sha256"])


def assert_same_params(there, here, stages=STAGES):
    for stage in stages:
        a, b = params_of(there, stage), params_of(here, stage)
        difference = optax.tree.norm(jax.tree.map(np.subtract, a, b))
        assert difference <= TOLERANCE * optax.tree.norm(b), stage


@pytest.fixture(scope="module")
def unbroken(start_two, tmp_path_factory):
    """A workdir of two processes of two devices each."""
    workdir = tmp_path_factory.mktemp("unbroken")
    for stage, last in zip(STAGES, ("update 40/40", "update 8/8"), strict=True):
        codes, logs = finish(*start_two(workdir, f"--stage={stage}"))
        assert codes == [0, 0], logs
        assert last in logs[0]
        assert "update" not in logs[1]  # One process speaks.
    return workdir


@pytest.mark.slow
def test_two_processes_end_with_the_params_of_one(unbroken, start, tmp_path):
    """2 processes x 2 devices, 1 x 4 and 1 x 1."""
    for stage in STAGES:
        codes, logs = finish(
            *(start(tmp_path / str(n), f"--stage={stage}", devices=n) for n in (4, 1))
        )
        assert codes == [0, 0], logs
    for devices in (4, 1):
        assert_same_params(unbroken, tmp_path / str(devices))


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_restart_is_bit_identical(
    unbroken, start_two, tmp_path
):
    for victim, update in ((0, 8), (1, 24)):
        running = start_two(tmp_path, "--stage=teacher")
        wait_for_checkpoint(tmp_path, update, running[0])
        running[victim].kill()
        codes, logs = finish(*running)
        assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == LOST_EXIT, logs
        assert f"error: process {victim} of this run is gone" in logs[1 - victim]
        assert "Traceback" not in logs[1 - victim]
    codes, logs = finish(*start_two(tmp_path, "--stage=teacher"))
    assert codes == [0, 0] and "going on from update" in logs[0], logs
    assert params_hashes(tmp_path, STAGES[:1]) == params_hashes(unbroken, STAGES[:1])


@pytest.mark.slow
def test_sigterm_to_one_process_saves_in_all_and_other_devices_go_on(
    unbroken, start_two, start, tmp_path
):
    running = start_two(tmp_path, "--stage=teacher")
    wait_for_checkpoint(tmp_path, 8, running[0])
    running[1].send_signal(signal.SIGTERM)
    codes, logs = finish(*running)
    assert codes == [128 + signal.SIGTERM] * 2, logs
    assert "stopped by SIGTERM: the same command goes on from here" in logs[0]
    saved = max(int(path.name) for path in (tmp_path / "teacher" / "checkpoints").iterdir())
    assert 8 <= saved < 40
    codes, logs = finish(start(tmp_path, "--stage=teacher", "--config.mesh.fsdp=2", devices=4))
    assert codes == [0] and f"going on from update {saved}" in logs[0], logs
    assert_same_params(unbroken, tmp_path, STAGES[:1])


@pytest.mark.slow
def test_parameters_split_over_processes_are_saved_and_damage_is_agreed_on(
    unbroken, start_two, tmp_path
):
    """With fsdp over both processes neither holds the whole state."""
    split = ["--config.mesh.fsdp=4", "--stage=teacher"]
    running = start_two(tmp_path, *split)
    wait_for_checkpoint(tmp_path, 16, running[0])
    running[1].kill()
    finish(*running)
    checkpoints = tmp_path / "teacher" / "checkpoints"
    newest = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    data = max((checkpoints / str(newest)).rglob("d/*"), key=lambda path: path.stat().st_size)
    data.write_bytes(b"\0" * data.stat().st_size)
    codes, logs = finish(*start_two(tmp_path, *split))
    assert codes == [0, 0], logs
    assert f"checkpoints/{newest} is damaged" in logs[0]
    assert "Traceback" not in logs[0] + logs[1]
    assert_same_params(unbroken, tmp_path, STAGES[:1])


@pytest.mark.slow
def test_the_launcher_runs_rounds_and_evaluation_and_they_are_those_of_one_process(
    unbroken, start, tmp_path
):
    """`local_multiprocess.sh` goes on from step one; one process measures the same models again."""
    both, one = tmp_path / "both", tmp_path / "one"
    shutil.copytree(unbroken, both)
    launcher = [ROOT / "launch" / "local_multiprocess.sh", "--processes=2"]
    done = subprocess.run(
        [*launcher, "--devices_per_process=2", "--", *command(both)[3:], *LONGER],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| full teacher |") == 2  # Two tables, told by one process.
    shutil.copytree(both, one, ignore=shutil.ignore_patterns("report", "evaluation"))
    codes, logs = finish(start(one, "--mode=evaluate", devices=1))
    assert codes == [0], logs
    rows, rows_of_one = (
        read_json(workdir / "report" / "results.json")["rows"] for workdir in (both, one)
    )
    assert len(rows) == len(rows_of_one) > 10
    for row, row_of_one in zip(rows, rows_of_one, strict=True):
        assert (row["model"], row["w"]) == (row_of_one["model"], row_of_one["w"])
        for metric in ("fid", "rmse_to_teacher"):
            assert row[metric] == pytest.approx(row_of_one[metric], rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_processes_that_differ_are_refused(start_two, tmp_path):
    codes, logs = finish(
        *start_two(tmp_path, differing=["--config.step_one.learning_rate=0.25", "--stage=teacher"])
    )
    assert codes == [1, 1]
    assert "error: process 1 differs from process 0 in" in logs[0]
    assert "step_one.learning_rate" in logs[0] and "--stage: None there, 'teacher' here" in logs[0]
    assert not (tmp_path / "teacher").exists()


@pytest.mark.slow
def test_a_workdir_of_each_process_own_is_refused(start, tmp_path):
    meet = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--stage=teacher"]
    running = []
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        running.append(start("run", *meet, f"--process_id={k}", cwd=tmp_path / str(k)))
    codes, logs = finish(*running)
    assert codes == [1, 1]
    assert "error: process 1 does not see what process 0 writes: its run on" in logs[0]
    assert not list(tmp_path.glob("*/run/shared-*"))


def test_the_digest_of_the_code_sees_a_changed_file(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("x = 1\n")
    assert pathlib.Path(processes.__file__).parents[1].name == "guided_distill"
    monkeypatch.setattr(processes, "__file__", str(tmp_path / "system" / "processes.py"))
    before = processes.code_digest()
    assert processes.code_digest() == before
    (tmp_path / "a.py").write_text("x = 2\n")
    assert processes.code_digest() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1"], "did not meet at"),
        (["--coordinator=nowhere", "--num_processes=2", "--process_id=1"], "must be host:port"),
        (["--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=2"], "process_id=2"),
        (["--num_processes=2", "--process_id=1"], "--coordinator"),
        (["--distributed"], "name --coordinator, --num_processes and --process_id"),
        (["--coordinator=127.0.0.1:9", "--mode=prepare_data"], "is the work of one process"),
    ],
    ids=str,
)
def test_processes_that_cannot_meet_say_so_in_bounded_time(start, tmp_path, arguments, message):
    codes, logs = finish(start(tmp_path, "--join_timeout=3", *arguments))
    assert codes == [1]
    errors = [line for line in logs[0].splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in logs[0]


def test_a_port_that_is_taken_is_named(start, tmp_path):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        meet = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--process_id=0"]
        codes, logs = finish(start(tmp_path, *meet))
    assert codes == [1] and f"port {port} cannot be opened here" in logs[0]
