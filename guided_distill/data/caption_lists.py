"""The captions of a shard's rows, beside it: `captions-SHARD.jsonl`, a text or null a line.

Nothing is learnt from them: models learn from what encoders made of them. They name what is shown.
"""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np

from guided_distill.system.files import Damaged, replacing
from guided_distill.system.tensors import read_notes

NOTED = "captions"  # of a shard in safetensors: the digest of its list
WAY_OUT = "put back a copy of it, or run --mode=encode_data again"


def list_path(shard):
    """Where the list of a shard lies: `captions-000.jsonl` of `000.npz` and of `x-000.npy`."""
    shard = pathlib.Path(shard)
    name = shard.stem
    if shard.suffix == ".npy":
        _, dash, name = name.rpartition("-")
        name = name if dash else ""
    return shard.with_name(f"captions-{name}.jsonl" if name else "captions.jsonl")


def write_list(shard, captions):
    """Writes the list of a shard that is written after it; returns the note to write with it."""
    lines = "".join(json.dumps(caption, ensure_ascii=False) + "\n" for caption in captions)
    data = lines.encode("utf-8", "backslashreplace")  # Half a surrogate pair stays JSON so.
    with replacing(list_path(shard)) as partial:
        partial.write_bytes(data)
    return {NOTED: hashlib.sha256(data).hexdigest()}


def read_list(shard, num_rows):
    """The captions of a shard's rows, None where one is not known; None without a list.

    Raises:
      Damaged: where the list is not what its shard notes, no list of texts, or of other length.
    """
    path, shard = list_path(shard), pathlib.Path(shard)
    noted = read_notes(shard).get(NOTED) if shard.suffix == ".safetensors" else None
    if not path.is_file():
        if noted:
            raise Damaged(f"{path} is missing, the captions of {shard.name}: {WAY_OUT}")
        return None
    data = path.read_bytes()
    if noted not in (None, hashlib.sha256(data).hexdigest()):
        raise Damaged(f"{path} is damaged: it is not the list that {shard.name} notes; {WAY_OUT}")
    captions = _parse(path, data)
    if len(captions) != num_rows:
        raise Damaged(
            f"{path} holds {len(captions)} captions, and {shard.name} has {num_rows} rows: one a "
            "line, null where there is none"
        )
    return captions


def _parse(path, data):
    try:
        lines = data.decode("utf-8").removesuffix("\n").split("\n") if data else []
        captions = [json.loads(line) for line in lines]
    except ValueError as error:
        raise Damaged(f"{path} is no list of captions, a JSON text a line: {error}") from error
    for number, caption in enumerate(captions, start=1):
        if not isinstance(caption, str | None):
            raise Damaged(f"{path}: line {number} must be a JSON text or null, got {caption!r:.60}")
    return captions


def check_lists(parts):
    """Reads the list of each shard once, `parts` as of `CaptionLists`; raises as of `read_list`."""
    for part in parts:
        read_list(part.file, part.shape[0])


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionLists:
    """The captions of a source's examples; the lists of those that are asked for are read.

    Attributes:
      parts: `(Part, …)` of x, the shards in order.
      rows: `[N]`, those of all shards' rows that are the examples.
    """

    parts: tuple
    rows: np.ndarray

    def at(self, indices):
        """Captions at `indices` `[B]`, a list of texts; None where one is not known."""
        rows = self.rows[indices]
        starts = np.cumsum([0, *(part.shape[0] for part in self.parts[:-1])])
        shards = np.searchsorted(starts, rows, side="right") - 1
        lists = {k: read_list(self.parts[k].file, self.parts[k].shape[0]) for k in set(shards)}
        places = zip(shards, rows - starts[shards], strict=True)
        return [lists[k] and lists[k][place] for k, place in places]
