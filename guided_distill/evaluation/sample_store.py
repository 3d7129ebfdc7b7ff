"""Samples on disk: what a killed evaluation had drawn of its references is not drawn again."""

import os
import pathlib

import numpy as np

from guided_distill.errors import UserError
from guided_distill.system.files import array_sha256, json_sha256, read_json, write_json
from guided_distill.system.processes import array_from_first, from_first, is_first
from guided_distill.system.progress import to_stderr


def key_of(identity):
    """A file name for plain JSON that identifies something."""
    return json_sha256(identity)[:24]


def load_array(path):
    """The array of a `.npy` file; an empty one where it is missing or damaged."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.zeros(0)


class SampleStore:
    """Samples of one model at one guidance weight, float32, filled from the front.

    Args:
      folder: where it lies.
      identity: plain JSON on which the samples depend.
      shape: (n, …).

    Attributes:
      done: samples on disk, all of them whole.
      seconds: spent drawing them.

    Raises:
      UserError: where the disk has no room for all of them.
    """

    def __init__(self, folder, identity, shape):
        path = pathlib.Path(folder) / key_of(identity)
        self._record, self._data = path.with_suffix(".json"), path.with_suffix(".npy")
        self.done, self.seconds, self._parts = 0, 0.0, []
        self._samples = None
        record = read_json(self._record, derived=True)
        if record and from_first(lambda: self._open_whole(record.get("parts"), shape)):
            self.done, self.seconds = record["done"], record["seconds"]
            self._parts = record["parts"]
        elif is_first():
            self._make(shape)

    def append(self, x, seconds):
        """Writes the next samples, `[B, …]`."""
        if is_first():
            self._samples[self.done : self.done + len(x)] = x
            self._samples.flush()
        self.done += len(x)
        self.seconds += seconds
        self._parts.append([self.done, array_sha256(np.asarray(x, np.float32))])
        done = {"done": self.done, "seconds": self.seconds, "parts": self._parts}
        write_json(self._record, done)

    def read(self, start, stop):
        """Samples start, …, stop − 1."""
        return array_from_first(lambda: np.array(self._samples[start:stop]))

    def _open_whole(self, parts, shape):
        """Opens what was written, where every part of it still has its digest; else says False."""
        try:
            self._samples = np.lib.format.open_memmap(self._data, mode="r+")
        except (OSError, ValueError, EOFError):
            parts = None
        start, whole = 0, bool(parts) and self._samples.shape == tuple(shape)
        for stop, sha256 in parts if whole else ():
            whole, start = whole and array_sha256(self._samples[start:stop]) == sha256, stop
        if not whole:
            to_stderr(f"{self._data} is damaged: its samples are drawn again")
        return whole

    def _make(self, shape):
        """An empty file whose room is taken at once: a disk that fills up later would kill us."""
        self._data.parent.mkdir(parents=True, exist_ok=True)
        self._samples = np.lib.format.open_memmap(
            self._data, mode="w+", dtype=np.float32, shape=tuple(shape)
        )
        try:
            with open(self._data, "r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, self._data.stat().st_size)
        except OSError as error:
            raise UserError(f"{self._data} cannot be written: {error.strerror}") from error
