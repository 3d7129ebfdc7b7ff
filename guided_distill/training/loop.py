"""One stage's updates, from its newest checkpoint to its last update."""

import os
import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from guided_distill.errors import UserError
from guided_distill.system.processes import several


class Interrupted(Exception):
    """The run was asked to stop; its state is on disk.

    Attributes:
      signum: the signal that asked.
    """

    def __init__(self, signum):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """Within this context SIGINT, SIGTERM and SIGHUP wait for `check`; a second SIGINT does not.

    A SIGHUP that is ignored, as under nohup, stays so. Where Python lets no handler be set, in a
    thread that is not the main one, signals do what they did before.

    Of several processes one signal is enough. JAX then listens for SIGTERM and lets them agree on
    the update to stop at, so all of them ask `came` or `check` at the same points.
    """

    def __init__(self):
        self._received = None
        self._previous = {}
        self._times_asked = 0

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        signums = [signal.SIGINT] if several() else [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signums.append(signal.SIGHUP)
        for signum in signums:
            self._previous[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, *exc_info):
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if several() and self._previous:  # What comes now ends the process: all is saved.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def came(self):
        """Whether to stop here."""
        if not several():
            return self._received is not None
        self._times_asked += 1
        return multihost_utils.reached_preemption_sync_point(self._times_asked)

    def check(self):
        """Raises `Interrupted` where a signal came."""
        if self.came():
            self.stop()

    def stop(self):
        """Raises `Interrupted`."""
        raise Interrupted(self._received or signal.SIGTERM)

    def _on_signal(self, signum, frame):
        if self._received == signal.SIGINT == signum:
            raise KeyboardInterrupt
        self._received = signum
        if several():
            os.kill(os.getpid(), signal.SIGTERM)  # Tells the others.


def run_stage(
    state,
    update_fn,
    batches,
    *,
    num_updates,
    log_every,
    checkpoint_every,
    checkpoints,
    signals,
    on_progress,
):
    """Runs a stage from `state.update` to `num_updates`.

    Args:
      state: `TrainState` to go on from; donated.
      update_fn: `(state, update, batch) -> (state, metrics)`.
      batches: `(start, stop)` -> iterator over the batches (x, cond) of those updates.
      num_updates: where to stop.
      log_every: updates between looks at the metrics.
      checkpoint_every: updates between checkpoints.
      checkpoints: `Checkpoints` of the stage.
      signals: `StopSignals` that ask for a stop.
      on_progress: called with (update, metrics of the last `log_every`).

    Returns:
      The final state, which is on disk too.

    Raises:
      Interrupted: after SIGINT or SIGTERM, with the state saved.
      UserError: where the loss or the gradient is no longer finite; what was saved stays.
    """
    pending = []

    def settle(done):
        if pending:
            on_progress(done, finite_means(pending, first_update=done - len(pending)))
            pending.clear()

    start = int(state.update)
    for update, batch in enumerate(batches(start, num_updates), start):
        if signals.came():
            settle(update)
            checkpoints.save(state)
            signals.stop()
        state, metrics = update_fn(state, update, batch)
        pending.append(metrics)
        done = update + 1
        save = done == num_updates or done % checkpoint_every == 0
        if save or done % log_every == 0:
            settle(done)
        if save:
            checkpoints.save(state)
    return state


def finite_means(metrics, first_update):
    """Mean of each metric over consecutive updates; refuses values that are not finite."""
    host = jax.device_get(metrics)
    for offset, values in enumerate(host):
        for name, value in values.items():
            if not np.isfinite(value):
                raise UserError(
                    f"{name} is {value} at update {first_update + offset + 1}: the run stops and "
                    "the last good checkpoint stays; lower this stage's learning_rate or "
                    "lengthen its warmup_updates"
                )
    return {name: float(np.mean([values[name] for values in host])) for name in host[0]}
