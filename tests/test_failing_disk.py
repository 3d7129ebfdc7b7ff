"""A disk that fails while checkpoints or finished parameters are saved: one error, nothing lost."""

import errno
import logging
import os
import re
import shutil
import subprocess
import sys
import threading

import jax.numpy as jnp
import pytest
from campaign import compile_faults, read_ops
from conftest import environment

from guided_distill.errors import UserError
from guided_distill.system import echoes
from guided_distill.system.echoes import without_echoes
from guided_distill.system.files import load_params, save_params, tree_sha256
from guided_distill.training.checkpoint import Checkpoints
from guided_distill.training.metric_writer import make_metric_writer
from guided_distill.training.optimizer import make_optimizer
from guided_distill.training.state import init_state

OPTIMIZER = make_optimizer(clip_norm=1.0, adam_b1=0.9, adam_b2=0.999, adam_eps=1e-8)
SAVING = """
import sys

import numpy as np
from test_failing_disk import make_states

from guided_distill.errors import UserError
from guided_distill.system.files import save_params
from guided_distill.training.checkpoint import Checkpoints

folder, states = sys.argv[1], make_states()
try:
    with Checkpoints(f"{folder}/checkpoints") as checkpoints:
        checkpoints.restore(states[0])
        for state in states:
            checkpoints.save(state)
    save_params(f"{folder}/params", {"w": np.ones(3)})
except UserError as error:
    sys.exit(f"error: {error}")
"""


def make_states(numbers=(1, 2, 3)):
    """Tiny states of some updates, no two alike."""
    state = init_state({"w": jnp.arange(6.0), "b": {"c": jnp.ones(3)}}, OPTIMIZER, keep_ema=True)
    return [
        state.replace(
            update=jnp.int32(u), params={"w": jnp.arange(6.0) * u, "b": {"c": jnp.ones(3)}}
        )
        for u in numbers
    ]


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of updates 1 and 2."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for state in make_states((1, 2)):
            checkpoints.save(state)
    return tmp_path / "checkpoints"


def fail_on(monkeypatch, name, number):
    """Lets a function of `os` fail for what lies in a checkpoint that is not finished."""
    real = getattr(os, name)

    def fail(path, *args, **kwargs):
        if "orbax-checkpoint-tmp" in str(path):
            raise OSError(number, os.strerror(number), path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("name", ["makedirs", "mkdir", "rename"])
def test_a_disk_that_fails_as_a_checkpoint_is_saved_is_one_error(
    saved, monkeypatch, capfd, number, name
):
    template, *later = make_states((2, 4, 6))
    with (
        monkeypatch.context() as failing,
        pytest.raises(UserError) as raised,
        Checkpoints(saved) as checkpoints,
    ):
        fail_on(failing, name, number)
        for state in later:
            checkpoints.save(state)
    assert re.search(rf"checkpoints cannot be .*\({os.strerror(number)}\)", str(raised.value))
    assert capfd.readouterr().err == ""
    with Checkpoints(saved) as checkpoints:
        assert tree_sha256(checkpoints.restore(template)) == tree_sha256(template)
        assert checkpoints.notices == []
        checkpoints.save(later[0])
    assert sorted(path.name for path in saved.iterdir()) == ["2", "4"]


@pytest.mark.parametrize("name", ["makedirs", "rename"])
def test_a_disk_that_fails_as_parameters_are_saved_is_one_error(tmp_path, monkeypatch, capfd, name):
    params = {"w": jnp.ones(3)}
    with monkeypatch.context() as failing:
        fail_on(failing, name, errno.ENOSPC)
        with pytest.raises(UserError, match="params cannot be written: .*No space left on device"):
            save_params(tmp_path / "params", params)
    assert capfd.readouterr().err == ""
    load_params(tmp_path / "params", save_params(tmp_path / "params", params))


def test_an_old_checkpoint_that_cannot_be_removed_costs_no_other(saved, monkeypatch, capfd):
    def no_removal(path, *args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    (state,) = make_states((3,))
    with (
        monkeypatch.context() as failing,
        pytest.raises(UserError, match="checkpoints cannot be used .Input/output error."),
        Checkpoints(saved) as checkpoints,
    ):
        failing.setattr(shutil, "rmtree", no_removal)
        checkpoints.save(state)
    assert capfd.readouterr().err == ""
    with Checkpoints(saved) as checkpoints:
        assert tree_sha256(checkpoints.restore(state)) == tree_sha256(state)


def end_lingering():
    """Ends at once what contexts that ended in an error have left in place."""
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer) and thread.function is echoes._leave:
            thread.cancel()
            thread.join()
            thread.function()


def test_hooks_are_as_before_when_the_last_context_ends():
    end_lingering()  # Of other tests.
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]

    def hooks():
        return sys.unraisablehook, [list(logger.filters) for logger in loggers]

    before = hooks()
    with without_echoes():
        within = hooks()
        with without_echoes():
            pass
        assert hooks() == within != before
    assert hooks() == before
    with pytest.raises(OSError), without_echoes():
        raise OSError
    assert hooks() == within  # Other threads have yet to end.
    end_lingering()
    assert hooks() == before


def test_only_what_orbax_repeats_is_kept_off_the_screen():
    def passes(logger, pathname, message, exc_info=None, args=()):
        record = logging.LogRecord(logger, logging.ERROR, pathname, 1, message, args, exc_info)
        return bool(logging.getLogger(logger).filter(record))

    error = (OSError, OSError(errno.EIO, "x"), None)
    with without_echoes():
        assert not passes("absl", "/x/orbax/checkpoint/futures.py", "it failed", error)
        assert not passes("absl", "/x/orbax/checkpoint/deleter.py", "Error at %s", args=error[1:2])
        assert not passes(
            "absl", "/x/orbax/checkpoint/atomicity.py", f"It is there. {echoes.LEFTOVER}"
        )
        assert passes("absl", "/x/orbax/checkpoint/futures.py", "a word")
        assert passes("absl", "/x/clu/parameters.py", "it failed", error)
        assert not passes("asyncio", "base_events.py", "Task exception was never retrieved\nmore")
        assert passes("asyncio", "base_events.py", "Executing took long")


def test_curves_that_cannot_be_written_raise_where_they_are_written(tmp_path, monkeypatch):
    """In no thread of their own, in which nobody would catch it."""
    writer = make_metric_writer(tmp_path)
    threads = threading.active_count()
    writer.write_scalars(1, {"loss": 2.0})
    writer.flush()
    assert threading.active_count() == threads

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        writer.flush()


class Disk:
    """Runs `SAVING` with the faults of a plan, each time with a process of its own."""

    def __init__(self, base, compiler):
        self.base, self.log = base, base / "ops"
        self.faults = compile_faults(compiler, base / "faults.so")
        assert self.save(base / "whole").returncode == 0
        self.writes = sum(op[0] == "change" for op in read_ops(self.log))

    def save(self, folder, **plan):
        folder.mkdir(exist_ok=True)
        told = {f"FAULT_{name.upper()}": str(value) for name, value in plan.items()}
        told |= {"FAULT_BELOW": f"{folder}/", "FAULT_LOG": str(self.log)}
        return subprocess.run(
            [sys.executable, "-c", SAVING, folder], cwd=os.path.dirname(__file__),
            env=environment() | told | {"LD_PRELOAD": str(self.faults)},
            capture_output=True, text=True, timeout=200,
        )  # fmt: skip


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to make tests/faults.c with")
    return Disk(tmp_path_factory.mktemp("disk"), shutil.which("cc"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "times", "share"),
    [
        ("ENOSPC", 0, 0.1),
        ("EROFS", 0, 0.25),
        ("ENOSPC", 1, 0.4),
        ("EIO", 1, 0.55),
        ("EDQUOT", 0, 0.7),
        ("ENOSPC", 0, 0.85),
        ("EIO", 1, 0.95),
    ],
)
def test_whatever_of_its_writes_fails_is_one_line(disk, tmp_path, error, times, share):
    """At some share of them; the same program afterwards ends as if nothing had been."""
    number = getattr(errno, error)
    failed = disk.save(
        tmp_path, kind="write", at=int(share * disk.writes), times=times, errno=number
    )
    line = rf"error: .*/(checkpoints|params) cannot be .*{os.strerror(number)}.*\n"
    harmless = (failed.returncode, failed.stderr) == (0, "")  # An `unlink` of what is not there.
    assert re.fullmatch(line, failed.stderr) or harmless, failed.stderr
    again = disk.save(tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert {"2", "3"} <= {path.name for path in (tmp_path / "checkpoints").iterdir()}
