"""Every system of the paper in one small workdir: trained, sampled, translated, reported."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from conftest import compilations, params_hashes
from PIL import Image
from test_run import sample, tiny_config

from guided_distill.distill.distillations import DISTILLATIONS
from guided_distill.errors import UserError
from guided_distill.jobs import translate
from guided_distill.jobs.report import write_paper
from guided_distill.jobs.train import train
from guided_distill.run.stages import plan_stages


def paper_config():
    """All distillations from 8 steps; the encoder to 2."""
    config = tiny_config()
    config.distillations = tuple(DISTILLATIONS)
    with config.ignore_type():
        config.step_two.start_steps = 8
        config.step_two.rounds = config.step_two.rounds[1:]
        config.encoder.rounds = config.step_two.rounds[:2]
        config.single_w.w = (2.0,)
        config.evaluation.num_steps = (1, 2)
        config.evaluation.baselines = ("ddim", "ancestral")
        config.evaluation.baseline_num_steps = (2,)
        config.evaluation.translations = ((3, 5), (1, 7))
        config.evaluation.translation_num_steps = 2
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, names of everything compiled) of a finished small run of everything."""
    workdir = tmp_path_factory.mktemp("paper")
    with compilations() as names:
        train(paper_config(), workdir)
    return workdir, names


def stage_hashes(workdir):
    return params_hashes(workdir, [stage.name for stage in plan_stages(paper_config())])


def test_each_kind_of_update_is_compiled_once_whatever_n_and_w(finished):
    _, names = finished
    for kind in ("teacher", "step_one", "deterministic", "stochastic", "encoder", "two_student"):
        assert names.count(f"update_{kind}") == 1, kind


def test_every_stage_names_its_teacher_its_factor_and_its_interval(finished):
    workdir, _ = finished
    hashes = stage_hashes(workdir)
    for stage in plan_stages(paper_config()):
        record = json.loads((workdir / stage.name / "stage.json").read_text())
        assert record["name"] == stage.name and record["factor"] == stage.factor
        assert record["parent_sha256"] == (hashes[stage.parent] if stage.parent else None)
        expected = [2.0, 2.0] if stage.name.startswith("single_w") else [0.0, 4.0]
        assert record["w_range"] == (None if stage.kind == "teacher" else expected)


def test_stochastic_round_to_one_step_copies_its_teacher(finished):
    hashes = stage_hashes(finished[0])
    assert hashes["step_two/stochastic/0001"] == hashes["step_two/stochastic/0002"]
    assert hashes["step_two/deterministic/0001"] != hashes["step_two/deterministic/0002"]


def test_all_systems_are_compared_each_at_the_weights_it_knows(finished):
    results = json.loads((finished[0] / "report" / "results.json").read_text())
    weights, calls = {}, {}
    for row in results["rows"]:
        weights.setdefault(row["model"], set()).add(row["w"])
        calls[row["model"], row["num_steps"]] = row["network_calls"]
        assert np.isfinite([row["fid"], row["is"], row["accuracy"]]).all()
    both = {0.0, 2.0}
    assert weights.pop("single_w") == {2.0}
    assert weights == dict.fromkeys(
        ("teacher", "step_one", "student", "stochastic", "two_student", "ddim", "ancestral"), both
    )
    assert calls["stochastic", 2] == calls["student", 2] == 2
    assert calls["two_student", 2] == calls["ddim", 2] == calls["ancestral", 2] == 4
    systems = [(row["system"], row["num_steps"], row["w"]) for row in results["translations"]]
    coders = [("distilled", 2), ("ddim", 2), ("ddim", 1)]
    assert systems == [(*coder, w) for coder in coders for w in (0.0, 2.0)]
    stages = results["provenance"]["stages"]
    # Batch 64, 4 updates: 2 teacher and 3 student evaluations; in pairs 2 · 2 and 2 · 3.
    assert stages["step_two/encoder/0002"]["evaluations"] == 64 * 4 * (2 + 3)
    assert stages["step_two/two_student/0002"]["evaluations"] == 64 * 4 * (4 + 6)
    assert stages["step_two/stochastic/0001"]["evaluations"] == 0


def test_gap_of_each_round_is_measured_and_a_copy_has_none(finished):
    results = json.loads((finished[0] / "report" / "results.json").read_text())
    gaps = {}
    for gap in results["round_gaps"]:
        gaps.setdefault((gap["stage"], gap["w"]), []).append((gap["t"], gap["rmse"]))
    rounds = [s for s in plan_stages(paper_config()) if s.algorithm not in (None, "two_student")]
    assert {stage for stage, _ in gaps} == {stage.name for stage in rounds}
    times = [t for t, _ in gaps["step_two/deterministic/0004", 0.0]]
    assert times == [0.25, 0.5, 0.75, 1.0]
    assert [t for t, _ in gaps["step_two/encoder/0002", 2.0]] == [0.0, 0.5]
    assert gaps["step_two/stochastic/0001", 2.0][0][1] < 1e-5
    assert all(rmse > 1e-5 for _, rmse in gaps["step_two/deterministic/0004", 2.0])


def test_report_has_the_papers_tables_and_every_image_it_names(finished, tmp_path):
    workdir = pathlib.Path(shutil.copytree(finished[0], tmp_path / "run"))
    factor4 = tmp_path / "by4"
    config = paper_config()
    config.distillations = ("deterministic",)
    with config.ignore_type():
        config.step_two.rounds = (config.step_two.rounds[1],)
        config.encoder.rounds = ()
        config.evaluation.num_steps = (2,)
    config.evaluation.paper_report = True
    train(config, factor4, teacher=workdir / "step_one")
    write_paper([workdir, factor4])
    text = (workdir / "report" / "paper.md").read_text()
    for part in (
        "Table 1", "Table 2", "Table 3", "Figures 2, 8, 10", "Figures 9, 11", "Figure 1:",
        "Figure 5:", "Figures 6 and 7", "Figure 13", "Figures 14 to 44", "Figures 15 to 45",
        "Figures 3, 4, 12", "Ours 2-step (D/S)", "Single-w 2-step", "DDPM 2x2-step",
        "Teacher (DDIM 8x2-step)", "Stochastic against deterministic", "By what factor",
    ):  # fmt: skip
        assert part in text, part
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(pictures) == len(set(pictures)) > 12
    for picture in pictures:
        with Image.open(workdir / "report" / picture) as image:
            assert image.size[0] > 200
    lines = re.findall(r"\| 2 +\| +(\d) \| +[\d.]+ \|.*\| +(\w+) \|", text)
    assert lines == [("2", "run"), ("4", "by4")]


def test_samples_come_from_any_system_with_the_sampler_it_was_made_for(finished, tmp_path):
    workdir, _ = finished
    draw = lambda **kwargs: sample(  # noqa: E731
        workdir, tmp_path / "x.npz", num_steps=2, w=[2.0], **kwargs
    )["samples"]
    stochastic = draw(stage="step_two/stochastic")
    np.testing.assert_array_equal(draw(stage="step_two/stochastic/0002"), stochastic)
    assert np.abs(draw(stage="step_two/stochastic", seed=1) - stochastic).max() > 1e-3
    forced = draw(stage="step_two/stochastic", sampler="ddim", force=True)
    assert np.abs(forced - stochastic).max() > 1e-3
    pair = draw(stage="step_two/two_student")
    assert np.abs(draw(stage="step_two/two_student", sampler="stochastic") - pair).max() > 1e-3
    ddim = draw(stage="teacher")
    assert np.abs(draw(stage="teacher", sampler="ancestral") - ddim).max() > 1e-3
    assert np.isfinite(draw(stage="single_w/2")).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(stage="step_two/stochastic", sampler="ddim"),
         r"`sampler` ddim does not fit .*stochastic/0002: .* length 2/N, .* or `force`"),
        (dict(stage="step_two/deterministic", sampler="stochastic"),
         r"`sampler` stochastic does not fit .*0002: .* length 1/N, for the ddim sampler"),
        (dict(stage="step_two/two_student", sampler="ancestral"), r"ancestral does not fit"),
        (dict(stage="step_two/encoder"), r"encoder/0002 is an encoder, .* translate with it"),
        (dict(stage="step_two/encoder", sampler="ddim", force=True), r"is an encoder"),
        (dict(stage="step_two/stochastik"), r"did you mean step_two/stochastic\?"),
        (dict(stage="single_w/2", w=[1.0]), r"trained range \[2, 2\], got 1"),
        (dict(stage="step_two/stochastic", num_steps=8), r"never distilled; distilled to: 1, 2, 4"),
        (dict(stage="step_two/stochastic/0002", num_steps=4), r"never distilled; distilled to: 2"),
    ],
)  # fmt: skip
def test_samplers_that_do_not_fit_are_refused(finished, tmp_path, kwargs, message):
    with pytest.raises(UserError, match=message):
        sample(finished[0], tmp_path / "x.npz", **(dict(num_steps=2, w=[2.0]) | kwargs))
    assert not (tmp_path / "x.npz").exists()


def run_translate(workdir, out, **kwargs):
    kwargs = dict(source_label=3, target_label=5, w=(0.0, 2.0), n=4, batch_size=8) | kwargs
    request = translate.Request(paper_config(), str(workdir), **{"out": str(out)} | kwargs)
    translate.run(request)


def test_translation_writes_a_figure_and_what_it_measured(finished, tmp_path, capsys):
    run_translate(finished[0], tmp_path / "t" / "x.png")
    with Image.open(tmp_path / "t" / "x.png") as image:
        assert image.size[0] > 300
    rows = json.loads((tmp_path / "t" / "x.json").read_text())["rows"]
    assert [row["network_calls"] for row in rows] == [4, 4, 8, 8, 4, 4]
    assert all(row["n"] == 4 and np.isfinite(row["round_trip_rmse"]) for row in rows)
    assert "seen as the target" in capsys.readouterr().out


def save_image(path, size=(8, 8), mode="L"):
    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 4), np.uint8)
    Image.fromarray(pixels, "RGBA").convert(mode).save(path)
    return str(path)


def test_own_images_are_converted_with_a_word(finished, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    save_image(folder / "a.png")
    save_image(folder / "b.png", mode="RGB")
    save_image(folder / "c.png", size=(32, 32), mode="RGBA")
    run_translate(finished[0], tmp_path / "x.png", images=[str(folder)])
    said = capsys.readouterr().err
    assert "a.png" not in said
    assert "b.png: converted from RGB to L" in said and "c.png: converted from RGBA to L" in said
    assert "c.png: resized from 32x32 to 8x8" in said
    assert json.loads((tmp_path / "x.json").read_text())["rows"][0]["n"] == 3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(source_label=None), r"`source_label` is missing"),
        (dict(target_label=10), r"`target_label` must lie in 0 to 9, got 10"),
        (dict(encoder_w=5.0), r"`encoder_w` must lie in the trained range \[0, 4\], got 5"),
        (dict(w=[-1.0]), r"`w` must lie in the trained range"),
        (dict(num_steps=8), r"`num_steps` 8 was never distilled; distilled to: 2, 4"),
        (dict(n=0), r"`n` must be at least 1, got 0"),
        (
            dict(images=["wide.png"]),
            r"wide.png cannot be used: 16x8 where the model takes 8x8: crop it",
        ),
        (dict(images=["nowhere.png"]), r"nowhere.png cannot be used: no such file"),
        (dict(images=["text.png"]), r"text.png cannot be used: not a picture, or a broken one"),
        (dict(images=["empty"]), r"`images` empty holds no files"),
        (
            dict(out="x.pgn"),
            r"`out` must have the suffix an image's suffix, such as .png, got 'x.pgn'",
        ),
    ],
)
def test_translations_that_cannot_be_made_are_refused(
    finished, tmp_path, monkeypatch, kwargs, message
):
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "wide.png", size=(16, 8))
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        run_translate(finished[0], **({"out": tmp_path / "x.png"} | kwargs))
    assert not (tmp_path / "x.png").exists() and not (tmp_path / "x.json").exists()


def test_a_workdir_without_an_encoder_says_how_to_get_one(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir, ignore=shutil.ignore_patterns("encoder"))
    with pytest.raises(UserError, match=r"holds no encoder: train one .*:encoder"):
        run_translate(workdir, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
    with pytest.raises(UserError, match="holds no run"):
        write_paper([tmp_path])


def test_students_of_another_algorithm_or_interval_do_not_teach(finished, tmp_path):
    workdir, _ = finished
    teach = lambda stage, teacher: train(  # noqa: E731
        paper_config(), tmp_path / "other", stage=stage, teacher=workdir / teacher
    )
    with pytest.raises(
        UserError, match=r"finished step_two/deterministic/0004, which teaches none"
    ):
        teach("step_two/stochastic/0002", "step_two/deterministic/0004")
    with pytest.raises(
        UserError, match=r"learns w in \[0.0, 4.0\], but .* knows w in \[2.0, 2.0\]"
    ):
        teach("step_two/stochastic/0004", "single_w/2/step_one")
    with pytest.raises(UserError, match=r"distilled from step_two or teacher, but .* step_one"):
        teach("step_two/two_student/0004", "step_one")
