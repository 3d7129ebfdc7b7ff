"""A CSV or JSONL file that says what pictures a data set has, and of which class each is."""

import csv
import json
import os
import pathlib
import re

from guided_distill.data.names import SPLIT_NAMES, Listings, composed
from guided_distill.errors import UserError

FILE_COLUMNS = ("file", "file_name", "filename", "path", "image")
LABEL_COLUMNS = ("label", "class")
SPLIT_COLUMNS = ("split", "subset")


def read_table(folder, table):
    """`{"all": entries}` or `{"train": entries, "test": entries}`; entries are (file, class name).

    A column `split` sorts them into what is learnt and what is held out.

    Args:
      folder: that holds the files.
      table: CSV or JSONL with a column of files and one of labels, in `folder` or elsewhere.

    Raises:
      UserError: naming the row that is wrong.
    """
    path = pathlib.Path(table).expanduser()
    if not path.is_absolute() and (folder / path).exists():
        path = folder / path
    splits, seen, listings = {}, set(), Listings()
    for number, row in enumerate(read_rows(path, f"data.labels {table!r}"), start=1):
        file, label = (column_of(row, names) for names in (FILE_COLUMNS, LABEL_COLUMNS))
        if file is None or label is None:
            has = ", ".join(map(str, row)) if isinstance(row, dict) else row
            raise UserError(
                f"{path}: row {number} must have a column of {FILE_COLUMNS[0]} and one of "
                f"{LABEL_COLUMNS[0]}, has {has or 'nothing'}"
            )
        name = composed(os.path.normpath(file))
        if name in seen:
            raise UserError(f"{path}: row {number} names {file} again")
        if os.path.isabs(file) or os.path.normpath(file).startswith(".."):
            raise UserError(f"{path}: row {number} names {file}, which lies outside of {folder}")
        found = listings.find(folder, file)
        if len(found) != 1:
            why = f"which {len(found)} files are called" if found else "which is not"
            raise UserError(f"{path}: row {number} names {file}, {why} in {folder}")
        seen.add(name)
        entry = found[0], composed(label)
        splits.setdefault(_split_of(row, path, number), []).append(entry)
    if not splits:
        raise UserError(f"{path} names no picture")
    if "all" in splits and len(splits) > 1:
        raise UserError(f"{path} has rows with a split and rows without one")
    if set(splits) in ({"train"}, {"test"}):
        splits = {"all": sum(splits.values(), [])}
    return splits


def read_rows(path, what):
    """The rows of a CSV or JSONL file, dicts where they are well-formed.

    Raises:
      UserError: naming `what`, where it cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as opened:
            if path.suffix.lower() == ".jsonl":
                return [json.loads(line) for line in opened if line.strip()]
            return list(csv.DictReader(opened))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{what} cannot be read: {error}") from error


def _split_of(row, path, number):
    """The split that a row names; "all" where it names none."""
    name = column_of(row, SPLIT_COLUMNS)
    if name is None:
        return "all"
    for split, spellings in SPLIT_NAMES.items():
        if name.lower() in spellings:
            return split
    known = ", ".join(sum(SPLIT_NAMES.values(), ()))
    raise UserError(f"{path}: row {number} is of split {name}, which is none of {known}")


def column_of(row, names):
    """A row's text under the first of `names` that it has; None without one."""
    values = [
        row[name] for name in names if isinstance(row, dict) and row.get(name) not in (None, "")
    ]
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(values[0]).strip()) if values else None
