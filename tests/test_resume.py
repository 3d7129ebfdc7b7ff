"""A run that is killed, stopped and resumed, in processes of its own."""

import signal
import subprocess

import pytest
from conftest import command, environment, params_hashes

STAGES = ["teacher", "step_one", *(f"step_two/deterministic/{n:04d}" for n in (4, 2, 1))]


def how(workdir, config, env):
    """Arguments that start a run."""
    arguments = command(workdir, *([f"--config={config}"] if config else []))
    return dict(args=arguments, env=environment() | (env or {}), cwd=workdir.parent, text=True)


def run(workdir, config=None, env=None):
    return subprocess.run(**how(workdir, config, env), capture_output=True)


def run_until(line, workdir, signum, config=None, env=None):
    """Starts a run, sends `signum` once a line of its log holds `line`; exit code and log."""
    process = subprocess.Popen(
        **how(workdir, config, env), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    log = []
    for text in process.stderr:
        log.append(text)
        if line in text:
            process.send_signal(signum)
            log.extend(process.stderr)
            break
    return process.wait(timeout=120), "".join(log)


@pytest.mark.slow
def test_a_run_stopped_in_every_way_ends_with_the_params_of_an_unbroken_one(tmp_path):
    """kill -9 in step one, SIGTERM and Ctrl-C in step two; then the same command to the end."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    whole = run(unbroken)
    assert whole.returncode == 0, whole.stderr

    code, _ = run_until("step one: update", broken, signal.SIGKILL)
    assert code == -signal.SIGKILL and params_hashes(broken, STAGES)["teacher"] is not None
    code, log = run_until("round 1 of 3", broken, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, log
    assert "the same command goes on from here" in log and "Traceback" not in log
    code, log = run_until("round 2 of 3", broken, signal.SIGINT)
    assert code == 128 + signal.SIGINT, log
    assert "Traceback" not in log
    rest = run(broken)
    assert rest.returncode == 0, rest.stderr
    assert "student" in rest.stdout and "report:" in rest.stderr

    assert None not in params_hashes(unbroken, STAGES).values()
    assert params_hashes(broken, STAGES) == params_hashes(unbroken, STAGES)
    done = run(broken)
    assert done.returncode == 0 and "this run is finished" in done.stderr
