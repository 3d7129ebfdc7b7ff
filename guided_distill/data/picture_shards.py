"""Pictures and captions in webdataset `.tar` files and in parquet, read where they lie."""

import functools
import io
import json
import pathlib
import tarfile
import threading

from guided_distill.data.images import SUFFIXES, BrokenImageError, printable
from guided_distill.data.names import is_shown
from guided_distill.errors import UserError

BLOCK = tarfile.BLOCKSIZE
IMAGE_COLUMNS = ("image", "img", "bytes", "jpg", "jpeg", "png", "webp")
CAPTION_COLUMNS = ("text", "caption", "prompt", "txt")


def find_in_tars(paths, text_of, *, with_captions):
    """(rows, orphans, read, columns) of `.tar` files: members of one key are a pair.

    Args:
      paths: of the files, in order.
      text_of: (JSON object, where) -> its caption.
      with_captions: whether they are read.

    Returns:
      rows: (name, caption or None, place, size) of each picture, those of one file sorted by name.
      orphans: names of captions without a picture.
      read: place -> file object of a picture.
      columns: those that were read, for people; "" here.

    Raises:
      UserError: naming a file that is damaged or cut short, or a key that has two pictures.
    """
    rows, orphans = [], []
    for path in paths:
        pictures, captions = _read_tar(path, text_of, with_captions)
        for key, member in sorted(pictures.items()):
            place = (path, member.offset_data, member.size)
            rows.append((_tar_name(path, key), captions.pop(key, None), place, member.size))
        orphans += [_tar_name(path, key) for key in sorted(captions)]
    return rows, orphans, read_slice, ""


def read_slice(place):
    """The bytes of (path, offset, size) as a file object."""
    path, offset, size = place
    try:
        with open(path, "rb") as opened:
            opened.seek(offset)
            return io.BytesIO(opened.read(size))
    except OSError as error:
        raise BrokenImageError(f"cannot be read ({error.strerror})") from error


def _tar_name(path, key):
    return printable(f"{path.name}/{key}")


def _read_tar(path, text_of, with_captions):
    """({key: member of a picture}, {key: caption}) of one file."""
    pictures, texts, objects = {}, {}, {}
    try:
        _check_end(path)
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, kind = _key_of(member)
                if f".{kind}" in SUFFIXES:
                    if key in pictures:
                        raise UserError(f"{printable(path)} holds {key} twice: rename one")
                    pictures[key] = member
                elif kind in ("txt", "json") and with_captions:
                    text = archive.extractfile(member).read().decode("utf-8-sig")
                    (texts if kind == "txt" else objects)[key] = text
        of_json = {key: text_of(_as_dict(text), f"{path}: {key}") for key, text in objects.items()}
    except UserError:
        raise
    except (OSError, ValueError, tarfile.TarError) as error:
        raise UserError(f"{printable(path)} cannot be read as a .tar: {error}") from error
    of_text = {key: text.strip() for key, text in texts.items()}
    of_json = {key: text for key, text in of_json.items() if text or key in pictures}
    return pictures, of_json | of_text


def _as_dict(text):
    value = json.loads(text)
    return value if isinstance(value, dict) else {}


def _check_end(path):
    """Refuses a file that is cut between members, which reads as a shorter one."""
    with open(path, "rb") as opened:
        size = opened.seek(0, io.SEEK_END)
        opened.seek(max(0, size - BLOCK))
        if size < BLOCK or opened.read().strip(b"\0"):
            raise UserError(f"{printable(path)} is cut short, or no .tar: copy it again")


def _key_of(member):
    """(key, lower-case suffix) of a file's member: the key ends at the first dot of its name."""
    path = pathlib.PurePosixPath(member.name)
    stem, _, kind = path.name.partition(".")
    if not member.isreg() or not is_shown(path):
        return "", ""
    return str(path.with_name(stem)), kind.lower()


def find_in_parquet(paths, text_of, *, with_captions):
    """As `find_in_tars`, of parquet files with a column of pictures and one of captions.

    The column of pictures holds bytes, or `bytes` and `path`; rows are in their order.

    Raises:
      UserError: where pyarrow is not installed, a column is missing or a file is damaged.
    """
    rows = []
    for path in paths:
        opened = _open_parquet(path)
        image, text = _columns(path, opened.schema_arrow, with_captions)
        captions = [None] * opened.metadata.num_rows
        if with_captions:
            captions = [
                text_of({"text": value}, f"{printable(path)}: row {row}")
                for row, value in enumerate(opened.read([text]).column(text).to_pylist())
            ]
        size, row = path.stat().st_size, 0
        for group in range(opened.num_row_groups):
            for k in range(opened.metadata.row_group(group).num_rows):
                name = f"{printable(path.name)} row {row}"
                rows.append((name, captions[row], (path, image, group, k), size))
                row += 1
    return rows, [], read_cell, f", columns {', '.join(filter(None, (image, text)))}"


_one_at_a_time = threading.Lock()


def read_cell(place):
    """The picture of (path, column, row group, row in it) as a file object."""
    path, column, group, row = place
    with _one_at_a_time:  # Else several threads would read one group.
        cell = _read_group(path, column, group)[row].as_py()
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if data is None:
        raise BrokenImageError("its row holds no bytes")
    return io.BytesIO(data)


@functools.lru_cache(maxsize=2)
def _read_group(path, column, group):
    return _open_parquet(path).read_row_group(group, [column]).column(column).combine_chunks()


def _open_parquet(path):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("reading .parquet files needs pyarrow: pip install pyarrow") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{printable(path)} cannot be read: {str(error).splitlines()[0]}"
        ) from error


def _columns(path, schema, with_captions):
    """(column of pictures, column of captions) of a schema."""
    kinds = {field.name: field.type for field in schema}
    images = [name for name in IMAGE_COLUMNS if name in kinds]
    texts = [name for name in CAPTION_COLUMNS if name in kinds]
    if not images or (with_captions and not texts):
        lacks, known = ("captions", CAPTION_COLUMNS) if images else ("pictures", IMAGE_COLUMNS)
        raise UserError(
            f"{printable(path)} has no column of {lacks} ({', '.join(known)}): it has "
            f"{', '.join(kinds)}"
        )
    kind = str(kinds[images[0]])
    if not ("binary" in kind and (kind.startswith("struct") or "<" not in kind)):
        raise UserError(f"{printable(path)}: column {images[0]} must hold bytes, is {kind[:80]}")
    return images[0], texts[0] if texts else None
