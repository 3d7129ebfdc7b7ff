"""Laws of the compiled updates, of the sharding and of what is saved."""

import errno
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import plain_model, random_params, small_model
from numpy.testing import assert_allclose, assert_array_equal

from guided_distill.data.pixels import to_float
from guided_distill.distill.distillations import ALGORITHMS
from guided_distill.distill.losses import LOSS_WEIGHTS
from guided_distill.errors import UserError
from guided_distill.system import sharding
from guided_distill.system.files import (
    load_params,
    read_json,
    save_params,
    tree_sha256,
    write_json,
)
from guided_distill.training.checkpoint import Checkpoints
from guided_distill.training.loop import finite_means
from guided_distill.training.optimizer import descend, learning_rate_at, make_optimizer
from guided_distill.training.state import init_state
from guided_distill.training.update import (
    Given,
    example_keys,
    make_update,
    round_losses,
    teacher_losses,
)

BATCH = 16
W_RANGE = (0.0, 4.0)
LOSS_WEIGHT = LOSS_WEIGHTS["snr_trunc"]
OPTIMIZER = make_optimizer(clip_norm=1.0, adam_b1=0.9, adam_b2=0.999, adam_eps=1e-8)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 8, 8, 1), dtype=np.uint8)
    return images, rng.integers(0, 3, BATCH, dtype=np.int32)


def mesh_of(data, fsdp=1):
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return jax.sharding.Mesh(devices, ("data", "fsdp"))


def run_teacher_updates(mesh, batch, num_updates=3):
    """Teacher updates with label dropout and dropout; parameters and last metrics."""
    model = plain_model(dropout=0.2)
    state = init_state(random_params(model), OPTIMIZER, keep_ema=True)
    losses = teacher_losses(model, label_dropout=0.3, loss_weight=LOSS_WEIGHT)
    update = make_update(losses, OPTIMIZER, name="teacher", ema_decay=0.9)
    state = sharding.place(state, mesh)
    key = jax.device_put(jax.random.key(4), sharding.replicated(mesh))
    placed = jax.device_put(batch, sharding.batch_sharding(mesh))
    for _ in range(num_updates):
        state, metrics = update(state, Given(key, np.float32(1e-3)), placed)
    return state, metrics


@pytest.fixture(scope="module")
def trained_on(batch):
    """(data, fsdp) -> state and metrics after the same updates on that mesh, run once each."""
    return functools.cache(lambda data, fsdp: run_teacher_updates(mesh_of(data, fsdp), batch))


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (4, 2), (1, 4)])
def test_update_does_not_depend_on_the_devices(trained_on, data, fsdp):
    """To reduction order: the gradient's sum is taken in another order on another mesh."""
    state, metrics = trained_on(data, fsdp)
    expected_state, expected_metrics = trained_on(1, 1)
    assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-5)
    difference = optax.tree.norm(
        jax.tree.map(
            lambda a, b: np.asarray(a) - np.asarray(b), state.params, expected_state.params
        )
    )
    assert difference < 1e-4 * optax.tree.norm(expected_state.params)


def test_fsdp_splits_parameters_and_optimizer_state(trained_on):
    state, _ = trained_on(1, 4)
    kernel = state.params["middle_0"]["conv_0"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    moment = state.opt_state[1].mu["middle_0"]["conv_0"]["kernel"]
    assert moment.addressable_shards[0].data.size == kernel.size // 4


@pytest.fixture(scope="module")
def step_two():
    """Model, teacher params and student state of a step-two update."""
    model = plain_model(w_conditioned=True)
    return model, random_params(model, seed=1), random_params(model, seed=2)


@pytest.mark.parametrize("algorithm", ["deterministic", "two_student"])
def test_step_two_update_equals_pmap_of_the_same_loss(batch, step_two, algorithm):
    """The classical form: per-device losses, `pmean` of gradients, one optimizer step."""
    model, teacher_params, student_params = step_two
    row = ALGORITHMS[algorithm]
    images, labels = batch
    devices = jax.device_count()
    key, num_steps, learning_rate = jax.random.key(4), np.int32(8), np.float32(1e-3)
    keys = example_keys(key, 0, BATCH)

    @functools.partial(jax.pmap, axis_name="devices", in_axes=(None, 0, 0, 0))
    def gradient(params, images, labels, keys):
        def bind(params):
            pair = model.pair(params, labels)
            return pair if algorithm == "two_student" else pair[0]

        def loss(params):
            return row.loss(
                bind(params),
                bind(teacher_params),
                to_float(images),
                keys,
                num_steps=num_steps,
                w_range=W_RANGE,
                schedule=model.schedule,
                loss_weight=LOSS_WEIGHT,
            ).mean()

        return jax.lax.pmean(jax.value_and_grad(loss)(params), "devices")

    split = lambda a: a.reshape(devices, BATCH // devices, *a.shape[1:])  # noqa: E731
    loss, grads = gradient(student_params, split(images), split(labels), split(keys))
    grads = jax.tree.map(lambda g: g[0], grads)
    direction, _ = OPTIMIZER.update(grads, OPTIMIZER.init(student_params))
    expected = descend(student_params, direction, learning_rate)

    mesh = mesh_of(devices)
    before = sharding.place(init_state(student_params, OPTIMIZER, keep_ema=False), mesh)
    teacher = sharding.place(teacher_params, mesh)
    placed = jax.device_put(batch, sharding.batch_sharding(mesh))
    losses = round_losses(model, row, factor=2, loss_weight=LOSS_WEIGHT)
    update = make_update(losses, OPTIMIZER, name=algorithm)
    key = jax.device_put(key, sharding.replicated(mesh))
    no_bound = np.float32(np.inf)
    given = Given(key, learning_rate, teacher, np.float32(W_RANGE), num_steps, no_bound)
    state, metrics = update(before, given, placed)
    assert_allclose(metrics["loss"], loss[0], rtol=1e-5)
    assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-4)
    # Adam's first step is the gradient's sign, so compare as a whole, not element by element.
    moved = jax.tree.map(lambda a, b: np.asarray(a) - b, state.params, expected)
    step = jax.tree.map(lambda a, b: a - b, expected, student_params)
    assert optax.tree.norm(moved) < 0.02 * optax.tree.norm(step)
    # The state is donated, the teacher is not.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((teacher, state)))


def test_gradient_is_clipped_after_averaging():
    grads = {"a": jnp.full(4, 30.0)}
    optimizer = make_optimizer(clip_norm=1.0, adam_b1=0.0, adam_b2=0.0, adam_eps=1.0)
    direction, _ = optimizer.update(grads, optimizer.init(grads))
    # Clipped to norm 1 each entry is 0.5; Adam without memory gives g / (|g| + 1).
    assert_allclose(direction["a"], 0.5 / 1.5, rtol=1e-5)


def test_learning_rate_warms_up_and_decays_and_keeps_one_kind():
    rate = functools.partial(learning_rate_at, peak=2.0, warmup_updates=4, num_updates=10)
    assert_allclose([rate(u, decay="constant") for u in range(5)], [0.5, 1.0, 1.5, 2.0, 2.0])
    decayed = functools.partial(
        learning_rate_at, peak=1.0, warmup_updates=0, num_updates=10, decay="linear"
    )
    assert_allclose([decayed(0), decayed(5), decayed(10)], [1.0, 0.5, 0.0])
    assert type(decayed(3)) is np.float32


def test_example_keys_are_prefixes_of_larger_batches():
    small, large = (example_keys(jax.random.key(0), 7, size) for size in (4, 16))
    assert_array_equal(jax.random.key_data(small), jax.random.key_data(large)[:4])
    other = example_keys(jax.random.key(0), 8, 4)
    assert not np.array_equal(jax.random.key_data(small), jax.random.key_data(other))


def test_metrics_that_are_not_finite_name_their_update():
    good = {"loss": jnp.float32(1.0), "grad_norm": jnp.float32(2.0)}
    assert finite_means([good, good], first_update=10) == {"loss": 1.0, "grad_norm": 2.0}
    with pytest.raises(UserError, match="grad_norm is nan at update 12"):
        finite_means([good, good | {"grad_norm": jnp.float32(np.nan)}], first_update=10)


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of updates 1, 2 and 3 of a tiny state, of which two are kept."""
    params = {"w": jnp.arange(600.0).reshape(30, 20), "b": {"c": jnp.ones(3)}}
    state = init_state(params, OPTIMIZER, keep_ema=True)
    states = {
        u: state.replace(update=jnp.int32(u), params=jax.tree.map(lambda p, u=u: p * u, params))
        for u in (1, 2, 3)
    }
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for one in states.values():
            checkpoints.save(one)
    return tmp_path / "checkpoints", states


def restore(directory, template):
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore(template), checkpoints.notices, checkpoints.seconds


def damage(folder):
    """Flips one byte in the largest data file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and "/d/" in str(path)]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(bytes(data))


def test_newest_checkpoint_comes_back_bit_for_bit(saved):
    directory, states = saved
    assert sorted(path.name for path in directory.iterdir()) == ["2", "3"]
    restored, notices, seconds = restore(directory, states[1])
    assert notices == [] and seconds > 0
    assert tree_sha256(restored) == tree_sha256(states[3])


@pytest.mark.parametrize("harm", ["flipped byte", "truncated", "emptied"])
def test_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(saved, harm):
    directory, states = saved
    if harm == "flipped byte":
        damage(directory / "3")
    for path in (directory / "3" / "state").rglob("*"):
        if path.is_file() and harm == "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        if path.is_file() and harm == "emptied":
            path.unlink()
    restored, notices, _ = restore(directory, states[1])
    assert int(restored.update) == 2
    assert len(notices) == 1 and "checkpoints/3 is damaged" in notices[0]
    assert (directory / "3.damaged").is_dir()
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(states[3])  # The place of the damaged one is free again.
    restored, notices, _ = restore(directory, states[1])
    assert int(restored.update) == 3 and notices == []


def test_an_error_of_the_disk_that_passes_costs_nothing(saved, monkeypatch):
    directory, states = saved
    read, calls = Checkpoints._read, []

    def fail_once(self, *args):
        calls.append(args)
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")
        return read(self, *args)

    monkeypatch.setattr(Checkpoints, "_read", fail_once)
    restored, notices, _ = restore(directory, states[1])
    assert int(restored.update) == 3 and notices == [] and len(calls) == 2


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE])
def test_what_cannot_be_read_is_not_taken_for_damage(saved, monkeypatch, number):
    """Neither a checkpoint nor finished params; nothing is renamed or removed."""
    directory, states = saved
    sha256 = save_params(directory / "params", random_params(small_model()))
    damage(directory / "3")
    damage(directory / "params")
    before = sorted(directory.rglob("*"))

    def no_open(path, *args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("guided_distill.system.files.open", no_open, raising=False)
    monkeypatch.setattr(Checkpoints, "_read", no_open)
    with pytest.raises(UserError, match=r"checkpoints/3/.* cannot be read .*nothing was changed"):
        restore(directory, states[1])
    with pytest.raises(UserError, match=r"params/.* cannot be read .*nothing was changed"):
        load_params(directory / "params", sha256)
    assert sorted(directory.rglob("*")) == before


def test_a_stage_of_damaged_checkpoints_alone_does_not_start_anew(saved):
    directory, states = saved
    for update in ("2", "3"):
        damage(directory / update)
    for _ in range(2):  # The second time they are set aside already.
        with pytest.raises(UserError, match="no whole checkpoint left, .* remove that folder"):
            restore(directory, states[1])
    assert {"2.damaged", "3.damaged"} <= {path.name for path in directory.iterdir()}


def test_half_written_checkpoint_is_ignored(saved):
    directory, states = saved
    (directory / "4.orbax-checkpoint-tmp").mkdir()
    restored, notices, _ = restore(directory, states[1])
    assert int(restored.update) == 3 and notices == []


def test_no_checkpoint_at_all_is_none(tmp_path):
    assert restore(tmp_path / "none", init_state({"w": jnp.ones(2)}, OPTIMIZER, keep_ema=False))[
        :2
    ] == (None, [])


def test_finished_params_round_trip_and_notice_damage(tmp_path):
    params = random_params(small_model())
    sha256 = save_params(tmp_path / "params", params)
    assert sha256 == tree_sha256(params) == tree_sha256(load_params(tmp_path / "params", sha256))
    with pytest.raises(ValueError, match="does not match its digest"):
        load_params(tmp_path / "params", "0" * 64)
    damage(tmp_path / "params")
    with pytest.raises(ValueError, match="params (cannot be read|does not match)"):
        load_params(tmp_path / "params", sha256)


def test_digest_sees_values_dtypes_shapes_and_names():
    tree = {"a": np.zeros((2, 3), np.float32)}
    others = [
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.int32)},
        {"b": np.zeros((2, 3), np.float32)},
        {"a": np.full((2, 3), 1e-30, np.float32)},
    ]
    assert len({tree_sha256(t) for t in [tree, *others]}) == 5
    assert tree_sha256({"x": 1.0, "y": 2.0}) == tree_sha256({"y": 2.0, "x": 1.0})


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": 2, "digest": "0"}', "\xff"])
def test_damaged_json_is_named_or_made_again(tmp_path, capsys, text):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1, "b": (1.5, None)})
    assert read_json(path) == {"a": 1, "b": [1.5, None]}
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="x.json is damaged: put back a copy"):
        read_json(path)
    assert read_json(path, derived=True) is None
    assert "x.json is damaged: it is made again" in capsys.readouterr().err


def test_one_changed_number_in_a_record_is_noticed(tmp_path):
    path = tmp_path / "stage.json"
    write_json(path, {"w_range": [0.0, 4.0], "logsnr_max": 20})
    path.write_text(path.read_text().replace("20", "30"))
    with pytest.raises(UserError, match="stage.json is damaged"):
        read_json(path)
    path.write_text('{"logsnr_max": 30}')  # As earlier versions wrote it.
    assert read_json(path) == {"logsnr_max": 30}


def test_weight_decay_pulls_to_zero_beside_the_gradient():
    params, direction = {"a": jnp.array([2.0, -4.0])}, {"a": jnp.array([0.3, 0.4])}
    plain, decayed = descend(params, direction, 0.5), descend(params, direction, 0.5, 0.1)
    assert_allclose(decayed["a"] - plain["a"], -0.5 * 0.1 * params["a"], rtol=1e-6)
