"""Decoded pictures on disk: made once, whole or not at all, shared by all runs of a machine."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil

import numpy as np

from guided_distill.data.images import BrokenImageError, check_range
from guided_distill.data.sources import ArraySource, ImageDigest, StreamSource
from guided_distill.data.workers import ahead
from guided_distill.errors import UserError
from guided_distill.system.files import Damaged, read_own_json, write_own_json
from guided_distill.system.locks import hold_lock
from guided_distill.system.progress import Progress, to_stderr

FORMAT = 2  # of a cache's files; another one is another cache
NAMED = 5  # broken or doubtful pictures that are named one by one
READ_AT_ONCE = 2_000
REMOVE = "{}: remove its folder, and it is made again"
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_WORDS = ("No space left", "quota exceeded", "File too large")  # of array_record's errors


@dataclasses.dataclass(frozen=True)
class Items:
    """Pictures as they lie in files, still encoded.

    Attributes:
      name: of the data set.
      split: "train" or "test".
      decode: index -> (`Picture` of `image_shape`, label); picklable. Raises `BrokenImageError`.
      describe: index -> its file (and place in it), for people.
      length: how many there are.
      image_shape: (H, W, C) of all that `decode` returns.
      num_classes: number of classes.
      fingerprint: text that changes where any picture or label might have changed.
    """

    name: str
    split: str
    decode: object
    describe: object
    length: int
    image_shape: tuple
    num_classes: int
    fingerprint: str

    def __len__(self):
        return self.length

    @property
    def title(self):
        """For people."""
        return f"{self.name} {self.split}"


def read_through_cache(items, settings):
    """The items as a source; the first call decodes them all into a cache, later ones read it.

    Args:
      items: `Items`.
      settings: the section `config.data`: where caches lie, what fits memory, whether broken
        pictures may be left out, how many processes decode.

    Returns:
      An `ArraySource` or a `StreamSource`.

    Raises:
      UserError: naming the first picture that is broken, or what the disk lacks.
    """
    folder = cache_folder(items, settings.cache, settings.skip_broken)
    record = read_record(folder)
    if record is None:
        with locked(folder):
            record = read_record(folder)  # Another process may have made it meanwhile.
            if record is None:
                record = build(items, folder, settings.skip_broken, settings.num_workers)
    tell_pictures(record)
    source = open_cache(items, folder, record)
    in_memory = len(source) * np.prod(items.image_shape, dtype=float) <= settings.memory_gb * 1e9
    return load_into_memory(source) if in_memory else source


def cache_folder(items, root, skip_broken):
    """Where the cache of these items lies: its name changes with all that decides its content."""
    identity = [FORMAT, items.fingerprint, len(items), list(items.image_shape), skip_broken]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    name = "".join(c if c.isalnum() else "-" for c in items.title)
    return pathlib.Path(root).expanduser() / f"{name}-{key}"


def read_record(folder):
    """What a whole cache says of itself; None where there is none.

    Raises:
      UserError: where its folder is there and the record is missing, damaged or cannot be read.
    """
    try:
        record = read_own_json(folder / "record.json")
    except Damaged as error:
        raise UserError(REMOVE.format(error)) from error
    if record is None and folder.is_dir():
        raise UserError(REMOVE.format(f"{folder} is damaged"))
    return record


@contextlib.contextmanager
def locked(folder):
    """One process at a time makes a cache.

    On a file system without locks the work may be done twice; the rename at its end is safe.
    """
    path = folder.with_name(folder.name + ".lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(
            f"data.cache {folder.parent} cannot be written ({error.strerror}): name another folder"
        ) from error

    def wait(holder):
        to_stderr(f"waiting for {holder}, which prepares {folder}")

    with hold_lock(path, on_taken=wait):
        yield


def build(items, folder, skip_broken, num_workers):
    """Decodes all items into a folder beside `folder`, and renames it when it is whole."""
    check_space(items, folder.parent)
    for left_over in folder.parent.glob(f"{folder.name}.partial-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir()
        record = write_cache(items, partial, skip_broken, num_workers)
        partial.rename(folder)
    except (OSError, RuntimeError) as error:
        if getattr(error, "errno", None) in TAKEN and read_record(folder):
            return read_record(folder)  # Another process was first, on a file system without locks.
        full = getattr(error, "errno", None) in FULL or any(w in str(error) for w in FULL_WORDS)
        if full:
            raise UserError(lacking_space(items, folder.parent)) from error
        if isinstance(error, RuntimeError):
            raise
        raise UserError(f"data.cache {folder.parent} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return record


def check_space(items, root):
    """Refuses to begin what the disk cannot hold."""
    if shutil.disk_usage(root).free < _num_bytes(items):
        raise UserError(lacking_space(items, root))


def lacking_space(items, root):
    return (
        f"data.cache {root} has too little space: {items.title} takes "
        f"{_num_bytes(items) / 1e9:.3g} GB decoded; free some, or name another folder with "
        "data.cache"
    )


def _num_bytes(items):
    return len(items) * int(np.prod(items.image_shape))


def write_cache(items, folder, skip_broken, num_workers):
    """Writes `pictures.array_record`, `labels.npy` and, at last, `record.json`; returns the record.

    Broken pictures do not end the pass: all of them are found before the first is named.

    Raises:
      UserError: naming broken pictures, or those whose range of values is not known.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / "pictures.array_record"), "group_size:1,uncompressed")
    digest, labels, peaks, broken, warned = ImageDigest(), [], [], [], []
    title = f"decoding {items.title}"
    bar = Progress(title, total=len(items), unit="picture", compiles=False)
    results = ahead(_Decode(items), 0, len(items), num_workers=num_workers, buffer=256)
    for index, (picture, label) in enumerate(results):
        if picture is None:
            broken.append(f"{items.describe(index)}: {label}")
        else:
            writer.write(picture.image.tobytes())
            digest.add(picture.image)
            labels.append(label)
            peaks.append(picture.peak)
            if picture.warnings:
                warned.append(f"{items.describe(index)}: {picture.warnings[0]}")
        if (index + 1) % 500 == 0 or index + 1 == len(items):
            bar(index + 1)
    bar.close()
    writer.close()
    check_broken(items, broken, skip_broken)
    check_range(peaks, items.title)
    labels = np.asarray(labels, np.int32)
    np.save(folder / "labels.npy", labels)
    record = {
        "title": items.title,
        "source": items.fingerprint,
        "n": len(labels),
        "sha256": digest.finish(labels, items.image_shape, items.num_classes),
        "labels_sha256": hashlib.sha256(labels.tobytes()).hexdigest(),
        "broken": broken,
        "warned": warned,
    }
    write_own_json(folder / "record.json", record)
    return record


@dataclasses.dataclass(frozen=True)
class _Decode:
    """index -> (`Picture`, label), or (None, why not)."""

    items: Items

    def __call__(self, index):
        try:
            picture, label = self.items.decode(index)
        except BrokenImageError as error:
            return None, str(error)
        if not 0 <= label < self.items.num_classes:
            return None, f"label {label} is not in 0 to {self.items.num_classes - 1}"
        return picture, label


def check_broken(items, broken, skip_broken):
    """Refuses broken pictures unless they may be left out, and sets of which nothing is left."""
    if broken and not skip_broken:
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise UserError(
            f"{items.title}: {len(broken)} of {len(items)} pictures cannot be used: "
            f"{'; '.join(broken[:NAMED])}{more}; mend them, or leave them out with "
            "data.skip_broken=True"
        )
    if len(broken) == len(items):
        raise UserError(f"{items.title} holds no picture that can be used: {broken[0]}")


def tell_pictures(record):
    """Says at every start which pictures a cache leaves out, and which its decoder doubted."""
    broken, warned = record["broken"], record["warned"]
    kinds = {
        f"{len(broken)} broken pictures left out, {record['n']} kept": broken,
        f"{len(warned)} pictures are taken though their decoder warned": warned,
    }
    for what, pictures in kinds.items():
        if pictures:
            named = "; ".join(pictures[:NAMED]) + (" …" if len(pictures) > NAMED else "")
            to_stderr(f"{record['title']}: {what}: {named}")


def open_cache(items, folder, record):
    """The cache as a `StreamSource`.

    Raises:
      UserError: where its files are not those that were written.
    """
    source = StreamSource(
        items.name,
        str(folder / "pictures.array_record"),
        tuple(items.image_shape),
        _load_labels(folder, record),
        items.num_classes,
        record["sha256"],
    )
    if source.num_records() != record["n"]:
        raise UserError(REMOVE.format(f"{folder} is damaged"))
    return source


def _load_labels(folder, record):
    try:
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        sha256 = hashlib.sha256(labels.tobytes()).hexdigest()
        if labels.dtype == np.int32 and sha256 == record["labels_sha256"]:
            return labels
    except (FileNotFoundError, ValueError, EOFError):
        pass
    raise UserError(REMOVE.format(f"{folder} is damaged"))


def load_into_memory(stream):
    """A `StreamSource` as an `ArraySource`."""
    images = np.empty((len(stream), *stream.image_shape), np.uint8)
    for start in range(0, len(stream), READ_AT_ONCE):
        part = slice(start, min(start + READ_AT_ONCE, len(stream)))
        images[part], _ = stream.read(np.arange(part.start, part.stop))
    source = ArraySource(stream.name, images, stream.labels, stream.num_classes)
    if source.sha256 != stream.sha256:
        raise UserError(REMOVE.format(f"{stream.path} is damaged"))
    return source
