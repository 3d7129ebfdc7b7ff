"""Data sets that lie in arrays: scikit-learn's digits, idx files (MNIST's format), `.npz`."""

import gzip
import pathlib
import zipfile

import numpy as np

from guided_distill.data.dataset import Dataset, check_labels, hold_out
from guided_distill.data.pixels import FITS
from guided_distill.data.sources import ArraySource
from guided_distill.errors import UserError

DIGITS_TEST_SIZE = 297
DIGITS_SPLIT_SEED = 0
UNSIGNED_BYTE = 0x08  # type code of idx files
FIT_AT_ONCE = 1_000


def open_digits(settings):
    """The 1,797 handwritten digits (8x8x1, 10 classes) that ship inside scikit-learn.

    A fixed permutation gives 1,500 to "train" and 297 to "test".
    """
    import sklearn.datasets  # Not at the top: it takes a second that only this source needs.

    digits = sklearn.datasets.load_digits()
    images = np.round(digits.images * (255.0 / 16.0)).astype(np.uint8)[..., None]
    order = np.random.Generator(np.random.Philox(DIGITS_SPLIT_SEED)).permutation(len(images))
    test, train = np.split(order, [DIGITS_TEST_SIZE])
    labels = digits.target.astype(np.int32)
    return from_arrays(
        "digits", {"train": (images[train], labels[train]), "test": (images[test], labels[test])},
        settings,
    )  # fmt: skip


def open_idx(settings):
    """A folder of MNIST-style idx files, gzipped or not: `train-…` and `t10k-…` (or `test-…`)."""
    folder = pathlib.Path(settings.path).expanduser()
    if not settings.path or not folder.is_dir():
        raise UserError(
            f"data.path {settings.path!r} is no folder: data.name=idx needs one that holds "
            "train-images-idx3-ubyte, train-labels-idx1-ubyte and the same for t10k, .gz or not"
        )
    splits = {}
    for split, prefixes in {"train": ("train",), "test": ("t10k", "test")}.items():
        images = _read_idx(_find_idx(folder, prefixes, "images"), num_dims=3)
        labels = _read_idx(_find_idx(folder, prefixes, "labels"), num_dims=1)
        splits[split] = images[..., None], labels.astype(np.int32)
    return from_arrays(folder.resolve().name, splits, settings)


def _find_idx(folder, prefixes, what):
    """The one file of a split's images or labels."""
    found = [
        path
        for prefix in prefixes
        for path in sorted(folder.glob(f"*{prefix}-{what}*"))
        if "ubyte" in path.name
    ]
    if len(found) != 1:
        has = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"data.path {folder} must hold one {prefixes[0]}-{what}-idx*-ubyte file, has {has}"
        )
    return found[0]


def _read_idx(path, num_dims):
    """An idx file as an array of unsigned bytes."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    shape = np.frombuffer(raw[4 : 4 + 4 * num_dims], ">u4").astype(int)
    start = 4 + 4 * num_dims
    if raw[:4] != bytes([0, 0, UNSIGNED_BYTE, num_dims]) or len(raw) != start + np.prod(shape):
        raise UserError(f"{path} is no whole idx file of {num_dims} dimensions of unsigned bytes")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def open_npz(settings):
    """An `.npz` with `images` `[N, H, W(, C)]` uint8 and `labels` `[N]`.

    `test_images` and `test_labels` are held out where the file has them, else a share of each
    class. Without labels all pictures are of one class.
    """
    path = pathlib.Path(settings.path).expanduser()
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error
        raise UserError(f"data.path {settings.path!r} is no readable .npz: {reason}") from error
    splits = {"train": _pair(arrays, "", path)}
    if "test_images" in arrays:
        splits["test"] = _pair(arrays, "test_", path)
    else:
        images, labels = splits["train"]
        rows = hold_out(labels, settings.test_share, name=path.name)
        splits = {split: (images[index], labels[index]) for split, index in rows.items()}
    return from_arrays(path.stem, splits, settings)


def _pair(arrays, prefix, path):
    """(images `[N, H, W, C]`, labels `[N]` int32) of an `.npz`, checked."""
    images, labels = arrays.get(f"{prefix}images"), arrays.get(f"{prefix}labels")
    if images is None:
        raise UserError(f"{path} has no array '{prefix}images': it holds {', '.join(arrays)}")
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UserError(
            f"{path}: '{prefix}images' must be uint8 [N, H, W] or [N, H, W, C], "
            f"got {images.dtype} {list(images.shape)}"
        )
    if labels is None:
        return images, np.zeros(len(images), np.int32)
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise UserError(
            f"{path}: '{prefix}labels' must be {len(images)} integers, "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    return images, labels.astype(np.int32)


def from_arrays(name, splits, settings):
    """A `Dataset` of arrays.

    Args:
      name: of the data set.
      splits: `{"train": (images [N, H, W, C] uint8, labels [N] int32), "test": …}`.
      settings: the section `config.data`.

    Raises:
      UserError: where shapes, colours or labels do not fit together or to the settings.
    """
    for split, (images, labels) in splits.items():
        if len(images) != len(labels):
            raise UserError(f"{name}: {len(images)} pictures but {len(labels)} labels in {split}")
    num_classes = check_labels(splits["train"][1], what=name)
    check_labels_below(splits["test"][1], num_classes, what=f"{name}, test")
    sources = {
        split: ArraySource(name, to_image_size(images, settings, name), labels, num_classes)
        for split, (images, labels) in splits.items()
    }
    shapes = {source.image_shape for source in sources.values()}
    if len(shapes) > 1:
        raise UserError(f"{name}: train and test have pictures of different shapes, {shapes}")
    return Dataset(name, shapes.pop(), num_classes, sources.__getitem__)


def check_labels_below(labels, num_classes, *, what):
    """Refuses held-out pictures of classes that are not learnt."""
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise UserError(
            f"{what}: label {labels[at]} of picture {at} is not in 0 to {num_classes - 1}"
        )


def to_image_size(images, settings, name):
    """`[N, H, W, C]` made to fit `settings.image_size`, some at a time."""
    height, width, channels = images.shape[1:]
    if channels not in (1, 3) or settings.channels not in (0, channels):
        raise UserError(
            f"{name} has {channels} channels; 1 or 3 can be learnt, and data.channels must be "
            f"that or 0, got {settings.channels}"
        )
    size = settings.image_size
    if not size and height != width:
        raise UserError(
            f"{name} has pictures of {height}x{width}: the U-Net takes squares; name "
            f"data.image_size, such as {min(height, width)}, and data.fit (crop or pad)"
        )
    if size in (0, height) and height == width:
        return images
    try:
        parts = np.array_split(images, max(1, -(-len(images) // FIT_AT_ONCE)))
        return np.concatenate([FITS[settings.fit](part, size) for part in parts])
    except ValueError as error:
        raise UserError(f"{name}: data.fit={settings.fit}: {error}") from error
