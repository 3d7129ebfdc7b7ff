"""Sweeps: what they run, what a failed run does to the others, and what is left at the end."""

import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, SMALL, environment

from guided_distill.errors import UserError

# Stands for a run: crashes once where its seed is 2, and leaves a report.
FAKE_MAIN = """
import json, pathlib, sys
flags = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
seed = int(flags["config.seed"])
if seed == 2 and not (workdir / "crashed").exists():
    (workdir / "crashed").touch()
    sys.exit(137)
if (workdir / "report").exists():
    sys.exit(print("this run is finished"))
(workdir / "report").mkdir()
rows = [dict(model="student", num_steps=n, w=w, fid=seed + n + w) for n in (1, 4) for w in (0.0, 2.0)]
(workdir / "report" / "results.json").write_text(json.dumps({"rows": rows}))
"""


@pytest.fixture(scope="module")
def sweep():
    path = ROOT / "launch" / "sweep.py"
    spec = importlib.util.spec_from_file_location("sweep", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sweeps_multiply_and_points_add(sweep):
    runs = sweep.expand(
        ["config.seed=0,1", "config.evaluation.w=(0.0,1.0),(2.0,)"],
        ["config.seed=7 config.teacher.num_updates=5"],
    )
    assert runs == [
        {"seed": "0", "evaluation.w": "(0.0,1.0)"},
        {"seed": "0", "evaluation.w": "(2.0,)"},
        {"seed": "1", "evaluation.w": "(0.0,1.0)"},
        {"seed": "1", "evaluation.w": "(2.0,)"},
        {"seed": "7", "teacher.num_updates": "5"},
    ]
    assert sweep.name_of(runs[0]) == "seed=0,evaluation.w=(0.0,1.0)"
    assert len(set(map(sweep.name_of, runs))) == 5
    odd = {"data.path": "/a b/c"}
    assert "/" not in sweep.name_of(odd) and " " not in sweep.name_of(odd)


@pytest.mark.parametrize(
    ("sweeps", "points", "message"),
    [
        ([], [], "nothing varies"),
        (["config.step_on.learning_rate=1"], [], r"unknown config key step_on.learning_rate"),
        ([], ["config.sead=1"], r"unknown config key sead \(did you mean seed\?\)"),
        (["seed=1"], [], "takes config.key=value, got 'seed=1'"),
        (["config.seed="], [], "takes config.key=value"),
        (["config.seed=1,1"], [], "holds seed=1 more than once"),
    ],
)
def test_sweeps_that_cannot_run_are_refused(sweep, sweeps, points, message):
    with pytest.raises(UserError, match=message):
        sweep.expand(sweeps, points)


def test_a_crash_stops_no_other_run_and_the_same_command_goes_on(sweep, tmp_path, monkeypatch):
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE_MAIN)
    command_of = sweep.command_of

    def fake_command(*args):
        command = command_of(*args)
        assert command[1:3] == ["-m", "guided_distill.main"]
        return [command[0], str(fake), *command[3:]]

    monkeypatch.setattr(sweep, "command_of", fake_command)
    runs = sweep.expand(["config.seed=0,1,2,3,4,5"], [])
    workdir = tmp_path / "sweep"
    codes = sweep.run_all(runs, workdir, ["--config=x"], jobs=2)
    assert codes == {f"seed={seed}": 137 if seed == 2 else 0 for seed in range(6)}
    assert sweep.compare(runs, workdir).count("seed=") == 5
    codes = sweep.run_all(runs, workdir, ["--config=x"], jobs=2)
    assert set(codes.values()) == {0}
    assert "this run is finished" in (workdir / "seed=0" / "log.txt").read_text()
    table = sweep.compare(runs, workdir)
    assert "| run    | N = 1, w = 0 | N = 1, w = 2 | N = 4, w = 0 | N = 4, w = 2 |" in table
    assert "| seed=2 |         3.00 |         5.00 |         6.00 |         8.00 |" in table
    assert (workdir / "sweep.md").read_text().strip() == table
    assert (workdir / "sweep.png").stat().st_size > 10_000


def run(*arguments):
    return subprocess.run(
        [sys.executable, "launch/sweep.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_commands_are_printed_or_listed_and_nothing_runs(tmp_path):
    arguments = [
        "--config=configs/digits.py:smoke",
        f"--workdir={tmp_path / 'sweep'}",
        "--sweep=config.step_one.learning_rate=1e-3,4e-3",
        "--stage=step_one",
    ]
    printed = run(*arguments, "--dry_run")
    assert printed.returncode == 0, printed.stderr
    lines = printed.stdout.splitlines()
    assert len(lines) == 2
    for line, rate in zip(lines, ("1e-3", "4e-3"), strict=True):
        assert "-m guided_distill.main --config=configs/digits.py:smoke --stage=step_one" in line
        assert line.endswith(f"--config.step_one.learning_rate={rate}")
    jobs = tmp_path / "jobs.txt"
    assert run(*arguments, f"--job_list={jobs}").returncode == 0
    assert jobs.read_text().splitlines() == lines
    assert not pathlib.Path(tmp_path / "sweep").exists()


def test_mistakes_are_one_line():
    for arguments, message in (
        (["--sweep=config.seed=1"], "--workdir is missing"),
        (["--workdir=x", "--sweep=config.foo=1"], "unknown config key foo"),
    ):
        refused = run(*arguments)
        assert refused.returncode == 1 and message in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_run_that_is_refused_is_named_with_its_log(tmp_path):
    done = run(
        "--config=configs/digits.py:smoke",
        f"--workdir={tmp_path}",
        "--sweep=config.teacher.loss=wrong",
    )
    assert done.returncode == 1
    assert "failed with exit code 1: teacher.loss=wrong: see" in done.stderr
    assert "no run has a report yet" in done.stdout
    assert (
        "teacher.loss must be one of" in (tmp_path / "teacher.loss=wrong" / "log.txt").read_text()
    )


@pytest.mark.slow
def test_a_sweep_of_real_runs_survives_a_killed_run_and_a_restart(tmp_path):
    """Four small runs, two at a time; one is killed while it trains, and the sweep started anew."""
    workdir = tmp_path / "sweep"
    arguments = [
        sys.executable, ROOT / "launch" / "sweep.py", f"--workdir={workdir}", "--jobs=2",
        "--sweep=config.step_one.learning_rate=1e-3,4e-3", "--sweep=config.seed=0,1",
        f"--config={SMALL}",
    ]  # fmt: skip
    victim = workdir / "step_one.learning_rate=4e-3,seed=1"
    others = 3

    def run(kill):
        process = subprocess.Popen(
            arguments, text=True, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        while kill and process.poll() is None:
            log = victim / "log.txt"
            if log.exists() and "update" in log.read_text():
                number = re.search(r"process (\d+)", (victim / "lock").read_text())[1]
                os.kill(int(number), signal.SIGKILL)
                kill = False
            time.sleep(0.05)
        output, log = process.communicate()
        return process.returncode, output, log

    code, output, log = run(kill=True)
    assert code == 1 and f"failed with exit code -9: {victim.name}" in log
    assert output.count("learning_rate=") == others and victim.name not in output
    finished = {path: path.stat().st_mtime_ns for path in workdir.glob("*/teacher/stage.json")}
    code, output, log = run(kill=False)
    assert code == 0 and output.count("learning_rate=") == others + 1 and victim.name in output
    assert (workdir / "sweep.md").read_text().strip() == output.strip()
    assert (workdir / "sweep.png").stat().st_size > 10_000
    assert len(finished) >= others
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
