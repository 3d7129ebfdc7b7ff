"""The job `sample`: images or arrays from one finished stage."""

import dataclasses
import math
import shlex

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from guided_distill.data.folders import check_outside
from guided_distill.errors import UserError
from guided_distill.jobs.asked import choose_asked, in_turn, open_pipeline
from guided_distill.jobs.common import check_counts, eyes_of, image_path
from guided_distill.report.sheets import save_sheet
from guided_distill.run import settings
from guided_distill.sampling.sampler import Sampler
from guided_distill.system.files import read_json
from guided_distill.system.processes import first_only
from guided_distill.system.progress import to_stderr
from guided_distill.system.sharding import make_mesh
from guided_distill.system.workdir import folder_to_sample

MAX_STRIP = 16  # columns of an image with a row per weight, or a column per class
ARRAYS = ".npz"
DEFAULT_N = 64  # or the next number that divides over the weights


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `sample`: the flags of these names, which `--help` explains."""

    workdir: str
    stage: str = ""
    num_steps: int | None = None
    w: tuple[float, ...] = (1.0,)
    labels: tuple[str | int, ...] = ()
    prompts: str = ""
    teacher: str = ""
    n: int | None = None
    seed: int = 0
    out: str = ""
    batch_size: int = 256
    sampler: str = ""
    force: bool = False
    decoder: str = ""


def run(request):
    """Draws samples from a finished stage into an image or an `.npz`."""
    if not request.out:
        raise UserError("`out` is missing: name a file, such as grid.png or samples.npz")
    config = read_json(folder_to_sample(request.workdir) / "config.json", derived=True)
    if config is not None:
        data = {"name": "", "path": "", "labels": ""} | config.get("data", {})
        check_outside(ConfigDict(data), request.out, "`out`")
    out = image_path(request.out, ARRAYS)
    given = [name for name in ("num_steps", "n") if getattr(request, name) is not None]
    check_counts(request, "batch_size", *given)
    weights = request.w
    n = request.n or -(-DEFAULT_N // len(weights)) * len(weights)
    if n % len(weights):
        many = n // len(weights) * len(weights) + len(weights)
        raise UserError(
            f"`n` {n} does not divide over the {len(weights)} weights of `w`: take {many}"
        )
    sampler = Sampler.load(
        request.workdir,
        request.num_steps,
        stage=request.stage,
        sampler=request.sampler,
        force=request.force,
        max_batch_size=request.batch_size,
    )
    pipeline = open_pipeline(request, sampler.record)
    see = choose_eyes(request, sampler, out)
    per_weight = n // len(weights)
    rows = np.arange(n)
    indices = rows % per_weight
    sample_w = np.asarray(weights)[rows // per_weight]
    asked = choose_asked(request, sampler.record, pipeline, per_weight)
    cond, arrays = (in_turn(part, indices) for part in (asked.cond, asked.arrays))
    x = draw(sampler, cond, sample_w, request.seed, indices)
    if see is None:
        write_arrays(out, x, cond | arrays, sample_w)
    else:
        write_image(out, see, x, weights, asked, command_of(request))
    to_stderr(
        f"{n} samples in {sampler.num_steps} steps of the {sampler.name} sampler: {request.out}"
    )


def draw(sampler, cond, w, seed, indices):
    """Samples `[n, …]`, of classes by their place or of arrays by name."""
    if sampler.record["num_classes"] is None:
        return sampler.draw(cond, w, seed, indices)
    return sampler.draw_classes(cond["labels"].tolist(), w, seed, indices)


def choose_eyes(request, sampler, out):
    """What makes pictures of samples, uint8; None where arrays are written.

    Raises:
      UserError: where latents are to be an image and there is no decoder, or a decoder is named
        that is not needed.
    """
    writes_arrays = out.suffix == ARRAYS
    if request.decoder and (writes_arrays or sampler.draws_pictures):
        why = f"{ARRAYS} has samples as they are" if writes_arrays else "the model draws pictures"
        raise UserError(f"`decoder` makes pictures of latents, and {why}: leave it out")
    if request.teacher and not request.prompts and (writes_arrays or sampler.draws_pictures):
        raise UserError(
            "`teacher` reads `prompts` and makes pictures of latents, and neither is asked for: "
            "leave it out"
        )
    if writes_arrays:
        return None
    path = request.decoder or settings.decoder_beside(request.teacher)
    if not (path or request.teacher or sampler.draws_pictures):
        path = settings.decoder_path(settings.read_config(request.workdir))
    see = eyes_of(sampler.stage, path, make_mesh())
    if see is None:
        raise UserError(
            f"`out` must be {ARRAYS} of a model that draws latents, or name what makes pictures of "
            f"them with `decoder`; got {request.out}"
        )
    return see


@first_only
def write_arrays(out, x, asked, w):
    """Writes samples `[n, …]`, what they are asked for, `{name: [n, …]}`, and `w` `[n]`."""
    np.savez(out, samples=x, w=w.astype(np.float32), **asked)


@first_only
def write_image(out, see, x, weights, asked, command):
    """Writes samples as pictures, with `command` inside."""
    save_sheet(out, sheet_lines(see(x), weights, asked.titles), command, asked.notes)


def sheet_lines(images, weights, names):
    """Lines of `save_sheet`: those of each weight in turn, in columns of one class each.

    Args:
      images: `[n, H, W, C]`, as many of each weight.
      weights: guidance weights.
      names: of the classes that samples of a weight go through in turn; none without classes.
    """
    columns = count_columns(len(images) // len(weights), len(weights), len(names))
    lines = []
    for w, x in zip(weights, np.split(images, len(weights)), strict=True):
        for start in range(0, len(x), columns):
            line = x[start : start + columns]
            stop = start + len(line)
            titles = [names[k % len(names)] if names else "" for k in range(start, stop)]
            lines.append(("" if start else f"w = {w:g}", titles, line))
    return lines


def count_columns(per_weight, num_weights, period):
    """One row per weight where it stays short, else about a square, in whole turns of classes."""
    if num_weights > 1 and per_weight <= MAX_STRIP:
        return per_weight
    side = math.ceil(per_weight**0.5)
    if not 0 < period <= MAX_STRIP:
        return side
    return min(per_weight, -(-side // period) * period)


def command_of(request):
    """The command line that asks for the same."""
    words = ["python", "-m", "guided_distill.main", "--mode=sample"]
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if value is True:
            words.append(f"--{field.name}")
        elif value != field.default:
            words.append(f"--{field.name}={flag_text(value)}")
    return shlex.join(words)


def flag_text(value):
    """A flag's value as it is typed."""
    if isinstance(value, tuple | list):
        return flags.CsvListSerializer(",").serialize([flag_text(v) for v in value])
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
