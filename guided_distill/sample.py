"""The job `sample`: pictures or arrays from one finished stage."""

import math
import pathlib
import re

import jax
import numpy as np
from PIL import Image

from guided_distill import settings
from guided_distill.data.pixels import to_uint8
from guided_distill.errors import UserError, nearest
from guided_distill.evaluation.generate import FITTING_SAMPLERS, Samplers, choose_sampler
from guided_distill.evaluation.pictures import save_grid
from guided_distill.progress import say
from guided_distill.stages import find_own_stages, find_students
from guided_distill.training import sharding
from guided_distill.training.stage_folder import StageFolder

CONTINUOUS = ("teacher", "step_one")  # models of any number of steps
MAX_STRIP = 16  # samples in one row of a picture, where there is a row per weight


def sample(
    workdir,
    *,
    stage,
    num_steps,
    weights,
    labels,
    n,
    seed,
    out,
    batch_size,
    sampler="",
    force=False,
):
    """Draws samples from a finished stage into a picture or an `.npz`.

    Args:
      workdir: of the run.
      stage: `teacher`, `step_one`, a distillation such as `step_two/stochastic` or
        `single_w/1` (its student of `num_steps`), or '' for the deterministic students.
      num_steps: N.
      weights: guidance weights; each gets an equal share of the n samples, on the same noise.
      labels: classes to cycle through, numbers or names; empty means all.
      n: number of samples.
      seed: of the noise.
      out: path; `.npz` holds `samples`, `labels` and `w`, any other suffix is a picture.
      batch_size: samples per compiled call.
      sampler: `ddim`, `stochastic` or `ancestral`; '' takes the one that the model was made for.
      force: sample with `sampler` though the model was not made for it.
    """
    check_picture_path(out)
    check_counts(num_steps=num_steps, batch_size=batch_size, n=n, seed=seed)
    folder = choose_stage(workdir, stage, num_steps)
    params, record = folder.load()
    sampler = choose_sampler(record, sampler, force=force)
    labels = read_labels(labels, record) or list(range(record["num_classes"]))
    check_request(record, weights, labels, n)

    per_weight = -(-n // len(weights))
    rows = np.arange(n)
    indices = rows % per_weight
    sample_labels = np.asarray(labels, np.int32)[indices % len(labels)]
    sample_w = np.asarray(weights, np.float32)[rows // per_weight]
    mesh = sharding.make_mesh()
    devices = jax.device_count()
    batch_size = -(-min(batch_size, n) // devices) * devices
    x = Samplers(mesh, batch_size).of(record, sampler)(
        params, labels=sample_labels, w=sample_w, indices=indices, num_steps=num_steps, seed=seed
    )
    write_samples(pathlib.Path(out), x, sample_labels, sample_w)
    say(f"{n} samples in {num_steps} steps of the {sampler} sampler: {out}")


def write_samples(out, x, labels, w):
    """Writes arrays, or a picture: a row per weight where the rows stay short."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        np.savez(out, samples=x, labels=labels, w=w)
        return
    per_weight = np.count_nonzero(w == w[0])
    one_row_each = per_weight < len(x) and per_weight <= MAX_STRIP
    save_grid(out, to_uint8(x), per_weight if one_row_each else math.ceil(per_weight**0.5))


def check_picture_path(out):
    """Refuses an output path that no picture or `.npz` can be written to."""
    if not out:
        raise UserError("--mode=sample needs --out, such as --out=grid.png or --out=samples.npz")
    suffix = pathlib.Path(out).suffix.lower()
    if suffix != ".npz" and suffix not in Image.registered_extensions():
        raise UserError(f"--out={out}: take .npz or a picture's suffix, such as .png")


def choose_stage(workdir, stage, num_steps):
    """The folder that `--mode=sample` draws from.

    Args:
      workdir: of the run.
      stage: as in `sample`.
      num_steps: N, of students.
    """
    own = find_own_stages(workdir)
    if stage in own:
        check_stage_steps(own[stage].record, num_steps)
        return own[stage]
    if stage in CONTINUOUS:
        return StageFolder(pathlib.Path(workdir, stage))
    families = find_students(workdir)
    if stage in ("", "step_two"):
        meant = [family for family in families if FITTING_SAMPLERS[pathlib.Path(family).name]]
    else:
        meant = [family for family in families if f"{family}/".startswith(f"{stage}/")]
        if not meant:
            known = [*CONTINUOUS, *families]
            raise UserError(f"--stage={stage} is none of {', '.join(known)}{nearest(stage, known)}")
    students = families[meant[0]] if meant else {}
    settings.check_distilled(num_steps, list(students), what="--num_steps")
    return students[num_steps]


def check_stage_steps(record, num_steps):
    """Refuses a number of steps that is not the named student's."""
    if record["num_steps"] not in (None, num_steps):
        settings.check_distilled(num_steps, [record["num_steps"]], what="--num_steps")


def check_counts(*, num_steps, batch_size, n, seed):
    """Refuses counts below 1 and a seed below 0."""
    lowest = {"num_steps": (num_steps, 1), "batch_size": (batch_size, 1), "n": (n, 1)}
    for flag, (value, low) in (lowest | {"seed": (seed, 0)}).items():
        if value < low:
            raise UserError(f"--{flag} must be at least {low}, got {value}")


def read_labels(labels, record):
    """Numbers of classes that are given as numbers or, where they have some, as names."""
    names = record["class_names"]
    numbers = []
    for label in labels:
        if isinstance(label, str) and label in names:
            numbers.append(names.index(label))
        elif re.fullmatch(r"-?\d+", str(label)):
            numbers.append(int(label))
        else:
            known = f" or names of classes{nearest(label, names)}" if names else ""
            raise UserError(f"--labels takes numbers{known}, separated by commas, got {label!r}")
    return numbers


def check_request(record, weights, labels, n):
    """Refuses weights and labels that the stage was not trained for."""
    w_range = record["w_range"] or (0.0, math.inf)  # The guided teacher takes any weight.
    for w in weights:
        settings.check_w(w, w_range, what="--w")
    for label in labels:
        if not 0 <= label < record["num_classes"]:
            raise UserError(f"--labels must lie in 0 to {record['num_classes'] - 1}, got {label}")
    if n < len(weights):
        raise UserError(f"--n={n} leaves no sample for some of the {len(weights)} weights of --w")
