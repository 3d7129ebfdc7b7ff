"""The job `translate`: images of one class or prompt become those of another (section 4, C.7)."""

import dataclasses
import re
from typing import Any

import numpy as np

from guided_distill.data.folders import check_outside
from guided_distill.data.images import read_images
from guided_distill.data.pixels import as_learnt, widen
from guided_distill.distill.distillations import DETERMINISTIC, ENCODER, students_of
from guided_distill.distill.ranges import check_distilled, check_w
from guided_distill.errors import UserError
from guided_distill.evaluation.style_transfer import (
    coder_steps,
    list_coders,
    measure_translation,
    translation_blocks,
)
from guided_distill.jobs.asked import embed, in_parts, pipeline_of
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

OWN = "own captions"  # what held-out examples are encoded with
OF_CLASSES, OF_TEXTS = ("source_label", "target_label"), ("source_prompt", "target_prompt")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `translate`: the flags of these names, which `--help` explains."""

    config: Any
    workdir: str
    source_label: int | str | None = None
    target_label: int | str | None = None
    source_prompt: str = ""
    target_prompt: str = ""
    teacher: str = ""
    encoder_w: float = 0.0
    w: tuple[float, ...] = (1.0,)
    num_steps: int | None = None
    images: tuple[str, ...] = ()
    n: int = 64
    seed: int = 0
    out: str = ""
    batch_size: int = 256


@dataclasses.dataclass(frozen=True)
class Task:
    """What is translated.

    Attributes:
      x: `[n, …]` float32, as models learn it.
      source, target: labels `[n]` int32, or arrays by name `{name: [n, …]}`.
      names: of both, for people.
    """

    x: np.ndarray
    source: Any
    target: Any
    names: tuple[str, str]


def run(request):
    """Encodes images as what they show, decodes them as the target, beside guided DDIM."""
    config = request.config.copy_and_resolve_references()
    config.teacher.path = request.teacher or config.teacher.path
    workdir = local_path(request.workdir, "`workdir`")
    settings.prepare_config(config)
    check_outside(config.data, workdir, "`workdir`")
    if request.out:
        check_outside(config.data, request.out, "`out`")
    out = image_path(request.out) if request.out else None
    check_counts(request, "batch_size", "n", *(["num_steps"] if request.num_steps else []))
    stages = find_stages(workdir)
    num_steps = choose_num_steps(workdir, stages, request.num_steps)
    record = students_of(stages, ENCODER)[num_steps].record
    check_request(record, request)
    has_classes = record["num_classes"] is not None
    pipeline = pipeline_of(config.teacher.path, needed=not has_classes)
    dataset = open_data(config)
    seen = see_data(config, dataset)
    if not seen.pictures:
        raise UserError(
            f"--mode=translate shows pictures, and {dataset.name} holds latents: name their "
            "decoder with evaluation.decoder"
        )
    choose = class_task if has_classes else text_task
    task = choose(request, record, dataset, pipeline)
    generators = Generators(sharding.make_mesh(), min(request.batch_size, len(task.x)))
    rows, translated = measure_translation(
        list_coders(stages, generators, num_steps=num_steps, seed=request.seed),
        task.x,
        task.source,
        task.target,
        encoder_w=request.encoder_w,
        weights=request.w,
        classifier=load_classifier(config, workdir, seen),
    )
    figure = out or workdir / "translate" / f"{file_name(*task.names)}.png"
    title = "{} to {}, encoded at w = {:g}".format(*task.names, request.encoder_w)
    save_strips(figure, translation_blocks(task.x, translated, seen.see), title)
    what = dict(zip(("source", "target"), task.names, strict=True))
    numbers = what | {"params_sha256": params_hashes(stages), "rows": rows}
    write_json(figure.with_suffix(".json"), numbers)
    to_stdout(translation_table(rows))
    to_stderr(f"{len(task.x)} images translated: {figure}")


def check_request(record, request):
    """Refuses what the models were not trained for, and flags of the other kind of model."""
    has_classes = record["num_classes"] is not None
    for name in OF_TEXTS if has_classes else OF_CLASSES:
        if getattr(request, name) not in ("", None):
            kind, other = ("classes", "label") if has_classes else ("texts", "prompt")
            raise UserError(f"`{name}` means nothing to a model of {kind}: name `target_{other}`")
    if has_classes:
        read_classes(record, request)
    elif not request.target_prompt:
        raise UserError("`target_prompt` is missing: name what the pictures are to become")
    elif bool(request.images) != bool(request.source_prompt):
        raise UserError(
            "`source_prompt` is missing: say what `images` show"
            if request.images
            else "`source_prompt` says what `images` show, and held-out ones have their captions"
        )
    check_w(request.encoder_w, record["w_range"], what="`encoder_w`")
    for w in request.w:
        check_w(w, record["w_range"], what="`w`")


def read_classes(record, request):
    """[source label, target label] by their place; refuses what the models were not trained for."""
    labels = []
    for name in OF_CLASSES:
        label = getattr(request, name)
        if label is None:
            raise UserError(f"`{name}` is missing: name a class")
        labels += read_labels([label], record)
        if not 0 <= labels[-1] < record["num_classes"]:
            raise UserError(f"`{name}` must lie in 0 to {record['num_classes'] - 1}, got {label}")
    return labels


def class_task(request, record, dataset, pipeline):
    """The `Task` of two classes."""
    labels = read_classes(record, request)
    if request.images:
        x = read_own(request, record["image_shape"], dataset, pipeline)
    else:
        members = np.flatnonzero(dataset.test.labels == labels[0])[: request.n]
        if not len(members):
            raise UserError(f"{dataset.name} has no held-out image of class {request.source_label}")
        x = as_learnt(dataset.test.read(members)[0])
    source, target = (np.full(len(x), label, np.int32) for label in labels)
    return Task(x, source, target, (str(request.source_label), str(request.target_label)))


def text_task(request, record, dataset, pipeline):
    """The `Task` of two prompts, or of held-out examples' own captions and one."""

    def tiled(prompt, n):
        return {name: np.repeat(a, n, axis=0) for name, a in embed(pipeline, [prompt]).items()}

    if request.images:
        x = read_own(request, record["image_shape"], dataset, pipeline)
        source = tiled(request.source_prompt, len(x))
    else:
        x, source = dataset.test.read(np.arange(min(request.n, len(dataset.test))))
        x, source = as_learnt(x), widen(source)
    names = request.source_prompt or OWN, request.target_prompt
    return Task(x, source, tiled(request.target_prompt, len(x)), names)


def read_own(request, image_shape, dataset, pipeline):
    """x of the first n of the request's own images; latents by the encoder of a `Pipeline`."""
    if not dataset.pictures:
        if pipeline is None:
            raise UserError(
                f"`images` are pictures, and {dataset.name} holds latents, which the teacher has "
                "no encoder for: leave them out, and held-out ones are translated"
            )
        image_shape = pipeline.image_shape
    max_value = request.config.data.max_value
    images, notices = read_images(request.images, image_shape, max_value=max_value)
    for notice in notices:
        to_stderr(notice)
    images = images[: request.n]
    return as_learnt(images) if dataset.pictures else in_parts(pipeline.encode, images)


def file_name(source, target):
    """Such as "3_to_5"; of texts letters and digits."""
    return re.sub(r"[^\w.-]+", "_", f"{source} to {target}")[:80]


def choose_num_steps(workdir, stages, num_steps):
    """N for which there are both an encoder and a decoder.

    Raises:
      UserError: where there is none, or not of `num_steps`.
    """
    encoders, both = coder_steps(stages)
    if not encoders:
        coders = DETERMINISTIC.algorithm, ENCODER.algorithm
        raise UserError(
            f"{workdir} holds no encoder: train one with a config's variant :encoder, or with "
            f'--config.distillations="{coders}"'
        )
    if not both:
        raise UserError(
            f"{workdir} holds encoders of {sorted(encoders)} steps but no deterministic student "
            "of as many to decode with: train one"
        )
    if num_steps is not None:
        check_distilled(num_steps, both, what="`num_steps`")
    return num_steps or min(both)
