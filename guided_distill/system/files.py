"""Finished parameters and JSON, written whole and read back with their digests.

Orbax commits what it writes by renaming a finished folder, so a killed run leaves only whole
ones. It does not notice flipped bytes, so every set of parameters carries a digest that is checked
when it is read.
"""

import hashlib
import json
import os
import pathlib

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp

from guided_distill.system.processes import first_only, from_first, texts_of_all
from guided_distill.system.sharding import to_host


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
        return None, f"cannot be read ({reason_of(error)})"


def damage_of_any(damage):
    """What keeps one of the processes from reading what all need, "" for nothing."""
    return next(filter(None, texts_of_all(damage)), "")


def reason_of(error):
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
