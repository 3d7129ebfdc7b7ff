"""Pictures and what is told of each, wherever both lie: a folder with captions, shards, classes."""

import dataclasses
import hashlib
import os
import pathlib
from collections import Counter
from typing import Any, NamedTuple

from guided_distill.data.folders import holds_runs, image_files, labels_of, number_classes, scan
from guided_distill.data.images import (
    SUFFIXES,
    BrokenImageError,
    decode_image,
    fit_image,
    printable,
)
from guided_distill.data.label_table import FILE_COLUMNS, column_of, read_rows
from guided_distill.data.names import SPLIT_NAMES, Listings, in_order, is_shown
from guided_distill.data.picture_shards import find_in_parquet, find_in_tars
from guided_distill.errors import UserError

TABLES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
SHARDS = {".tar": find_in_tars, ".parquet": find_in_parquet}
TEXT_COLUMNS = ("text", "caption", "prompt")
NAMED = 5  # of what is wrong, one by one
CAPTIONS, CLASSES, NOTHING = "captions", "classes", "nothing"  # what is told of a picture
WAYS = f"{', '.join(TABLES)}, a .txt beside each picture, or .tar or .parquet shards"


class Item(NamedTuple):
    """A picture that is still encoded.

    Attributes:
      name: that no other has.
      told: its caption or label; None without one.
      place: what `read` takes.
      size: of what holds it, in bytes.
    """

    name: str
    told: Any
    place: Any
    size: int


@dataclasses.dataclass(frozen=True)
class Told:
    """What examples are made of, in an order that is always the same.

    Attributes:
      source: they came from, for people.
      items: a list of `Item`; of prompts alone they have no place.
      read: place -> file or path of an encoded picture; None of prompts alone.
      left_out: lines that say what is left out.
      class_names: in the order of labels; () of captions.
    """

    source: str
    items: list
    read: Any = None
    left_out: tuple = ()
    class_names: tuple = ()

    def __len__(self):
        return len(self.items)

    def digest(self, rows=None):
        """Of names and what is told, in order; of some rows of the pictures' sizes, too."""
        digest = hashlib.sha256()
        for item in self.items if rows is None else [self.items[row] for row in rows]:
            size = "" if rows is None else item.size
            digest.update(f"{item.name!r} {size} {item.told!r}\n".encode())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Loader:
    """Row -> `Picture` of `image_shape`, (H, H, C), or in words why it cannot be used."""

    pictures: Told
    image_shape: tuple
    max_value: int = 0

    def __call__(self, row):
        item, (size, _, channels) = self.pictures.items[row], self.image_shape
        try:
            file = self.pictures.read(item.place)
            picture = decode_image(file, channels, max_value=self.max_value)
            return picture._replace(image=fit_image(picture.image, size, "crop"))
        except BrokenImageError as error:
            return f"{item.name}: {error}".replace("data.max_value", "`max_value`")


def read_prompts(path, *, skip_missing=False):
    """The prompts of a text file, one a line, as `Told`."""
    try:
        lines = pathlib.Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"`prompts` {path} cannot be read: {error}") from error
    items = [Item(f"line {k}", line.strip(), None, 0) for k, line in enumerate(lines, start=1)]
    return settle(f"{path}", pathlib.Path(path).name, items, skip_missing=skip_missing)


def find_pictures(path, wanted, *, skip_missing=False):
    """The pictures of a folder or of one shard, with what is told of them.

    Args:
      path: of the folder, or of one `.tar` or `.parquet` file.
      wanted: `CAPTIONS`, `CLASSES` (a subfolder a class), or `NOTHING`.
      skip_missing: leave out pictures without captions and captions without pictures.

    Returns:
      `{"all": Told}`, or `{"train": Told, "test": Told}` where the folder has such subfolders.

    Raises:
      UserError: where there is nothing, or it is told wrongly.
    """
    if path.suffix.lower() in SHARDS and path.is_file():
        return {"all": _find_in_shards([path], wanted, path, skip_missing)}
    if not path.is_dir():
        raise UserError(f"`from` {path} is no folder of pictures, and no .tar or .parquet file")
    if wanted == CLASSES:
        return _find_classes(path)
    return {
        split: _find_in_folder(folder, wanted, skip_missing)
        for split, folder in _splits(path).items()
    }


def _splits(folder):
    """`{"train": folder, "test": folder}` of a folder that holds those alone, else `{"all": …}`."""
    shown = [path for path in folder.iterdir() if is_shown(path)]
    within = {path.name.lower(): path for path in shown if path.is_dir() and not holds_runs(path)}
    lies_here = any(p.is_file() and _is_read(p) for p in shown)
    found = {split: [w for w in words if w in within] for split, words in SPLIT_NAMES.items()}
    others = set(within) - set(found["train"]) - set(found["test"])
    if lies_here or others or len(found["train"]) != 1:
        return {"all": folder}
    return {split: within[names[0]] for split, names in found.items() if names}


def _is_read(path):
    return path.name in TABLES or path.suffix.lower() in (*SUFFIXES, *SHARDS)


def _find_classes(folder):
    """As `find_pictures`: labels are the numbers that folders are called, else in order of name."""
    splits = scan(folder)
    learnt = splits["all" if "all" in splits else "train"]
    if {name for _, name in learnt} == {"all"}:
        raise UserError(f"`from` {folder} has no class folders, and the teacher takes class labels")
    names = number_classes(splits, numbers_are_labels=True, name=printable(folder))
    found = {}
    for split, entries in splits.items():
        labels = labels_of(entries, names, printable(folder)).tolist()
        files = [file for file, _ in entries]
        items = [_file_item(folder, *one) for one in zip(files, labels, strict=True)]
        source = f"{len(names)} class folders"
        found[split] = Told(source, items, pathlib.Path, class_names=tuple(names))
    return found


def _find_in_folder(folder, wanted, skip_missing):
    images, others, _ = image_files(folder)
    tables = [path for path in others if path.parent == folder and path.name in TABLES]
    shards = [path for path in others if path.suffix.lower() in SHARDS]
    texts = [path for path in others if path.suffix.lower() == ".txt"]
    if len(tables) > 1 or (shards and (images or len({p.suffix.lower() for p in shards}) > 1)):
        found = [*tables, *shards[:1], *images[:1]] if shards else tables
        raise UserError(
            f"{printable(folder)} says more than once what its pictures are "
            f"({', '.join(printable(path.name) for path in found)}): keep one, or name it by `from`"
        )
    if shards:
        return _find_in_shards(shards, wanted, folder, skip_missing)
    if not images:
        raise UserError(f"{printable(folder)} holds no pictures ({', '.join(SUFFIXES)})")
    if wanted == NOTHING:
        items = [_file_item(folder, file, None) for file in images]
        return Told("nothing told of them", items, pathlib.Path)
    if not tables and not texts:
        raise UserError(f"{printable(folder)} holds pictures and no captions: it takes {WAYS}")
    pair = _pair_table if tables else _pair_texts
    items, orphans, source = pair(folder, images, tables[0] if tables else texts)
    return settle(
        f"{printable(folder)}", source, items, orphans, read=pathlib.Path, skip_missing=skip_missing
    )


def _file_item(folder, file, told):
    name = printable(os.path.relpath(file, folder))
    try:
        return Item(name, told, file, file.stat().st_size)
    except OSError:
        return Item(name, told, file, -1)  # Named as broken when it is decoded.


def _pair_table(folder, images, table):
    """(items, captions without a picture, source) of a table of files and captions."""
    captions, orphans, listings, columns = {}, [], Listings(), {}
    for number, row in enumerate(read_rows(table, printable(table)), start=1):
        file = column_of(row, FILE_COLUMNS)
        if file is None or not any(name in row for name in TEXT_COLUMNS):
            has = ", ".join(map(str, row)) if isinstance(row, dict) else row
            raise UserError(
                f"{printable(table)}: row {number} must have a column of "
                f"{' or '.join(FILE_COLUMNS[1::3])} and one of {' or '.join(TEXT_COLUMNS)}, has "
                f"{has or 'nothing'}"
            )
        columns[next(name for name in TEXT_COLUMNS if name in row)] = None
        found = listings.find(folder, file)
        if len(found) > 1:
            raise UserError(
                f"{printable(table)}: row {number} names {file}, which is several files"
            )
        if not found:
            orphans.append(file)
        elif _plain(found[0]) in captions:
            raise UserError(f"{printable(table)}: row {number} names {file} again")
        else:
            captions[_plain(found[0])] = text_of(row, f"{printable(table)}: row {number}")
    items = [_file_item(folder, file, captions.pop(_plain(file), None)) for file in images]
    orphans += [printable(path) for path in captions]  # of files that are no pictures, or hidden
    return items, orphans, f"column {' and '.join(columns)} of {table.name}"


def _plain(path):
    return pathlib.Path(os.path.normpath(path))


def _pair_texts(folder, images, texts):
    """(items, captions without a picture, source) of a `.txt` beside each picture."""
    of_stem = {path.with_suffix(""): path for path in texts}
    counts = Counter(path.with_suffix("") for path in images)
    items = []
    for file in images:
        stem = file.with_suffix("")
        if stem in of_stem and counts[stem] > 1:
            raise UserError(
                f"{printable(of_stem[stem])} is the caption of {counts[stem]} pictures of one "
                "name: rename all but one"
            )
        caption = read_caption(of_stem[stem]) if stem in of_stem else None
        items.append(_file_item(folder, file, caption))
    orphans = [printable(of_stem[stem].name) for stem in of_stem if stem not in counts]
    return items, orphans, ".txt files beside them"


def read_caption(path):
    """The text of a file."""
    try:
        return path.read_text("utf-8-sig").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"caption {printable(path)} cannot be read: {error}") from error


def text_of(row, where):
    """The caption of a row or of a JSON object; None without one.

    Raises:
      UserError: where it is no text, as a list of several captions is not.
    """
    values = [row[name] for name in TEXT_COLUMNS if row.get(name) is not None]
    if values and not isinstance(values[0], str):
        raise UserError(f"{where}: the caption must be one text, got {str(values[0])[:60]}")
    return values[0].strip() if values else None


def _find_in_shards(paths, wanted, where, skip_missing):
    paths = in_order(paths)
    suffix = paths[0].suffix.lower()
    rows, orphans, read, columns = SHARDS[suffix](paths, text_of, with_captions=wanted == CAPTIONS)
    if wanted == CLASSES:
        raise UserError(
            f"`from` {where} are shards, and the teacher takes class labels: give it class folders"
        )
    source = f"{len(paths)} {suffix} shards{columns}"
    items = [Item(*row) for row in rows]
    if wanted == NOTHING:
        return Told(source, items, read)
    return settle(f"{where}", source, items, orphans, read=read, skip_missing=skip_missing)


def settle(where, source, items, orphans=(), *, read=None, skip_missing=False):
    """`Told` of items with captions, those without left out.

    Args:
      where: they lie, for people.
      source: of the captions, for people.
      items: all, in order.
      orphans: names that captions have and pictures have not.
      read: as of `Told`.
      skip_missing: whether some may be left out.

    Raises:
      UserError: naming those that may not, or where none is left.
    """
    what = "lines" if read is None else "pictures"
    without = [item.name for item in items if not item.told]
    kept = [item for item in items if item.told]
    lines = []
    if without:
        why = "are empty" if read is None else "have no caption"
        lines.append(f"{len(without)} of {len(items)} {what} {why}: {some_of(without)}")
    if orphans:
        lines.append(f"{len(orphans)} captions have no picture: {some_of(list(orphans))}")
    if lines and not skip_missing:
        raise UserError(
            f"{where}: {'; '.join(lines)}: mend them, or leave them out with `skip_missing`"
        )
    if not kept:
        raise UserError(
            f"{where} holds no {'prompt' if read is None else 'picture with a caption'}"
        )
    return Told(source, kept, read, tuple(lines))


def some_of(names):
    """The first of many names, for people."""
    return ", ".join(map(str, names[:NAMED])) + (", …" if len(names) > NAMED else "")
