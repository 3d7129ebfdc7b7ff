"""The stages of a config, in order, with what determines each; those that a workdir holds."""

import dataclasses
import pathlib

from guided_distill import settings
from guided_distill.errors import UserError, nearest
from guided_distill.training.stage_folder import StageFolder

SHARED_SETTINGS = ("seed", "data", "schedule", "model", "optimizer")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
      name: its folder in the workdir: `teacher`, `step_one`, `step_two/<algorithm>/<NNNN>`.
      kind: `teacher`, `step_one` or `step_two`.
      title: for people.
      num_steps: N of a distilled student, else None.
      optimization: `num_updates`, `batch_size`, `learning_rate`, … of this stage.
      settings: the part of the config that determines the params, as plain JSON.
    """

    name: str
    kind: str
    title: str
    num_steps: int | None
    optimization: dict
    settings: dict

    @property
    def short_name(self):
        """The name without the algorithm: `step_two/0064`."""
        return self.kind if self.num_steps is None else f"{self.kind}/{self.num_steps:04d}"


def plan_stages(config):
    """The stages of a config, in order: teacher, step one, one per halving round."""
    plain = settings.to_plain(config)
    shared = {key: plain[key] for key in SHARED_SETTINGS}
    distilled = shared | {"w_range": plain["w_range"]}
    stages = [
        Stage(
            "teacher", "teacher", "teacher", None, plain["teacher"],
            shared | {"teacher": plain["teacher"]},
        ),
        Stage(
            "step_one", "step_one", "step one", None, plain["step_one"],
            distilled | {"step_one": plain["step_one"]},
        ),
    ]  # fmt: skip
    step_two = plain["step_two"]
    rounds, algorithm = step_two.pop("rounds"), step_two["algorithm"]
    step_two.pop("start_steps")
    for k, one_round in enumerate(rounds, start=1):
        num_steps = one_round["num_steps"]
        optimization = step_two | one_round
        stages.append(
            Stage(
                f"step_two/{algorithm}/{num_steps:04d}",
                "step_two",
                f"step two, round {k} of {len(rounds)} (N = {num_steps})",
                num_steps,
                optimization,
                distilled | {"step_two": optimization},
            )
        )
    return stages


def select_stages(stages, name):
    """The named stage alone ('' selects all).

    `step_two` selects every round, `step_two/0064` the round of that many steps.

    Raises:
      UserError: where no stage is called so.
    """
    chosen = [s for s in stages if name in ("", s.name, s.kind, s.short_name)]
    if not chosen:
        names = [s.name for s in stages]
        raise UserError(f"--stage={name} is none of {', '.join(names)}{nearest(name, names)}")
    return chosen


def stages_after(stages, record):
    """The stages that come after the finished stage of a `stage.json` record.

    Raises:
      UserError: where none does.
    """

    def comes_after(stage):
        if record["stage"] == "step_two":
            return stage.kind == "step_two" and stage.num_steps < record["num_steps"]
        order = ("teacher", "step_one", "step_two")
        return order.index(stage.kind) > order.index(record["stage"])

    left = [stage for stage in stages if comes_after(stage)]
    if not left:
        raise UserError(
            f"--teacher is a finished {record['stage']}, which leaves no stage to train"
        )
    return left


def find_students(workdir, algorithm):
    """`{N: folder}` of the finished students."""
    records = pathlib.Path(workdir, "step_two", algorithm).glob("*/stage.json")
    return {int(path.parent.name): StageFolder(path.parent) for path in sorted(records)}


def find_stages(workdir, algorithm):
    """`{"teacher", "step_one", N, …}` -> folder; ancestors may lie in other workdirs."""
    students = find_students(workdir, algorithm)
    if not students:
        raise UserError(f"{workdir} holds no finished student: run --mode=train first")
    step_one = students[max(students)].parent()
    while step_one.record["stage"] == "step_two":
        step_one = step_one.parent()
    return {"teacher": step_one.parent(), "step_one": step_one} | students


def record_name(record):
    """A stage's name in results: 'teacher', 'step_one', 'step_two/deterministic/0004'."""
    if record["stage"] != "step_two":
        return record["stage"]
    return f"step_two/{record['algorithm']}/{record['num_steps']:04d}"
