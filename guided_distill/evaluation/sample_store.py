"""Samples on disk: what a killed evaluation had drawn of its references is not drawn again."""

import hashlib
import json
import pathlib

import numpy as np

from guided_distill.system.files import read_json, write_json
from guided_distill.system.processes import array_from_first, from_first, is_first


def key_of(identity):
    """A file name for plain JSON that identifies something."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


class SampleStore:
    """Samples of one model at one guidance weight, float32, filled from the front.

    Args:
      folder: where it lies.
      identity: plain JSON on which the samples depend.
      shape: (n, H, W, C).

    Attributes:
      done: samples on disk.
      seconds: spent drawing them.
    """

    def __init__(self, folder, identity, shape):
        path = pathlib.Path(folder) / key_of(identity)
        self._record, self._data = path.with_suffix(".json"), path.with_suffix(".npy")
        record = from_first(lambda: read_json(self._record) if self._data.exists() else None)
        self.done, self.seconds = (record["done"], record["seconds"]) if record else (0, 0.0)
        self._samples = None
        if is_first():
            self._data.parent.mkdir(parents=True, exist_ok=True)
            mode = "r+" if record else "w+"
            self._samples = np.lib.format.open_memmap(
                self._data, mode=mode, dtype=np.float32, shape=tuple(shape)
            )

    def append(self, x, seconds):
        """Writes the next samples, `[B, H, W, C]`."""
        if is_first():
            self._samples[self.done : self.done + len(x)] = x
            self._samples.flush()
        self.done += len(x)
        self.seconds += seconds
        write_json(self._record, {"done": self.done, "seconds": self.seconds})

    def read(self, start, stop):
        """Samples start, …, stop − 1."""
        return array_from_first(lambda: np.array(self._samples[start:stop]))
