"""Runs of an imported teacher on arrays: whole, resumed, sampled, measured, and asked wrong things."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from conftest import params_hashes
from numpy.testing import assert_allclose, assert_array_equal
from test_resume import run, run_until
from text_to_latents import POOLED, SAMPLE, TEXT, get_config, write_latents, write_teacher

import guided_distill
from guided_distill.data.registry import open_dataset
from guided_distill.diffusion.samplers import sample_ddim
from guided_distill.errors import UserError
from guided_distill.evaluation.features import latent_extractor
from guided_distill.jobs import compile_check, prepare_data
from guided_distill.jobs import sample as sampling
from guided_distill.jobs.evaluate import evaluate
from guided_distill.run.settings import read_config
from guided_distill.system.workdir import StageFolder

pytest.importorskip("torch", reason="PyTorch is not installed")
CONFIG = __file__.replace("test_array_runs", "text_to_latents")
STAGES = ["step_one", *(f"step_two/deterministic/{n:04d}" for n in (2, 1))]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data, teacher and a finished run."""
    root = tmp_path_factory.mktemp("arrays")
    os.environ["TEXT_TO_LATENTS"] = str(root)
    write_latents(root / "latents")
    write_teacher(root / "teacher")
    guided_distill.train(get_config(), root / "run")
    return root


def cond_of(n, seed=0):
    rng = np.random.default_rng(seed)
    return {"text": rng.standard_normal((n, *TEXT)), "pooled": rng.standard_normal((n, *POOLED))}


def test_a_run_is_measured_by_what_means_something(root):
    results = json.loads((root / "run/report/results.json").read_text())
    assert {(r["model"], r["num_steps"]) for r in results["rows"]} == {
        ("teacher", 8), ("step_one", 8), ("student", 2), ("student", 1), ("ddim", 2),
    }  # fmt: skip
    for row in results["rows"]:
        assert row["fid"] > 0 and row["features"] == "latents-32" and row["n"] == 24
        for absent in ("accuracy", "is", "kid", "precision", "recall"):
            assert row[absent] is None
        assert row["rmse_to_teacher"] is not None and row["images_per_second"] > 0
    assert {gap["num_steps"] for gap in results["round_gaps"]} == {1, 2}
    provenance = results["provenance"]
    assert provenance["pictures"] is False and provenance["classifier"] is None
    assert "No decoder was given: compare rows only." in provenance["distance"]
    report = (root / "run/report/report.md").read_text()
    assert "Fréchet distance of latents" in report and "No decoder was given" in report
    for absent in ("comparison.png", "student.png", "accuracy", "trade_off", "Inception"):
        assert absent not in report
    assert not (root / "run/report/comparison.png").exists()
    assert not (root / "run/samples").exists()
    record = StageFolder(root / "run/step_one").finished().record
    assert record["image_shape"] == list(SAMPLE) and record["num_classes"] is None
    assert not (root / "run/classifier").exists()


def test_a_finished_run_changes_nothing_and_another_evaluation_is_measured(root, capsys):
    assert not guided_distill.train(get_config(), root / "run")
    assert "this run is finished" in capsys.readouterr().err
    config = read_config(root / "run")
    config.evaluation.seed = 3
    assert evaluate(config, root / "run")
    assert "no decoder was given: compare rows only" in capsys.readouterr().out
    config.evaluation.paper_report = True
    with pytest.raises(UserError, match="paper_report needs labelled pictures, and latents holds"):
        guided_distill.train(config, root / "run")


def test_the_teachers_samples_are_those_of_the_bare_sampler(root):
    """The teacher of the table, by its own pair, from the same noise and conditioning."""
    workdir = root / "run"
    sampler = guided_distill.Sampler.load(workdir, 2)
    cond, noise = cond_of(5), np.random.default_rng(1).standard_normal((5, *SAMPLE))
    x = sampler.draw(cond, w=1.5, noise=noise)
    student = StageFolder(workdir / STAGES[1]).finished()
    model, params = guided_distill.Model.load(student.path)
    cond = {name: values.astype(np.float32) for name, values in cond.items()}
    expected = sample_ddim(
        model.denoiser(params, cond), noise.astype(np.float32), np.full(5, 1.5, np.float32),
        num_steps=2, logsnr_fn=model.schedule.logsnr, bound=None,
    )  # fmt: skip
    assert_allclose(x, expected, atol=1e-5)
    assert x.shape == (5, *SAMPLE) and x.dtype == np.float32 and np.abs(x).max() > 1.0
    assert_array_equal(sampler(cond, w=1.5, noise=noise), x)


def test_a_sample_depends_on_its_own_conditioning_alone(root):
    sampler = guided_distill.Sampler.load(root / "run", 1)
    whole = sampler(cond_of(6), w=1.0, seed=2)
    some = {name: values[4:] for name, values in cond_of(6).items()}
    assert_allclose(sampler(some, w=1.0, seed=2, indices=[4, 5]), whole[4:], atol=1e-5)
    assert np.abs(sampler(cond_of(6, seed=1), w=1.0, seed=2) - whole).max() > 1e-3
    assert sampler(cond_of(0)).shape == (0, *SAMPLE)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(text=None), "'text' is missing: the model takes text [n, 3, 5], pooled [n, 6]"),
        (dict(txt=np.zeros((4, 3, 5))), "'txt' is unknown (did you mean text?)"),
        (dict(text=np.zeros((4, 2, 5))), "'text' is [4, 2, 5]: the model takes text"),
        (dict(text=np.zeros((3, 3, 5))), "'text' is [3, 3, 5]"),
        (dict(noise=np.zeros((4, 4, 4))), "`noise` must be [4, 4, 4, 2], got [4, 4, 4]"),
        (dict(w=3.0), "w"),
    ],
)
def test_calls_that_mean_nothing_are_refused(root, change, message):
    sampler = guided_distill.Sampler.load(root / "run", 1)
    options = {key: change[key] for key in ("noise", "w") if key in change}
    cond = cond_of(4) | {key: value for key, value in change.items() if key not in options}
    cond = {key: value for key, value in cond.items() if value is not None}
    with pytest.raises(UserError) as error:
        sampler(cond, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_command_line_samples_with_held_out_conditioning(root, tmp_path):
    out = tmp_path / "samples.npz"
    ask = dict(workdir=str(root / "run"), num_steps=2, w=(0.0, 2.0), n=16)
    sampling.run(sampling.Request(**ask, out=str(out)))
    test = open_dataset(read_config(root / "run").data).test
    with np.load(out) as file:
        assert file["samples"].shape == (16, *SAMPLE)
        _, cond = test.read(np.arange(16) % 8 % len(test))
        assert_array_equal(file["text"], cond["text"])
        assert_array_equal(file["pooled"], cond["pooled"].astype(np.float32))
    with pytest.raises(UserError, match=r"`out` must be .npz of a model that draws latents"):
        sampling.run(sampling.Request(**ask, out=str(tmp_path / "grid.png")))
    with pytest.raises(UserError, match="`labels` mean nothing to a model without classes"):
        sampling.run(sampling.Request(**ask, labels=("1",), out=str(out)))
    with pytest.raises(UserError, match="where its arrays would become data"):
        sampling.run(sampling.Request(**ask, out=str(root / "latents" / "more.npz")))


def changed(config, changes):
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        with section.unlocked(), section.ignore_type():
            section[last] = value
    return config


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"teacher.path": ""}, "latents holds latents: the U-Net of the section model learns"),
        ({"data.augmentations": ("flip",)}, "turn and move pictures, and latents holds latents"),
        ({"evaluation.inception": "/dev/null"}, "evaluation.inception looks at pictures"),
        ({"evaluation.translations": ((0, 1),)}, "evaluation.translations needs labelled pictures"),
    ],
)
def test_keys_that_mean_nothing_to_latents_are_refused(root, tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        guided_distill.train(changed(get_config(), changes), tmp_path / "run")
    assert message in str(error.value) and "\n" not in str(error.value)


def data_of(folder, **arrays):
    """The run's data with other arrays; None leaves one out."""
    with np.load(write_latents(folder) / "000.npz") as file:
        arrays = dict(file) | arrays
    np.savez(folder / "000.npz", **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    "arrays, message",
    [
        (dict(text=None), "conditioning 'text' of {teacher} is missing in mine: the model takes"),
        (dict(size=np.zeros((60, 2), np.int32)), "conditioning 'size' of mine is missing in"),
        (dict(text=np.zeros((60, 4, 5), np.float32)), "takes float32 [3, 5] an example, but mine"),
        (dict(pooled=np.zeros((60, 6), np.int32)), "takes float32 [6] an example, but mine has"),
        (dict(x=np.zeros((60, 8, 4, 2), np.float32)), "takes samples of [4, 4, 2], but mine has"),
        (
            dict(text=None, pooled=None, labels=np.arange(60) % 3),
            "is conditioned on text [3, 5], pooled [6], but mine has class labels",
        ),
    ],
)
def test_data_must_be_what_the_model_takes(root, tmp_path, arrays, message):
    data_of(tmp_path / "mine", **arrays)
    config = changed(get_config(), {"data.path": str(tmp_path / "mine")})
    with pytest.raises(UserError) as error:
        guided_distill.train(config, tmp_path / "run")
    assert message.format(teacher=root / "teacher") in str(error.value)
    assert "\n" not in str(error.value)


def test_nulls_must_agree(root, tmp_path):
    data_of(tmp_path / "mine")
    config = changed(get_config(), {"data.path": str(tmp_path / "mine")})
    null = {"text": np.full(TEXT, 0.5, np.float32), "pooled": np.full(POOLED, 0.25, np.float32)}
    np.savez(tmp_path / "mine" / "null.npz", **null)
    with pytest.raises(UserError, match="the null 'pooled' of mine is not that of"):
        guided_distill.train(config, tmp_path / "run")
    write_teacher(tmp_path / "unguided", guided=False)
    alone = {"teacher.path": str(tmp_path / "unguided"), "w_range": (0.0, 0.0)}
    with pytest.raises(UserError, match="says what is null, but .*unguided is not guided"):
        guided_distill.train(changed(config, alone | {"evaluation.w": (0.0,)}), tmp_path / "run")


def test_a_teacher_without_bound_is_not_clipped(root, tmp_path):
    config = get_config()
    config.step_two.rounds[1].clip_teacher = True
    with pytest.raises(UserError, match=r"step_two.rounds\[1\].clip_teacher is True, but .* no"):
        guided_distill.train(config, tmp_path / "run")


def test_updates_are_compiled_ahead_for_the_shapes_of_the_data(root, tmp_path):
    out = tmp_path / "checked.json"
    assert compile_check.run(compile_check.Request(get_config(), out=str(out))) == 0
    updates = [row["update"] for row in json.loads(out.read_text())["updates"]]
    assert len(updates) == len({*updates}) == 3  # Step one, and rounds of the factors 4 and 2.


def test_distances_of_large_latents_survive_their_projection():
    x = np.random.default_rng(0).standard_normal((40, 16, 16, 8))
    extractor = latent_extractor(x.shape[1:])
    features, log_p = extractor.apply(x)
    assert features.shape == (40, extractor.num_features) == (40, 256) and log_p is None
    assert_array_equal(latent_extractor(x.shape[1:]).apply(x[3:4])[0], extractor.apply(x[3:4])[0])
    ratio = np.square(features[1:] - features[0]).sum(1) / np.square(x[1:] - x[0]).sum((1, 2, 3))
    assert_allclose(ratio.mean(), 1.0, atol=0.1)


def test_the_data_are_told(root, capsys):
    prepare_data.run(prepare_data.Request(get_config()))
    told = capsys.readouterr().err
    assert "54 latents to learn from and 6 held out, 4x4x2, conditioned on text, pooled" in told


@pytest.mark.slow
def test_pictures_without_classes_have_random_features_and_grids(root, tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (60, 4, 4, 3), np.uint8)
    data_of(tmp_path / "mine", x=pictures)
    write_teacher(tmp_path / "teacher", channels=3, bound=1.0)
    paths = {"data.path": str(tmp_path / "mine"), "teacher.path": str(tmp_path / "teacher")}
    config = changed(get_config(), paths | {"data.augmentations": ("flip",)})
    guided_distill.train(config, tmp_path / "run")
    results = json.loads((tmp_path / "run/report/results.json").read_text())
    assert results["rows"][0]["features"].startswith("random-features-")
    assert results["rows"][0]["accuracy"] is None and results["rows"][0]["is"] is None
    assert "network that learnt nothing" in results["provenance"]["distance"]
    assert (tmp_path / "run/report/comparison.png").exists()
    assert (tmp_path / "run/samples/step_one.png").exists()
    sampler = guided_distill.Sampler.load(tmp_path / "run", 1)
    assert sampler(cond_of(3)).dtype == np.uint8


@pytest.mark.slow
def test_a_model_that_is_conditioned_on_nothing(root, tmp_path):
    data_of(tmp_path / "mine", text=None, pooled=None)
    write_teacher(tmp_path / "teacher", takes=(), guided=False)
    paths = {"data.path": str(tmp_path / "mine"), "teacher.path": str(tmp_path / "teacher")}
    unguided = {"w_range": (0.0, 0.0), "evaluation.w": (0.0,)}
    guided_distill.train(changed(get_config(), paths | unguided), tmp_path / "run")
    sampler = guided_distill.Sampler.load(tmp_path / "run", 1)
    x = sampler(None, w=0.0, indices=[3, 4])
    assert_allclose(sampler({}, w=0.0, indices=[4]), x[1:], atol=1e-5)
    with pytest.raises(UserError, match="conditioned on nothing: `indices` say how many"):
        sampler({}, w=0.0)
    with pytest.raises(UserError, match="'conditioning' is unknown: the model takes nothing"):
        sampler([1, 2], w=0.0)


@pytest.mark.slow
def test_labelled_latents_have_classes_and_no_classifier(root, tmp_path):
    data_of(tmp_path / "mine", text=None, pooled=None, labels=np.arange(60) % 3)
    write_teacher(tmp_path / "teacher", takes=("labels",))
    paths = {"data.path": str(tmp_path / "mine"), "teacher.path": str(tmp_path / "teacher")}
    guided_distill.train(changed(get_config(), paths), tmp_path / "run")
    results = json.loads((tmp_path / "run/report/results.json").read_text())
    assert results["provenance"]["num_classes"] == 3 and results["rows"][0]["accuracy"] is None
    sampling.run(
        sampling.Request(
            str(tmp_path / "run"), num_steps=1, labels=("2",), n=4, out=str(tmp_path / "x.npz")
        )
    )
    with np.load(tmp_path / "x.npz") as file:
        assert file["samples"].shape == (4, *SAMPLE) and list(file["labels"]) == [2] * 4


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_params(root, tmp_path):
    for name in ("latents", "teacher"):
        shutil.copytree(root / name, tmp_path / name, copy_function=shutil.copy2)
    env = {"TEXT_TO_LATENTS": str(tmp_path)}
    whole = run(tmp_path / "whole", config=CONFIG, env=env)
    assert whole.returncode == 0, whole.stderr
    code, _ = run_until("one: update", tmp_path / "run", signal.SIGKILL, config=CONFIG, env=env)
    assert code == -signal.SIGKILL
    code, log = run_until("round 1 of 2", tmp_path / "run", signal.SIGTERM, config=CONFIG, env=env)
    assert code == 128 + signal.SIGTERM, log
    rest = run(tmp_path / "run", config=CONFIG, env=env)
    assert rest.returncode == 0, rest.stderr
    hashes = params_hashes(tmp_path / "run", STAGES)
    assert None not in hashes.values() and hashes == params_hashes(tmp_path / "whole", STAGES)
