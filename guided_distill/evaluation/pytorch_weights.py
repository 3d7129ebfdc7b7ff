"""Reads the tensors of a PyTorch weights file without PyTorch, executing nothing in it.

Such a file is a pickle that names what to call. Here only the five names that a dictionary of
tensors needs are known, each bound to a function of this module; any other name refuses the file.
"""

import collections
import io
import pathlib
import pickle
import struct
import zipfile

import numpy as np

from guided_distill.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}


def read_state_dict(path):
    """`{name: array}` of a `.pth` file, in the zip format or the older one.

    Raises:
      UserError: where the file is something else, truncated, or holds more than tensors.
    """
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        state = _read_zip(data) if data[:2] == b"PK" else _read_legacy(data)
    except UserError as error:
        raise UserError(f"{path} is refused: {error}") from error
    except Exception as error:  # A pickle that is damaged fails in any way it likes.
        raise UserError(
            f"{path} is no PyTorch weights file, or a truncated one ({type(error).__name__})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, np.ndarray) for v in state.values()):
        raise UserError(f"{path} does not hold a dictionary of tensors")
    return dict(state)


class _Storage:
    """Numbers of one storage; in the older format they follow after the pickle."""

    def __init__(self, dtype, numbers=None):
        self.dtype, self.numbers = dtype, numbers


class _Tensor:
    """A view of a storage, made an array when the storage is read."""

    def __init__(self, storage, offset, shape, strides):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def to_array(self):
        numbers = self.storage.numbers
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        bad = min((self.offset, *self.shape, *self.strides), default=0) < 0
        if bad or (0 not in self.shape and last >= len(numbers)):
            raise UserError("a tensor reaches beyond its storage")
        strides = [s * numbers.itemsize for s in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides)
        return view.copy()


class _Unpickler(pickle.Unpickler):
    """Knows five names and nothing else; `load_storage` gets the arguments of a storage."""

    def __init__(self, file, load_storage):
        super().__init__(file)
        self._load_storage = load_storage

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(
                storage, offset, shape, strides
            )
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in DTYPES:
            return name
        raise UserError(f"it names {module}.{name}, which is code, not a tensor")

    def persistent_load(self, pid):
        return self._load_storage(*pid[1:])


def _to_arrays(state):
    if not isinstance(state, dict):
        raise UserError("it does not hold a dictionary of tensors")
    return {
        name: value.to_array() if isinstance(value, _Tensor) else value
        for name, value in state.items()
    }


def _read_zip(data):
    archive = zipfile.ZipFile(io.BytesIO(data))
    (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    folder = pickled.removesuffix("data.pkl")

    def load_storage(kind, key, location, size, *_):
        numbers = np.frombuffer(archive.read(f"{folder}data/{key}"), DTYPES[kind])
        if len(numbers) < size:
            raise UserError(f"storage {key} is truncated")
        return _Storage(DTYPES[kind], numbers)

    return _to_arrays(_Unpickler(io.BytesIO(archive.read(pickled)), load_storage).load())


def _read_legacy(data):
    file, storages = io.BytesIO(data), {}

    def load_storage(kind, key, location, size, *_):
        return storages.setdefault(key, _Storage(DTYPES[kind]))

    def load():
        return _Unpickler(file, load_storage).load()

    if load() != LEGACY_MAGIC:
        raise UserError("it is no PyTorch weights file")
    load(), load()  # protocol version, system information
    state = load()
    for key in load():
        storage = storages[key]
        (size,) = struct.unpack("<q", file.read(8))
        raw = file.read(size * storage.dtype.itemsize)
        if len(raw) != size * storage.dtype.itemsize:
            raise UserError(f"storage {key} is truncated")
        storage.numbers = np.frombuffer(raw, storage.dtype)
    return _to_arrays(state)
