"""The job `export`: a finished student as a folder that is taken elsewhere."""

import dataclasses

from guided_distill.distill.distillations import choose_sampler, is_pair
from guided_distill.errors import UserError
from guided_distill.export.diffusers_folder import export_diffusers
from guided_distill.export.student_folder import export_student
from guided_distill.sampling.sampler import choose_stage, steps_of
from guided_distill.system.files import check_empty, local_path, read_json
from guided_distill.system.progress import to_stderr
from guided_distill.system.workdir import folder_to_sample

FORMATS = ("diffusers", "safetensors", "jax")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `export`: the flags of these names, which `--help` explains."""

    workdir: str
    stage: str = ""
    num_steps: int | None = None
    w: tuple[float, ...] = ()
    out: str = ""
    format: str = "diffusers"
    from_: str = ""
    link: bool = False


def run(request):
    """Exports a finished student; all that is refused is refused before anything is written."""
    if request.format not in FORMATS:
        raise UserError(f"`format` must be one of {', '.join(FORMATS)}, got {request.format!r}")
    out = check_out(request.out)
    stage = choose_stage(request.workdir, request.stage, request.num_steps)
    check_student(stage.record)
    num_steps = steps_of(stage, request.num_steps)
    results = folder_to_sample(request.workdir) / "report" / "results.json"
    results = read_json(results, derived=True)
    if request.format == "diffusers":
        told = export_diffusers(
            stage,
            num_steps,
            out,
            w=request.w,
            moved=request.from_,
            link=request.link,
            results=results,
        )
    else:
        refuse_meaningless(request)
        with_program = request.format == "jax"
        told = export_student(stage, num_steps, out, with_program=with_program, results=results)
    to_stderr(told)


def check_out(out):
    """The folder to write, which must be new or empty."""
    if not out:
        raise UserError("`out` is missing: name the folder to write, such as sd15-4")
    path = local_path(out, "`out`")
    check_empty(path)
    return path


def check_student(record):
    """Refuses a stage that is no student of one network call a step."""
    choose_sampler(record)  # Refuses an encoder.
    if is_pair(record):
        raise UserError(
            f"{record['name']} takes two network calls a step, which is no student of one: export "
            "a student of step two, or step_one"
        )


def refuse_meaningless(request):
    """Refuses what only a diffusers folder takes."""
    for name, value in (("w", request.w), ("from", request.from_), ("link", request.link)):
        if value:
            raise UserError(
                f"`{name}` means nothing to `format` {request.format}, which keeps the dial and "
                "needs no other folder: leave it out"
            )
