"""What the samples of an evaluation are asked for: the same of every model, whatever draws them."""

import numpy as np

from guided_distill.data.dataset import balanced_labels
from guided_distill.system.files import array_sha256


class AskedClasses:
    """Classes as often as the data have them: sample i has label i of `balanced_labels`.

    Args:
      counts: images of each class, `[C]`.
      num: samples.
    """

    def __init__(self, counts, num):
        self._labels = balanced_labels(counts, num)
        self.sha256 = array_sha256(self._labels)

    def read(self, start, stop):
        """Labels of samples start, …, stop − 1, int32."""
        return self._labels[start:stop]

    def captions(self, start, stop):
        """Of samples start, …, stop − 1: None each, for a class has none."""
        return [None] * (stop - start)


class AskedExamples:
    """The conditioning of held-out examples in turn: sample i has that of example i mod n.

    Args:
      source: `ShardSource` without classes.
    """

    def __init__(self, source):
        self._source, self.sha256 = source, source.sha256

    def read(self, start, stop):
        """Conditioning of samples start, …, stop − 1, by name."""
        return self._source.read_cond(np.arange(start, stop) % len(self._source))

    def captions(self, start, stop):
        """The texts that samples start, …, stop − 1 are asked for by; None where unknown."""
        return self._source.captions(np.arange(start, stop) % len(self._source))
