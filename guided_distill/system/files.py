"""Finished parameters and JSON, written whole and read back with their digests.

Orbax commits what it writes by renaming a finished folder, so a killed run leaves only whole
ones. It does not notice flipped bytes, so every set of parameters carries a digest that is checked
when it is read.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp

from guided_distill.errors import UserError, describe_trouble
from guided_distill.system.echoes import without_echoes
from guided_distill.system.processes import SharedError, first_only, from_first, texts_of_all
from guided_distill.system.progress import to_stderr
from guided_distill.system.sharding import to_host

TRIES = 2  # of reading what cannot be read at once
READ_BYTES = 2**24
PACKAGE = "package:"  # begins the name of students that come with the package
DIGEST = "digest"  # key of a JSON file's own
ASYNC_OPTIONS = ocp.AsyncOptions(
    # Where a folder cannot be made, Orbax's other threads would wait 20 minutes for it, and the
    # process for them.
    create_directories_asynchronously=False
)


class Damaged(UserError):
    """What was written is not what can be read, though every file of it can be."""


def local_path(path, what):
    """A path that a person gave, `~` expanded.

    Raises:
      UserError: naming `what`, where it lies in another kind of file system, or in the package.
    """
    if str(path).startswith(PACKAGE):
        raise UserError(f"{what} {path} is there to be sampled or exported: name a folder here")
    if "://" in str(path):
        raise UserError(f"{what} {path} is no folder of this machine: mount the bucket, name that")
    return pathlib.Path(path).expanduser()


def output_path(path, what="`out`"):
    """A `local_path` that something will be written to; its folder is made and tried now.

    Raises:
      UserError: where nothing can be written there, before anything is computed for it.
    """
    path = local_path(path, what)

    def try_folder():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
            if path.is_dir():
                raise IsADirectoryError(0, "it is a folder")
        except OSError as error:
            raise UserError(f"{what} {path} cannot be written: {error.strerror}") from error

    first_only(try_folder)()
    return path


def check_empty(path, what="`out`"):
    """Refuses a folder to write that holds something, or a file in its place."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{what} {path} is not empty: name a new folder, or remove it first")


def check_format(path, found, known):
    """Refuses what a later version wrote: its format is newer than the one known here."""
    if found > known:
        raise UserError(f"{path} has format {found}, newer than {known}: update this package")


def tree_sha256(tree):
    """Digest of a tree's leaves in sorted path order: path, dtype, shape and bytes of each."""
    digest = hashlib.sha256()
    leaves = flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(tree), sep="/")
    for path, leaf in sorted(leaves.items()):
        if leaf is None:
            continue
        leaf = np.asarray(leaf, order="C")
        digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        digest.update(leaf.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def file_sha256(path):
    """Digest of a file."""
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def array_sha256(array):
    """Digest of an array: dtype, shape and bytes."""
    array = np.asarray(array, order="C")
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def save_params(directory, params):
    """Writes finished parameters; returns their digest.

    Raises:
      UserError: where the disk fails.
    """
    params = to_host(params)
    with saving(directory), ocp.StandardCheckpointer(async_options=ASYNC_OPTIONS) as checkpointer:
        checkpointer.save(pathlib.Path(directory).absolute(), params, force=True)
    return tree_sha256(params)


@contextlib.contextmanager
def saving(folder):
    """Within this context an error of the disk is one `UserError`, which names the folder."""
    try:
        with without_echoes():
            yield
    except Exception as error:  # Orbax and TensorStore raise many kinds, some of them in groups.
        trouble = describe_trouble(error, folder)
        if not trouble:
            raise
        raise UserError(trouble) from error


def load_params(directory, sha256):
    """Finished parameters as NumPy arrays, on any number of devices.

    Raises:
      Damaged: where they are missing, damaged, or not those of `sha256`, in all processes alike.
      UserError: where they cannot be read now, as `read_folder` says.
    """
    path = pathlib.Path(directory).absolute()
    checkpointer = ocp.PyTreeCheckpointer()

    def read():
        tree = checkpointer.metadata(path).item_metadata.tree
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        params = checkpointer.restore(path, restore_args=restore_args)
        if tree_sha256(params) != sha256:
            raise ValueError(f"does not match its digest {sha256[:12]}")
        return params

    params, damage = read_folder(path, read)
    if damage:
        raise Damaged(f"{directory} cannot be read ({damage})")
    return params


@contextlib.contextmanager
def replacing(path, suffix=""):
    """A path to write to, which takes the place of `path` when all is written.

    A reader sees the old file or the new one. `suffix` ends its name, for writers that ask for one.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial{suffix}")
    yield partial
    os.replace(partial, path)


@contextlib.contextmanager
def replacing_folder(path):
    """A folder to write to, which becomes `path`, missing or empty, when all is written.

    What a killed writer leaves ends in `.partial`, and the next one begins anew.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@first_only
def copy_file(source, target):
    """A copy that a reader sees whole or not at all."""
    with replacing(target) as partial:
        shutil.copyfile(source, partial)


def read_folder(folder, read):
    """What `read()` makes of a folder, and the damage that keeps it from it, "" for none.

    A disk's errors pass, so it is tried twice; and damage is only what fails while every file can
    be read. All processes come to the same end.

    Raises:
      UserError: where a file cannot be read: whether it is damaged is not known then.
    """
    value, damage, unreadable = None, "", ""
    for _ in range(TRIES):
        try:
            with without_echoes():
                value, damage = read(), ""
            break
        except Exception as error:  # Orbax and TensorStore raise many kinds for damage.
            damage = reason_of(error)
    if damage:
        unreadable = find_unreadable(folder)
    unreadable = damage_of_any(unreadable)
    if unreadable:
        raise SharedError(
            f"{unreadable}: nothing was changed, and the same command goes on once it can be read"
        )
    return value, damage_of_any(damage)


def find_unreadable(folder):
    """The first file below a folder that cannot be read, and why; "" where there is none."""
    for path in sorted(pathlib.Path(folder).rglob("*")):
        try:
            if path.is_file():
                with open(path, "rb") as opened:
                    while opened.read(READ_BYTES):
                        pass
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
    return ""


def damage_of_any(damage):
    """What keeps one of the processes from reading what all need, "" for nothing."""
    return next(filter(None, texts_of_all(damage)), "")


def reason_of(error):
    """The first line of an error, or what it is where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


@first_only
def write_json(path, value):
    """As `write_own_json`, by the first process."""
    write_own_json(path, value)


def write_own_json(path, value):
    """Writes a dict as JSON, with its digest, so that a reader sees the old file or the new one."""
    value = value | {DIGEST: json_sha256(value)}
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path, *, derived=False):
    """The file's dict as the first process reads it, None where there is no such file.

    Args:
      path: of the file.
      derived: whether it can be made again: damage is said, and taken for no file.

    Raises:
      UserError: where it is damaged, or cannot be read.
    """

    def read():
        try:
            return read_own_json(path)
        except Damaged as error:
            if not derived:
                raise Damaged(
                    f"{error}: put back a copy of it, or remove its folder to begin that anew"
                ) from error
            to_stderr(f"{error}: it is made again")
            return None

    return from_first(read)


def read_own_json(path):
    """The dict of a JSON file as this process reads it, None where there is no such file.

    Raises:
      Damaged: where it is not what was written.
      UserError: where it cannot be read.
    """
    try:
        value = json.loads(pathlib.Path(path).read_text("utf-8"))
        digest = value.pop(DIGEST, None)  # Files of earlier versions have none.
        if digest in (None, json_sha256(value)):
            return value
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, AttributeError, TypeError):
        pass
    raise Damaged(f"{path} is damaged")


def json_sha256(value):
    """Digest of plain JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
