"""A stage's resumable states, by Orbax, each with a digest that is checked when it is read."""

import contextlib
import pathlib
import shutil
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from guided_distill.errors import UserError
from guided_distill.system.echoes import without_echoes
from guided_distill.system.files import (
    ASYNC_OPTIONS,
    damage_of_any,
    read_folder,
    saving,
    tree_sha256,
)
from guided_distill.system.processes import first_only, from_first, several
from guided_distill.system.sharding import to_host

SET_ASIDE = ".damaged"


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
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.LatestN(2),
            cleanup_tmp_directories=True,
            async_options=ASYNC_OPTIONS,
        )
        with saving(self.directory):
            self._manager = ocp.CheckpointManager(self.directory.absolute(), options=options)

    @property
    def seconds(self):
        return self._seconds_before + time.perf_counter() - self._started

    def save(self, state):
        """Writes the state of `state.update` in the background; a second save is a no-op.

        Several processes write their own parts of it. One alone writes the copy whose digest it
        takes: Orbax would slice each leaf for each device that holds it.

        Raises:
          UserError: where the disk fails, now or as it wrote the state before.
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
        with saving(self.directory):
            self._manager.save(update, args=items)

    def restore(self, template):
        """The newest state that is whole, laid out like `template`; None before the first.

        Damaged checkpoints are set aside as `<update>.damaged`, and named in `notices`.

        Raises:
          UserError: where one cannot be read now, or none is whole any more.
        """
        self.notices = []
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        for update in from_first(lambda: sorted(self._manager.all_steps(), reverse=True)):
            folder = self.directory.absolute() / str(update)
            restored, damage = read_folder(folder, lambda f=folder: self._read(f, abstract))
            if not damage:
                whole = tree_sha256(to_host(restored.state)) == restored.record["sha256"]
                damage = damage_of_any("" if whole else "its contents do not match their digest")
            if not damage:
                self._seconds_before = restored.record["seconds"]
                return restored.state
            self._set_aside(folder)
            self.notices.append(
                f"checkpoint {self.directory}/{update} is damaged ({damage}): set aside"
            )
        if from_first(lambda: bool(list(self.directory.glob(f"*{SET_ASIDE}")))):
            raise UserError(
                f"{self.directory} has no whole checkpoint left, only damaged ones: remove that "
                "folder to start the stage anew"
            )
        return None

    def __enter__(self):
        self._at_exit = contextlib.ExitStack()
        self._at_exit.enter_context(without_echoes())
        return self

    def __exit__(self, *exc_info):
        """Waits until everything is on disk.

        Raises:
          UserError: where the disk fails.
        """
        with self._at_exit, saving(self.directory):
            self._manager.close()

    def _read(self, folder, abstract):
        """The items of a checkpoint, read by this process alone.

        Damage may show in one process only, and the others must not wait for it within Orbax.
        """
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        options = ocp.CompositeOptions(multiprocessing_options=alone)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore()
        )
        handler = ocp.CompositeCheckpointHandler(composite_options=options)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            return reader.restore(folder, args=items)

    def _set_aside(self, folder):
        """Renames a damaged checkpoint, so that its place is free and nothing is lost."""

        def rename():
            aside = folder.with_name(f"{folder.name}{SET_ASIDE}")
            shutil.rmtree(aside, ignore_errors=True)  # Of an earlier time.
            folder.rename(aside)

        first_only(rename)()
        self._manager.reload()
