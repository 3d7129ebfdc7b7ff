"""A folder of arrays as a data set: latents or pictures `x`, and what they are conditioned on."""

import dataclasses
import hashlib
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.data.arrays import check_labels_below
from guided_distill.data.cache import locked, read_record
from guided_distill.data.caption_lists import CaptionLists, check_lists
from guided_distill.data.dataset import Dataset, check_labels, hold_out
from guided_distill.data.encoded import check_whole
from guided_distill.data.folders import check_outside
from guided_distill.data.shards import SUFFIXES, Held, list_shards, read_null
from guided_distill.data.sources import ShardSource
from guided_distill.errors import UserError, nearest
from guided_distill.system.files import json_sha256, replacing
from guided_distill.system.progress import Progress

FORMAT = 1  # of the record of a folder's contents
LABELS = ("labels", "class_labels")  # the conditioning that makes classes
X_DTYPES = ("uint8", "float16", "bfloat16", "float32")
COND_DTYPES = (
    *X_DTYPES[1:], "bool", "uint8", "uint16", "int8", "int16", "int32", "int64", "uint32",
)  # fmt: skip
BYTES_AT_ONCE = 2**25
INT32 = np.iinfo(np.int32)


def open_array_folder(settings):
    """A folder of `.npz`, `.safetensors` or `.npy` shards, as docs/data.md has it.

    Raises:
      UserError: naming the file and the array that is wrong, before any of them is read.
    """
    folder = pathlib.Path(settings.path).expanduser()
    if not settings.path or not folder.is_dir():
        raise UserError(
            f"data.path {settings.path!r} is no folder: data.name=arrays needs one of "
            f"{', '.join(SUFFIXES)} files"
        )
    check_outside(settings, settings.cache, "data.cache")
    splits = {split: _read_place(place) for split, place in _places(folder).items()}
    first = next(iter(splits.values()))
    for parts in splits.values():
        check_alike({name: [first[name][0], *parts.get(name, ())] for name in first}, parts)
    labels = _labels_array(first)
    null = read_null(folder)
    check_null(null, first, folder)
    splits = load_labels(splits, labels, settings.test_share, folder.resolve().name)
    num_classes = None
    if labels:
        num_classes = check_labels(splits["train"]["labels"], what=f"{folder}")
        check_labels_below(splits["test"]["labels"], num_classes, what=f"{folder}, test")

    def load(split):
        contents = {  # Of both: what is wrong with the test split is said before compute.
            other: content_digest(of_split["parts"], folder.resolve().name, settings.cache)
            for other, of_split in splits.items()
        }
        content = contents[split]
        return load_source(folder, num_classes, settings, content=content, **splits[split])

    return Dataset(
        folder.resolve().name,
        first["x"][0].shape[1:],
        num_classes,
        load,
        example=_example(first, labels),
        null=null,
    )


def _read_place(folder):
    """`join_shards` of a folder that lacks none of its shards."""
    check_whole(folder)
    parts = join_shards(list_shards(folder))
    check_lists(parts["x"])
    return parts


def _places(folder):
    """`{split: folder}` of the splits: `train` and `test`, or `all` of the folder itself."""
    inner = {split: folder / split for split in ("train", "test") if (folder / split).is_dir()}
    if not inner:
        return {"all": folder}
    if "train" not in inner:
        raise UserError(f"data.path {folder} has test/ and no train/: name what is to be learnt so")
    if list_shards(folder):
        raise UserError(
            f"data.path {folder} holds shards beside train/: move them into train/ or test/"
        )
    return inner if "test" in inner else {"all": inner["train"]}


def join_shards(shards):
    """`{array: (Part, …)}` of `[{array: Part}]`, checked.

    Raises:
      UserError: where there is none, or a shard differs from the first.
    """
    if not shards:
        raise UserError(
            f"data.path holds no shards: data.name=arrays needs {', '.join(SUFFIXES)} files"
        )
    names = shards[0]
    for shard in shards:
        file, here = next(iter(shard.values())).file, ", ".join(shard)
        for name in ("x", *names):
            if name not in shard:
                close = nearest(name, shard)
                raise UserError(f"{file} has no array '{name}': its shard holds {here}{close}")
        if not shard["x"].shape:
            raise UserError(f"{shard['x']} must be [n, …], got one number")
        for name, part in shard.items():
            if name not in names:
                raise UserError(f"{part} is an array that {names['x'].file} does not have")
            if part.shape[:1] != shard["x"].shape[:1]:
                raise UserError(
                    f"{part} must have a leading axis of {shard['x'].shape[0]} examples, as its x "
                    f"has, got {list(part.shape)}"
                )
    parts = {name: tuple(shard[name] for shard in shards) for name in names}
    if not sum(part.shape[0] for part in parts["x"]):
        raise UserError(f"{parts['x'][0]} has zero examples")
    parts = {
        name: tuple(part for part in of_name if part.shape[0]) for name, of_name in parts.items()
    }
    check_alike(parts, parts)
    check_dtypes({name: of_name[0] for name, of_name in parts.items()})
    return parts


def check_alike(parts, names):
    """Refuses parts of other dtypes or shapes than the first of their array has."""
    if set(parts) != set(names):
        odd = sorted(set(parts) ^ set(names))
        raise UserError(f"train/ and test/ must have the same arrays: one of them lacks {odd[0]}")
    for first, *others in parts.values():
        for part in others:
            if (part.dtype, part.shape[1:]) != (first.dtype, first.shape[1:]):
                raise UserError(
                    f"{part} is {part.dtype} {['n', *part.shape[1:]]}, but {first.file} has "
                    f"{first.dtype} {['n', *first.shape[1:]]}".replace("'n'", "n")
                )


def check_dtypes(parts):
    """Refuses numbers of a kind that nothing learns, and x of uint8 that are no pictures."""
    for name, part in parts.items():
        known = X_DTYPES if name == "x" else COND_DTYPES
        if part.dtype not in [jnp.dtype(dtype) for dtype in known]:
            way_out = "save it as float32"
            if part.dtype.kind == "V":
                way_out = "bfloat16 is kept by .safetensors alone"
            raise UserError(f"{part} is {part.dtype}, not one of {', '.join(known)}: {way_out}")
        if 0 in part.shape:
            raise UserError(f"{part} holds no numbers, got {list(part.shape)}")
    x = parts["x"]
    if len(x.shape) < 2:
        raise UserError(f"{x} must be [n, …], got {list(x.shape)}")
    if x.dtype == np.uint8 and (len(x.shape) != 4 or x.shape[-1] not in (1, 3)):
        raise UserError(
            f"{x} is uint8 {list(x.shape)}: pictures are [n, H, W, 1 or 3], latents are floats"
        )


def check_null(null, parts, folder):
    """Refuses a null that is not one example of every conditioning."""
    if null is None:
        return
    names = [name for name in parts if name != "x"]
    if sorted(null) != sorted(names):
        raise UserError(
            f"the null conditioning in {folder} holds {', '.join(null) or 'nothing'}, but the "
            f"shards have {', '.join(names) or 'no conditioning'}"
        )
    for name, value in null.items():
        if value.shape != parts[name][0].shape[1:]:
            raise UserError(
                f"the null conditioning in {folder}: '{name}' must have the shape of one example, "
                f"{list(parts[name][0].shape[1:])}, got {list(value.shape)}"
            )
        if not np.isfinite(value).all():
            raise UserError(f"the null conditioning in {folder}: '{name}' is not finite")


def _labels_array(parts):
    """The name of the conditioning that is class labels and nothing else; None for no classes."""
    names = [name for name in parts if name != "x"]
    if len(names) != 1 or names[0] not in LABELS:
        return None
    (part, *_) = parts[names[0]]
    is_integer = np.issubdtype(part.dtype, np.integer)
    return names[0] if is_integer and len(part.shape) == 1 else None


def _example(parts, labels):
    """One (x, conditioning) as shapes."""

    def one(part):
        is_integer = np.issubdtype(part.dtype, np.integer)
        return jax.ShapeDtypeStruct(part.shape[1:], np.int32 if is_integer else part.dtype)

    x = jax.ShapeDtypeStruct(parts["x"][0].shape[1:], parts["x"][0].dtype)
    if labels:
        return x, one(parts[labels][0])
    return x, {name: one(of_name[0]) for name, of_name in parts.items() if name != "x"}


def load_labels(splits, labels, test_share, name):
    """`{"train": dict(parts, rows, labels), "test": …}`; a share is held out where no test is."""
    found = {}
    for split, parts in splits.items():
        rows = np.arange(sum(part.shape[0] for part in parts["x"]))
        values = None
        if labels:
            values = np.concatenate([np.asarray(part.open()) for part in parts[labels]])
            values = values.clip(INT32.min, INT32.max).astype(np.int32)
        found[split] = dict(parts=parts, rows=rows, labels=values)
    if "all" not in found:
        return found
    parts, rows, values = found["all"].values()
    of_split = hold_out(np.zeros(len(rows)) if values is None else values, test_share, name=name)
    return {
        split: dict(parts=parts, rows=rows, labels=None if values is None else values[rows])
        for split, rows in of_split.items()
    }


def load_source(folder, num_classes, settings, *, content, parts, rows, labels):
    """The `ShardSource` of one split: held in memory where it fits `data.memory_gb`, else mapped.

    `content` is the `content_digest` of its parts.

    Raises:
      UserError: where compressed arrays do not fit memory.
    """
    whole = [part for of_name in parts.values() for part in of_name]
    fits = sum(part.num_bytes for part in whole) <= settings.memory_gb * 1e9
    for part in whole:
        if part.offset is None and not fits:
            raise UserError(
                f"{part} is compressed, and all arrays take "
                f"{sum(p.num_bytes for p in whole) / 1e9:.3g} GB: save them with np.savez, or "
                "raise data.memory_gb"
            )
    digest = hashlib.sha256(content.encode() + np.ascontiguousarray(rows, np.int64).tobytes())
    name = folder.resolve().name
    lists = CaptionLists(parts["x"], rows)
    source = ShardSource(name, parts, rows, digest.hexdigest(), num_classes, labels, lists=lists)
    return hold(source) if fits else source


def hold(source):
    """A mapped `ShardSource` as one in memory."""
    every = np.arange(len(source))
    parts = {name: (Held(source.gather(name, every)),) for name in source.parts}
    return dataclasses.replace(source, parts=parts, rows=every, in_memory=True)


def content_digest(parts, title, cache):
    """Hash of all numbers, however they are cut into shards; kept in the cache once it is known.

    Args:
      parts: `{array: (Part, …)}`.
      title: of the data set, for people.
      cache: folder of caches.

    Raises:
      UserError: naming the first number that is not finite.
    """
    files = sorted({part.file for of_name in parts.values() for part in of_name})
    stats = [(pathlib.Path(file).parts[-2:], os.stat(file)) for file in files]
    identity = [FORMAT, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]]
    key = json_sha256([identity, sorted(parts)])[:16]
    name = "".join(c if c.isalnum() else "-" for c in title)
    folder = pathlib.Path(cache).expanduser() / f"{name}-{key}"
    record = read_record(folder)
    if record is None:
        with locked(folder):
            record = read_record(folder) or write_record(folder, read_through(parts, title))
    return record["sha256"]


def write_record(folder, sha256):
    """Keeps a hash; returns the record."""
    record = {"sha256": sha256}
    try:
        with replacing(folder / "record.json") as partial:
            partial.write_text(json.dumps(record), "utf-8")
    except OSError as error:
        raise UserError(f"data.cache {folder.parent} cannot be written: {error}") from error
    return record


def read_through(parts, title):
    """Reads every number once: refuses what is not finite, and returns the hash of all."""
    total = sum(part.num_bytes for of_name in parts.values() for part in of_name)
    bar = Progress(f"reading {title}", total=total // 2**20 + 1, unit="megabyte", compiles=False)
    digests, done = [], 0
    for name, of_name in sorted(parts.items()):
        digest = hashlib.sha256(f"{name} {of_name[0].dtype} {of_name[0].shape[1:]}".encode())
        for part in of_name:
            for start, rows in _rows_of(part):
                check_numbers(rows, part, start)
                digest.update(np.ascontiguousarray(rows).reshape(-1).view(np.uint8))
                done += rows.nbytes
                bar(done // 2**20 + (done == total))
        digests.append(digest.hexdigest())
    bar.close()
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _rows_of(part):
    """(first row, rows) of a part, some at a time."""
    array = part.open()
    at_once = max(1, BYTES_AT_ONCE * len(array) // part.num_bytes)
    for start in range(0, len(array), at_once):
        yield start, np.asarray(array[start : start + at_once])


def check_numbers(rows, part, start):
    """Refuses floats that are not finite and whole numbers that int32 does not hold."""
    if rows.dtype == np.bool_:
        return
    if np.issubdtype(rows.dtype, np.integer):
        wrong, what = (rows < INT32.min) | (rows > INT32.max), "is no int32"
    else:
        wrong, what = ~np.isfinite(rows), "is not finite"
    if wrong.any():
        at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        place = [int(at[0]) + start, *map(int, at[1:])]
        raise UserError(f"{part} {place} {what}: {rows[at]}")
