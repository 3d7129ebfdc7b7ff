"""The job `translate`: pictures of one class become pictures of another (section 4, C.7)."""

import pathlib

import numpy as np
from PIL import Image

from guided_distill import settings
from guided_distill.data.pictures import read_pictures
from guided_distill.errors import UserError
from guided_distill.evaluation.generate import Samplers
from guided_distill.evaluation.pictures import save_strips
from guided_distill.evaluation.report import translation_table
from guided_distill.evaluation.translation import (
    list_coders,
    measure_translation,
    translation_blocks,
)
from guided_distill.jobs import load_classifier, open_data
from guided_distill.progress import say, tell
from guided_distill.sample import check_counts
from guided_distill.stages import find_stages, params_hashes
from guided_distill.training import sharding
from guided_distill.training.checkpoint import write_json


def translate(
    config,
    workdir,
    *,
    source_label,
    target_label,
    encoder_w,
    weights,
    num_steps,
    images,
    n,
    seed,
    out,
    batch_size,
):
    """Encodes pictures with `source_label`, decodes with `target_label`, beside guided DDIM.

    Args:
      config: the workdir's ConfigDict.
      workdir: of a run with an encoder and deterministic students.
      source_label: what the pictures show.
      target_label: what they are to become.
      encoder_w: guidance weight of the encoder.
      weights: guidance weights of the decoder.
      num_steps: N of encoder and decoder; None takes the fewest that both have.
      images: picture files or folders of them; empty takes the data set's held-out pictures.
      n: how many pictures at most.
      seed: of the fresh noise that is decoded for comparison.
      out: path of the figure; '' is `translate/<source>_to_<target>.png` in the workdir.
      batch_size: pictures per compiled call.
    """
    workdir = pathlib.Path(workdir)
    check_out(out)
    check_counts(num_steps=num_steps or 1, batch_size=batch_size, n=n, seed=seed)
    stages = find_stages(workdir)
    num_steps = choose_num_steps(workdir, stages, num_steps)
    record = stages[f"step_two/encoder/{num_steps:04d}"].record
    check_request(record, source_label, target_label, encoder_w, weights)
    dataset = open_data(config)
    if images:
        pictures, notices = read_pictures(images, record["image_shape"])
        for notice in notices:
            say(notice)
    else:
        pictures, _ = dataset.test.read(np.flatnonzero(dataset.test.labels == source_label)[:n])
    pictures = pictures[:n]
    if not len(pictures):
        raise UserError(f"{dataset.name} has no held-out picture of class {source_label}")
    samplers = Samplers(sharding.make_mesh(), min(batch_size, len(pictures)))
    rows, translated = measure_translation(
        list_coders(stages, samplers, num_steps=num_steps, seed=seed),
        pictures,
        np.full(len(pictures), source_label),
        np.full(len(pictures), target_label),
        encoder_w=encoder_w,
        weights=weights,
        classifier=load_classifier(config, workdir, dataset),
    )
    name = f"{source_label}_to_{target_label}"
    figure = pathlib.Path(out or workdir / "translate" / f"{name}.png")
    title = f"{source_label} to {target_label}, encoded at w = {encoder_w:g}"
    save_strips(figure, translation_blocks(pictures, translated), title)
    write_json(figure.with_suffix(".json"), {"params_sha256": params_hashes(stages), "rows": rows})
    tell(translation_table(rows))
    say(f"{len(pictures)} pictures translated: {figure}")


def choose_num_steps(workdir, stages, num_steps):
    """N for which there are both an encoder and a decoder.

    Raises:
      UserError: where there is none, or not of `num_steps`.
    """
    encoders, decoders = (
        {stage.record["num_steps"] for name, stage in stages.items() if name.startswith(family)}
        for family in ("step_two/encoder/", "step_two/deterministic/")
    )
    if not encoders:
        raise UserError(
            f"{workdir} holds no encoder: train one with a config's :encoder variant, such as "
            f"--config=configs/digits.py:encoder --workdir={workdir}"
        )
    both = encoders & decoders
    if not both:
        raise UserError(
            f"{workdir} holds encoders of {sorted(encoders)} steps but no deterministic student "
            "of as many to decode with: train one"
        )
    if num_steps is not None:
        settings.check_distilled(num_steps, both, what="--num_steps")
    return num_steps or min(both)


def check_request(record, source_label, target_label, encoder_w, weights):
    """Refuses labels and weights that the models were not trained for."""
    for flag, label in (("source_label", source_label), ("target_label", target_label)):
        if label is None:
            raise UserError(f"--mode=translate needs --{flag}")
        if not 0 <= label < record["num_classes"]:
            raise UserError(f"--{flag} must lie in 0 to {record['num_classes'] - 1}, got {label}")
    settings.check_w(encoder_w, record["w_range"], what="--encoder_w")
    for w in weights:
        settings.check_w(w, record["w_range"], what="--w")


def check_out(out):
    """Refuses a figure's path that no picture can be written to."""
    if out and pathlib.Path(out).suffix.lower() not in Image.registered_extensions():
        raise UserError(f"--out={out}: take a picture's suffix, such as .png")
