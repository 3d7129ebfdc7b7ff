"""Prepares builders of TensorFlow Datasets as array_record, which can be read at random."""

import contextlib
import socket
import urllib.parse

from guided_distill.data.tfds_builders import find_prepared, not_prepared
from guided_distill.errors import UserError

CONNECT_SECONDS = 5.0
NEEDS_TENSORFLOW = (
    "needs TensorFlow to be prepared (only then): pip install 'guided_distill[tf]', here or on "
    "another machine, whose prepared folder can be copied"
)


def prepare_tfds(name, root, *, download):
    """Prepares a builder from archives in `<root>/downloads/manual`, or from its own addresses.

    Args:
      name: of the builder, such as `cifar10` or `imagenet_resized/64x64`.
      root: data_dir of TensorFlow Datasets.
      download: whether what is missing may be fetched.

    Returns:
      Folder of the prepared data.

    Raises:
      UserError: at once, naming the archive that is missing and where it belongs; where
        TensorFlow is needed and not installed; where an archive is not the one that was meant.
    """
    directory = find_prepared(name, root)
    if directory is not None:
        return directory
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise UserError(not_prepared(name, root)) from None
    except ValueError as error:
        raise UserError(f"data.name={name}: {error}") from error
    if "/" not in name and len(builder.BUILDER_CONFIGS) > 1:
        choices = ", ".join(f"{name}/{config.name}" for config in builder.BUILDER_CONFIGS)
        raise UserError(f"data.name={name} has several configurations: take one of {choices}")
    manual = root / "downloads" / "manual"
    manual.mkdir(parents=True, exist_ok=True)
    try:
        with guarded_downloads(name, manual, download):
            builder.download_and_prepare()
    except UserError:
        raise
    except AssertionError as error:  # Archives that no address leads to are missing.
        raise UserError(f"{name} is missing archives in {manual}: {error}") from error
    except NonMatchingChecksumError as error:
        raise UserError(f"{name}: an archive is damaged or another one: {error}") from error
    except Exception as error:  # A missing TensorFlow comes in errors of many kinds.
        if "No module named 'tensorflow'" in str(error):
            raise UserError(f"{name} {NEEDS_TENSORFLOW}") from error
        raise
    return find_prepared(name, root)


@contextlib.contextmanager
def guarded_downloads(name, manual, allowed):
    """Refuses downloads that are not allowed or cannot work, before TFDS retries for minutes.

    TFDS offers no option for this, so its downloader is exchanged meanwhile.
    """
    from tensorflow_datasets.core.download import download_manager, downloader

    class GuardedDownloader(downloader._Downloader):
        def download(self, url, *args, **kwargs):
            check_download(name, url, manual, allowed)
            return super().download(url, *args, **kwargs)

    original = download_manager.get_downloader
    download_manager.get_downloader = GuardedDownloader
    try:
        yield
    finally:
        download_manager.get_downloader = original


def check_download(name, url, manual, allowed):
    """Raises `UserError` where `url` may not or cannot be fetched."""
    parts = urllib.parse.urlsplit(url)
    place = f"put {parts.path.rpartition('/')[2]} (of {url}) into {manual}"
    if not allowed:
        raise UserError(f"{name} is not prepared: {place}, or let it be fetched with `download`")
    try:
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 443)
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"{name}: {parts.hostname} cannot be reached ({error}): {place}") from error
