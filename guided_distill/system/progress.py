"""What a run shows of itself: a bar in a terminal, plain lines in a log, curves in TensorBoard."""

import contextlib
import os
import sys
import time

from tqdm import tqdm

from guided_distill.system.processes import is_first

LINE_EVERY_SECONDS = 10.0


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
    """Progress of one stage or one evaluation.

    Args:
      title: such as "step two, round 3 of 8 (N = 32)".
      total: number of steps.
      done: steps done before this process started.
      unit: what a step is.
      images_per_step: for the rate; 0 shows none.
      compiles: whether the first step takes long, because it is compiled.
    """

    def __init__(self, title, *, total, done=0, unit="update", images_per_step=0, compiles=True):
        self.title, self.total, self.unit = title, total, unit
        self.images_per_step = images_per_step
        self.done, self.first = done, done
        self.started = time.perf_counter()
        self.last_line = 0.0
        self.bar = None
        if sys.stderr.isatty() and is_first():
            self.bar = tqdm(
                desc=title,
                total=total,
                initial=done,
                unit=unit,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}"
                "{postfix} [{elapsed}<{remaining}]",
            )
        else:
            to_stderr(f"{title}: {total - done} {unit}s to go{', compiling' if compiles else ''}")

    @property
    def images_per_second(self):
        """Mean rate since this process began the stage."""
        elapsed = time.perf_counter() - self.started
        return (self.done - self.first) * self.images_per_step / max(elapsed, 1e-9)

    def __call__(self, done, **metrics):
        """Shows that `done` steps are done, with the given numbers."""
        self.done = done
        shown = [f"{name} {value:.4g}" for name, value in metrics.items()]
        if self.images_per_step:
            shown.append(f"{self.images_per_second:,.0f} images/s")
        if self.bar is not None:
            self.bar.n = done
            self.bar.set_postfix_str("  ".join(shown))
        elif time.perf_counter() - self.last_line > LINE_EVERY_SECONDS or done == self.total:
            self.last_line = time.perf_counter()
            left = self._seconds_left()
            shown.append(f"{left // 60:.0f}:{left % 60:02.0f} left")
            to_stderr(f"{self.title}: {self.unit} {done}/{self.total}  {'  '.join(shown)}")

    def close(self):
        """Leaves the bar's last state on the screen."""
        if self.bar is not None:
            self.bar.close()

    def _seconds_left(self):
        elapsed = time.perf_counter() - self.started
        return elapsed / max(1, self.done - self.first) * (self.total - self.done)
