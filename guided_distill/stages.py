"""The stages of a config, in order, with what determines each; those that a workdir holds."""

import dataclasses
import pathlib

from guided_distill import settings
from guided_distill.distill.rounds import step_factors
from guided_distill.errors import UserError, nearest
from guided_distill.processes import from_first
from guided_distill.training.stage_folder import StageFolder

STAGE_PATTERNS = ("*", "step_two/*/*", "single_w/*/step_one", "single_w/*/step_two/*/*")
SHARED_SETTINGS = ("seed", "data", "schedule", "model", "optimizer")
SHARED_DATA_SETTINGS = ("name", "augmentations")  # The hash of the pictures stands for the others.


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
      algorithm: of a round of step two: `deterministic`, `stochastic`, `encoder`, `two_student`.
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
        short_name = self.name.replace("/deterministic", "")
        return name in ("", self.name, short_name) or self.name.startswith(f"{name}/")


def plan_stages(config):
    """The stages of a config, in order: teacher, step one, then each distillation's rounds."""
    plain = settings.to_plain(config)
    shared = {key: plain[key] for key in SHARED_SETTINGS}
    shared["data"] = {key: plain["data"][key] for key in SHARED_DATA_SETTINGS}
    teacher = Stage(
        "teacher", "teacher", "teacher", None, plain["teacher"],
        shared | {"teacher": plain["teacher"]},
    )  # fmt: skip
    stages = [teacher]
    distillations = plain["distillations"]
    w_range = tuple(plain["w_range"])
    if set(distillations) & set(settings.FROM_STEP_ONE):
        stages.append(_step_one(plain, shared, w_range))
    for distillation in distillations:
        if distillation == "single_w":
            for w in plain["single_w"]["w"]:
                prefix = f"single_w/{w:g}/"
                stages.append(_step_one(plain, shared, (w, w), prefix))
                stages += _rounds(plain, shared, "single_w", (w, w), prefix)
        else:
            stages += _rounds(plain, shared, distillation, w_range)
    return stages


def _step_one(plain, shared, w_range, prefix=""):
    return Stage(
        f"{prefix}step_one",
        "step_one",
        f"{prefix.replace('/', ' ')}step one",
        "teacher",
        plain["step_one"],
        shared | {"w_range": list(w_range), "step_one": plain["step_one"]},
        w_range,
    )


def _rounds(plain, shared, distillation, w_range, prefix=""):
    """The rounds of one distillation, each taught by the one before."""
    algorithm = "deterministic" if distillation == "single_w" else distillation
    label = "step two" if algorithm == "deterministic" else algorithm.replace("_", " ")
    section = {k: v for k, v in plain["step_two"].items() if k not in ("rounds", "start_steps")}
    _, rounds = settings.rounds_of(plain, distillation)
    factors = step_factors(plain["step_two"]["start_steps"], [r["num_steps"] for r in rounds])
    parent = "teacher" if algorithm == "two_student" else f"{prefix}step_one"
    stages = []
    for k, (one_round, factor) in enumerate(zip(rounds, factors, strict=True), start=1):
        num_steps = one_round["num_steps"]
        optimization = section | one_round
        if copies_teacher(algorithm, num_steps, factor):
            optimization["num_updates"] = 0
        determining = {"algorithm": algorithm, "factor": factor} | optimization
        stages.append(
            Stage(
                f"{prefix}step_two/{algorithm}/{num_steps:04d}",
                "step_two",
                f"{prefix.replace('/', ' ')}{label}, round {k} of {len(rounds)} (N = {num_steps})",
                parent,
                optimization,
                shared | {"w_range": list(w_range), "step_two": determining},
                w_range,
                algorithm,
                num_steps,
                factor,
            )
        )
        parent = stages[-1].name
    return stages


def copies_teacher(algorithm, num_steps, factor):
    """Whether a round has nothing to learn: from N = 2 to 1, Algorithm 3's only time is t = 1,
    and its target there is the teacher's own prediction."""
    return algorithm == "stochastic" and num_steps == 1 and factor == 2


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
        raise UserError(f"--stage={name} is none of {', '.join(names)}{nearest(name, names)}")
    return chosen


def stages_after(stages, record):
    """The stages that descend from the finished stage of a `stage.json` record, in order.

    Raises:
      UserError: where none does.
    """
    known = {"teacher"} | ({"step_one"} if record["stage"] != "teacher" else set())
    left = [stage for stage in stages if stage.name not in known]
    if record["stage"] == "step_two":
        left = [
            stage
            for stage in left
            if stage.algorithm == record["algorithm"]
            and stage.num_steps < record["num_steps"]
            and not stage.name.startswith("single_w")
        ]
    if not left:
        raise UserError(
            f"--teacher is a finished {record['name']}, which teaches none of the stages asked for"
        )
    return left


def find_stages(workdir):
    """`{name: folder}` of every finished stage, ancestors in other workdirs included."""
    found = find_own_stages(workdir)
    for folder in list(found.values()):
        for name, ancestor in lineage(folder).items():
            found.setdefault(name, ancestor)
    return found


def find_own_stages(workdir):
    """`{name: folder}` of the finished stages that lie in the workdir itself."""
    workdir = pathlib.Path(workdir)

    def names():
        found = [sorted(workdir.glob(f"{pattern}/stage.json")) for pattern in STAGE_PATTERNS]
        return [path.parent.relative_to(workdir).as_posix() for path in sum(found, [])]

    return {name: StageFolder(workdir / name) for name in from_first(names)}


def find_students(workdir):
    """`{family: {N: folder}}`: what each distillation left, such as `step_two/stochastic`."""
    families = {}
    for name, folder in find_own_stages(workdir).items():
        family, _, last = name.rpartition("/")
        if last.isdigit():
            families.setdefault(family, {})[int(last)] = folder
    return families


def params_hashes(stages):
    """`{name: params_sha256}` of `{name: folder}`."""
    return {name: folder.record["params_sha256"] for name, folder in stages.items()}


def lineage(folder):
    """`{name: folder}` of a finished stage and of those it descends from."""
    found = {}
    while folder is not None:
        if "name" not in folder.record:
            raise UserError(f"{folder.path} was written by an earlier version: train it anew")
        found[folder.record["name"]] = folder
        folder = folder.parent()
    return found


def network_evaluations(record):
    """Network evaluations that training a stage took: forward = 1, forward and backward = 3."""
    factor = record["factor"]
    per_example = {
        "teacher": 3,
        "step_one": 2 + 3,  # the guided pair, then the student
        "deterministic": factor and factor + 3,
        "stochastic": factor and factor + 3,
        "encoder": factor and factor + 3,
        "two_student": factor and 2 * factor + 2 * 3,
    }[record["algorithm"] or record["stage"]]
    batch_size = record["config"][record["stage"]]["batch_size"]
    return per_example * batch_size * record["updates"]
