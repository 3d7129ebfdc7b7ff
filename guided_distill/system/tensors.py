"""Flat dicts of arrays in safetensors files, written whole and read back with their digest."""

import contextlib

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from guided_distill.errors import UserError
from guided_distill.system.files import Damaged, reason_of, replacing, tree_sha256

DIGEST = "sha256"  # key in the file's metadata


def write_tensors(path, tensors, notes=None):
    """Writes `{name: NumPy array}`, so that a reader sees the old file or the new one.

    `notes` are `{key: text}` for `read_notes`.

    Returns:
      Their digest.
    """
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    sha256 = tree_sha256(tensors)
    with replacing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # As of any file here; safetensors makes its own private.
        safetensors.numpy.save_file(tensors, partial, metadata={**(notes or {}), DIGEST: sha256})
        partial.chmod(mode)
    return sha256


def read_tensors(path, sha256=None):
    """`{name: NumPy array}` of a file, those of the digest `sha256` where one is given.

    Raises:
      Damaged: where it is no safetensors file, truncated, or not what its digest says.
      UserError: where it cannot be read.
    """
    with _opening(path) as opened:
        digest = (opened.metadata() or {}).get(DIGEST)  # Files of others have none.
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    found = tree_sha256(tensors)
    if sha256 not in (None, found):
        raise Damaged(f"{path} is damaged, or not those of its record: import the model again")
    if digest not in (None, found):
        raise Damaged(f"{path} is damaged: it is not what its digest says; put back a copy of it")
    return tensors


def read_notes(path):
    """What was noted with a file's tensors, `{key: text}`; errors as of `read_tensors`."""
    with _opening(path) as opened:
        return opened.metadata() or {}


def tensor_shapes(path):
    """`{name: shape}` of a safetensors file, without reading what is in it."""
    with _opening(path) as opened:
        names = opened.keys()
        return {name: tuple(opened.get_slice(name).get_shape()) for name in names}


def read_some_tensors(path, names):
    """`{name: NumPy array}` of these names, of a file that others wrote: no digest is checked."""
    with _opening(path) as opened:
        return {name: opened.get_tensor(name) for name in names}


@contextlib.contextmanager
def _opening(path):
    """A safetensors file that is read; errors as of `read_tensors`."""
    try:
        with safe_open(path, framework="numpy") as opened:
            yield opened
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or reason_of(error)})") from error
    except SafetensorError as error:
        raise Damaged(f"{path} is no safetensors file, or damaged ({reason_of(error)})") from error
