"""Ctrl-C while the program is imported ends it at once; an ignored one does nothing."""

import signal
import subprocess
import sys

import pytest
from conftest import ROOT, environment

# The program, sent SIGINT just when it looks for a module; a finder is called in the midst of
# imports. Whatever the tests inherited is put aside first.
PROGRAM = """
import os, runpy, signal, sys

class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            print("sent", flush=True)
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.{handler})
sys.meta_path.insert(0, Sender())
runpy.run_module("guided_distill.main", run_name="__main__", alter_sys=True)
"""


def run_program(name, handler="default_int_handler", *arguments):
    """The command line, sent SIGINT when it imports `name`."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name=name, handler=handler), *arguments],
        env=environment(), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "jax",
        "jaxlib.cpu_feature_guard",
        "guided_distill.training.loop",
        "guided_distill.run.settings",
        "guided_distill.jobs.train",
    ],
)
def test_ctrl_c_in_an_import_ends_the_program_at_once(name, tmp_path):
    config = ["--config=configs/digits.py:smoke", f"--workdir={tmp_path / 'run'}"]
    ended = run_program(name, "default_int_handler", *config)
    assert ended.stdout == "sent\n"
    assert ended.returncode == -signal.SIGINT and ended.stderr == ""
    assert not (tmp_path / "run").exists()


def test_an_ignored_interrupt_stays_ignored():
    ended = run_program("guided_distill.run.settings", "SIG_IGN", "--workdir=")
    assert ended.stdout == "sent\n" and ended.returncode == 1
    assert ended.stderr.startswith("error: ") and "Traceback" not in ended.stderr
