"""What a run shows of itself: a bar in a terminal, plain lines in a log, curves in TensorBoard."""

import collections
import contextlib
import os
import shutil
import sys
import time

from tqdm import tqdm

from guided_distill.system.processes import is_first

LINE_EVERY_SECONDS = 10.0
LATE_SECONDS = 20.0  # over which speed is measured: a pause is forgotten after them
MIN_BAR = 6 * " "


def to_stderr(message):
    """A line for the person at the terminal, whatever else is on the screen."""
    if is_first():
        with survive_closed_pipe("stderr"):
            tqdm.write(message, file=sys.stderr)


def to_stdout(result):
    """What a job was asked for, on standard output."""
    if is_first():
        with survive_closed_pipe("stdout"):
            print(result, flush=True)


@contextlib.contextmanager
def survive_closed_pipe(name):
    """Lets a run go on whose reader is gone, as of `| head`; nothing more is shown there."""
    try:
        yield
    except BrokenPipeError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), getattr(sys, name).fileno())


class Progress:
    """Progress of one stage or one evaluation, with the time left at the speed of late.

    Args:
      title: such as "step two, round 3 of 8 (N = 32)".
      total: number of steps.
      done: steps done before this process started.
      unit: what a step is.
      images_per_step: for the rate; 0 shows none.
      compiles: whether the first step takes long, because it is compiled.
      clock: seconds, rising.
    """

    def __init__(
        self, title, *, total, done=0, unit="update", images_per_step=0, compiles=True,
        clock=time.perf_counter,
    ):  # fmt: skip
        self.title, self.total, self.unit = title, total, unit
        self.images_per_step, self.clock = images_per_step, clock
        self.seen = collections.deque()  # (seconds, steps) of late
        self.last_line = -LINE_EVERY_SECONDS
        self.bar = None
        if not compiles:
            self._note(done)
        if sys.stderr.isatty() and is_first():
            self.bar = tqdm(
                desc=title,
                total=total,
                initial=done,
                unit=unit,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )
        else:
            to_stderr(f"{title}: {total - done} {unit}s to go{', compiling' if compiles else ''}")

    @property
    def images_per_second(self):
        """Of late; 0 until the second moment is known, as the first ends the compilation."""
        return self._steps_per_second * self.images_per_step

    def __call__(self, done, **metrics):
        """Shows that `done` steps are done, with the given numbers."""
        self._note(done)
        shown = [f"{name} {value:.4g}" for name, value in metrics.items()]
        if self.images_per_second:
            shown.append(f"{self.images_per_second:,.0f} images/s")
        if self._steps_per_second:
            shown.append(f"{in_clock((self.total - done) / self._steps_per_second)} left")
        if self.bar is not None:
            self.bar.n = done
            self.bar.set_postfix_str("  ".join(self._that_fit(shown)))
        elif self.clock() - self.last_line >= LINE_EVERY_SECONDS or done == self.total:
            self.last_line = self.clock()
            to_stderr("  ".join([f"{self.title}: {self.unit} {done}/{self.total}", *shown]))

    def close(self):
        """Leaves the bar's last state on the screen."""
        if self.bar is not None:
            self.bar.close()

    def _note(self, done):
        """Keeps what was done in the last seconds, and one step before it."""
        now = self.clock()
        self.seen.append((now, done))
        while len(self.seen) > 2 and now - self.seen[1][0] >= LATE_SECONDS:
            self.seen.popleft()

    @property
    def _steps_per_second(self):
        if len(self.seen) < 2:
            return 0.0
        (since, before), (now, done) = self.seen[0], self.seen[-1]
        return (done - before) / max(now - since, 1e-9)

    def _that_fit(self, shown):
        """The last of these, as many as a line has room for beside a short bar."""
        counts = f" 100%|{MIN_BAR}| {self.total}/{self.total}, "
        room = shutil.get_terminal_size().columns - len(self.title) - len(counts)
        while shown and len("  ".join(shown)) > room:
            shown = shown[1:]
        return shown


def in_clock(seconds):
    """'1:02:03', or '2:03' below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
