"""A workdir is a whole run: how its folders are named, found, read, written and held.

    teacher/                          stages, each with
    step_one/                           config.json   what determines its params, from the start
    step_two/<algorithm>/<NNNN>/        checkpoints/  resumable states
    <distillation>/<w>/step_one/ …      params/, stage.json   once it is finished
    config.json                       the config that the run was last started with
    lock                              held while a run writes

A finished stage is looked up by what its record says it is, not by where it lies.
"""

import contextlib
import functools
import json
import os
import pathlib

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from guided_distill.errors import UserError, nearest
from guided_distill.system.files import (
    PACKAGE,
    Damaged,
    check_format,
    copy_file,
    json_sha256,
    load_params,
    local_path,
    read_json,
    save_params,
    write_json,
)
from guided_distill.system.locks import hold_lock
from guided_distill.system.processes import check_shared, first_only, from_first
from guided_distill.system.tensors import read_tensors

STAGE_PATTERNS = ("", "*/", "step_two/*/*/", "*/*/step_one/", "*/*/step_two/*/*/")
RECORD_FILE = "stage.json"
IMPORTED_FILE = "model.json"  # the record of a model that was imported
PARAMS_FILE = "params.safetensors"  # its parameters, and those of an exported student
PACKAGED = pathlib.Path(__file__).parents[1] / "students"  # exported ones of small data sets
EXPORT_FORMAT = 1  # of `exported` in the record of a student that left its run
GRAPH_FILE, CONSTANTS_FILE = "graph.json", "constants.safetensors"  # and its students' too


def stage_name(kind, algorithm=None, num_steps=None, *, below=""):
    """A stage's folder in a workdir: `teacher`, `step_one` or `step_two/<algorithm>/<NNNN>`.

    Args:
      kind: "teacher", "step_one" or "step_two".
      algorithm: of a round of step two.
      num_steps: its N.
      below: the folder that holds it, such as `single_w/0.3`; "" for the workdir itself.
    """
    name = kind if algorithm is None else f"{kind}/{algorithm}/{num_steps:04d}"
    return f"{below}/{name}" if below else name


def family_of(name):
    """(family, N) of a distilled stage's name, `step_two/stochastic` and 16; None for others."""
    family, _, last = name.rpartition("/")
    return (family, int(last)) if last.isdigit() else None


def check_finite(params, what):
    """Refuses parameters that are not all finite: what is drawn or learnt from them is nothing."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise UserError(f"{what} is not finite: the model has diverged; lower its learning_rate")


def imported_record(name, *, schedule, prediction, sample_shape, model):
    """The record of a teacher that was not trained here.

    Args:
      name: of what it was, for people.
      schedule: plain JSON that tells it from others.
      prediction: as of `Model`.
      sample_shape: of one x, a list.
      model: plain JSON that tells its network from others.
    """
    return {
        "imported_from": name,
        "name": "teacher",
        "stage": "teacher",
        "algorithm": None,
        "num_steps": None,
        "factor": None,
        "w_range": None,
        "schedule": schedule,
        "parameterization": prediction,
        "config": {"model": model, "schedule": schedule},
        "data": None,
        "data_sha256": None,
        "num_classes": None,
        "class_names": [],
        "image_shape": sample_shape,
        "updates": 0,
        "seed": None,
        "seconds": 0.0,
        "parent": None,
        "parent_sha256": None,
    }


def flat_params(params):
    """`{name: array}` of nested parameters, for a safetensors file."""
    return flatten_dict(params, sep="/")


def nested_params(flat):
    """What `flat_params` made flat."""
    return unflatten_dict(flat, sep="/")


class FinishedStage:
    """A stage that is trained: what it is, and its parameters.

    Attributes:
      path: its folder.
      record: what `stage.json` says.
    """

    def __init__(self, path, record, params=None):
        self.path, self.record = pathlib.Path(path), record
        if params is not None:
            self.params = params

    @functools.cached_property
    def params(self):
        """Its parameters, NumPy arrays, read and checked when they are first asked for.

        Raises:
          Damaged: where they are missing or damaged.
          UserError: where they cannot be read now, or are not finite.
        """
        sha256 = self.record["params_sha256"]
        if self.is_exported:
            return nested_params(read_tensors(self.path / PARAMS_FILE, sha256))
        if self.is_imported and "held" not in self.record:
            return read_tensors(self.path / PARAMS_FILE, sha256)
        try:
            params = load_params(self.path / "params", sha256)
        except Damaged as error:
            raise Damaged(f"{error}: train again to restore it from its checkpoint") from error
        check_finite(params, f"{self.path}/params")
        return params

    @property
    def is_exported(self):
        """Whether it left the run that it was trained in."""
        return "exported" in self.record

    @property
    def is_imported(self):
        """Whether it was trained elsewhere."""
        return "imported_from" in self.record

    @property
    def is_brought(self):
        """Whether its network is not our U-Net: an imported graph or a function."""
        return "model" in self.record or "held" in self.record

    @property
    def draws_pictures(self):
        """Whether its samples are pictures in [-1, 1], and not latents."""
        is_bounded = self.record.get("model", {"bound": 1.0})["bound"] is not None
        return self.record.get("pictures", is_bounded)

    @functools.cached_property
    def guide(self):
        """`FinishedStage` of what stands in the place of its null; None for the null itself."""
        return self._find_guide("guide")

    def find_parent(self):
        """The `FinishedStage` that was this one's teacher, None for the first."""
        if not self.record["parent"]:
            return None
        parent = StageFolder((self.path / self.record["parent"]).resolve()).finished()
        guide = self._find_guide("parent_guide")
        return parent if guide is None else GuidedTeacher(parent, guide)

    def _find_guide(self, key):
        """The guide whose path the record has under a key.

        Raises:
          UserError: where its folder holds another one by now.
        """
        if key not in self.record:
            return None
        guide = StageFolder((self.path / self.record[key]).resolve()).finished()
        if guide.record["params_sha256"] != self.record["guide_sha256"]:
            raise UserError(
                f"{guide.path} holds another guide than the one that {self.path} was trained with: "
                "put that back"
            )
        return guide


class GuidedTeacher(FinishedStage):
    """A finished teacher with another model in the place of its null.

    Its parameters are those of both, as of `guided_by`, and so is their digest: what was drawn or
    learnt with one guide is not taken for what was with another.
    """

    def __init__(self, teacher, guide):
        """Of two `FinishedStage`s."""
        digests = [stage.record["params_sha256"] for stage in (teacher, guide)]
        both = {"params_sha256": json_sha256(digests), "guide_sha256": digests[1]}
        super().__init__(teacher.path, teacher.record | both)
        self.teacher, self.guide = teacher, guide

    @functools.cached_property
    def params(self):
        """As of `FinishedStage`, `{"model", "guide"}`."""
        return {"model": self.teacher.params, "guide": self.guide.params}


class StageFolder:
    """Where one stage lies, begun, finished or neither.

    Attributes:
      path: its folder.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)

    @property
    def checkpoints(self):
        """Folder of the resumable states."""
        return self.path / "checkpoints"

    def find(self):
        """The `FinishedStage` that lies here, None before it is finished."""
        record = read_json(self.path / RECORD_FILE) or read_json(self.path / IMPORTED_FILE)
        if record and "exported" in record:
            check_format(self.path, record["exported"], EXPORT_FORMAT)
        return None if record is None else FinishedStage(self.path, record)

    def finished(self):
        """As `find`.

        Raises:
          UserError: where the stage is not finished.
        """
        stage = self.find()
        if stage is None:
            raise UserError(
                f"{self.path} holds no finished stage: train it first, or name another folder"
            )
        return stage

    def read_origin(self):
        """What determines the params, None before the stage is begun.

        `config` (the part that matters), `data_sha256`, `parent_sha256`; `guide_sha256` where its
        teacher has a guide.
        """
        return read_json(self.path / RECORD_FILE) or read_json(self.path / "config.json")

    def begin(self, origin, teacher=None):
        """Notes what determines the params, before the first update.

        `teacher` is the `FinishedStage` that teaches it: where that has a graph, so has this.
        """
        write_json(self.path / "config.json", origin)
        if teacher is not None and "model" in teacher.record:
            for name in (GRAPH_FILE, CONSTANTS_FILE):
                copy_file(teacher.path / name, self.path / name)

    def finish(self, params, record):
        """Writes the params, then the record that makes the stage finished; returns it.

        Raises:
          UserError: where a parameter is not finite.
        """
        check_finite(params, f"{self.path}: what it learnt")
        record = record | {"params_sha256": save_params(self.path / "params", params)}
        write_json(self.path / RECORD_FILE, record)
        return FinishedStage(self.path, record, params)

    def path_to(self, other):
        """`other`'s folder as seen from this one, so that a workdir can be moved."""
        return os.path.relpath(other.path.resolve(), self.path.resolve())


def folder_to_sample(path):
    """The folder of a run or of exported students; `package:digits` are those in the package.

    Raises:
      UserError: where the package has none of the name.
    """
    if not str(path).startswith(PACKAGE):
        return local_path(path, "`workdir`")
    name, known = str(path).removeprefix(PACKAGE), sorted(p.name for p in PACKAGED.iterdir())
    if name not in known:
        names = ", ".join(f"{PACKAGE}{one}" for one in known)
        raise UserError(f"`workdir` {path} is none of {names}{nearest(name, known)}")
    return PACKAGED / name


def is_workdir(folder):
    """Whether a run was begun in a folder: pictures in it are results."""
    try:
        config = json.loads((pathlib.Path(folder) / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"data", "w_range", "step_two"} <= set(config)


def find_own_stages(workdir):
    """`{name: FinishedStage}` of those that lie in the workdir itself.

    Of a folder of exported students, or of one alone, the names are those that they had.
    """
    workdir = local_path(workdir, "`workdir`")

    def names():
        found = [sorted(workdir.glob(f"{pattern}{RECORD_FILE}")) for pattern in STAGE_PATTERNS]
        return [path.parent.relative_to(workdir).as_posix() for path in sum(found, [])]

    found = {name: StageFolder(workdir / name).finished() for name in from_first(names)}
    exported = {s.record["name"]: s for s in found.values() if s.is_exported}
    return {name: s for name, s in found.items() if not s.is_exported and name != "."} | exported


def find_stages(workdir):
    """`{name: FinishedStage}`, ancestors in other workdirs included."""
    found = find_own_stages(workdir)
    for stage in list(found.values()):
        for name, ancestor in lineage(stage).items():
            if name not in found or isinstance(ancestor, GuidedTeacher):
                found[name] = ancestor
    return found


def lineage(stage):
    """`{name: FinishedStage}` of a finished stage and of those it descends from."""
    found = {}
    while stage is not None:
        if "name" not in stage.record:
            raise UserError(f"{stage.path} was written by an earlier version: train it anew")
        found[stage.record["name"]] = stage
        stage = stage.find_parent()
    return found


def teacher_of(stage, stages):
    """The stage among `stages` `{name: FinishedStage}`, or on disk, that taught `stage`."""
    sha256 = stage.record["parent_sha256"]
    known = [other for other in stages.values() if other.record["params_sha256"] == sha256]
    return known[0] if known else stage.find_parent()


def params_hashes(stages):
    """`{name: params_sha256}` of `{name: FinishedStage}`."""
    return {name: stage.record["params_sha256"] for name, stage in stages.items()}


@contextlib.contextmanager
def own_workdir(workdir):
    """Refuses a workdir that another run is writing; a run that died holds nothing."""

    def refuse(holder):
        raise UserError(f"{workdir} is in use by {holder}: wait for it, or take another `workdir`")

    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "lock").touch()
    except OSError as error:
        raise UserError(f"`workdir` {workdir} cannot be written: {error.strerror}") from error
    with contextlib.ExitStack() as held:
        first_only(held.enter_context)(hold_lock(workdir / "lock", on_taken=refuse))
        check_shared(workdir)
        yield
