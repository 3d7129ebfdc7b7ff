"""The stages of a config, in order, with what determines each."""

import dataclasses

from guided_distill.distill.distillations import DETERMINISTIC, DISTILLATIONS
from guided_distill.distill.rounds import step_factors
from guided_distill.errors import UserError, nearest
from guided_distill.run import settings
from guided_distill.system.files import local_path
from guided_distill.system.workdir import GuidedTeacher, StageFolder, family_of, stage_name

SHARED_SETTINGS = ("seed", "data", "schedule", "model", "optimizer")
SHARED_DATA_SETTINGS = ("name", "augmentations")  # The hash of the images stands for the others.


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
      name: its folder in the workdir: `teacher`, `step_one`, `step_two/<algorithm>/<NNNN>`;
        those of one fixed w lie under `single_w/<w>/`.
      kind: `teacher`, `step_one` or `step_two`.
      title: for people.
      parent: name of the stage that teaches it, None for the teacher.
      optimization: `num_updates`, `batch_size`, `learning_rate`, … of this stage.
      settings: the part of the config that determines the params, as plain JSON.
      w_range: (w_min, w_max) of what it learns, None for the teacher.
      algorithm: of a round of step two, as `Distillation.algorithm`.
      num_steps: N of a distilled student.
      factor: its teacher's N over its own.
    """

    name: str
    kind: str
    title: str
    parent: str | None
    optimization: dict
    settings: dict
    w_range: tuple | None = None
    algorithm: str | None = None
    num_steps: int | None = None
    factor: int | None = None

    def is_called(self, name):
        """Whether `--stage=name` means it: its name, a folder above, or `step_two/<NNNN>`."""
        short_name = self.name.replace(f"/{DETERMINISTIC.algorithm}", "")
        return name in ("", self.name, short_name) or self.name.startswith(f"{name}/")


def first_teacher(config):
    """The `FinishedStage` that the run begins with; None where it trains its own teacher.

    Raises:
      UserError: where it is not finished, or has a guide where none can be.
    """
    teacher, guide = (
        path and StageFolder(local_path(path, f"teacher.{key}")).finished()
        for key, path in (("path", config.teacher.path), ("guide", config.teacher.guide))
    )
    if not guide:
        return teacher or None
    for stage in (guide, teacher):
        if stage.record["stage"] != "teacher":
            raise UserError(
                f"teacher.guide {guide.path} cannot guide {teacher.path}: {stage.path} holds "
                f"{stage.record['name']}, which knows w already, and neither of a pair does"
            )
    return GuidedTeacher(teacher, guide)


def plan_stages(config, teacher=None):
    """The stages of a config, in order: teacher, step one, then each distillation's rounds.

    Args:
      config: ConfigDict.
      teacher: of `first_teacher`; what an imported one is decides model and schedule.
    """
    plain = settings.to_plain(config)
    shared = {key: plain[key] for key in SHARED_SETTINGS}
    shared["data"] = {key: plain["data"][key] for key in SHARED_DATA_SETTINGS}
    if teacher is not None and teacher.is_brought:
        shared |= {key: teacher.record["config"][key] for key in ("model", "schedule")}
        shared["model"] = shared["model"] | {"dtype": plain["model"]["dtype"]}
    optimization = {
        key: value
        for key, value in plain["teacher"].items()
        if key not in ("path", "guide") and (value or key != "weight_decay")
    }
    stages = [
        Stage(
            "teacher", "teacher", "teacher", None, optimization, shared | {"teacher": optimization}
        )
    ]
    rows = [DISTILLATIONS[name] for name in plain["distillations"]]
    if any(row.first_teacher == "step_one" and not row.knows_one_w for row in rows):
        stages.append(_step_one(plain, shared, tuple(plain["w_range"])))
    for row in rows:
        if row.knows_one_w:
            for w in plain[row.name]["w"]:
                below = f"{row.name}/{w:g}"
                stages.append(_step_one(plain, shared, (w, w), below))
                stages += _rounds(plain, shared, row, (w, w), below)
        else:
            stages += _rounds(plain, shared, row, tuple(plain["w_range"]))
    return stages


def _step_one(plain, shared, w_range, below=""):
    optimization = {k: v for k, v in plain["step_one"].items() if v or k != "prediction"}
    return Stage(
        stage_name("step_one", below=below),
        "step_one",
        f"{below.replace('/', ' ')} step one".strip(),
        "teacher",
        optimization,
        shared | {"w_range": list(w_range), "step_one": optimization},
        w_range,
    )


def _rounds(plain, shared, row, w_range, below=""):
    """The rounds of one `Distillation`, each taught by the one before."""
    section = {k: v for k, v in plain["step_two"].items() if k not in ("rounds", "start_steps")}
    _, rounds = settings.rounds_of(plain, row.name)
    factors = step_factors(plain["step_two"]["start_steps"], [r["num_steps"] for r in rounds])
    parent = stage_name(row.first_teacher, below=below)
    stages = []
    for k, (one_round, factor) in enumerate(zip(rounds, factors, strict=True), start=1):
        num_steps = one_round["num_steps"]
        optimization = section | one_round
        if row.copies_teacher(num_steps, factor):
            optimization["num_updates"] = 0
        determining = {"algorithm": row.algorithm, "factor": factor} | optimization
        title = f"{row.stage_title}, round {k} of {len(rounds)} (N = {num_steps})"
        stages.append(
            Stage(
                stage_name("step_two", row.algorithm, num_steps, below=below),
                "step_two",
                f"{below.replace('/', ' ')} {title}".strip(),
                parent,
                optimization,
                shared | {"w_range": list(w_range), "step_two": determining},
                w_range,
                row.algorithm,
                num_steps,
                factor,
            )
        )
        parent = stages[-1].name
    return stages


def select_stages(stages, name):
    """The stages that `--stage` names ('' selects all).

    `step_two` selects every round, `step_two/stochastic` those of one algorithm, `step_two/0064`
    the deterministic round of that many steps.

    Raises:
      UserError: where no stage is called so.
    """
    chosen = [stage for stage in stages if stage.is_called(name)]
    if not chosen:
        names = [stage.name for stage in stages]
        raise UserError(f"`stage` {name} is none of {', '.join(names)}{nearest(name, names)}")
    return chosen


def stages_asked(config, teacher, name):
    """The stages that `--stage` names, of those that are left where the run begins with a teacher.

    Args:
      config: ConfigDict.
      teacher: of `first_teacher`.
      name: as of `select_stages`.
    """
    stages = select_stages(plan_stages(config, teacher), name)
    return stages if teacher is None else stages_after(stages, teacher.record)


def stages_after(stages, record):
    """The stages that descend from the finished stage of a `stage.json` record, in order.

    Raises:
      UserError: where none does.
    """
    known = {"teacher"} | ({"step_one"} if record["stage"] != "teacher" else set())
    left = [stage for stage in stages if stage.name not in known]
    if record["stage"] == "step_two":
        family, _ = family_of(record["name"])
        left = [s for s in left if s.name.startswith(f"{family}/")]
        left = [s for s in left if s.num_steps < record["num_steps"]]
    if not left:
        raise UserError(
            f"`teacher` is a finished {record['name']}, which teaches none of the stages asked for"
        )
    return left
