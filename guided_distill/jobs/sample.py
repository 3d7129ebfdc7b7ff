"""The job `sample`: images or arrays from one finished stage."""

import dataclasses
import math

import numpy as np
from ml_collections import ConfigDict

from guided_distill.data.folders import check_outside
from guided_distill.data.pixels import widen
from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError
from guided_distill.jobs.common import check_counts, eyes_of, image_path
from guided_distill.report.grids import save_grid
from guided_distill.run import settings
from guided_distill.sampling.sampler import Sampler, read_labels
from guided_distill.system.files import local_path, read_json
from guided_distill.system.processes import first_only
from guided_distill.system.progress import to_stderr
from guided_distill.system.sharding import make_mesh

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
    decoder: str = ""


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
    see = choose_eyes(request, sampler, out)
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
    write_samples(out, x, asked, sample_w, see)
    to_stderr(
        f"{n} samples in {request.num_steps} steps of the {sampler.name} sampler: {request.out}"
    )


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
    if writes_arrays:
        return None
    path = request.decoder
    if not (path or sampler.draws_pictures):
        path = settings.decoder_path(settings.read_config(request.workdir))
    see = eyes_of(sampler.stage, path, make_mesh())
    if see is None:
        raise UserError(
            f"`out` must be {ARRAYS} of a model that draws latents, or name what makes pictures of "
            f"them with `decoder`; got {request.out}"
        )
    return see


def held_out_conditioning(request, indices):
    """The conditioning of the run's held-out examples in turn, by name: `{name: [n, …]}`."""
    if request.labels:
        raise UserError("`labels` mean nothing to a model without classes: leave them out")
    test = open_dataset(settings.read_config(request.workdir).data).test
    return widen(test.read_cond(indices % len(test)))


@first_only
def write_samples(out, x, asked, w, see):
    """Writes arrays, or an image: a row per weight where the rows stay short.

    Args:
      out: where to.
      x: samples, `[n, …]`.
      asked: what they are conditioned on, `{name: [n, …]}`.
      w: their weights, `[n]`.
      see: what makes pictures of them.
    """
    if out.suffix == ARRAYS:
        np.savez(out, samples=x, w=w.astype(np.float32), **asked)
        return
    per_weight = np.count_nonzero(w == w[0])
    one_row_each = per_weight < len(x) and per_weight <= MAX_STRIP
    save_grid(out, see(x), per_weight if one_row_each else math.ceil(per_weight**0.5))
