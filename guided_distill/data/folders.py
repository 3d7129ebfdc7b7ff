"""A folder of pictures: one subfolder a class, or a CSV or JSONL file of labels."""

import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import re

import numpy as np

from guided_distill.data.cache import Items, read_through_cache
from guided_distill.data.dataset import Dataset, check_labels, hold_out
from guided_distill.data.images import (
    SUFFIXES,
    decode_image,
    fit_image,
    printable,
)
from guided_distill.errors import UserError
from guided_distill.system.progress import to_stderr

FILE_COLUMNS = ("file", "file_name", "filename", "path", "image")
LABEL_COLUMNS = ("label", "class")
SPLIT_COLUMNS = ("split", "subset")
SPLIT_NAMES = {  # as folders and tables spell them, in any case; those that come first are taken
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation", "dev", "eval"),
}
HIDDEN = (".", "@", "__MACOSX")  # how names begin that systems and storage devices leave behind


def open_folder(settings):
    """A user's own pictures.

    Without `settings.labels`, each subfolder is a class, named after it; subfolders `train` and
    `test` (or `val`) are splits that hold those. A folder without subfolders is one class.

    Raises:
      UserError: naming what is missing, empty or unreadable.
    """
    folder = pathlib.Path(settings.path).expanduser()
    if not settings.path or not folder.is_dir():
        raise UserError(f"data.path {settings.path!r} is no folder of pictures")
    if not settings.image_size:
        raise UserError("data.name=folder needs data.image_size, such as 32 or 64 (pixels)")
    name = printable(folder.resolve().name)
    splits = read_table(folder, settings.labels) if settings.labels else scan(folder)
    class_names = number_classes(splits, numbers_are_labels=bool(settings.labels), name=name)
    splits = {
        split: ([file for file, _ in entries], _labels_of(entries, class_names, name))
        for split, entries in splits.items()
    }
    if "all" in splits:
        files, labels = splits["all"]
        rows = hold_out(labels, settings.test_share, name=name)
        splits = {
            split: ([files[i] for i in index], labels[index]) for split, index in rows.items()
        }
    image_shape = (settings.image_size, settings.image_size, settings.channels or 3)

    def load(split):
        files, labels = splits[split]
        items = Items(
            name=name,
            split=split,
            decode=FileImages(files, labels, image_shape, settings.fit, settings.max_value),
            describe=lambda index: f"{printable(files[index])} (record {index})",
            length=len(files),
            image_shape=image_shape,
            num_classes=len(class_names),
            fingerprint=fingerprint(folder, files, labels, f"{settings.fit} {settings.max_value}"),
        )
        return read_through_cache(items, settings)

    return Dataset(name, image_shape, len(class_names), load, map(printable, class_names))


@dataclasses.dataclass(frozen=True)
class FileImages:
    """index -> (`Picture` of `image_shape`, label) of picture files."""

    files: list
    labels: np.ndarray
    image_shape: tuple
    fit: str
    max_value: int

    def __call__(self, index):
        size, _, channels = self.image_shape
        picture = decode_image(self.files[index], channels, max_value=self.max_value)
        image = fit_image(picture.image, size, self.fit)
        return picture._replace(image=image), int(self.labels[index])


def fingerprint(folder, files, labels, how):
    """Text that changes with any file's name, size, time of change or label, and with `how`."""
    digest = hashlib.sha256(how.encode())
    for file, label in zip(files, labels, strict=True):
        try:
            stat = os.stat(file)
            size, changed = stat.st_size, stat.st_mtime_ns
        except OSError:
            size = changed = -1  # Named as broken when it is decoded.
        digest.update(os.fsencode(os.path.relpath(file, folder)))
        digest.update(f"\0{size} {changed} {label}\n".encode())
    return digest.hexdigest()


def scan(folder):
    """`{"all": entries}` or `{"train": entries, "test": entries}`; entries are (file, class name).

    Raises:
      UserError: naming an empty class, or what may be splits and may be classes.
    """
    subfolders = {path.name: path for path in _subfolders(folder)}
    splits = {
        split: [name for spelling in spellings for name in subfolders if name.lower() == spelling]
        for split, spellings in SPLIT_NAMES.items()
    }
    classes = [name for name in subfolders if name not in sum(splits.values(), [])]
    if not splits["train"] or (classes and not splits["test"]):
        return {"all": _classes(folder)}  # "train" may be a class among others.
    if classes or len(splits["train"]) > 1:
        raise UserError(
            f"{printable(folder)} holds splits ({', '.join(splits['train'] + splits['test'])}) and "
            f"{', '.join(classes) or 'no more'} beside them: move "
            "one away, or name a folder within by data.path"
        )
    train, test = subfolders[splits["train"][0]], splits["test"]
    if not test:
        to_stderr(f"{printable(folder)}: {train.name} is read; a share of it is held out")
        return {"all": _classes(train)}
    others = f"; not read: {', '.join(test[1:])}" if test[1:] else ""
    to_stderr(f"{printable(folder)}: {train.name} is learnt, {test[0]} is held out{others}")
    return {"train": _classes(train), "test": _classes(subfolders[test[0]])}


def _classes(folder):
    """(file, class name) of every picture below `folder`, in order of name."""
    subfolders = _subfolders(folder)
    entries, others = [], [p for p in _entries(folder) if p.is_file() and _is_shown(p)]
    for path in subfolders:
        files, no_images = _image_files(path)
        others += no_images
        if not files:
            raise UserError(
                f"class folder {printable(path)} holds no picture ({', '.join(SUFFIXES)}): "
                "fill it or remove it"
            )
        entries += [(file, path.name) for file in files]
    if not subfolders:
        files, others = _image_files(folder)
        entries = [(file, "all") for file in files]
    if others:
        named = printable(min(others)) + (", …" if len(others) > 1 else "")
        to_stderr(
            f"{printable(folder)}: {len(others)} files are not read, because they lie beside the "
            f"class folders or are no {', '.join(SUFFIXES)}: {named}"
        )
    if not entries:
        raise UserError(
            f"{printable(folder)} holds no pictures: it takes one subfolder a class, or "
            "pictures and a table named by data.labels"
        )
    return entries


def _subfolders(folder):
    return sorted(p for p in _entries(folder) if p.is_dir() and _is_shown(p))


def _entries(folder):
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{printable(folder)} cannot be read: {error.strerror}") from error
    for path in entries:
        if path.is_symlink() and folder.resolve().is_relative_to(path.resolve()):
            raise UserError(f"{printable(path)} is a link to a folder that holds it: remove it")
    return entries


def _image_files(folder):
    """(images, other files) below a folder, by suffix, in order of name.

    Hidden folders and files are left out, linked folders below the class folder with a word.

    Raises:
      UserError: naming a folder that cannot be read.
    """
    files, linked = [], []

    def refuse(error):
        raise UserError(f"{printable(error.filename)} cannot be read: {error.strerror}")

    for where, folders, names in os.walk(folder, onerror=refuse):
        paths = [pathlib.Path(where, name) for name in folders if _is_shown(pathlib.Path(name))]
        linked += [path for path in paths if path.is_symlink()]
        folders[:] = [path.name for path in paths if not path.is_symlink()]
        files += [pathlib.Path(where, name) for name in names]
    if linked:
        to_stderr(
            f"{printable(folder)}: {len(linked)} linked folders are not read, such as "
            f"{printable(min(linked))}"
        )
    files = sorted(filter(_is_shown, files))
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    return images, [file for file in files if file.suffix.lower() not in SUFFIXES]


def _is_shown(path):
    return not path.name.startswith(HIDDEN)


def read_table(folder, table):
    """As `scan`, of a CSV or JSONL file with a column of files (in `folder`) and one of labels.

    A column `split` sorts them into what is learnt and what is held out.
    """
    path = pathlib.Path(table).expanduser()
    if not path.is_absolute() and (folder / path).exists():
        path = folder / path
    try:
        with open(path, newline="", encoding="utf-8-sig") as opened:
            if path.suffix.lower() == ".jsonl":
                rows = [json.loads(line) for line in opened if line.strip()]
            else:
                rows = list(csv.DictReader(opened))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"data.labels {table!r} cannot be read: {error}") from error
    splits, seen = {}, set()
    for number, row in enumerate(rows, start=1):
        file, label = (_column(row, names) for names in (FILE_COLUMNS, LABEL_COLUMNS))
        if file is None or label is None:
            has = ", ".join(map(str, row)) if isinstance(row, dict) else row
            raise UserError(
                f"{path}: row {number} must have a column of {FILE_COLUMNS[0]} and one of "
                f"{LABEL_COLUMNS[0]}, has {has or 'nothing'}"
            )
        if file in seen:
            raise UserError(f"{path}: row {number} names {file} again")
        if os.path.isabs(file) or os.path.normpath(file).startswith(".."):
            raise UserError(f"{path}: row {number} names {file}, which lies outside of {folder}")
        if not (folder / file).is_file():
            raise UserError(f"{path}: row {number} names {file}, which is not in {folder}")
        seen.add(file)
        splits.setdefault(_split_of(row, path, number), []).append((folder / file, label))
    if not splits:
        raise UserError(f"{path} names no picture")
    if "all" in splits and len(splits) > 1:
        raise UserError(f"{path} has rows with a split and rows without one")
    if set(splits) in ({"train"}, {"test"}):
        splits = {"all": sum(splits.values(), [])}
    return splits


def _split_of(row, path, number):
    """The split that a row names; "all" where it names none."""
    name = _column(row, SPLIT_COLUMNS)
    if name is None:
        return "all"
    for split, spellings in SPLIT_NAMES.items():
        if name.lower() in spellings:
            return split
    known = ", ".join(sum(SPLIT_NAMES.values(), ()))
    raise UserError(f"{path}: row {number} is of split {name}, which is none of {known}")


def _column(row, names):
    """A row's text under the first of `names` that it has; None without one."""
    values = [
        row[name] for name in names if isinstance(row, dict) and row.get(name) not in (None, "")
    ]
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(values[0]).strip()) if values else None


def number_classes(splits, *, numbers_are_labels, name):
    """Names of all classes in the order of their labels: that of numbers, else alphabetical.

    Args:
      splits: `{split: entries}`.
      numbers_are_labels: whether integers mean themselves, so that none may be missing.
      name: of the data set, for errors.
    """
    learnt = splits["all" if "all" in splits else "train"]
    names = {class_name for _, class_name in learnt}
    if all(re.fullmatch(r"-?\d+", class_name) for class_name in names):
        if numbers_are_labels:
            check_labels([int(class_name) for class_name in names], what=name)
        return sorted(names, key=int)
    return sorted(names)


def _labels_of(entries, class_names, name):
    """Labels `[n]` int32 of entries."""
    number = {class_name: label for label, class_name in enumerate(class_names)}
    for file, class_name in entries:
        if class_name not in number:
            raise UserError(
                f"{name}: {printable(file)} is of class {class_name}, which the training pictures "
                "do not have"
            )
    return np.asarray([number[class_name] for _, class_name in entries], np.int32)
