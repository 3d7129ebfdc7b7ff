"""A folder of pictures: one subfolder a class, or a CSV or JSONL file of labels."""

import dataclasses
import hashlib
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
from guided_distill.data.label_table import read_table
from guided_distill.data.names import SPLIT_NAMES, composed, in_order, is_shown
from guided_distill.errors import UserError
from guided_distill.system.progress import to_stderr
from guided_distill.system.workdir import is_workdir


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
    check_outside(settings, settings.cache, "data.cache")
    name = printable(folder.resolve().name)
    splits = read_table(folder, settings.labels) if settings.labels else scan(folder)
    class_names = number_classes(splits, numbers_are_labels=bool(settings.labels), name=name)
    splits = {
        split: ([file for file, _ in entries], labels_of(entries, class_names, name))
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
        split: [path for word in words for path in subfolders.values() if path.name.lower() == word]
        for split, words in SPLIT_NAMES.items()
    }
    train, test = splits["train"], splits["test"]
    classes = [name for name, path in subfolders.items() if path not in train + test]
    if test and not train and not classes:
        raise UserError(
            f"{printable(folder)} holds {_names(test)} and no folder train beside: name "
            f"data.path={printable(test[0])} to learn from that, or move what is learnt to train"
        )
    if not train or (classes and not test):
        return {"all": _classes(folder)}  # "train" may be a class among others.
    if classes or len(train) > 1:
        raise UserError(
            f"{printable(folder)} holds splits ({_names(train + test)}) and "
            f"{', '.join(map(printable, classes)) or 'no more'} beside them: move "
            "one away, or name a folder within by data.path"
        )
    tell_unread(folder, _files(folder))
    tell_runs(folder, _runs(folder))
    return _read_splits(folder, train[0], test)


def _read_splits(folder, train, candidates):
    """As `scan`, of the folder that is learnt and those that may be held out, the likeliest first.

    Those without class folders say nothing of their classes, where those that are learnt have some.
    """
    has_classes = bool(_subfolders(train))
    test = next((path for path in candidates if bool(_subfolders(path)) == has_classes), None)
    others = [path for path in candidates if path != test]
    if test is None and candidates and not has_classes:
        raise UserError(
            f"{printable(train)} has no class folders, {printable(candidates[0])} has some: sort "
            f"the pictures of {train.name} into class folders, or move {_names(candidates)} away"
        )
    if test is None:
        unread = f"; not read, without class folders: {_names(others)}" if others else ""
        to_stderr(f"{printable(folder)}: {train.name} is read; a share of it is held out{unread}")
        return {"all": _classes(train)}
    one_class = "" if has_classes else ", one class, for they have no class folders"
    unread = f"; not read: {_names(others)}" if others else ""
    said = f"{train.name} is learnt, {test.name} is held out{one_class}{unread}"
    to_stderr(f"{printable(folder)}: {said}")
    return {"train": _classes(train), "test": _classes(test)}


def _names(paths):
    return ", ".join(printable(path.name) for path in paths)


def _classes(folder):
    """(file, class name) of every picture below `folder`, in order of name."""
    subfolders = _subfolders(folder)
    check_names(subfolders)
    entries, others, runs = [], _files(folder), _runs(folder)
    for path in subfolders:
        files, no_images, runs_within = image_files(path)
        others, runs = others + no_images, runs + runs_within
        if not files:
            raise UserError(
                f"class folder {printable(path)} holds no picture ({', '.join(SUFFIXES)}): "
                "fill it or remove it"
            )
        entries += [(file, composed(path.name)) for file in files]
    if not subfolders:
        files, others, runs = image_files(folder)
        entries = [(file, "all") for file in files]
    tell_unread(folder, others)
    tell_runs(folder, runs)
    if not entries:
        raise UserError(
            f"{printable(folder)} holds no pictures: it takes one subfolder a class, or "
            "pictures and a table named by data.labels"
        )
    return entries


def check_names(class_folders):
    """Refuses two class folders whose names are one name to people."""
    seen = {}
    for path in class_folders:
        other = seen.setdefault(composed(path.name), path)
        if other != path:
            raise UserError(
                f"{printable(path.parent)} holds two class folders of one name, spelt "
                f"{ascii(other.name)} and {ascii(path.name)} in Unicode: merge them, or rename one"
            )


def tell_unread(folder, files):
    """Says how many files are left out that do not lie where pictures are looked for."""
    if files:
        named = printable(min(files)) + (", …" if len(files) > 1 else "")
        to_stderr(
            f"{printable(folder)}: {len(files)} files are not read, because they lie beside the "
            f"class folders or are no {', '.join(SUFFIXES)}: {named}"
        )


def tell_runs(folder, runs):
    """Says which workdirs lie among the pictures: what they hold are results, not data."""
    if runs:
        more = ", …" if len(runs) > 1 else ""
        to_stderr(
            f"{printable(folder)}: {len(runs)} folders of runs are not read: "
            f"{printable(min(runs))}{more}"
        )


def _files(folder):
    return [path for path in _entries(folder) if path.is_file() and is_shown(path)]


def _subfolders(folder):
    """Folders in a folder that may hold pictures, in order of name."""
    return in_order(p for p in _entries(folder) if p.is_dir() and is_shown(p) and not holds_runs(p))


def _runs(folder):
    return [p for p in _entries(folder) if p.is_dir() and is_shown(p) and holds_runs(p)]


def holds_runs(folder):
    """Whether a folder is a workdir, or holds workdirs and nothing else."""
    if is_workdir(folder):
        return True
    try:
        entries = filter(is_shown, folder.iterdir())
        first = next(entries, None)
        return first is not None and is_workdir(first) and all(map(is_workdir, entries))
    except OSError:
        return False  # It is named when its pictures are looked for.


def _entries(folder):
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{printable(folder)} cannot be read: {error.strerror}") from error
    for path in entries:
        if path.is_symlink() and folder.resolve().is_relative_to(path.resolve()):
            raise UserError(f"{printable(path)} is a link to a folder that holds it: remove it")
    return entries


def image_files(folder):
    """(images, other files) below a folder, by suffix, in order of name; and workdirs there.

    Hidden folders and files are left out, linked folders below the class folder with a word.

    Raises:
      UserError: naming a folder that cannot be read.
    """
    files, linked, runs = [], [], []

    def refuse(error):
        raise UserError(f"{printable(error.filename)} cannot be read: {error.strerror}")

    for where, folders, names in os.walk(folder, onerror=refuse):
        paths = [pathlib.Path(where, name) for name in folders if is_shown(pathlib.Path(name))]
        linked += [path for path in paths if path.is_symlink()]
        runs += [path for path in paths if not path.is_symlink() and is_workdir(path)]
        folders[:] = [p.name for p in paths if not p.is_symlink() and p not in runs]
        files += [pathlib.Path(where, name) for name in names]
    if linked:
        to_stderr(
            f"{printable(folder)}: {len(linked)} linked folders are not read, such as "
            f"{printable(min(linked))}"
        )
    files = in_order(filter(is_shown, files))
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    return images, [file for file in files if file.suffix.lower() not in SUFFIXES], runs


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


def check_outside(settings, path, what):
    """Refuses to write where class folders are read from: results would become data.

    Args:
      settings: the section `config.data`.
      path: of a file or folder that is going to be written.
      what: it is, as in "`out`".

    Raises:
      UserError: naming it and the folder.
    """
    if settings.name not in ("folder", "arrays") or settings.labels or not settings.path:
        return  # A table names its pictures, and other readers read nothing else from folders.
    folder, path = (pathlib.Path(p).expanduser().resolve() for p in (settings.path, path))
    within = path.is_relative_to(folder) and path.relative_to(folder)
    if within and not all(is_shown(pathlib.Path(part)) for part in within.parts):
        return  # Hidden from the reader, too.
    if within:
        held = "pictures" if settings.name == "folder" else "arrays"
        raise UserError(
            f"{what} {printable(path)} lies in data.path {printable(folder)}, where its {held} "
            "would become data: name a folder beside it"
        )


def labels_of(entries, class_names, name):
    """Labels `[n]` int32 of entries."""
    number = {class_name: label for label, class_name in enumerate(class_names)}
    for file, class_name in entries:
        if class_name not in number:
            raise UserError(
                f"{name}: {printable(file)} is of class {class_name}, which the training pictures "
                "do not have"
            )
    return np.asarray([number[class_name] for _, class_name in entries], np.int32)
