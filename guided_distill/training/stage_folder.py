"""A stage's folder: `config.json` first, `checkpoints/`, then `params/` and `stage.json`."""

import dataclasses
import os
import pathlib

from guided_distill.errors import UserError
from guided_distill.training.checkpoint import load_params, read_json, save_params, write_json


@dataclasses.dataclass(frozen=True)
class StageFolder:
    """Where one stage lies.

    Attributes:
      path: its folder.
    """

    path: pathlib.Path

    @property
    def checkpoints(self):
        """Folder of the resumable states."""
        return self.path / "checkpoints"

    @property
    def record(self):
        """What `stage.json` says, None before the stage is finished."""
        return read_json(self.path / "stage.json")

    @property
    def origin(self):
        """What determines the params, None before the stage is begun.

        `config` (the part that matters), `data_sha256`, `parent_sha256`.
        """
        return self.record or read_json(self.path / "config.json")

    def begin(self, origin):
        """Notes what determines the params, before the first update."""
        write_json(self.path / "config.json", origin)

    def finish(self, params, record):
        """Writes the params, then the record that makes the stage finished."""
        sha256 = save_params(self.path / "params", params)
        write_json(self.path / "stage.json", record | {"params_sha256": sha256})

    def load(self):
        """(params, record) of a finished stage.

        Raises:
          UserError: where the stage is not finished or its params are damaged.
        """
        record = self.record
        if record is None:
            raise UserError(
                f"{self.path} holds no finished stage: train it first, or name another folder"
            )
        try:
            return load_params(self.path / "params", record["params_sha256"]), record
        except ValueError as error:
            raise UserError(
                f"{error}: run --mode=train again to restore it from its checkpoint"
            ) from error

    def parent(self):
        """The folder of the stage that was this one's teacher, None for the first."""
        parent = self.record["parent"]
        return StageFolder((self.path / parent).resolve()) if parent else None

    def path_to(self, other):
        """`other`'s folder as seen from this one, so that a workdir can be moved."""
        return os.path.relpath(other.path.resolve(), self.path.resolve())
