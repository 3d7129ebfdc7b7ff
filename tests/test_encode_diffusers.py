"""Pictures through the encoders of a diffusers folder: what is written is what its pipeline gives."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("torch", reason="PyTorch is not installed")

import diffusers_folders  # noqa: E402
from conftest import environment  # noqa: E402
from small import data_settings  # noqa: E402
from test_encode_data import read, write_pictures  # noqa: E402

import guided_distill  # noqa: E402
from guided_distill.data.images import read_images  # noqa: E402
from guided_distill.data.registry import open_dataset  # noqa: E402
from guided_distill.errors import UserError  # noqa: E402
from guided_distill.jobs import encode_data  # noqa: E402
from guided_distill.models.diffusers_folder import import_diffusers  # noqa: E402
from guided_distill.models.model import Model  # noqa: E402
from guided_distill.run.checks import check_conditioning, check_null  # noqa: E402

for package in ("diffusers", "transformers"):
    pytest.importorskip(package, reason=f"{package} is not installed")
slow = pytest.mark.slow
CAPTIONS = ["a", "c at", "a b c d e f g h i j k", "dog", "e"]
SIZES = {"sd": (16, 3), "sdxl": (16, 3), "dit": (16, 3), "unet2d": (8, 3), "pixels": (8, 3)}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    made = {}

    def make(kind):
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            options = dict(labels=False) if kind == "pixels" else {}
            name = "unet2d" if kind == "pixels" else kind
            folder = getattr(diffusers_folders, f"make_{name}")(root / "from", **options)
            made[kind] = import_diffusers(folder, out=root / "teacher")
        return made[kind]

    return make


def run(folder, out, **asked):
    encode_data.run(
        encode_data.Request(str(folder), out=str(out), shard_rows=3, batch_size=2, **asked)
    )
    dataset = open_dataset(
        data_settings("arrays", path=str(out), cache=str(out.parent / "cache"), test_share=0.2)
    )
    model, _ = Model.load(folder)
    check_conditioning(model.conditioning.takes, dataset, folder)
    if dataset.null is not None:
        check_null(model.conditioning.null, dataset, folder)
    return dataset


def write_captions(folder):
    write_pictures(folder, len(CAPTIONS))
    for k, caption in enumerate(CAPTIONS):
        (folder / f"{k:02d}.txt").write_text(caption)
    return folder


def pictures(paths, kind):
    size, channels = SIZES[kind]
    return read_images(sorted(paths), (size, size, channels))[0]


@pytest.mark.parametrize("kind", ["sd", pytest.param("sdxl", marks=slow)])
def test_pictures_with_captions_become_what_the_pipeline_says(tmp_path, teacher, kind, capsys):
    folder, source = teacher(kind), write_captions(tmp_path / "mine")
    dataset = run(folder, tmp_path / "latents", from_=str(source))
    assert dataset.null and dataset.num_classes is None and not dataset.pictures
    assert "1 captions cut" in capsys.readouterr().err
    pipeline, found = guided_distill.Pipeline.load(folder), read(tmp_path / "latents")
    images = pictures(source.glob("*.png"), kind)
    assert_allclose(found["x"], pipeline.encode(images), atol=1e-4)
    for name, array in pipeline.embed(CAPTIONS).items():
        assert_allclose(found[name], array, atol=1e-5)


@slow
def test_prompts_alone_by_the_command_line(tmp_path, teacher):
    """Half of the shards by a process of its own, half by this one: a teacher's samples."""
    folder, prompts = teacher("sd"), tmp_path / "prompts.txt"
    prompts.write_text("\n".join(CAPTIONS))
    out = tmp_path / "latents"
    flags = [f"--teacher={folder}", f"--prompts={prompts}", f"--out={out}", "--shard=1/2"]
    flags += ["--num_steps=2", "--w=1.5", "--seed=4", "--shard_rows=3", "--batch_size=2"]
    main = [sys.executable, "-m", "guided_distill.main", "--mode=encode_data"]
    done = subprocess.run([*main, *flags], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 shards of other shares are still to come" in done.stderr
    asked = dict(prompts=str(prompts), num_steps=2, w=(1.5,), seed=4)
    run(folder, out, shard="0/2", **asked)
    run(folder, tmp_path / "alone", **asked)
    for name, array in read(out).items():
        assert_allclose(array, read(tmp_path / "alone")[name], atol=1e-4)
    done = subprocess.run([*main, *flags[:-1]], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "in 0 shards made and 1 kept" in done.stderr
    done = subprocess.run([*main, flags[0]], env=environment(), capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: --out is missing")


@pytest.mark.parametrize("kind", [pytest.param("dit", marks=slow), "unet2d"])
def test_class_folders_have_the_numbers_of_the_teacher(tmp_path, teacher, kind):
    folder, source = teacher(kind), tmp_path / "mine"
    for name in ("0", "1", "10"):
        write_pictures(source / name, 2)
    with pytest.raises(UserError, match="class 2 has no picture"):
        run(folder, tmp_path / "latents", from_=str(source))
    (source / "10").rename(source / "2")
    dataset = run(folder, tmp_path / "latents", from_=str(source))
    assert dataset.num_classes == 3
    found, images = read(tmp_path / "latents"), pictures(source.glob("*/*.png"), kind)
    assert found["class_labels"].tolist() == [0, 0, 1, 1, 2, 2]
    if kind == "unet2d":  # Of pixels: the pictures themselves.
        assert dataset.pictures and found["x"].dtype == np.uint8
        assert_array_equal(found["x"], images)
    else:
        x = guided_distill.Pipeline.load(folder).encode(images)
        assert_allclose(found["x"], x, atol=1e-4)


@slow
def test_a_teacher_of_nothing_but_pictures_needs_no_captions(tmp_path, teacher):
    source = write_captions(tmp_path / "mine")
    dataset = run(teacher("pixels"), tmp_path / "arrays", from_=str(source))
    assert dataset.pictures and len(dataset.train) == 4
    images = pictures(source.glob("*.png"), "pixels")
    assert_array_equal(read(tmp_path / "arrays")["x"], images)
