"""Samples and translations by prompt, which the teacher's own text encoders read."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

pytest.importorskip("torch", reason="PyTorch is not installed")

from conftest import ROOT  # noqa: E402
from diffusers_folders import make_sd  # noqa: E402
from students import finish_student  # noqa: E402

from guided_distill import load_config  # noqa: E402
from guided_distill.data.images import read_images  # noqa: E402
from guided_distill.data.registry import open_dataset  # noqa: E402
from guided_distill.errors import UserError  # noqa: E402
from guided_distill.jobs import encode_data, sample, translate  # noqa: E402
from guided_distill.models.diffusers_folder import import_diffusers  # noqa: E402
from guided_distill.models.pipeline import Pipeline  # noqa: E402
from guided_distill.sampling.sampler import Sampler  # noqa: E402
from guided_distill.system.workdir import stage_name  # noqa: E402

for package in ("diffusers", "transformers"):
    pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    """`teacher` of Stable Diffusion's shape, and `run` with its student and its encoder of one step."""
    root = tmp_path_factory.mktemp("sd")
    teacher = import_diffusers(make_sd(root / "source"), out=root / "teacher")
    finish_student(root / "run", teacher, 1)
    encoder = stage_name("step_two", "encoder", 1)
    finish_student(root / "run", teacher, 1, name=encoder, algorithm="encoder")
    return root


@pytest.fixture(scope="module")
def config(sd):
    """That of `run`: latents of a few captioned pictures."""
    rng = np.random.default_rng(0)
    (sd / "pictures").mkdir()
    for k in range(10):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(sd / "pictures" / f"{k}.png")
        (sd / "pictures" / f"{k}.txt").write_text("abc"[k % 3])
    ask = dict(from_=str(sd / "pictures"), out=str(sd / "latents"))
    encode_data.run(encode_data.Request(str(sd / "teacher"), **ask))
    config = load_config(f"{ROOT}/configs/diffusers.py:smoke")
    config.teacher.path, config.data.path = str(sd / "teacher"), str(sd / "latents")
    config.data.test_share = 0.5
    return config


def test_prompts_are_drawn_by_the_command_of_samples(sd, tmp_path, capsys):
    """A line each in turn, the same of every weight, without a diffusers folder."""
    texts = ["a", "c at", "a b c d e f g h i j k"]
    (tmp_path / "prompts.txt").write_text("\n".join([*texts[:2], "", *texts[2:], ""]))
    asked = sample.Request(
        str(sd / "run"), num_steps=1, w=(0.0, 2.0), n=8, seed=3, teacher=str(sd / "teacher"),
        prompts=str(tmp_path / "prompts.txt"), out=str(tmp_path / "samples.npz"),
    )  # fmt: skip
    sample.run(asked)
    assert "prompts cut at the text encoder's limit: 1" in capsys.readouterr().err
    sampler = Sampler.load(sd / "run", 1)
    ((name, embedded),) = Pipeline.load(sd / "teacher").embed(texts).items()
    turns = [0, 1, 2, 0, 0, 1, 2, 0]
    by_hand = sampler(
        {name: embedded[turns]}, w=[0.0] * 4 + [2.0] * 4, seed=3, indices=[*range(4)] * 2
    )
    with np.load(tmp_path / "samples.npz") as file:
        assert_allclose(file["samples"], by_hand, atol=1e-5)
        assert file["prompts"].tolist() == [texts[k] for k in turns]
    one = dataclasses.replace(asked, prompts="c at", out=str(tmp_path / "grid.png"))
    sample.run(one)
    assert not capsys.readouterr().err.count("prompts cut")
    with Image.open(one.out) as sheet:
        assert (
            "--prompts=c at" in sheet.text["Command"] and f"--teacher={sd}" in sheet.text["Command"]
        )
    few = dataclasses.replace(asked, n=4, out=str(tmp_path / "few.png"))
    sample.run(few)
    assert "the first 2 of 3 prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prompts="promts.txt"), "`prompts` .*promts.txt cannot be read"),
        (dict(labels=("1",)), "`labels` mean nothing to a model without classes"),
        (dict(teacher="nowhere"), "nowhere holds no pipeline"),
        (dict(prompts="", out="a.npz"), "`teacher` reads `prompts` and makes pictures of latents"),
        (dict(workdir="package:digits"), "`prompts` mean nothing to a model of classes"),
        (dict(workdir="package:digits", prompts=""), "`teacher` reads `prompts` and makes"),
    ],
)
def test_prompts_that_nothing_reads_are_refused(sd, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    asked = dict(workdir=str(sd / "run"), num_steps=1, teacher=str(sd / "teacher"), prompts="a")
    with pytest.raises(UserError, match=message):
        sample.run(sample.Request(**(asked | dict(out="a.png") | changes)))


def translated(config, workdir, out, **changes):
    """The rows of a translation."""
    asked = dict(target_prompt="b", n=1, w=(0.0, 2.0)) | changes
    translate.run(translate.Request(config, str(workdir), out=str(out), **asked))
    with Image.open(out) as figure:
        assert figure.size[0] > 300
    return json.loads(out.with_suffix(".json").read_text())["rows"]


def test_held_out_pictures_become_what_a_prompt_says(sd, config, tmp_path, capsys):
    rows = translated(config, sd / "run", tmp_path / "x.png")
    assert [row["network_calls"] for row in rows] == [2, 2, 4, 4]
    assert all(row["n"] == 1 and np.isfinite(row["round_trip_rmse"]) for row in rows)
    assert all(row["target_accuracy"] is None for row in rows)
    told = capsys.readouterr()
    assert "round trip" in told.out and "seen as the target" not in told.out
    other = translated(config, sd / "run", tmp_path / "y.png", target_prompt="c at")
    assert rows[0]["rmse_to_source"] != other[0]["rmse_to_source"]
    assert rows[0]["round_trip_rmse"] == other[0]["round_trip_rmse"]


def test_ones_own_pictures_go_through_the_teachers_encoder(sd, config, tmp_path):
    """Those of the data set and their captions are the held-out examples themselves."""
    test = open_dataset(config.data).test
    held_out = translated(config, sd / "run", tmp_path / "x.png")
    caption = test.captions([0])[0]
    pipeline = Pipeline.load(sd / "teacher")
    names = sorted((sd / "pictures").glob("*.png"))
    pictures = read_images([str(name) for name in names], pipeline.image_shape)[0]
    x = pipeline.encode(pictures)
    (mine,) = [k for k, one in enumerate(x) if np.allclose(one, test.read([0])[0][0], atol=1e-4)]
    own = dict(images=(str(names[mine]),), source_prompt=caption)
    rows = translated(config, sd / "run", tmp_path / "y.png", **own)
    for row, same in zip(rows, held_out, strict=True):
        assert_allclose(row["rmse_to_source"], same["rmse_to_source"], rtol=1e-3)


def test_a_teacher_that_was_moved_reads_and_decodes_as_before(sd, config, tmp_path):
    """Its text encoders and its decoder both come from where it lies now."""
    rows = translated(config, sd / "run", tmp_path / "x.png")
    moved = shutil.copytree(sd / "teacher", tmp_path / "moved")
    elsewhere = config.copy_and_resolve_references()
    elsewhere.teacher.path = str(tmp_path / "gone")
    again = translated(elsewhere, sd / "run", tmp_path / "y.png", teacher=str(moved))
    assert again == rows
    with Image.open(tmp_path / "x.png") as before, Image.open(tmp_path / "y.png") as after:
        assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(target_prompt=""), "`target_prompt` is missing"),
        (dict(source_label=3), "`source_label` means nothing to a model of texts: name `target_p"),
        (dict(source_prompt="a"), "`source_prompt` says what `images` show"),
        (dict(images=("a.png",)), "`source_prompt` is missing: say what `images` show"),
        (dict(images=("a.png",), source_prompt="a"), "a.png cannot be used: no such file"),
        (dict(teacher="nowhere"), "nowhere holds no pipeline"),
        (dict(w=(9.0,)), r"`w` must lie in the trained range \[0, 4\], got 9"),
    ],
)
def test_texts_that_nothing_is_made_of_are_refused(sd, config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        translated(config, sd / "run", tmp_path / "x.png", **changes)
    assert not list(tmp_path.iterdir())
