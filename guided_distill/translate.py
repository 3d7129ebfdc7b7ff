"""The job `translate`: pictures of one class become pictures of another (section 4, C.7)."""

import pathlib

import jax
import numpy as np
from PIL import Image, UnidentifiedImageError

from guided_distill import settings
from guided_distill.data.sources import load_source
from guided_distill.errors import UserError
from guided_distill.evaluation.generate import Samplers
from guided_distill.evaluation.pictures import save_strips
from guided_distill.evaluation.report import translation_table
from guided_distill.evaluation.translation import (
    list_coders,
    measure_translation,
    translation_blocks,
)
from guided_distill.jobs import load_classifier
from guided_distill.sample import check_counts
from guided_distill.stages import find_stages
from guided_distill.training import sharding
from guided_distill.training.checkpoint import write_json
from guided_distill.training.progress import say

MODE_OF_CHANNELS = {1: "L", 3: "RGB"}


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
    train_source = load_source(config.data.name, "train")
    test_source = load_source(config.data.name, "test")
    pictures = (
        read_pictures(images, record["image_shape"])
        if images
        else test_source.images[test_source.labels == source_label]
    )[:n]
    if not len(pictures):
        raise UserError(f"{test_source.name} has no held-out picture of class {source_label}")
    batch_size = -(-min(batch_size, len(pictures)) // jax.device_count()) * jax.device_count()
    samplers = Samplers(sharding.make_mesh(), batch_size)
    rows, translated = measure_translation(
        list_coders(stages, samplers, num_steps=num_steps, seed=seed),
        pictures,
        np.full(len(pictures), source_label),
        np.full(len(pictures), target_label),
        encoder_w=encoder_w,
        weights=weights,
        classifier=load_classifier(config, workdir, train_source, test_source),
    )
    name = f"{source_label}_to_{target_label}"
    figure = pathlib.Path(out or workdir / "translate" / f"{name}.png")
    title = f"{source_label} to {target_label}, encoded at w = {encoder_w:g}"
    save_strips(figure, translation_blocks(pictures, translated), title)
    write_json(figure.with_suffix(".json"), {"params_sha256": hashes(stages), "rows": rows})
    print(translation_table(rows))
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


def read_pictures(paths, image_shape):
    """Picture files as `[n, H, W, C]` uint8; colours and square sizes are converted with a word.

    Args:
      paths: files, or folders whose files are taken in order of name.
      image_shape: (H, W, C) of the model.

    Raises:
      UserError: where a path is no picture, or a picture is not square.
    """
    files = []
    for path in map(pathlib.Path, paths):
        files += sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    if not files:
        raise UserError(f"--images={','.join(map(str, paths))} holds no files")
    return np.stack([read_picture(path, image_shape) for path in files])


def read_picture(path, image_shape):
    """One picture of `read_pictures`, `[H, W, C]` uint8."""
    height, width, channels = image_shape
    try:
        with Image.open(path) as opened:
            picture = opened.copy()
    except (OSError, UnidentifiedImageError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not a picture"
        raise UserError(f"--images: {path} cannot be read: {reason}") from error
    mode = MODE_OF_CHANNELS[channels]
    if picture.mode != mode:
        say(f"{path}: converted from {picture.mode} to {mode}")
        picture = picture.convert(mode)
    if picture.size != (width, height):
        if picture.size[0] != picture.size[1]:
            raise UserError(
                f"--images: {path} is {picture.size[0]}x{picture.size[1]}, the model takes "
                f"{width}x{height}: crop it to a square first"
            )
        say(f"{path}: resized from {picture.size[0]}x{picture.size[1]} to {width}x{height}")
        picture = picture.resize((width, height), Image.Resampling.BOX)
    return np.asarray(picture, np.uint8).reshape(height, width, channels)


def hashes(stages):
    """`{name: params_sha256}`."""
    return {name: stage.record["params_sha256"] for name, stage in stages.items()}
