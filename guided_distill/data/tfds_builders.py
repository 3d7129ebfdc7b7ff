"""TensorFlow Datasets, read without TensorFlow from data prepared as array_record."""

import dataclasses
import functools
import hashlib
import io
import os
import pathlib

import numpy as np

from guided_distill.data.cache import Items, read_through_cache
from guided_distill.data.dataset import Dataset, hold_out
from guided_distill.data.images import Picture, decode_image, fit_image
from guided_distill.errors import UserError, nearest
from guided_distill.system.progress import to_stderr

DEFAULT_DATA_DIR = "~/tensorflow_datasets"
LOCAL_NAMES = ("digits", "folder", "idx", "npz")
TEST_SPLITS = ("test", "validation")
# The labels of ImageNet's test split were never published.
TEST_SPLIT_OF = {"imagenet2012": "validation"}
NOTES = {
    "imagenet_resized": "imagenet_resized was squashed to squares, not cropped: distances on it "
    "cannot be compared with those of the field"
}


def open_tfds(settings):
    """A prepared builder's pictures: `cifar10`, `imagenet2012`, `imagenet_resized/64x64`, ….

    Raises:
      UserError: where it is not prepared, or is no image classification.
    """
    import tensorflow_datasets as tfds

    directory = find_prepared(settings.name, data_dir(settings.path))
    if directory is None:
        raise UserError(not_prepared(settings.name, data_dir(settings.path)))
    info = tfds.builder_from_directory(directory).info
    check_format(info, directory)
    image_key, label_key = find_features(info)
    image_shape = find_image_shape(info.features[image_key], settings)
    label = info.features[label_key] if label_key else None
    num_classes = label.num_classes if label else 1
    if info.name in NOTES:
        to_stderr(NOTES[info.name])
    name = settings.name
    if settings.image_size:
        name += f"-{settings.image_size}x{settings.image_size}"

    def load(split):
        tfds_split, rows = find_rows(settings, info.splits, directory, label_key, split)
        decode = TfdsImages(
            str(directory), tfds_split, rows, image_key, label_key, image_shape,
            settings.fit, settings.max_value,
        )  # fmt: skip
        how = f"{settings.fit} {settings.max_value}"
        items = Items(
            name=name,
            split=split,
            decode=decode,
            describe=lambda index: f"{directory}, split {tfds_split}, record {decode.row(index)}",
            length=info.splits[tfds_split].num_examples if rows is None else len(rows),
            image_shape=image_shape,
            num_classes=num_classes,
            fingerprint=f"{fingerprint(directory)} {tfds_split} {how} {_digest(rows)}",
        )
        return read_through_cache(items, settings)

    has_names = label is not None and label.names[0] != "0"
    return Dataset(name, image_shape, num_classes, load, label.names if has_names else ())


def find_rows(settings, splits, directory, label_key, split):
    """Where "train" or "test" lies: (TFDS's split, its rows `[n]`, None for all of them)."""
    test_split = find_test_split(settings.name, splits)
    if test_split:
        return {"train": "train", "test": test_split}[split], None
    labels = read_labels(str(directory), "train", label_key)
    return "train", hold_out(labels, settings.test_share, name=settings.name)[split]


@dataclasses.dataclass(frozen=True)
class TfdsImages:
    """index -> (`Picture` of `image_shape`, label) of a prepared split.

    Opens the split by itself, so that it may travel to worker processes.
    """

    directory: str
    split: str
    rows: np.ndarray | None
    image_key: str
    label_key: str | None
    image_shape: tuple
    fit: str
    max_value: int = 0

    def row(self, index):
        """The record of a picture: its own place, or that of a share of the split."""
        return index if self.rows is None else int(self.rows[index])

    def __call__(self, index):
        example = open_split(self.directory, self.split)[self.row(index)]
        image, (size, _, channels) = example[self.image_key], self.image_shape
        if isinstance(image, bytes):
            picture = decode_image(
                io.BytesIO(image), channels, follow_exif=False, max_value=self.max_value
            )
        else:
            picture = Picture(image)
        picture = picture._replace(image=fit_image(picture.image, size, self.fit))
        return picture, int(example[self.label_key]) if self.label_key else 0


@functools.lru_cache(maxsize=4)
def open_split(directory, split):
    """Random access to a prepared split, pictures still encoded."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    return builder.as_data_source(split, decoders=_skip_images(builder.info.features))


def _skip_images(features):
    import tensorflow_datasets as tfds

    return {
        key: tfds.decode.SkipDecoding()
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }


def read_labels(directory, split, label_key):
    """Labels `[N]` of a split."""
    source = open_split(directory, split)
    return np.asarray([int(example[label_key]) if label_key else 0 for example in source])


def data_dir(path):
    """Where TensorFlow Datasets keeps its data."""
    return pathlib.Path(path or os.environ.get("TFDS_DATA_DIR", DEFAULT_DATA_DIR)).expanduser()


def find_prepared(name, root):
    """The newest prepared version of `name` or `name:version`; None where there is none.

    Raises:
      UserError: where `name` leaves open which configuration is meant.
    """
    name, _, version = name.partition(":")
    folder = root / name
    found = [path.parent for path in folder.glob(f"{version or '*'}/dataset_info.json")]
    configs = {path.parent.parent for path in folder.glob("*/*/dataset_info.json")}
    if not found and configs:
        if len(configs) > 1:
            choices = ", ".join(sorted(f"{name}/{config.name}" for config in configs))
            raise UserError(f"data.name={name} has several configurations: take one of {choices}")
        found = [path.parent for path in configs.pop().glob(f"{version or '*'}/dataset_info.json")]
    return max(found, key=_version, default=None)


def _version(path):
    return [int(part) if part.isdigit() else -1 for part in path.name.split(".")]


def not_prepared(name, root):
    """One line: what to do where no data are prepared."""
    import tensorflow_datasets as tfds

    base = name.partition(":")[0].partition("/")[0]
    known = tfds.list_builders(with_community_datasets=False)
    if base not in known:
        return (
            f"data.name={name} is neither one of {', '.join(LOCAL_NAMES)} nor a data set of "
            f"TensorFlow Datasets{nearest(base, [*LOCAL_NAMES, *known])}, and nothing of that name "
            f"is prepared in {root}"
        )
    return (
        f"{name} is not prepared in {root}: run the job prepare_data, or set "
        "data.path to the folder where it is"
    )


def check_format(info, directory):
    """Refuses data that were prepared without random access."""
    formats = [file_format.value for file_format in info.available_file_formats()]
    if "array_record" not in formats:
        raise UserError(
            f"{directory} was prepared as {', '.join(formats)}, which has no random access: "
            "the job prepare_data with another data.path prepares it as array_record"
        )


def find_features(info):
    """(name of the image feature, name of the label feature or None).

    Raises:
      UserError: where the data set is no image classification.
    """
    import tensorflow_datasets as tfds

    features = info.features
    images = [
        key
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
        or (type(feature) is tfds.features.Tensor and len(feature.shape) == 3)
    ]
    labels = [k for k, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if info.supervised_keys:
        images = [key for key in info.supervised_keys if key in images] or images
        labels = [key for key in info.supervised_keys if key in labels] or labels
    if len(images) != 1 or len(labels) > 1:
        raise UserError(
            f"{info.name} is no image classification: its features are {', '.join(features)}"
        )
    return images[0], labels[0] if labels else None


def find_image_shape(feature, settings):
    """(H, W, C) of what a model sees: the settings', else the feature's own."""
    height, width, channels = feature.shape
    channels = settings.channels or channels or 3
    size = settings.image_size
    if channels not in (1, 3):
        raise UserError(f"{settings.name} has {channels} channels; 1 or 3 can be learnt")
    if not size and (height is None or height != width):
        shape = "different sizes" if height is None else f"{height}x{width}"
        raise UserError(
            f"{settings.name} has pictures of {shape}: the U-Net takes squares of one size; name "
            "data.image_size, such as 64"
        )
    return (size or height, size or height, channels)


def find_test_split(name, splits):
    """The split that is held out; None where the data set has only `train`."""
    if "train" not in splits:
        raise UserError(f"{name} has no split `train`, only {', '.join(splits)}")
    wanted = TEST_SPLIT_OF.get(name.partition(":")[0])
    candidates = [wanted] if wanted else TEST_SPLITS
    return next((split for split in candidates if split in splits), None)


def fingerprint(directory):
    """Text that changes with any prepared file's name, size or time of change."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _digest(rows):
    return "all" if rows is None else hashlib.sha256(rows.tobytes()).hexdigest()
