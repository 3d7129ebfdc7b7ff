"""Every mistake in a config is named before compute is spent."""

import pathlib
import runpy

import pytest
from ml_collections import ConfigDict

from guided_distill import settings
from guided_distill.errors import UserError
from guided_distill.stages import plan_stages, select_stages

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def load(name="digits.py", *args):
    return runpy.run_path(str(CONFIGS / name))["get_config"](*args)


@pytest.mark.parametrize(
    ("name", "args"), [("base.py", ()), *(("digits.py", (v,)) for v in ("", "smoke", "full"))]
)
def test_every_config_is_right_and_every_key_has_a_rule(name, args):
    config = load(name, *args)
    settings.check_config(config)
    assert set(settings.flatten(config)) - {"step_two.rounds"} == set(settings.RULES)


def test_configs_survive_the_way_through_json():
    config = load()
    plain = settings.to_plain(config)
    again = settings.from_plain(plain)
    settings.check_config(again)
    assert settings.to_plain(again) == plain


MISTAKES = [
    ("step_two.rounds[0].num_steps = 100", r"rounds\[0\].num_steps must halve .* 256 \(128\), got 100"),
    ("step_two.rounds[3].num_steps = 8", r"rounds\[3\].num_steps must halve .* 32 \(16\), got 8"),
    ("step_two.rounds[2].num_updates = 0", r"rounds\[2\].num_updates must be an integer of at least 1"),
    ("step_two.rounds[1].num_update = 5", r"rounds\[1\].num_update \(did you mean num_updates\?\)"),
    ("step_two.start_steps = 255", r"must halve the teacher's 255, which is odd"),
    ("step_two.rounds = ()", r"one ConfigDict per halving round"),
    ("step_two.algorithm = 'determinist'", r"did you mean deterministic\?"),
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
    ("evaluation.num_steps = (3,)", r"evaluation.num_steps 3 was never distilled; distilled to: 1, 2"),
    ("schedule.logsnr_max = -30.0", r"logsnr_max must be above"),
    ("seed = -1", r"seed must be an integer of at least 0, got -1"),
]  # fmt: skip


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[m for m, _ in MISTAKES])
def test_mistakes_are_named_with_the_way_out(mistake, message):
    config = load().copy_and_resolve_references()
    with config.ignore_type():
        exec(f"config.{mistake}", {"config": config})
    with pytest.raises(UserError, match=message):
        settings.check_config(config)


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
    settings.check_override_names(["main", "--config.step_two.rounds[7].num_steps=1", "--w=2"])


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
    with pytest.raises(UserError, match=r"--stage=techer .*did you mean teacher\?"):
        select_stages(stages, "techer")


def test_differing_keys_are_listed_with_both_values():
    there, here = {"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}
    assert settings.differing_keys(there, here) == ["a.c: 2 there, 3 here", "d: None there, 4 here"]
    assert settings.differing_keys(there, ConfigDict(there).to_dict()) == []
