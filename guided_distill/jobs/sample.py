"""The job `sample`: images or arrays from one finished stage."""

import dataclasses
import math

import numpy as np
from ml_collections import ConfigDict

from guided_distill.data.folders import check_outside
from guided_distill.data.pixels import to_uint8, widen
from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError
from guided_distill.jobs.common import check_counts, image_path
from guided_distill.report.grids import save_grid
from guided_distill.run import settings
from guided_distill.sampling.sampler import Sampler, read_labels
from guided_distill.system.files import local_path, read_json
from guided_distill.system.processes import first_only
from guided_distill.system.progress import to_stderr

MAX_STRIP = 16  # samples in one row of an image, where there is a row per weight
ARRAYS = ".npz"
DEFAULT_N = 64  # or the next number that divides over the weights


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `sample`: the flags of these names, which `--help` explains."""

    workdir: str
    stage: str = ""
    num_steps: int = 4
    w: tuple[float, ...] = (1.0,)
    labels: tuple[str | int, ...] = ()
    n: int | None = None
    seed: int = 0
    out: str = ""
    batch_size: int = 256
    sampler: str = ""
    force: bool = False


def run(request):
    """Draws samples from a finished stage into an image or an `.npz`."""
    if not request.out:
        raise UserError("`out` is missing: name a file, such as grid.png or samples.npz")
    config = read_json(local_path(request.workdir, "`workdir`") / "config.json", derived=True)
    if config is not None:
        data = {"name": "", "path": "", "labels": ""} | config.get("data", {})
        check_outside(ConfigDict(data), request.out, "`out`")
    out = image_path(request.out, ARRAYS)
    check_counts(request, "num_steps", "batch_size", *(["n"] if request.n is not None else []))
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
    if not sampler.draws_pictures and out.suffix != ARRAYS:
        raise UserError(f"`out` must be {ARRAYS} of a model that draws latents, got {request.out}")
    per_weight = n // len(weights)
    rows = np.arange(n)
    indices = rows % per_weight
    sample_w = np.asarray(weights)[rows // per_weight]
    if sampler.record["num_classes"] is None:
        asked = held_out_conditioning(request, indices)
        x = sampler.draw(asked, sample_w, request.seed, indices)
    else:
        labels = read_labels(request.labels, sampler.record)
        labels = labels or list(range(sampler.record["num_classes"]))
        asked = {"labels": np.asarray(labels, np.int32)[indices % len(labels)]}
        x = sampler.draw_classes(asked["labels"].tolist(), sample_w, request.seed, indices)
    write_samples(out, x, asked, sample_w)
    to_stderr(
        f"{n} samples in {request.num_steps} steps of the {sampler.name} sampler: {request.out}"
    )


def held_out_conditioning(request, indices):
    """The conditioning of the run's held-out examples in turn, by name: `{name: [n, …]}`."""
    if request.labels:
        raise UserError("`labels` mean nothing to a model without classes: leave them out")
    test = open_dataset(settings.read_config(request.workdir).data).test
    return widen(test.read_cond(indices % len(test)))


@first_only
def write_samples(out, x, asked, w):
    """Writes arrays, or an image: a row per weight where the rows stay short.

    Args:
      out: where to.
      x: samples, `[n, …]`.
      asked: what they are conditioned on, `{name: [n, …]}`.
      w: their weights, `[n]`.
    """
    if out.suffix == ARRAYS:
        np.savez(out, samples=x, w=w.astype(np.float32), **asked)
        return
    per_weight = np.count_nonzero(w == w[0])
    one_row_each = per_weight < len(x) and per_weight <= MAX_STRIP
    save_grid(out, to_uint8(x), per_weight if one_row_each else math.ceil(per_weight**0.5))
