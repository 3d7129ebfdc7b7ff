"""What a person sees of a run: lines that fit, and a time left that is right."""

import io
import re

import pytest

from guided_distill.system import progress as progress_module
from guided_distill.system.progress import Progress, in_clock


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """A standard error that a person looks at."""

    def isatty(self):
        return True


def left_of(line):
    """Seconds left that a line says, or None."""
    match = re.search(r"(?:(\d+):)?(\d+):(\d+) left", line)
    return match and sum(60**k * int(part or 0) for k, part in enumerate(match.groups()[::-1]))


def say_progress(steps, capsys, **settings):
    """The lines of `(seconds that pass, steps done)`."""
    clock = Clock()
    progress = Progress("step one", total=1000, images_per_step=64, clock=clock, **settings)
    for seconds, done in steps:
        clock.now += seconds
        progress(done, loss=0.5)
    return capsys.readouterr().err.splitlines()


def test_the_time_left_leaves_the_compilation_out(capsys):
    first, second, third = say_progress([(300, 1), (10, 11), (10, 21)], capsys)[1:]
    assert left_of(first) is None and "images/s" not in first
    assert left_of(second) == 989 and left_of(third) == 979 and "64 images/s" in third


@pytest.mark.parametrize("pause", [60, 3600])
def test_half_a_minute_after_a_pause_the_time_left_is_right(pause, capsys):
    before = [(1, done) for done in range(1, 101)]
    after = [(pause, 101), *((1, done) for done in range(102, 132))]
    last = say_progress(before + after, capsys)[-1]
    done = int(re.search(r"update (\d+)/", last)[1])
    assert done >= 121 and abs(left_of(last) - (1000 - done)) <= 0.3 * (1000 - done)


def test_a_resumed_run_counts_only_its_own_steps(capsys):
    assert left_of(say_progress([(30, 901), (10, 911)], capsys, done=900)[-1]) == 89


@pytest.mark.parametrize(
    "title", ["step one", "step two, round 10 of 10 (N = 1)", "single_w, round 12 of 12 (N = 1024)"]
)
def test_no_line_in_a_terminal_is_longer_than_80_columns(title, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    clock, terminal = Clock(), Terminal()
    monkeypatch.setattr(progress_module.sys, "stderr", terminal)
    progress = Progress(title, total=400_000, images_per_step=2048, clock=clock)
    for done in range(0, 4001, 1000):
        clock.now += 500
        progress(done, loss=1.2345e-5)
    progress.close()
    lines = [line for line in re.split(r"[\r\n]", terminal.getvalue()) if line.strip()]
    assert max(map(len, lines)) <= 80
    assert left_of(lines[-1]) == 198_000 and "|" in lines[-1]


def test_times_as_clocks_show_them():
    assert [in_clock(s) for s in (0.4, 59.7, 3599.6, 3661)] == [
        "0:00",
        "1:00",
        "1:00:00",
        "1:01:01",
    ]
