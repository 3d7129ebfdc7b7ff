"""The job `sample`: pictures or arrays from one finished stage."""

import math
import pathlib

import numpy as np
from PIL import Image

from guided_distill.data.pixels import to_uint8
from guided_distill.errors import UserError
from guided_distill.evaluation.pictures import save_grid
from guided_distill.processes import first_only
from guided_distill.progress import say
from guided_distill.sampler import Sampler, read_labels

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
    if n < len(weights):
        raise UserError(f"--n={n} leaves no sample for some of the {len(weights)} weights of --w")
    sampler = Sampler.load(
        workdir,
        num_steps,
        stage=stage,
        sampler=sampler,
        force=force,
        max_batch_size=batch_size,
    )
    labels = read_labels(labels, sampler.record) or list(range(sampler.record["num_classes"]))
    per_weight = -(-n // len(weights))
    rows = np.arange(n)
    indices = rows % per_weight
    sample_labels = np.asarray(labels, np.int32)[indices % len(labels)]
    sample_w = np.asarray(weights, np.float32)[rows // per_weight]
    x = sampler.draw(sample_labels, sample_w, seed, indices)
    write_samples(pathlib.Path(out), x, sample_labels, sample_w)
    say(f"{n} samples in {num_steps} steps of the {sampler.name} sampler: {out}")


@first_only
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


def check_counts(*, num_steps, batch_size, n, seed):
    """Refuses counts below 1 and a seed below 0."""
    lowest = {"num_steps": (num_steps, 1), "batch_size": (batch_size, 1), "n": (n, 1)}
    for flag, (value, low) in (lowest | {"seed": (seed, 0)}).items():
        if value < low:
            raise UserError(f"--{flag} must be at least {low}, got {value}")
