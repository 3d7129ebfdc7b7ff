"""A folder of arrays that encoders fill, shard by shard, by one process or by many.

    encoded.json           what determines every number, and how many shards there are
    00000.safetensors, …   rows 0 to R − 1, R to 2 R − 1, …, whoever wrote them
    captions-00000.jsonl, …  their captions, of a teacher that takes captions

Which rows a shard holds depends on nothing but the data, so processes share the work by sharing
the shards out, and a resumed run leaves those that are there.
"""

import dataclasses
import json
import pathlib

from guided_distill.data.caption_lists import read_list, write_list
from guided_distill.data.shards import NULL, SUFFIXES
from guided_distill.errors import UserError
from guided_distill.system.files import (
    Damaged,
    check_format,
    json_sha256,
    read_own_json,
    write_own_json,
)
from guided_distill.system.progress import to_stderr
from guided_distill.system.tensors import read_notes, read_tensors, write_tensors

FORMAT = 1
RECORD = "encoded.json"
ORIGIN, FACTS = "origin", "facts"  # notes of a shard


@dataclasses.dataclass(frozen=True)
class Shelf:
    """The shards of one split, those that are there and those that are to come.

    Attributes:
      folder: where they lie.
      num_rows: of all of them.
      shard_rows: of each but the last.
      settings: plain JSON of all that determines their numbers.
    """

    folder: pathlib.Path
    num_rows: int
    shard_rows: int
    settings: dict

    @property
    def num_shards(self):
        """How many files there will be."""
        return -(-self.num_rows // self.shard_rows)

    def share(self, process, num_processes):
        """The shards that one of several processes makes, a range of their numbers."""
        return range(process, self.num_shards, num_processes)

    def rows(self, shard):
        """The rows of a shard, a range."""
        first = shard * self.shard_rows
        return range(first, min(first + self.shard_rows, self.num_rows))

    def path(self, shard):
        """Where a shard lies."""
        return self.folder / f"{shard:05d}.safetensors"

    def begin(self):
        """Notes what the folder is going to hold; another process may have, alike.

        Raises:
          UserError: where it was begun with something else, or holds shards of another origin.
        """
        record = read_own_json(self.folder / RECORD)
        wanted = {"format": FORMAT, "num_shards": self.num_shards, "settings": self.settings}
        if not any(p.suffix in SUFFIXES and p.stem != NULL for p in self.folder.glob("*")):
            if record != wanted:
                write_own_json(self.folder / RECORD, wanted)
            return
        if record is None:
            raise UserError(
                f"`out` {self.folder} holds shards of another origin: name a new folder"
            )
        check_format(self.folder / RECORD, record["format"], FORMAT)
        there = record["settings"]
        differing = [key for key in self.settings if there.get(key) != self.settings[key]]
        if differing:
            told = "; ".join(
                f"{k} {_short(there.get(k))} there, {_short(self.settings[k])} now"
                for k in differing
            )
            raise UserError(
                f"`out` {self.folder} was begun otherwise ({told}): take what it was begun with, "
                "or name a new folder"
            )

    def facts(self, shard, examples):
        """What was noted of a shard that is whole, its digest checked; None where it is to be made.

        Args:
          shard: its number.
          examples: digest of what it is made of.

        Raises:
          UserError: where it cannot be read, or was made of something else.
        """
        path = self.path(shard)
        if not path.exists():
            return None
        try:
            arrays = read_tensors(path)
            notes = read_notes(path)
            read_list(path, len(next(iter(arrays.values()))))
        except Damaged as error:
            to_stderr(f"{error}: it is made again")
            return None
        if notes.get(ORIGIN) != self._origin(examples):
            raise UserError(
                f"{path} was made of other pictures than lie there now, or otherwise: remove it, "
                "and it is made again"
            )
        return json.loads(notes[FACTS])

    def write(self, shard, examples, arrays, facts, captions=None):
        """Writes a shard, `{array: [n, …]}`, whole or not at all, with plain JSON to be told.

        `captions` are those of its rows, None where they have none.

        Raises:
          UserError: where another run began the folder anew meanwhile.
        """
        if (read_own_json(self.folder / RECORD) or {}).get("settings") != self.settings:
            raise UserError(f"`out` {self.folder} was begun anew by another run: name a new folder")
        notes = {ORIGIN: self._origin(examples), FACTS: json.dumps(facts)}
        if captions is not None:
            notes |= write_list(self.path(shard), captions)
        write_tensors(self.path(shard), arrays, notes)

    def _origin(self, examples):
        return json_sha256(self.settings | {"examples": examples})

    def missing(self):
        """How many shards are not there."""
        return sum(not self.path(shard).exists() for shard in range(self.num_shards))


def check_whole(folder):
    """Refuses a folder whose shards are not all there: it would be read as a smaller data set."""
    record = read_own_json(pathlib.Path(folder) / RECORD)
    if record is None:
        return
    shelf = Shelf(pathlib.Path(folder), record["num_shards"], 1, record["settings"])
    if shelf.missing():
        raise UserError(
            f"{folder} lacks {shelf.missing()} of its {shelf.num_shards} shards: let every process "
            "of --mode=encode_data end, or run the same command again"
        )


def _short(value):
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 24 else f"{text[:12]}…"
