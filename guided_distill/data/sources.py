"""Where pictures come from: random access by index, whole and labelled."""

import dataclasses
import functools
import hashlib

import numpy as np

from guided_distill.errors import UserError

DIGITS_TEST_SIZE = 297
DIGITS_SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A labelled data set held in memory.

    Attributes:
      name: of the data set.
      images: `[N, H, W, C]` uint8.
      labels: `[N]` int32 in [0, num_classes).
      num_classes: number of classes.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    num_classes: int

    def __len__(self):
        return len(self.images)

    @property
    def image_shape(self):
        """(H, W, C)."""
        return self.images.shape[1:]

    def read(self, indices):
        """(images `[B, H, W, C]` uint8, labels `[B]` int32) at `indices` `[B]`."""
        return self.images[indices], self.labels[indices]

    @functools.cached_property
    def sha256(self):
        """Hash of every picture and label, in order."""
        digest = hashlib.sha256(f"{self.images.shape} {self.num_classes}".encode())
        digest.update(np.ascontiguousarray(self.images))
        digest.update(np.ascontiguousarray(self.labels))
        return digest.hexdigest()


@functools.cache
def load_digits(split):
    """The 1,797 handwritten digits (8x8x1, 10 classes) that ship inside scikit-learn.

    A fixed permutation gives 1,500 to "train" and 297 to "test".
    """
    import sklearn.datasets  # Not at the top: it takes a second that only this source needs.

    digits = sklearn.datasets.load_digits()
    images = np.round(digits.images * (255.0 / 16.0)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    order = np.random.Generator(np.random.Philox(DIGITS_SPLIT_SEED)).permutation(len(images))
    test, train = np.split(order, [DIGITS_TEST_SIZE])
    indices = {"train": train, "test": test}[split]
    return ArraySource("digits", images[indices], labels[indices], num_classes=10)


@dataclasses.dataclass(frozen=True)
class SourceInfo:
    """What is known of a data set before it is read.

    Attributes:
      image_shape: (H, W, C).
      num_classes: number of classes.
      load: split ("train" or "test") -> source; None where this version has no reader for it.
    """

    image_shape: tuple
    num_classes: int
    load: object = None


SOURCES = {
    "digits": SourceInfo((8, 8, 1), 10, load_digits),
    "cifar10": SourceInfo((32, 32, 3), 10),
    "imagenet64": SourceInfo((64, 64, 3), 1000),
}


def load_source(name, split):
    """The named data set's split, "train" or "test"."""
    load = SOURCES[name].load
    if load is None:
        raise UserError(
            f"data.name={name} cannot be read by this version, which reads "
            f"{', '.join(known for known, info in SOURCES.items() if info.load)}"
        )
    return load(split)


def to_float(images):
    """uint8 [0, 255] -> float32 [-1, 1]; NumPy or JAX arrays."""
    return images.astype(np.float32) / 127.5 - 1.0


def to_uint8(x):
    """Float [-1, 1] -> uint8 [0, 255], by rounding."""
    return np.round((np.clip(x, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
