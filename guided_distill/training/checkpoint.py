"""A stage's resumable states, by Orbax, each with a digest that is checked when it is read."""

import contextlib
import logging
import pathlib
import shutil
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from guided_distill.system.files import damage_of_any, reason_of, tree_sha256
from guided_distill.system.processes import first_only, from_first, several
from guided_distill.system.sharding import to_host


class Checkpoints:
    """A stage's resumable states: the newest two, each with its digest.

    Attributes:
      notices: what a person should know about the last `restore`, a list of lines.
      seconds: spent on the stage so far, earlier runs included.
    """

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.notices = []
        self._seconds_before, self._started = 0.0, time.perf_counter()
        self._manager = ocp.CheckpointManager(
            self.directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.LatestN(2),
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def seconds(self):
        return self._seconds_before + time.perf_counter() - self._started

    def save(self, state):
        """Writes the state of `state.update` in the background; a second save is a no-op.

        Several processes write their own parts of it. One alone writes the copy whose digest it
        takes: Orbax would slice each leaf for each device that holds it.
        """
        update = int(state.update)
        if update in self._manager.all_steps():
            return
        host = to_host(state)
        record = {"sha256": tree_sha256(host), "seconds": self.seconds}
        whole = state if several() else jax.tree.map(np.array, host)  # `state` will be donated.
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(whole), record=ocp.args.JsonSave(record)
        )
        self._manager.save(update, args=items)

    def restore(self, template):
        """The newest state that is whole, laid out like `template`; None where there is none.

        Damaged checkpoints are deleted, and named in `notices`.
        """
        self.notices = []
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        for update in from_first(lambda: sorted(self._manager.all_steps(), reverse=True)):
            state, record, damage = self._read(update, abstract)
            damage = damage_of_any(damage)
            if not damage:
                whole = tree_sha256(to_host(state)) == record["sha256"]
                damage = damage_of_any("" if whole else "its contents do not match their digest")
            if not damage:
                self._seconds_before = record["seconds"]
                return state
            self._discard(update)
            self.notices.append(
                f"checkpoint {self.directory}/{update} is damaged ({damage}): deleted"
            )
        return None

    def __enter__(self):
        self._at_exit = contextlib.ExitStack()
        self._at_exit.enter_context(quiet_late_reads())
        self._at_exit.callback(self._manager.close)
        self._at_exit.callback(self._manager.wait_until_finished)
        return self

    def __exit__(self, *exc_info):
        """Waits until everything is on disk."""
        self._at_exit.close()

    def _read(self, update, abstract):
        """(state, record, what keeps them from being read, "" for nothing), in this process alone.

        Damage may show in one process only, and the others must not wait for it within Orbax.
        """
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        options = ocp.CompositeOptions(multiprocessing_options=alone)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore()
        )
        folder = self.directory.absolute() / str(update)
        try:
            handler = ocp.CompositeCheckpointHandler(composite_options=options)
            with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
                restored = reader.restore(folder, args=items)
        except Exception as error:  # Orbax and TensorStore raise many kinds for damage.
            return None, None, reason_of(error)
        return restored.state, restored.record, ""

    def _discard(self, update):
        """Not by Orbax, which cannot delete a folder that is too broken."""
        first_only(shutil.rmtree)(self.directory / str(update), ignore_errors=True)
        self._manager.reload()


@contextlib.contextmanager
def quiet_late_reads():
    """Keeps off the screen what the first error of a restore has said already.

    TensorStore's other reads end after it: each finds its event loop gone, or an error of its own
    that nobody waits for.
    """
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook

    def on_unraisable(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    def is_news(record):
        return not record.getMessage().startswith("Task exception was never retrieved")

    sys.unraisablehook = on_unraisable
    logger.addFilter(is_news)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logger.removeFilter(is_news)
