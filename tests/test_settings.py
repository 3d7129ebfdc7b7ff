"""Every mistake in a config is named before compute is spent."""

import pathlib
import runpy
import sys

import pytest
from ml_collections import ConfigDict

from guided_distill.data.registry import open_dataset
from guided_distill.distill.distillations import ALGORITHMS
from guided_distill.distill.rounds import step_factors
from guided_distill.errors import UserError
from guided_distill.jobs.common import image_path
from guided_distill.run import settings, workdir_config
from guided_distill.run.stages import plan_stages, select_stages
from guided_distill.system.files import write_json

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def load(name="digits.py", *args):
    return runpy.run_path(str(CONFIGS / name))["get_config"](*args)


PAPER_VARIANTS = ("", "stochastic", "encoder", "two_student", "single_w", "paper")
DIGITS_VARIANTS = (*PAPER_VARIANTS, "smoke", "full", "factor4")


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("base.py", ()),
        *(("digits.py", (v,)) for v in DIGITS_VARIANTS),
        *((name, (v,)) for name in ("cifar10.py", "imagenet64.py") for v in PAPER_VARIANTS),
        *(("fashion_mnist.py", (v,)) for v in (*PAPER_VARIANTS, "smoke", "cpu")),
        *(("folder.py", (v,)) for v in ("", "64", "128", "smoke")),
        *(("imported.py", (v,)) for v in ("", "digits", "smoke")),
    ],
)
def test_every_config_is_right_and_every_key_has_a_rule(name, args):
    config = load(name, *args)
    settings.check_config(config)
    rounds = {f"{name}.rounds" for name in settings.ROUND_SECTIONS}
    assert set(settings.flatten(config)) - rounds == set(settings.RULES)
    size = config.data.image_size or 32
    is_digits = config.data.name == "digits"
    settings.check_model(config.model, (8, 8, 1) if is_digits else (size, size, 3))


@pytest.mark.parametrize("name", ["digits.py", "cifar10.py", "imagenet64.py"])
def test_unknown_variants_are_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"{name} has the variants .*stochastic.* not 'stoch'"):
        load(name, "stoch")


def test_configs_survive_the_way_through_json():
    config = load()
    plain = settings.to_plain(config)
    again = settings.from_plain(plain)
    settings.check_config(again)
    assert settings.to_plain(again) == plain


MISTAKES = [
    ("step_two.rounds[0].num_steps = 100",
     r"rounds\[0\].num_steps must divide .* 256 \(half: 128\) by a whole factor .*, got 100"),
    ("step_two.rounds[3].num_steps = 32", r"rounds\[3\].num_steps must divide .* 32 .*, got 32"),
    ("step_two.rounds[3].num_steps = 64", r"rounds\[3\].num_steps must divide .* 32 .*, got 64"),
    ("encoder.rounds[1].num_steps = 48", r"encoder.rounds\[1\].num_steps must divide .* 128"),
    ("encoder.rounds[0].clip_teacher = True", r"encoder.rounds\[0\].*: encoding never clips"),
    ("encoder.rounds = ()", r"step_two.rounds\[5\].* so encoder needs rounds of its own"),
    ("two_student.rounds[0].clip_teacher = True", r"two_student.rounds\[0\].*no clip"),
    ("two_student.rounds = None", r"two_student.rounds must be a tuple .*, or \(\) for those"),
    ("distillations = ()", r"distillations must be a tuple, 1 or more of"),
    ("distillations = ('deterministc',)", r"distillations must be .* deterministic, stochastic"),
    ("single_w.w = (5.0,)", r"single_w.w must lie in .*\[0, 4\], got 5"),
    ("evaluation.translations = ((3,),)", r"translations must be .*\(source label, target label\)"),
    ("evaluation.translations = ((3, 10),)", r"translations must hold labels of 0 to 9, got 10"),
    ("evaluation.translation_num_steps = 8", r"translation_num_steps 8 was never distilled"),
    ("evaluation.ancestral_mix = 1.5", r"ancestral_mix must be a number of at least 0.0 and at most 1"),
    ("evaluation.baselines = ('ddpm',)", r"baselines must be .* ddim, ancestral"),
    ("step_two.rounds[2].num_updates = 0", r"rounds\[2\].num_updates must be an integer of at least 1"),
    ("step_two.rounds[1].num_update = 5", r"rounds\[1\].num_update \(did you mean num_updates\?\)"),
    ("step_two.start_steps = 255", r"must divide the teacher's 255 by a whole factor .*, got 128"),
    ("step_two.rounds = ()", r"one ConfigDict per round"),
    ("w_range = (4.0, 0.0)", r"w_min <= w_max, got \(4.0, 0.0\)"),
    ("w_range = 4.0", r"w_range must be two numbers"),
    ("w_range = (0.0, 2.0)", r"evaluation.w must lie in the trained range \[0, 2\], got 4"),
    ("teacher.loss = 'snr_trunk'", r"teacher.loss must be one of .* \(did you mean snr_trunc\?\)"),
    ("teacher.label_dropout = 0.0", r"teacher.label_dropout must be a number above 0"),
    ("teacher.learning_rate = -1.0", r"teacher.learning_rate must be a number above 0.0, got -1.0"),
    ("step_one.ema_decay = 1.0", r"step_one.ema_decay must be a number of at least 0.0 and below 1"),
    ("teacher.learning_rate = float('nan')", r"teacher.learning_rate must be a number"),
    ("teacher.num_updates = 10.5", r"teacher.num_updates must be an integer"),
    ("model.channel_mults = (1, 2, 2, 2, 2)", r"needs a size divisible by 16, got 8"),
    ("model.attention_resolutions = (16,)", r"has 16, but the U-Net's sizes are \[8, 4\]"),
    ("model.head_dim = 5", r"model.head_dim 5 must divide the 32 channels"),
    ("model.width = 10", r"model.width must be a multiple of 4, got 10"),
    ("model.dtype = 'float16'", r"model.dtype must be one of float32, bfloat16"),
    ("model.prediction = 'epsilon'", r"model.prediction must be one of x, eps, v"),
    ("data.name = 'digit'", r"did you mean digits\?"),
    ("data.name = ''", r"data.name must be digits, folder, idx, npz, arrays, or a data set of"),
    ("data.channels = 2", r"data.channels must be 1 \(grey\), 3 \(colours\) or 0"),
    ("data.channels = 3", r"digits has 1 channels; .* data.channels must be that or 0, got 3"),
    ("data.fit = 'stretch'", r"data.fit must be one of crop, pad"),
    ("data.image_size = 4; config.data.fit = 'pad'", r"digits: data.fit=pad: 8x8 is larger than 4x4"),
    ("data.image_size = -1", r"data.image_size must be an integer of at least 0"),
    ("data.augmentations = ('rotate',)", r"data.augmentations must be .* flip, shift"),
    ("data.augmentations = 'flip'", r"data.augmentations must be a tuple"),
    ("data.test_share = 1.0", r"data.test_share must be a number above 0.0 and below 1.0"),
    ("data.cache = ''", r"data.cache must be a folder, got ''"),
    ("data.name = 'folder'", r"data.path '' is no folder of pictures"),
    ("data.name = 'npz'", r"data.path '' is no readable .npz"),
    ("data.name = 'idx'", r"data.path '' is no folder"),
    ("evaluation.num_steps = (3,)", r"evaluation.num_steps 3 was never distilled; distilled to: 1, 2"),
    ("schedule.logsnr_max = -30.0", r"logsnr_max must be above"),
    ("seed = -1", r"seed must be an integer of at least 0 and at most 4294967295, got -1"),
]  # fmt: skip


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[m for m, _ in MISTAKES])
def test_mistakes_are_named_with_the_way_out(mistake, message):
    config = load("digits.py", "paper").copy_and_resolve_references()
    with config.ignore_type():
        exec(f"config.{mistake}", {"config": config})
    with pytest.raises(UserError, match=message):
        settings.check_config(config)
        settings.check_data(config, open_dataset(config.data))


def test_unknown_and_missing_keys_are_named():
    config = load().copy_and_resolve_references()
    config.teacher.lerning_rate = 1.0
    with pytest.raises(UserError, match=r"teacher.lerning_rate \(did you mean .*learning_rate\?\)"):
        settings.check_config(config)
    config = load().copy_and_resolve_references()
    del config.teacher["loss"]
    with pytest.raises(UserError, match="teacher.loss is missing"):
        settings.check_config(config)


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("--config.step_two.rounds[0].num_step=4", r"step_two.rounds\[0\].num_steps\?"),
        ("--config.step_on.learning_rate=1", r"did you mean step_one.learning_rate\?"),
        ("--config.foo=1", "unknown config key foo$"),
    ],
)
def test_mistyped_overrides_are_caught_before_they_are_applied(argument, hint):
    with pytest.raises(UserError, match=hint):
        settings.check_override_names(["main", argument])
    known = ["--config.step_two.rounds[7].num_steps=1", "--config.encoder.rounds[0].num_updates=2"]
    settings.check_override_names(["main", *known, "--w=2"])


def test_devices_must_fit_mesh_and_batches():
    config = load()
    settings.check_devices(config, num_devices=4)
    config.mesh.fsdp = 3
    with pytest.raises(UserError, match="must be the 4 devices, got -1 x 3"):
        settings.check_devices(config, num_devices=4)
    config.mesh.fsdp = 1
    config.step_one.batch_size = 30
    with pytest.raises(UserError, match="step_one.batch_size must divide over 4 devices, got 30"):
        settings.check_devices(config, num_devices=4)


def test_the_batch_of_a_teacher_that_was_trained_elsewhere_is_nobodys():
    config = load()
    config.teacher.batch_size = 30
    with pytest.raises(UserError, match="teacher.batch_size must divide over 4 devices, got 30"):
        settings.check_devices(config, num_devices=4)
    config.teacher.path = "teachers/mine"
    settings.check_devices(config, num_devices=4)


def test_stages_are_planned_in_order_with_what_determines_their_params():
    config = load()
    stages = plan_stages(config)
    names = [stage.name for stage in stages]
    rounds = [f"step_two/deterministic/{n:04d}" for n in (128, 64, 32, 16, 8, 4, 2, 1)]
    assert names == ["teacher", "step_one", *rounds]
    changed = config.copy_and_resolve_references()
    changed.evaluation.num_samples = 7
    changed.step_two.rounds[2].num_updates = 3
    different = [
        a.name
        for a, b in zip(stages, plan_stages(changed), strict=True)
        if a.settings != b.settings
    ]
    assert different == ["step_two/deterministic/0032"]


def test_one_stage_is_selected_by_its_name():
    stages = plan_stages(load())
    assert [s.name for s in select_stages(stages, "step_one")] == ["step_one"]
    assert len(select_stages(stages, "step_two")) == 8
    assert [s.num_steps for s in select_stages(stages, "step_two/deterministic/0004")] == [4]
    assert [s.num_steps for s in select_stages(stages, "step_two/0064")] == [64]
    with pytest.raises(UserError, match=r"`stage` techer .*did you mean teacher\?"):
        select_stages(stages, "techer")


def test_differing_keys_are_listed_with_both_values():
    there, here = {"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}
    assert settings.differing_keys(there, here) == ["a.c: 2 there, 3 here", "d: None there, 4 here"]
    assert settings.differing_keys(there, ConfigDict(there).to_dict()) == []


def test_every_distillation_has_its_own_folders_teachers_and_interval():
    stages = {stage.name: stage for stage in plan_stages(load("digits.py", "paper"))}
    first = {
        "step_two/deterministic/0128": "step_one",
        "step_two/stochastic/0128": "step_one",
        "step_two/encoder/0128": "step_one",
        "step_two/two_student/0128": "teacher",
        "single_w/1/step_one": "teacher",
        "single_w/1/step_two/deterministic/0128": "single_w/1/step_one",
    }
    assert {name: stages[name].parent for name in first} == first
    assert stages["step_two/stochastic/0004"].parent == "step_two/stochastic/0008"
    assert stages["single_w/1/step_two/deterministic/0001"].w_range == (1.0, 1.0)
    assert stages["step_two/encoder/0016"].w_range == (0.0, 4.0)
    assert stages["teacher"].w_range is None and "step_two/encoder/0008" not in stages
    assert "step_one" not in [s.name for s in plan_stages(load("digits.py", "two_student"))]


def test_only_the_stochastic_round_from_two_steps_to_one_is_a_copy():
    stages = plan_stages(load("digits.py", "paper"))
    copies = [stage.name for stage in stages if stage.optimization["num_updates"] == 0]
    assert copies == ["step_two/stochastic/0001"]
    assert not ALGORITHMS["stochastic"].copies_teacher(1, 4) and not ALGORITHMS[
        "stochastic"
    ].copies_teacher(2, 2)


def test_factors_follow_from_the_list():
    assert step_factors(1024, [512, 128, 64, 4, 1]) == [2, 4, 2, 16, 4]
    stages = plan_stages(load("digits.py", "factor4"))
    rounds = [(s.num_steps, s.factor) for s in stages if s.kind == "step_two"]
    assert rounds == [(64, 4), (16, 4), (4, 4), (1, 4)]
    # What determines the params holds the factor: the same N from another start is another stage.
    changed = load("digits.py", "factor4")
    changed.step_two.start_steps = 128
    pairs = zip(stages, plan_stages(changed), strict=True)
    assert [a.name for a, b in pairs if a.settings != b.settings] == ["step_two/deterministic/0064"]


def test_a_distillation_is_selected_by_its_folder():
    stages = plan_stages(load("digits.py", "paper"))
    assert {s.algorithm for s in select_stages(stages, "step_two/stochastic")} == {"stochastic"}
    assert [s.kind for s in select_stages(stages, "single_w/1")] == ["step_one"] + ["step_two"] * 8
    assert [s.name for s in select_stages(stages, "step_two/0064")] == [
        "step_two/deterministic/0064"
    ]
    assert len(select_stages(stages, "step_two")) == 8 + 8 + 4 + 8


def test_paths_of_a_config_hold_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load()
    config.data.path, config.data.labels = "pictures", "labels.csv"
    config.evaluation.reference_stats, config.data.cache = "stats.npz", "~/cache"
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "labels.csv").touch()
    settings.prepare_config(config)
    assert config.data.path == str(tmp_path / "pictures")
    assert config.data.labels == "labels.csv"  # Beside the images: it moves with them.
    assert config.evaluation.reference_stats == str(tmp_path / "stats.npz")
    assert config.data.cache == str(pathlib.Path.home() / "cache")


@pytest.mark.parametrize("key", ["data.path", "data.cache", "evaluation.inception"])
def test_buckets_are_refused_wherever_a_path_is_asked_for(key):
    config = load()
    section, name = key.split(".")
    config[section][name] = "gs://bucket/x"
    with pytest.raises(UserError, match=f"{key} gs://bucket/x is no folder of this machine"):
        settings.prepare_config(config)
    with pytest.raises(UserError, match="`workdir` s3://bucket is no folder of this machine"):
        settings.read_config("s3://bucket")
    with pytest.raises(UserError, match="`out` gs://b/x.png is no folder of this machine"):
        image_path("gs://b/x.png")


def test_a_run_from_before_a_key_was_there_is_read_with_what_it_meant(tmp_path):
    plain = settings.to_plain(load())
    del plain["data"]["max_value"]
    write_json(tmp_path / "config.json", plain)
    config = settings.read_config(tmp_path)
    settings.check_config(config)
    assert config.data.max_value == 0


@pytest.mark.parametrize(
    ("given", "config"),
    [
        ("--mode=evaluate --workdir=run --config.seed=3", True),
        ("--config.seed=3 -mode=sample --workdir=run", True),
        ("--mode sample --workdir run --config.w_range=(0.0,1.0)", True),
        ("--mode sample --workdir --config.seed=3", False),
        ("--mode=evaluate --workdir=run", False),
        ("--mode=evaluate --config.seed=3", False),
        ("--mode=evaluate --workdir=run --config=mine.py --config.seed=3", False),
        ("--workdir=run --config.seed=3", False),
        ("--mode=train --workdir=run --config.seed=3", False),
    ],
)
def test_overrides_alone_change_the_workdirs_own_config(given, config, monkeypatch):
    argv = ["main", *given.split()]
    monkeypatch.setattr(sys, "argv", argv)
    found = workdir_config.add_config(argv)
    assert found == sys.argv
    added = [f"--config={workdir_config.__file__}:run"] if config else []
    assert found == [argv[0], *added, *argv[1:]]
