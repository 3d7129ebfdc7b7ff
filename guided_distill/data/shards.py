"""Arrays in `.npy`, `.npz` and `.safetensors` files: where each lies, so that rows are read alone.

No array is unpickled. What is stored as it is in memory is mapped; a compressed array of an `.npz`
can only be read whole.
"""

import dataclasses
import json
import math
import os
import pathlib
import zipfile
import zlib

import jax.numpy as jnp
import numpy as np

from guided_distill.errors import UserError
from guided_distill.system.files import reason_of

SUFFIXES = (".npz", ".safetensors", ".npy")
NULL = "null"  # stem of the file that holds the null conditioning
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
SAFETENSORS_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip
UNREADABLE = (
    OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError,
    RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Part:
    """One array of one shard.

    Attributes:
      file: that holds it, a path as text.
      name: of the array.
      dtype: of its numbers.
      shape: `[n, …]`.
      offset: of its first number in the file; None where it is compressed.
      order: "C", or "F" where its last axis changes slowest.
    """

    file: str
    name: str
    dtype: np.dtype
    shape: tuple
    offset: int | None
    order: str = "C"

    def __str__(self):
        return f"{self.file}: '{self.name}'"

    @property
    def num_bytes(self):
        """Of its numbers, in memory."""
        return self.dtype.itemsize * math.prod(self.shape)

    def open(self):
        """The array: mapped, or read where it is compressed.

        Raises:
          UserError: where the file is not what it was, or damaged.
        """
        try:
            if self.offset is None:
                with np.load(self.file, allow_pickle=False) as archive:
                    return archive[self.name]
            return np.memmap(self.file, self.dtype, "r", self.offset, self.shape, order=self.order)
        except UNREADABLE as error:
            raise UserError(f"{self} cannot be read: {reason_of(error)}") from error


@dataclasses.dataclass(frozen=True)
class Held:
    """An array in memory, in the place of a `Part`."""

    array: np.ndarray

    @property
    def shape(self):
        """`[n, …]`."""
        return self.array.shape

    @property
    def dtype(self):
        """Of its numbers."""
        return self.array.dtype

    def open(self):
        """The array."""
        return self.array


def list_shards(folder):
    """The shards that lie in a folder, `[{array: Part}]` in the order of their names.

    A shard is an `.npz` or `.safetensors` file, or all `<array>-<shard>.npy` of one shard; an
    `<array>.npy` is of the shard that has no name. The null conditioning is none.

    Raises:
      UserError: naming the file that cannot be read.
    """
    shards = {}
    for path in sorted(pathlib.Path(folder).iterdir()):
        if path.suffix in SUFFIXES and path.stem != NULL and not path.name.startswith("."):
            array, dash, shard = path.stem.rpartition("-")
            key = (shard if dash else "") if path.suffix == ".npy" else path.name
            parts = parts_of(path, array if dash else path.stem)
            shards.setdefault(key, {}).update(parts)
    return [shards[key] for key in sorted(shards)]


def read_null(folder):
    """`{name: array}` of the null conditioning beside the shards; None where there is none."""
    folder = pathlib.Path(folder)
    paths = [path for path in (folder / f"{NULL}{s}" for s in SUFFIXES[:2]) if path.is_file()]
    if len(paths) > 1:
        raise UserError(f"{paths[0]} and {paths[1].name} both say what is null: keep one")
    if not paths:
        return None
    return {name: np.array(part.open()) for name, part in parts_of(paths[0]).items()}


def parts_of(path, name=None):
    """`{array: Part}` of one file; `name` is that of an `.npy`'s array.

    Raises:
      UserError: where the file is truncated, damaged, or holds objects.
    """
    try:
        if path.suffix == ".npy":
            parts = [_npy_part(path, name)]
        else:
            parts = list((_npz_parts if path.suffix == ".npz" else _safetensors_parts)(path))
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from error
    size = path.stat().st_size
    for part in parts:
        if part.dtype.hasobject:
            raise UserError(f"{part} holds Python objects, which are never unpickled: save numbers")
        if part.offset is not None and part.offset + part.num_bytes > size:
            raise UserError(f"{part} is truncated: {list(part.shape)} {part.dtype} need more bytes")
    return {part.name: part for part in parts}


def _npy_part(path, name):
    with open(path, "rb") as opened:
        shape, order, dtype = _read_header(opened)
        return Part(str(path), name, dtype, shape, opened.tell(), order)


def _npz_parts(path):
    with zipfile.ZipFile(path) as archive, open(path, "rb") as opened:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                shape, order, dtype = _read_header(member)
                header = member.tell()
            start = None if info.compress_type else _start_of(opened, info) + header
            yield Part(str(path), name, dtype, shape, start, order)


def _start_of(opened, info):
    """Where a member of a zip archive begins: after a header of its own, of any length."""
    opened.seek(info.header_offset + 26)
    lengths = np.frombuffer(opened.read(4), "<u2")
    return info.header_offset + 30 + int(lengths.sum())


def _read_header(opened):
    """(shape, order, dtype) of an `.npy` file, which then stands at its first number."""
    shape, is_fortran, dtype = HEADERS[np.lib.format.read_magic(opened)](opened)
    return shape, "F" if is_fortran else "C", dtype


def _safetensors_parts(path):
    with open(path, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if 8 + length > os.path.getsize(path):
            raise ValueError("its header is truncated")
        header = json.loads(opened.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            dtype = jnp.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
            begin, end = entry["data_offsets"]
            part = Part(str(path), name, dtype, tuple(entry["shape"]), 8 + length + begin)
            if part.num_bytes != end - begin:
                raise ValueError(f"'{name}' has {end - begin} bytes in place of {part.num_bytes}")
            yield part
