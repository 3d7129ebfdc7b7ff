"""Samples by prompt, of a student of a diffusers folder: read by its teacher's own text encoders."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

pytest.importorskip("torch", reason="PyTorch is not installed")

from diffusers_folders import make_sd  # noqa: E402
from students import finish_student  # noqa: E402

from guided_distill.errors import UserError  # noqa: E402
from guided_distill.jobs import sample  # noqa: E402
from guided_distill.models.diffusers_folder import import_diffusers  # noqa: E402
from guided_distill.models.pipeline import Pipeline  # noqa: E402
from guided_distill.sampling.sampler import Sampler  # noqa: E402

for package in ("diffusers", "transformers"):
    pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    """`teacher` of Stable Diffusion's shape, and `run` with its student of 4 steps."""
    root = tmp_path_factory.mktemp("sd")
    teacher = import_diffusers(make_sd(root / "source"), out=root / "teacher")
    finish_student(root / "run", teacher, 4)
    return root


def test_prompts_are_drawn_by_the_command_of_samples(sd, tmp_path, capsys):
    """A line each in turn, the same of every weight, without a diffusers folder."""
    texts = ["a", "c at", "a b c d e f g h i j k"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    asked = sample.Request(
        str(sd / "run"), num_steps=4, w=(0.0, 2.0), n=8, seed=3, teacher=str(sd / "teacher"),
        prompts=str(tmp_path / "prompts.txt"), out=str(tmp_path / "samples.npz"),
    )  # fmt: skip
    sample.run(asked)
    assert "prompts cut at the text encoder's limit: 1" in capsys.readouterr().err
    sampler = Sampler.load(sd / "run", 4)
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
    asked = dict(workdir=str(sd / "run"), num_steps=4, teacher=str(sd / "teacher"), prompts="a")
    with pytest.raises(UserError, match=message):
        sample.run(sample.Request(**(asked | dict(out="a.png") | changes)))
