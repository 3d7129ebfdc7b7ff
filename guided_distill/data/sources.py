"""Random access to examples: held in memory, streamed from a cache, or mapped from shards."""

import dataclasses
import functools
import hashlib

import numpy as np

from guided_distill.data.caption_lists import CaptionLists
from guided_distill.errors import UserError


class ImageDigest:
    """Hash of a data set, fed picture by picture or all at once: the pixels, then the labels."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, images):
        """Goes on with `[..., H, W, C]` uint8."""
        self._digest.update(np.ascontiguousarray(images))

    def finish(self, labels, image_shape, num_classes):
        """The hash as text, for `labels` `[N]` int32."""
        self._digest.update(np.ascontiguousarray(labels, np.int32))
        self._digest.update(f"{len(labels)} {tuple(image_shape)} {num_classes}".encode())
        return self._digest.hexdigest()


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
    in_memory = True

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
        digest = ImageDigest()
        digest.add(self.images)
        return digest.finish(self.labels, self.image_shape, self.num_classes)


@dataclasses.dataclass(frozen=True, eq=False)
class StreamSource:
    """A labelled data set whose decoded pictures stay on disk; only its labels are in memory.

    Attributes:
      name: of the data set.
      path: array_record file of decoded pictures, one record of H · W · C bytes each.
      image_shape: (H, W, C).
      labels: `[N]` int32 in [0, num_classes).
      num_classes: number of classes.
      sha256: hash of every picture and label, in order.
    """

    name: str
    path: str
    image_shape: tuple
    labels: np.ndarray
    num_classes: int
    sha256: str
    in_memory = False

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        """(images `[B, H, W, C]` uint8, labels `[B]` int32) at `indices` `[B]`.

        Raises:
          UserError: naming the record and the file, where one is damaged.
        """
        indices = np.asarray(indices)
        try:
            records = self._reader.read(indices.tolist())
        except RuntimeError as error:
            raise UserError(
                f"{self._name_broken(indices)}: remove its folder, and it is made again"
            ) from error
        images = np.frombuffer(b"".join(records), np.uint8)
        return images.reshape(len(indices), *self.image_shape), self.labels[indices]

    def num_records(self):
        """How many pictures the file holds; 0 where it was cut short."""
        try:
            return self._reader.num_records()
        except RuntimeError:
            return 0

    def _name_broken(self, indices):
        for index in indices.tolist():
            try:
                self._reader.read([index])
            except RuntimeError:
                return f"record {index} of {self.path} is damaged"
        return f"{self.path} cannot be read"

    @functools.cached_property
    def _reader(self):
        from array_record.python.array_record_module import ArrayRecordReader

        return ArrayRecordReader(self.path, "readahead_buffer_size:0")

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "_reader"}


@dataclasses.dataclass(frozen=True, eq=False)
class ShardSource:
    """Examples that lie in arrays, as they are: nothing is decoded.

    Attributes:
      name: of the data set.
      parts: `{array: (Part or Held, …)}`, `x` and the conditioning, the shards in order.
      rows: `[N]`, those of all shards' rows that are its examples.
      sha256: hash of all examples, in order.
      num_classes: number of classes; None where it is conditioned on something else.
      labels: `[N]` int32 in [0, num_classes); None without classes.
      in_memory: whether all parts are held.
      lists: `CaptionLists` of the examples; None where nothing is known of any.
    """

    name: str
    parts: dict
    rows: np.ndarray
    sha256: str
    num_classes: int | None = None
    labels: np.ndarray | None = None
    in_memory: bool = False
    lists: CaptionLists | None = None

    def __len__(self):
        return len(self.rows)

    @property
    def image_shape(self):
        """Of one x."""
        return self.parts["x"][0].shape[1:]

    def read(self, indices):
        """(x `[B, …]`, conditioning) at `indices` `[B]`.

        The conditioning is labels `[B]` int32 where it has classes, else a dict of arrays by name;
        whole numbers are int32.
        """
        return self.gather("x", indices), self.read_cond(indices)

    def read_cond(self, indices):
        """The conditioning alone, as of `read`."""
        if self.num_classes is not None:
            return self.labels[indices]
        return {name: self.gather(name, indices) for name in self.parts if name != "x"}

    def captions(self, indices):
        """The captions at `indices` `[B]`, a list of texts; None where one is not known."""
        if self.lists is None:
            return [None] * len(indices)
        return self.lists.at(indices)

    def gather(self, name, indices):
        """Rows of one array, `[B, …]`."""
        arrays, rows = self._opened[name], self.rows[indices]
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        out = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for k in np.unique(shard):
            here = shard == k
            out[here] = arrays[k][rows[here] - self._starts[k]]
        is_integer = name != "x" and np.issubdtype(out.dtype, np.integer)
        return out.astype(np.int32) if is_integer else out

    @functools.cached_property
    def _opened(self):
        return {name: [part.open() for part in parts] for name, parts in self.parts.items()}

    @functools.cached_property
    def _starts(self):
        """The first row of each shard."""
        return np.cumsum([0, *(part.shape[0] for part in self.parts["x"][:-1])])

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "_opened"}
