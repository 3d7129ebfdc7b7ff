"""The plan of a recipe: what it counts is what the programs do."""

import json

import jax
import jax.numpy as jnp
import pytest
from conftest import SMALL

from guided_distill.data.dataset import picture_example
from guided_distill.errors import UserError
from guided_distill.jobs import plan
from guided_distill.run import settings
from guided_distill.run.costs import call_flops, state_bytes, update_costs
from guided_distill.run.programs import StagePrograms, make_models
from guided_distill.run.stages import plan_stages
from guided_distill.system.devices import KINDS, parse_devices
from guided_distill.system.sharding import make_mesh
from guided_distill.training.counts import count_flops, live_bytes

SHAPE, CLASSES = (8, 8, 1), 10


def small(**changes):
    config = settings.load_config(SMALL)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config


def ask(config, **changes):
    return plan.Request(config, image_shape=SHAPE, num_classes=CLASSES, **changes)


def costs_of(config, kind, algorithm=None, num_devices=1):
    models = make_models(config, SHAPE, CLASSES)
    stage = next(s for s in plan_stages(config) if (s.kind, s.algorithm) == (kind, algorithm))
    return update_costs(config, models, picture_example(SHAPE), stage, num_devices), models, stage


@pytest.mark.parametrize(
    ("kind", "algorithm", "passes"),
    [
        ("teacher", None, 0.0),
        ("step_one", None, 2.0),  # the guided pair
        ("step_two", "deterministic", 2.0),  # two halves of a step
    ],
)
def test_an_update_is_the_sum_of_its_parts(kind, algorithm, passes):
    costs, models, stage = costs_of(small(), kind, algorithm)
    batch = stage.optimization["batch_size"]
    call = call_flops(models[kind != "teacher"], picture_example(SHAPE))
    assert costs.flops["student"] == pytest.approx(batch * call, rel=0.05)
    assert costs.flops["teacher"] == pytest.approx(
        passes * costs.flops["student"], rel=0.1, abs=1e6
    )
    assert costs.flops["backward"] == pytest.approx(2 * costs.flops["student"], rel=0.15)
    assert 0 < costs.flops["optimizer"] < 0.2 * costs.total_flops


def test_more_devices_or_parts_share_the_same_work():
    whole, _, _ = costs_of(small(), "step_one")
    shared, _, _ = costs_of(small(), "step_one", num_devices=4)
    parts, _, _ = costs_of(small(memory__gradient_accumulation=2), "step_one")
    for other in (shared, parts):
        assert other.flops["teacher"] == pytest.approx(whole.flops["teacher"], rel=0.02)
        assert other.flops["backward"] == pytest.approx(whole.flops["backward"], rel=0.05)
        assert other.bytes["activations"] < 0.8 * whole.bytes["activations"]


def test_what_a_device_holds_is_split_over_fsdp():
    config = small()
    programs = StagePrograms(
        config, make_mesh(1, 1, jax.devices()[:1]), make_models(config, SHAPE, CLASSES),
        picture_example(SHAPE),
    )  # fmt: skip
    stage = next(s for s in plan_stages(config) if s.kind == "step_one")
    state, given, _ = programs.arguments(stage)
    alone = state_bytes(config, state, given.teacher_params, 8)
    assert alone["optimizer"] == pytest.approx(2 * alone["params"], rel=0.01)
    assert (
        alone["average"]
        == alone["params"]
        == sum(4 * a.size for a in jax.tree.leaves(state.params))
    )
    config.mesh.fsdp = 8
    split = state_bytes(config, state, given.teacher_params, 8)
    assert split["params"] < 0.2 * alone["params"] and split["teacher"] < 0.2 * alone["teacher"]


def test_operations_and_live_bytes_of_what_one_can_count_by_hand():
    a, b = jnp.zeros((4, 8)), jnp.zeros((8, 16))
    assert count_flops(jnp.dot, a, b) == 2 * 4 * 8 * 16

    def chain(x):  # Two products are alive at a time.
        y = x @ x
        z = y @ x
        return (z @ y).sum()

    assert live_bytes(chain, jnp.zeros((32, 32))) == 3 * 32 * 32 * 4


def test_a_plan_for_devices_that_are_not_there(tmp_path, capfd):
    config = small(step_one__batch_size=64, step_two__batch_size=64, teacher__batch_size=64)
    out = tmp_path / "plan.json"
    assert plan.run(ask(config, devices="h100-8", out=str(out))) == 0
    told = capfd.readouterr().out
    assert "8 x NVIDIA H100" in told and "all fits" in told and "device-hours" in told
    found = json.loads(out.read_text())
    rate = 8 * 0.4 * KINDS["h100"].float32
    for row in found["updates"]:
        flops = sum(row["flops"].values())
        assert row["seconds"] == pytest.approx(row["num_updates"] * flops / rate)
    stages = plan_stages(config)
    assert sum(row["stages"] for row in found["updates"]) == len(stages)
    total = sum(stage.optimization["num_updates"] for stage in stages)
    assert sum(row["num_updates"] for row in found["updates"]) == total
    assert found["evaluation"]["network_calls"] > 0


def test_bfloat16_has_its_own_peak():
    of = {}
    for dtype in ("float32", "bfloat16"):
        config = small(model__dtype=dtype)
        of[dtype] = plan.choose_target(ask(config, devices="h100-1")).rate
    assert of["bfloat16"] == 2 * of["float32"]


def test_updates_at_hand_are_compiled_and_timed(capfd):
    config = small(step_one__batch_size=64, step_two__batch_size=64, teacher__batch_size=64)
    assert plan.run(ask(config, stage="step_one")) == 0
    told = capfd.readouterr().out
    assert "8 x cpu, at hand" in told and "timed, the median of 5" in told
    assert "memory: the compiled update" in told and "evaluation" not in told.split("in all")[0]


def test_what_does_not_fit_is_told_with_a_way_out_that_fits(monkeypatch, capfd):
    sizes = {f"{key}__batch_size": 64 for key in ("teacher", "step_one", "step_two")}
    config = small(**sizes)
    (row,) = plan.make_plan(ask(config, stage="step_one"), tiny_target(None))["updates"]
    needs = sum(row["bytes"].values())
    memory = int(0.5 * needs)
    (row,) = plan.make_plan(ask(config, stage="step_one"), tiny_target(memory))["updates"]
    assert "step_one: " in row["too_large"] and "memory.gradient_accumulation=" in row["too_large"]
    for way in row["too_large"].partition("; take ")[2].split(" and "):
        key, _, value = way.partition("=")
        section, _, name = key.partition(".")
        config[section][name] = value if name == "remat" else int(value)
    (row,) = plan.make_plan(ask(config, stage="step_one"), tiny_target(memory))["updates"]
    assert not row["too_large"]


def test_what_fits_by_the_rough_estimate_alone_is_said_to_be_near_the_limit():
    sizes = {f"{key}__batch_size": 64 for key in ("teacher", "step_one", "step_two")}
    config = small(**sizes)
    request = ask(config, stage="step_one")
    (row,) = plan.make_plan(request, tiny_target(None))["updates"]
    held = sum(row["bytes"].values()) - row["bytes"]["activations"]
    seen = held + plan.ROUGH * row["bytes"]["activations"]
    (roomy,) = plan.make_plan(request, tiny_target(int(seen) + 1))["updates"]
    assert not roomy["too_large"] and not roomy["near_limit"]
    tight = plan.make_plan(request, tiny_target(int(seen) - 1))
    assert not tight["updates"][0]["too_large"]
    assert "may not fit: step_one: " in plan.describe(tight)
    config.memory.gradient_accumulation = int(
        tight["updates"][0]["near_limit"].rpartition("memory.gradient_accumulation=")[2]
    )
    (row,) = plan.make_plan(request, tiny_target(int(seen) - 1))["updates"]
    assert not row["too_large"] and not row["near_limit"]


def tiny_target(memory):
    return plan.Target("8 x slate", 8, memory, 1e9, "guessed")


@pytest.mark.parametrize(
    ("text", "found"),
    [("v5e-64", ("v5e", 64)), ("h100:8", ("h100", 8)), ("V4-8", ("v4", 8)), ("a100", ("a100", 1))],
)
def test_devices_are_a_kind_and_a_number(text, found):
    assert parse_devices(text) == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(devices="v5f-8"), "`devices` must be .* got 'v5f-8' .did you mean v5[ep]"),
        (dict(devices="v5e-7"), "slices of v5e have 1, 4, 8, .* chips"),
        (dict(devices="h100-0"), "`devices` must be"),
        (dict(devices="h100-5"), "batch_size must divide over 5 devices"),
        (dict(devices="h100-8", compile=True), "`compile` asks the TPU's compiler"),
        (dict(compile=True), "`compile` is for `devices` that are not there"),
        (dict(devices="v4-8", share=0.0), "`share` must be above 0"),
        (dict(devices="v4-8", share=40.0), "`share` must be above 0 and at most 1, got 40"),
        (dict(devices="v4-8", stage="step_three"), "`stage` step_three is none of"),
    ],
)
def test_a_plan_of_nothing_is_refused(changes, message):
    sizes = {f"{key}__batch_size": 64 for key in ("teacher", "step_one", "step_two")}
    with pytest.raises(UserError, match=message):
        plan.run(ask(small(**sizes), **changes))
