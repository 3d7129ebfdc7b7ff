"""What every reader of a data set is asked, and what it answers."""

import functools

import jax
import numpy as np

from guided_distill.data.pixels import to_uint8
from guided_distill.errors import UserError

SPLIT_SEED = 0


class Dataset:
    """Both splits of a data set, read when they are first asked for.

    Attributes:
      name: for people and records.
      image_shape: (H, W, C), or the shape of whatever one x is.
      num_classes: number of classes; None where it is conditioned on something else.
      class_names: their names, a tuple; () where they have none.
      example: one (x, conditioning) as `jax.ShapeDtypeStruct`s.
      null: `{name: one example}` of the conditioning that means none; None where it is not said.
      decoder: `Decoder` that makes pictures of what models learn; None where that are the x.
    """

    decoder = None

    def __init__(
        self, name, image_shape, num_classes, load, class_names=(), *, example=None, null=None
    ):
        """`load`: "train" or "test" -> source; an `example` of None is a labelled picture."""
        self.name, self.image_shape, self.num_classes = name, tuple(image_shape), num_classes
        self.class_names = tuple(class_names)
        self.example, self.null = example or picture_example(image_shape), null
        self._load = load

    @property
    def pictures(self):
        """Whether x are pictures, uint8, and not latents."""
        return self.example[0].dtype == np.uint8

    def see(self, x):
        """Samples `[n, …]` float32 as they are looked at: pictures `[n, H, W, C]` uint8, of x in
        [-1, 1]; latents as they are."""
        return to_uint8(x) if self.pictures else x

    @functools.cached_property
    def train(self):
        """What models learn from: a source (`ArraySource` or `StreamSource`).

        Raises:
          UserError: where it holds one picture, which has no spread to measure distances by.
        """
        source = self._load("train")
        if len(source) < 2:
            what = "picture" if self.pictures else "example"
            raise UserError(
                f"{self.name} has {len(source)} {what} to learn from: two or more are needed, "
                "and one held out"
            )
        return source

    @functools.cached_property
    def test(self):
        """What was held out: a source."""
        return self._load("test")


def picture_example(image_shape):
    """One labelled picture as shapes."""
    picture = jax.ShapeDtypeStruct(tuple(image_shape), np.uint8)
    return picture, jax.ShapeDtypeStruct((), np.int32)


def cycle_labels(indices, num_classes):
    """The labels of pictures for the eye: all classes in turn, `[n]` int32 for `indices` `[n]`."""
    return (np.asarray(indices) % num_classes).astype(np.int32)


def class_counts(source):
    """Images of each class of a source, `[C]`."""
    return np.bincount(source.labels, minlength=source.num_classes)


def balanced_labels(counts, num):
    """The labels of samples 0, …, num − 1, each class as often as the data have it, `[num]` int32.

    The k-th sample of class c stands at (k + 1/2) / p_c, with p_c its share of the data. So sample
    i has the same label whatever `num` is, and classes of one size come in turn.

    Args:
      counts: images of each class, `[C]`.
      num: how many labels.
    """
    counts = np.asarray(counts, np.int64)
    times = -(-(num + len(counts)) * counts // counts.sum()) + 1
    labels = np.repeat(np.arange(len(counts)), times)
    k = np.arange(len(labels)) - np.repeat(np.cumsum(times) - times, times)
    places = (2 * k + 1) / counts[labels]
    return labels[np.argsort(places, kind="stable")][:num].astype(np.int32)


def hold_out(labels, share, *, name):
    """Splits a data set that has no test split of its own: the same share of every class.

    Args:
      labels: `[N]` int.
      share: of a class with two or more pictures, rounded, at least one and never all.
      name: of the data set, for errors.

    Returns:
      `{"train": indices, "test": indices}`, each sorted; a function of the labels and the share.

    Raises:
      UserError: where no class has two pictures.
    """
    rng = np.random.Generator(np.random.Philox(SPLIT_SEED))
    test = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        test.extend(members[: min(max(1, round(share * len(members))), len(members) - 1)])
    if not test:
        raise UserError(
            f"{name} holds {len(labels)} picture{'s' * (len(labels) != 1)}, and no class has two: "
            "one to learn from and one to hold out is the least"
        )
    test = np.sort(np.asarray(test, np.int64))
    return {"train": np.setdiff1d(np.arange(len(labels)), test), "test": test}


def check_labels(labels, *, what):
    """Number of classes of integer labels, which must be 0, 1, … without a gap.

    Raises:
      UserError: naming the first label that is wrong.
    """
    labels = np.asarray(labels)
    if not len(labels):
        raise UserError(f"{what} holds no pictures")
    if labels.min() < 0:
        at = int(np.argmax(labels < 0))
        raise UserError(f"{what}: label {labels[at]} of picture {at} is below 0")
    present = np.unique(labels)
    if len(present) != present[-1] + 1:
        empty = int(np.argmax(present != np.arange(len(present))))
        raise UserError(
            f"{what} has labels up to {present[-1]}, but class {empty} has no picture: "
            "number the classes 0, 1, … without a gap"
        )
    return len(present)
