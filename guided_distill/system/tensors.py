"""Flat dicts of arrays in safetensors files, written whole and read back with their digest."""

import os
import pathlib

import safetensors.numpy
from safetensors import SafetensorError, safe_open

from guided_distill.errors import UserError
from guided_distill.system.files import Damaged, reason_of, tree_sha256

DIGEST = "sha256"  # key in the file's metadata


def write_tensors(path, tensors):
    """Writes `{name: NumPy array}`, so that a reader sees the old file or the new one."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    tensors = {name: tensor.copy(order="C") for name, tensor in tensors.items()}
    partial.touch()
    mode = partial.stat().st_mode  # As of any file here; safetensors makes its own private.
    safetensors.numpy.save_file(tensors, partial, metadata={DIGEST: tree_sha256(tensors)})
    partial.chmod(mode)
    os.replace(partial, path)


def read_tensors(path, sha256=None):
    """`{name: NumPy array}` of a file, those of the digest `sha256` where one is given.

    Raises:
      Damaged: where it is no safetensors file, truncated, or not what its digest says.
      UserError: where it cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as opened:
            digest = (opened.metadata() or {}).get(DIGEST)  # Files of others have none.
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or reason_of(error)})") from error
    except SafetensorError as error:
        raise Damaged(f"{path} is no safetensors file, or damaged ({reason_of(error)})") from error
    found = tree_sha256(tensors)
    if sha256 not in (None, found):
        raise Damaged(f"{path} is damaged, or not those of its record: import the model again")
    if digest not in (None, found):
        raise Damaged(f"{path} is damaged: it is not what its digest says; put back a copy of it")
    return tensors
