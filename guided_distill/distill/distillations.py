"""What can be distilled: one row a distillation, with all that sets it apart from the others.

The names stand here, in `config.distillations` and in the documentation; everything else asks a
row.
"""

import dataclasses
from collections.abc import Callable

from guided_distill.distill import algorithms
from guided_distill.errors import UserError

SAMPLERS = ("ddim", "stochastic", "ancestral")
ENCODE = "encode"  # the run of an encoder, which is no sampler


@dataclasses.dataclass(frozen=True)
class Distillation:
    """One way to make students.

    Attributes:
      name: in `config.distillations`.
      algorithm: of its rounds; names their folder and their compiled update.
      loss: of Algorithms 2 to 5.
      times: where a round's step leads, `(i, num_steps, factor) -> times`; None for Algorithm 5.
      starts: (first, last) i of the times t = i/N, given N.
      samplers: that its students were made for, the default first; none lead from noise to x.
      why_not: another sampler does not fit.
      learns_pair: the student is a pair (x̂_c, x̂), two network calls a step, and so is its teacher.
      first_teacher: kind of the stage that teaches its first round.
      knows_one_w: each student learns one w of `config.<name>.w`, and has a step one of its own.
      never_clips: why its teacher is never clipped; '' where it may be.
      model: in the rows of `results.json`.
      title: of its students, for people.
      legend: the same in figures.
      stage_title: of its rounds, for people.
      compares_with_step_one: whether its samples are step one's, but for what distilling lost.
      figures: of the paper, (w by N, samples); '' for none.
    """

    name: str
    algorithm: str
    loss: Callable
    times: Callable | None
    samplers: tuple[str, ...]
    title: str
    legend: str
    stage_title: str
    model: str
    starts: Callable = algorithms.starts_down
    why_not: str = ""
    learns_pair: bool = False
    first_teacher: str = "step_one"
    knows_one_w: bool = False
    never_clips: str = ""
    compares_with_step_one: bool = False
    figures: tuple[str, str] = ("", "")

    @property
    def encodes(self):
        """Whether its students lead from data to noise."""
        return self.starts is algorithms.starts_up

    def copies_teacher(self, num_steps, factor):
        """Whether a round has nothing to learn: its only time is t = 1, and the target there is
        the teacher's own prediction (Algorithm 3 from N = 2 to 1)."""
        if num_steps != 1 or self.times is None:
            return False
        _, first, *_, last = map(float, self.times(1, 1, factor))
        return first == last == 0.0


DETERMINISTIC = Distillation(
    name="deterministic",
    algorithm="deterministic",
    loss=algorithms.deterministic_loss,
    times=algorithms.times_down,
    samplers=("ddim",),
    why_not="its steps were distilled to be of length 1/N, for the ddim sampler",
    model="student",
    title="student",
    legend="distilled, deterministic",
    stage_title="step two",
    compares_with_step_one=True,
    figures=("Figure 1: w by N, deterministic", "Figures 14 to 44: deterministic"),
)
STOCHASTIC = Distillation(
    name="stochastic",
    algorithm="stochastic",
    loss=algorithms.stochastic_loss,
    times=algorithms.times_down_twice,
    samplers=("stochastic",),
    why_not="its steps were distilled to be of length 2/N, for the stochastic sampler",
    model="stochastic",
    title="stochastic student",
    legend="distilled, stochastic",
    stage_title="stochastic",
    figures=("Figure 5: w by N, stochastic", "Figures 15 to 45: stochastic"),
)
ENCODER = Distillation(
    name="encoder",
    algorithm="encoder",
    loss=algorithms.encoder_loss,
    times=algorithms.times_up,
    starts=algorithms.starts_up,
    samplers=(),
    never_clips="encoding never clips",
    model="encoder",
    title="encoder",
    legend="encoder",
    stage_title="encoder",
)
TWO_STUDENT = Distillation(
    name="two_student",
    algorithm="two_student",
    loss=algorithms.two_student_loss,
    times=None,
    samplers=("ddim", "stochastic"),  # The paper samples the pair with both.
    why_not="its steps were distilled to be of length 1/N",
    learns_pair=True,
    first_teacher="teacher",
    never_clips="Algorithm 5 has no clip",
    model="two_student",
    title="two students",
    legend="two students (naive)",
    stage_title="two student",
    figures=("Figure 13: the naive students, w by N", ""),
)
SINGLE_W = dataclasses.replace(
    DETERMINISTIC,
    name="single_w",
    knows_one_w=True,
    model="single_w",
    title="single-w student",
    legend="distilled at one w",
    compares_with_step_one=False,
    figures=("", ""),
)

ROWS = (DETERMINISTIC, STOCHASTIC, ENCODER, SINGLE_W, TWO_STUDENT)
DISTILLATIONS = {row.name: row for row in ROWS}
ALGORITHMS = {row.algorithm: row for row in reversed(ROWS)}  # the first row of each


def distillation_of(record):
    """The row of a finished stage's record; None for the teacher and step one."""
    if record["algorithm"] is None:
        return None
    family, _, _ = record["name"].partition("/")
    return DISTILLATIONS.get(family, ALGORITHMS[record["algorithm"]])


def students_of(stages, row):
    """`{N: finished stage}` of one `Distillation`, of `{name: finished stage}`."""
    return {
        stage.record["num_steps"]: stage
        for stage in stages.values()
        if distillation_of(stage.record) is row
    }


def round_costs(stages):
    """Network evaluations that training each distilled model took.

    Args:
      stages: `{name: record}`; of a record, `algorithm`, `num_steps` and `evaluations`, those of
        its own training.

    Returns:
      `{(model, N): evaluations}` of its round and of those before it, without the teacher and step
      one. Models of several fixed w have the same settings, hence the same cost.
    """
    costs, spent = {}, {}
    for name, record in sorted(stages.items(), key=lambda item: -(item[1]["num_steps"] or 0)):
        row = distillation_of(record | {"name": name})
        if row is not None:
            family = name.rpartition("/")[0]
            spent[family] = spent.get(family, 0) + record["evaluations"]
            costs[row.model, record["num_steps"]] = spent[family]
    return costs


def is_pair(record):
    """Whether a finished stage is used as a guided pair (x̂_c, x̂)."""
    return record["stage"] == "teacher" or (row := distillation_of(record)) and row.learns_pair


def calls_per_step(record):
    """Network calls per sampling step: 2 for a guided pair."""
    return 2 if is_pair(record) else 1


def fitting_samplers(record):
    """What a finished stage was made for, the default first; continuous time takes any."""
    row = distillation_of(record)
    return ("ddim", "ancestral", "stochastic") if row is None else row.samplers


def choose_sampler(record, name="", *, force=False):
    """The sampler of a finished stage: its own, or the named one where it fits.

    Args:
      record: of the stage.
      name: one of `SAMPLERS`; '' chooses.
      force: take the named sampler though it does not fit.

    Raises:
      UserError: where the model is no sampler's, or not this one's.
    """
    fitting = fitting_samplers(record)
    if not fitting:
        raise UserError(
            f"{record['name']} is an encoder, which leads from images to noise: "
            "it has no samples; translate with it"
        )
    if name and name not in fitting and not force:
        raise UserError(
            f"`sampler` {name} does not fit {record['name']}: {distillation_of(record).why_not}; "
            f"take {fitting[0]}, or `force` to see what happens"
        )
    return name or fitting[0]


def network_evaluations(record):
    """Network evaluations that training a stage took: forward = 1, forward and backward = 3."""
    row = distillation_of(record)
    if not record["updates"]:
        return 0
    if row is None:
        per_example = {"teacher": 3, "step_one": 2 + 3}[record["stage"]]  # the pair, the student
    else:
        per_example = (record["factor"] + 3) * (2 if row.learns_pair else 1)
    batch_size = record["config"][record["stage"]]["batch_size"]
    return per_example * batch_size * record["updates"]
