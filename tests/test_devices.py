"""What the devices hold and what moves between them: laws of meshes, parts and compiled programs."""

import functools
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, SMALL, environment, plain_model, random_params, small_model
from test_training import LOSS_WEIGHT, OPTIMIZER, W_RANGE, mesh_of

from guided_distill.data.dataset import picture_example
from guided_distill.data.registry import open_dataset
from guided_distill.distill.distillations import ALGORITHMS
from guided_distill.errors import UserError
from guided_distill.jobs import compile_check
from guided_distill.models.build import count_params
from guided_distill.run import settings
from guided_distill.run.programs import StagePrograms, make_models
from guided_distill.run.settings import load_config
from guided_distill.run.stages import plan_stages
from guided_distill.run.trainer import Trainer
from guided_distill.system import sharding
from guided_distill.training.gradient import accumulated_gradient, batch_gradient
from guided_distill.training.memory import check_fits
from guided_distill.training.program import Program, count_collectives, shard_bytes
from guided_distill.training.state import init_state
from guided_distill.training.update import (
    Given,
    make_update,
    round_losses,
    step_one_losses,
    teacher_losses,
)

BATCH = 16
PARAMETER_BYTES = 4


def programs_of(config, mesh, image_shape, num_classes):
    models = make_models(config, image_shape, num_classes)
    return StagePrograms(config, mesh, models, picture_example(image_shape))


def config_of(name, variant=""):
    return load_config(f"{ROOT / 'configs' / name}.py:{variant}")


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 8, 8, 1), dtype=np.uint8)
    return images, rng.integers(0, 3, BATCH, dtype=np.int32)


def distance(there, here):
    """Norm of the difference of two trees over the norm of the second."""
    difference = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), there, here)
    return float(optax.tree.norm(difference) / optax.tree.norm(here))


def run_updates(kind, mesh, batch, *, num_updates, parts=1, remat="none", rate=1e-3):
    """Params after some updates of one kind of stage, with everything that is random in them."""
    take_gradient = batch_gradient
    if parts > 1:
        take_gradient = functools.partial(accumulated_gradient, parts=parts, mesh=mesh)
    teacher = plain_model(dropout=0.2 if kind == "teacher" else 0.0, remat=remat)
    student = plain_model(w_conditioned=True, remat=remat)
    learns = teacher if kind == "teacher" else student
    key, rate = sharding.put_key(jax.random.key(4), mesh), np.float32(rate)
    given, decay = Given(key, rate), 0.9
    if kind == "teacher":
        losses = teacher_losses(teacher, label_dropout=0.3, loss_weight=LOSS_WEIGHT)
    else:
        first = teacher if kind == "step_one" else student
        teacher_params = sharding.place(random_params(first, seed=1), mesh)
        given = Given(key, rate, teacher_params, np.float32(W_RANGE))
        losses = step_one_losses(teacher, student, loss_weight=LOSS_WEIGHT)
    if kind in ALGORITHMS:
        given = given.replace(num_steps=np.int32(8), teacher_bound=np.float32(np.inf))
        losses = round_losses(student, ALGORITHMS[kind], factor=2, loss_weight=LOSS_WEIGHT)
        decay = None
    update = make_update(losses, OPTIMIZER, name=kind, ema_decay=decay, take_gradient=take_gradient)
    state = init_state(random_params(learns, seed=2), OPTIMIZER, keep_ema=decay is not None)
    state = sharding.place(state, mesh)
    placed = tuple(sharding.put(part, sharding.batch_sharding(mesh)) for part in batch)
    for _ in range(num_updates):
        state, metrics = update(state, given, placed)
    return sharding.to_host(state.params), jax.device_get(metrics)


@pytest.mark.slow
def test_fifty_updates_do_not_depend_on_the_devices(batch):
    """Only the order of the gradient's sum differs between meshes."""
    run = functools.partial(run_updates, "teacher", batch=batch, num_updates=50)
    one, _ = run(mesh=mesh_of(1))
    for data, fsdp in ((4, 1), (8, 1), (4, 2)):
        there, _ = run(mesh=mesh_of(data, fsdp))
        assert distance(there, one) <= 1e-5, (data, fsdp)


@pytest.mark.parametrize(
    ("kind", "mesh"), [("teacher", (4, 1)), ("step_one", (4, 1)), ("two_student", (2, 2))], ids=str
)
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(batch, kind, mesh):
    whole, metrics = run_updates(kind, mesh_of(*mesh), batch, num_updates=1)
    parts, metrics_of_parts = run_updates(kind, mesh_of(*mesh), batch, num_updates=1, parts=2)
    np.testing.assert_allclose(metrics_of_parts["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics_of_parts["grad_norm"], metrics["grad_norm"], rtol=1e-4)
    assert distance(parts, whole) <= 1e-5


def test_parts_are_reduced_over_the_devices_once():
    config = config_of("digits", "smoke")
    config.memory.gradient_accumulation = 4
    programs = programs_of(config, mesh_of(8), (8, 8, 1), 10)
    teacher = plan_stages(config)[0]
    state, _, _ = programs.shapes(teacher)
    text = programs.lower(teacher).compile().as_text()
    operations, size = count_collectives(text)["all-reduce"]
    assert operations == 1 and size <= 1.01 * PARAMETER_BYTES * count_params(state.params)
    reducing = next(part for part in text.split("\n\n") if " all-reduce(" in part)
    assert reducing.lstrip().startswith("ENTRY")  # Not within the loop over the parts.


@pytest.mark.parametrize("remat", ["elementwise", "full"])
def test_remat_changes_no_number(batch, remat):
    kept, metrics = run_updates("teacher", mesh_of(4), batch, num_updates=2)
    again, metrics_again = run_updates("teacher", mesh_of(4), batch, num_updates=2, remat=remat)
    np.testing.assert_allclose(metrics_again["loss"], metrics["loss"], rtol=1e-5)
    assert distance(again, kept) <= 1e-5


def test_remat_keeps_less_for_the_backward_pass():
    kept = {}
    for remat in ("none", "elementwise", "full"):
        model = small_model(remat=remat)
        inputs = jnp.zeros((64, 8, 8, 1)), jnp.zeros(64), jnp.zeros(64, jnp.int32)

        def forward(params, model=model, inputs=inputs):
            return model.apply(params, *inputs, None, None)

        pullback = jax.eval_shape(lambda p, f=forward: jax.vjp(f, p)[1], random_params(model))
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(pullback))
    assert kept["full"] < 0.7 * kept["elementwise"] and kept["elementwise"] < 0.7 * kept["none"]


def test_state_per_device_is_the_share_of_the_fsdp_axis():
    """Params, optimizer, average and frozen teacher in the widths of ImageNet 64x64, by shape."""
    config = config_of("imagenet64")
    config.model.num_res_blocks = 1  # Blocks more are traced for seconds, and split alike.
    held = {}
    for fsdp in (1, 8):
        programs = programs_of(config, mesh_of(8 // fsdp, fsdp), (64, 64, 3), 1000)
        for stage in programs.kinds(plan_stages(config)):
            trees = [tree for tree in programs.shapes(stage)[:2] if tree is not None]
            held[stage.name, fsdp] = sum(
                shard_bytes(leaf, leaf.sharding) for leaf in jax.tree.leaves(trees)
            )
    for (name, fsdp), size in held.items():
        assert size <= 1.12 / fsdp * held[name, 1]  # At fsdp = 8: 0.14 of the replicated state.


def check_small(out, *arguments, devices=1):
    """What `--mode=compile_check` finds of the small run, on virtual devices or a topology."""
    main = [sys.executable, "-m", "guided_distill.main", "--mode=compile_check"]
    subprocess.run(
        [*main, f"--config={SMALL}", f"--out={out}", *arguments],
        env=environment(devices),
        check=True,
        capture_output=True,
    )
    return json.loads(out.read_text())


def assert_gradients_move_once(found):
    """One reduction of the gradient's bytes in every update, and no copy of the state."""
    assert len(found["updates"]) == 3
    for row in found["updates"]:
        copies = 3 if row["update"].startswith("step_two") else 4  # params, average, two moments
        gradient = row["state_bytes"] / copies
        assert list(row["collectives"]) == ([] if found["devices"] == 1 else ["all-reduce"])
        for operations, size in row["collectives"].values():
            assert operations == 1 and size <= 1.01 * gradient
        assert row["donated"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8, 64])
def test_every_update_moves_the_gradients_bytes_once(tmp_path, devices):
    """From the compiled programs of the small run, whose batch of 64 divides over all of them."""
    found = check_small(tmp_path / "check.json", devices=devices)
    assert found["devices"] == devices
    assert_gradients_move_once(found)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_the_updates_compile_for_a_tpu_slice(tmp_path):
    """By the TPU's own compiler, for eight chips that are not here."""
    found = check_small(tmp_path / "check.json", "--topology=v5e:2x4")
    assert (found["devices"], found["kind"]) == (8, "TPU v5 lite")
    assert_gradients_move_once(found)
    for row in found["updates"]:
        assert row["error"] is None and row["peak_bytes"] < found["memory_bytes"]


def test_collectives_are_counted_from_the_programs_text():
    text = """
  %a = f32[8,3]{1,0} all-reduce(%x), channel_id=1
  %b = (bf16[4]{0:T(256)}, s32[]) all-reduce-start(%x, %y), channel_id=2
  %c = bf16[4]{0} all-reduce-done(%b)
  %d = (f32[2]{0}, f32[16]{0}) all-gather-start(%x), channel_id=3
  %e = f32[16]{0} all-gather-done(%d)
  %f = f32[2]{0} fusion(%x), calls=%all-reduce-scatter-like
"""
    assert count_collectives(text) == {"all-reduce": (2, 96 + 8 + 4), "all-gather": (1, 64)}


def test_an_update_that_does_not_fit_is_refused_before_the_run(tmp_path):
    config = config_of("digits", "smoke")
    dataset = open_dataset(config.data)
    trainer = Trainer(
        config, tmp_path, dataset, make_models(config, (8, 8, 1), 10), on_stage_end=None
    )
    trainer.check_memory(plan_stages(config)[:1], None)
    with pytest.raises(UserError, match=r"teacher: an update takes .* which has 0.00: .*remat"):
        trainer.check_memory(plan_stages(config)[:1], 1_000)
    program = Program(state_bytes=1, peak_bytes=100, donated=1.0, collectives={}, flops=None)
    check_fits(program, 100, "teacher")
    with pytest.raises(UserError):
        check_fits(program, 99, "teacher")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"mesh.data": 3}, "mesh.data x mesh.fsdp must be the 8 devices, got 3 x 1"),
        ({"mesh.fsdp": 3}, "mesh.data x mesh.fsdp must be the 8 devices"),
        ({"mesh.fsdp": 16}, "mesh.data x mesh.fsdp must be the 8 devices"),
        ({"step_one.batch_size": 12}, "step_one.batch_size must divide over 8 devices, got 12"),
        ({"memory.gradient_accumulation": 3}, "memory.gradient_accumulation 3 does not divide"),
        ({"memory.gradient_accumulation": 0}, "memory.gradient_accumulation must be"),
        ({"memory.remat": "some"}, "memory.remat must be"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_devices_is_refused(override, message):
    config = config_of("digits", "smoke")
    with config.unlocked():
        config.update_from_flattened_dict(override)
    with pytest.raises(UserError, match=message):
        settings.check_config(config)
        settings.check_devices(config, 8)


def test_compile_check_names_what_it_needs(monkeypatch, tmp_path):
    config = config_of("digits", "smoke")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="v5e:2x4 needs libtpu, the TPU's compiler: pip install"):
        compile_check.run(compile_check.Request(config, topology="v5e:2x4"))
