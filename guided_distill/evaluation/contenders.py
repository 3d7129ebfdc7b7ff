"""What an evaluation compares: teacher, step one, students, and the teacher at few steps."""

import dataclasses

from guided_distill.distill.distillations import calls_per_step, choose_sampler, distillation_of

REFERENCES = ("teacher", "step_one")  # models that others are compared with


@dataclasses.dataclass(frozen=True)
class Contender:
    """One row's model.

    Attributes:
      model: "teacher" (all steps), "step_one", a sampler's name (the guided teacher at few
        steps), or `Distillation.model`.
      sampler: the sampler's name.
      num_steps: N.
      calls_per_step: network calls per sampling step, 2 for a guided pair.
      stage: `FinishedStage` of its parameters.
      generator: draws its samples.
      only_w: the one guidance weight it knows; None for all.
      ancestral_mix: setting of the ancestral sampler; None for the others.
      compares_with: the `REFERENCES` whose samples its own are compared with.
    """

    model: str
    sampler: str
    num_steps: int
    calls_per_step: int
    stage: object
    generator: object
    only_w: float | None = None
    ancestral_mix: float | None = None
    compares_with: tuple[str, ...] = ("teacher",)

    @property
    def network_calls(self):
        """Network calls per sample."""
        return self.num_steps * self.calls_per_step

    def knows(self, w):
        """Whether it has a row for this guidance weight."""
        return self.only_w in (None, w)


def list_contenders(
    stages, generators, *, start_steps, num_steps, baselines=("ddim",), baseline_num_steps=()
):
    """Everything that is compared, references first.

    Args:
      stages: `{name: FinishedStage}`.
      generators: `Generators`.
      start_steps: steps of the full teacher and of the step-one model.
      num_steps: N of the students; those that were never distilled are left out.
      baselines: samplers of the guided teacher.
      baseline_num_steps: N of those.

    Returns:
      A list of `Contender`s.
    """

    def contender(stage, model, steps, sampler=""):
        sampler = choose_sampler(stage.record, sampler)
        row = distillation_of(stage.record)
        return Contender(
            model,
            sampler,
            steps,
            calls_per_step(stage.record),
            stage,
            generators.of(stage, sampler),
            only_w=stage.record["w_range"][0] if row and row.knows_one_w else None,
            ancestral_mix=generators.ancestral_mix if sampler == "ancestral" else None,
            compares_with=REFERENCES if row and row.compares_with_step_one else ("teacher",),
        )

    teacher = stages["teacher"]
    contenders = [
        contender(stages[name], name, start_steps) for name in REFERENCES if name in stages
    ]
    for sampler in baselines:
        contenders += [contender(teacher, sampler, n, sampler) for n in baseline_num_steps]
    for stage in stages.values():
        row = distillation_of(stage.record)
        if row and row.samplers and stage.record["num_steps"] in num_steps:
            contenders.append(contender(stage, row.model, stage.record["num_steps"]))
    return contenders
