"""The job `translate`: images of one class become images of another (section 4, C.7)."""

import dataclasses
from typing import Any

import numpy as np

from guided_distill.data.folders import check_outside
from guided_distill.data.images import read_images
from guided_distill.data.pixels import as_learnt
from guided_distill.distill.distillations import ENCODER, students_of
from guided_distill.distill.ranges import check_distilled, check_w
from guided_distill.errors import UserError
from guided_distill.evaluation.style_transfer import (
    coder_steps,
    list_coders,
    measure_translation,
    translation_blocks,
)
from guided_distill.jobs.common import (
    check_counts,
    image_path,
    load_classifier,
    open_data,
    see_data,
)
from guided_distill.report.grids import save_strips
from guided_distill.report.tables import translation_table
from guided_distill.run import settings
from guided_distill.sampling.generator import Generators
from guided_distill.sampling.sampler import read_labels
from guided_distill.system import sharding
from guided_distill.system.files import local_path, write_json
from guided_distill.system.progress import to_stderr, to_stdout
from guided_distill.system.workdir import find_stages, params_hashes


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `translate`: the flags of these names, which `--help` explains."""

    config: Any
    workdir: str
    source_label: int | str | None = None
    target_label: int | str | None = None
    encoder_w: float = 0.0
    w: tuple[float, ...] = (1.0,)
    num_steps: int | None = None
    images: tuple[str, ...] = ()
    n: int = 64
    seed: int = 0
    out: str = ""
    batch_size: int = 256


def run(request):
    """Encodes images with the source label, decodes with the target label, beside guided DDIM."""
    config, workdir = request.config, local_path(request.workdir, "`workdir`")
    settings.prepare_config(config)
    check_outside(config.data, workdir, "`workdir`")
    if request.out:
        check_outside(config.data, request.out, "`out`")
    out = image_path(request.out) if request.out else None
    check_counts(request, "batch_size", "n", *(["num_steps"] if request.num_steps else []))
    stages = find_stages(workdir)
    num_steps = choose_num_steps(workdir, stages, request.num_steps)
    record = students_of(stages, ENCODER)[num_steps].record
    source_label, target_label = read_request(record, request)
    dataset = open_data(config)
    seen = see_data(config, dataset)
    if not seen.pictures:
        raise UserError(
            f"--mode=translate shows pictures, and {dataset.name} holds latents: name their "
            "decoder with evaluation.decoder"
        )
    x = choose_images(request, source_label, dataset, record["image_shape"])
    generators = Generators(sharding.make_mesh(), min(request.batch_size, len(x)))
    rows, translated = measure_translation(
        list_coders(stages, generators, num_steps=num_steps, seed=request.seed),
        x,
        np.full(len(x), source_label),
        np.full(len(x), target_label),
        encoder_w=request.encoder_w,
        weights=request.w,
        classifier=load_classifier(config, workdir, seen),
    )
    name = f"{request.source_label}_to_{request.target_label}"
    figure = out or workdir / "translate" / f"{name}.png"
    title = (
        f"{request.source_label} to {request.target_label}, encoded at w = {request.encoder_w:g}"
    )
    save_strips(figure, translation_blocks(x, translated, seen.see), title)
    write_json(figure.with_suffix(".json"), {"params_sha256": params_hashes(stages), "rows": rows})
    to_stdout(translation_table(rows))
    to_stderr(f"{len(x)} images translated: {figure}")


def choose_images(request, source_label, dataset, image_shape):
    """x of the first n of the request's own images, else of held-out ones of the source class."""
    if request.images and not dataset.pictures:
        raise UserError(
            f"`images` are pictures, and {dataset.name} holds latents: leave them out, and "
            "held-out ones are translated"
        )
    if request.images:
        max_value = request.config.data.max_value
        images, notices = read_images(request.images, image_shape, max_value=max_value)
        for notice in notices:
            to_stderr(notice)
    else:
        members = np.flatnonzero(dataset.test.labels == source_label)
        images, _ = dataset.test.read(members[: request.n])
    if not len(images):
        raise UserError(f"{dataset.name} has no held-out image of class {request.source_label}")
    return as_learnt(images[: request.n])


def choose_num_steps(workdir, stages, num_steps):
    """N for which there are both an encoder and a decoder.

    Raises:
      UserError: where there is none, or not of `num_steps`.
    """
    encoders, both = coder_steps(stages)
    if not encoders:
        raise UserError(
            f"{workdir} holds no encoder: train one with a config's :encoder variant, such as "
            f"--config=configs/digits.py:encoder --workdir={workdir}"
        )
    if not both:
        raise UserError(
            f"{workdir} holds encoders of {sorted(encoders)} steps but no deterministic student "
            "of as many to decode with: train one"
        )
    if num_steps is not None:
        check_distilled(num_steps, both, what="`num_steps`")
    return num_steps or min(both)


def read_request(record, request):
    """(source label, target label) by their place; refuses what the models were not trained for."""
    if record["num_classes"] is None:
        raise UserError("--mode=translate goes from class to class, and the run's data have none")
    labels = []
    for name in ("source_label", "target_label"):
        label = getattr(request, name)
        if label is None:
            raise UserError(f"`{name}` is missing: name a class")
        labels += read_labels([label], record)
        if not 0 <= labels[-1] < record["num_classes"]:
            raise UserError(f"`{name}` must lie in 0 to {record['num_classes'] - 1}, got {label}")
    check_w(request.encoder_w, record["w_range"], what="`encoder_w`")
    for w in request.w:
        check_w(w, record["w_range"], what="`w`")
    return labels
