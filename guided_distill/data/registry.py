"""From `config.data` to a data set, by its name."""

from guided_distill.data.array_folder import open_array_folder
from guided_distill.data.arrays import open_digits, open_idx, open_npz
from guided_distill.data.folders import open_folder
from guided_distill.data.prepare import prepare_tfds
from guided_distill.data.tfds_builders import data_dir, open_tfds

READERS = {
    "arrays": open_array_folder,
    "digits": open_digits,
    "folder": open_folder,
    "idx": open_idx,
    "npz": open_npz,
}


def open_dataset(settings):
    """The `Dataset` of the section `config.data`: shape and classes at once, images when asked for.

    Any name but those of `READERS` is one of TensorFlow Datasets.

    Raises:
      UserError: within a second, where the data are not there or do not fit the settings.
    """
    return READERS.get(settings.name, open_tfds)(settings)


def prepare_builder(settings, *, download):
    """Prepares what TensorFlow Datasets must prepare before it can be opened; else does nothing.

    Args:
      settings: the section `config.data`.
      download: whether archives that are missing may be fetched.
    """
    if settings.name not in READERS:
        prepare_tfds(settings.name, data_dir(settings.path), download=download)
