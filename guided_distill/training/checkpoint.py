"""What is written to disk and read back: resumable states and finished parameters, by Orbax.

Orbax commits a checkpoint by renaming a finished folder, so a killed run leaves only whole
ones. It does not notice flipped bytes, so every state and every set of parameters carries a
digest that is checked when it is read.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
import time

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from guided_distill.processes import first_only, from_first, texts_of_all
from guided_distill.training.sharding import to_host


def tree_sha256(tree):
    """Digest of a tree's leaves in sorted path order: path, dtype, shape and bytes of each."""
    digest = hashlib.sha256()
    leaves = flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(tree), sep="/")
    for path, leaf in sorted(leaves.items()):
        if leaf is None:
            continue
        leaf = np.asarray(leaf, order="C")
        digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        digest.update(leaf.reshape(-1).view(np.uint8))
    return digest.hexdigest()


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
        """Writes the state of `state.update` in the background; a second save is a no-op."""
        update = int(state.update)
        if update in self._manager.all_steps():
            return
        record = {"sha256": tree_sha256(to_host(state)), "seconds": self.seconds}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
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
            return None, None, _reason(error)
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


def save_params(directory, params):
    """Writes finished parameters; returns their digest."""
    params = to_host(params)
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(pathlib.Path(directory).absolute(), params, force=True)
    checkpointer.wait_until_finished()
    checkpointer.close()
    return tree_sha256(params)


def load_params(directory, sha256):
    """Finished parameters as NumPy arrays, on any number of devices.

    Raises:
      ValueError: where they are missing, damaged, or not those of `sha256`, in all processes alike.
    """
    params, damage = _read_params(pathlib.Path(directory).absolute())
    if not damage and tree_sha256(params) != sha256:
        damage = f"does not match its digest {sha256[:12]}"
    damage = damage_of_any(damage)
    if damage:
        raise ValueError(f"{directory} {damage}")
    return params


def _read_params(path):
    """(params, what keeps them from being read: "" for nothing)."""
    checkpointer = ocp.PyTreeCheckpointer()
    try:
        tree = checkpointer.metadata(path).item_metadata.tree
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(path, restore_args=restore_args), ""
    except Exception as error:  # As in `Checkpoints`.
        return None, f"cannot be read ({_reason(error)})"


def damage_of_any(damage):
    """What keeps one of the processes from reading what all need, "" for nothing."""
    return next(filter(None, texts_of_all(damage)), "")


def _reason(error):
    """The first line of an error, or what it is where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


@first_only
def write_json(path, value):
    """Writes JSON so that a reader sees the old file or the new one, never half of one."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)


def read_json(path):
    """The file's value as the first process reads it, None where there is no such file."""
    path = pathlib.Path(path)

    def read():
        return json.loads(path.read_text()) if path.exists() else None

    return from_first(read)
