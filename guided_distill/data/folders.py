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
TEST_FOLDERS = ("test", "val", "validation")


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
    splits = {"all": read_table(folder, settings.labels)} if settings.labels else scan(folder)
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
            decode=FileImages(files, labels, image_shape, settings.fit),
            describe=lambda index: f"{printable(files[index])} (record {index})",
            length=len(files),
            image_shape=image_shape,
            num_classes=len(class_names),
            fingerprint=fingerprint(folder, files, labels, settings.fit),
        )
        return read_through_cache(items, settings)

    return Dataset(name, image_shape, len(class_names), load, map(printable, class_names))


@dataclasses.dataclass(frozen=True)
class FileImages:
    """index -> (image `[H, W, C]` uint8, label) of picture files."""

    files: list
    labels: np.ndarray
    image_shape: tuple
    fit: str

    def __call__(self, index):
        size, _, channels = self.image_shape
        image, _ = decode_image(self.files[index], channels)
        return fit_image(image, size, self.fit), int(self.labels[index])


def fingerprint(folder, files, labels, fit):
    """Text that changes with any file's name, size, time of change or label, and with the fit."""
    digest = hashlib.sha256(fit.encode())
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
      UserError: naming an empty class.
    """
    subfolders = _subfolders(folder)
    names = {path.name for path in subfolders}
    test_folders = [name for name in TEST_FOLDERS if name in names]
    if "train" in names and len(test_folders) == 1 and len(names) == 2:
        return {"train": _classes(folder / "train"), "test": _classes(folder / test_folders[0])}
    return {"all": _classes(folder)}


def _classes(folder):
    """(file, class name) of every picture below `folder`, in order of name."""
    subfolders = _subfolders(folder)
    entries, others = [], [p for p in folder.iterdir() if p.is_file() and _is_shown(p)]
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
    return sorted(p for p in folder.iterdir() if p.is_dir() and _is_shown(p))


def _image_files(folder):
    """(pictures, other files) below a folder, by suffix, in order of name; hidden ones left out."""
    files = sorted(
        pathlib.Path(where, file) for where, _, names in os.walk(folder) for file in names
    )
    files = list(filter(_is_shown, files))
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    return images, [file for file in files if file.suffix.lower() not in SUFFIXES]


def _is_shown(path):
    return not path.name.startswith(".")


def read_table(folder, table):
    """Entries of a CSV or JSONL file with a column of files (in `folder`) and one of labels."""
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
    entries, seen = [], set()
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
        if not (folder / file).is_file():
            raise UserError(f"{path}: row {number} names {file}, which is not in {folder}")
        seen.add(file)
        entries.append((folder / file, label))
    if not entries:
        raise UserError(f"{path} names no picture")
    return entries


def _column(row, names):
    """A row's text under the first of `names` that it has; None without one."""
    values = [
        row[name] for name in names if isinstance(row, dict) and row.get(name) not in (None, "")
    ]
    return str(values[0]).strip() if values else None


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
