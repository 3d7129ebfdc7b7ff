"""A model that is nothing like our U-Net goes through every algorithm, sampler and update.

Text-like conditioning (a pytree of two embeddings and a mask), latents without a bound, eps, a
schedule of 1000 discrete times, and a network that is told their index.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from guided_distill.diffusion.known_schedules import alphas_bar_schedule
from guided_distill.diffusion.samplers import encode_ddim
from guided_distill.diffusion.schedule import nearest_index, table_schedule
from guided_distill.distill.distillations import ALGORITHMS, ENCODE
from guided_distill.distill.losses import LOSS_WEIGHTS
from guided_distill.models.model import Conditioning, Model
from guided_distill.sampling.generator import Generator
from guided_distill.system.sharding import make_mesh
from guided_distill.training.optimizer import make_optimizer
from guided_distill.training.state import init_state
from guided_distill.training.update import (
    Given,
    make_update,
    round_losses,
    step_one_losses,
    teacher_losses,
)

TIMES, BATCH, LATENT = 1000, 8, (4, 4, 2)
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, TIMES) ** 2  # scaled-linear
ALPHAS_BAR = np.cumprod(1.0 - BETAS)
# As schedulers without `set_alpha_to_one`: time 0 is as clean as the first step.
LOGSNRS = np.log(ALPHAS_BAR / (1.0 - ALPHAS_BAR))[[0, *range(TIMES)]].astype(np.float32)
OPTIMIZER = make_optimizer(clip_norm=1.0, adam_b1=0.9, adam_b2=0.999, adam_eps=1e-8)
NULL = {"text": np.full((3, 5), 0.5, np.float32), "pooled": np.zeros(6, np.float32)}


def apply(params, z, logsnr, cond, w, dropout_keys):
    """eps, from a little of everything that a model may be told."""
    index = nearest_index(logsnr, jnp.asarray(LOGSNRS)) / TIMES
    told = jnp.concatenate([cond["text"].mean(1), cond["pooled"], index[:, None]], axis=1)
    if w is not None:
        told = jnp.concatenate([told, w[:, None]], axis=1)
    shift = jnp.tanh(told @ params["told"][: told.shape[1]])
    return jnp.tanh(z @ params["z"]) + shift[:, None, None, :]


def init(key):
    told, z = jax.random.split(key)
    return {
        "told": jax.random.normal(told, (13, LATENT[-1])),
        "z": jax.random.normal(z, (LATENT[-1], LATENT[-1])),
    }


def make_model(knows_w):
    return Model(
        apply=apply,
        init=init,
        prediction="eps",
        schedule=table_schedule(LOGSNRS),
        conditioning=Conditioning(NULL),
        sample_shape=LATENT,
        knows_w=knows_w,
        bound=None,
    )


TEACHER, STUDENT = make_model(knows_w=False), make_model(knows_w=True)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    cond = {
        "text": rng.standard_normal((BATCH, 3, 5)).astype(np.float32),
        "pooled": rng.standard_normal((BATCH, 6)).astype(np.float32),
    }
    return 2.0 * rng.standard_normal((BATCH, *LATENT)).astype(np.float32), cond


def losses_of(kind):
    weight = LOSS_WEIGHTS["snr_trunc"]
    if kind == "teacher":
        return teacher_losses(TEACHER, label_dropout=0.5, loss_weight=weight)
    if kind == "step_one":
        return step_one_losses(TEACHER, STUDENT, loss_weight=weight)
    return round_losses(STUDENT, ALGORITHMS[kind], factor=2, loss_weight=weight)


@pytest.mark.parametrize("kind", ["teacher", "step_one", *ALGORITHMS])
def test_every_update_takes_it_and_learns(batch, kind):
    teacher_params = init(jax.random.key(1))
    # On the table's own grid: 250 steps of the teacher, 4 times each.
    given = Given(
        jax.random.key(2), np.float32(1e-2), teacher_params, np.float32([0.0, 4.0]),
        np.int32(125), np.float32(np.inf),
    )  # fmt: skip
    losses, keys = losses_of(kind), jax.random.split(jax.random.key(4), BATCH)
    on_fixed_noise = jax.jit(lambda params: losses(params, given, *batch, keys).mean())
    update = make_update(losses, OPTIMIZER, name=kind)
    state = init_state(init(jax.random.key(3)), OPTIMIZER, keep_ema=False)
    before = on_fixed_noise(state.params)
    state = jax.device_put(state, jax.devices()[0])
    for _ in range(60):
        state, metrics = update(state, given, batch)
        assert np.isfinite(metrics["loss"])
    assert on_fixed_noise(state.params) < 0.95 * before


def test_times_of_training_lie_on_the_table():
    times = TEACHER.schedule.draw_times(jax.random.split(jax.random.key(0), 5000))
    index = np.asarray(times) * TIMES
    assert_allclose(index, np.round(index), atol=1e-3)
    assert index.min() >= 1 and index.max() <= TIMES and len(np.unique(index)) > 900
    assert_array_equal(TEACHER.schedule.logsnr(times), LOGSNRS[np.round(index).astype(int)])
    assert_array_equal(
        nearest_index(LOGSNRS[1:], jnp.asarray(LOGSNRS))[1:], np.arange(2, TIMES + 1)
    )


def test_conditioning_is_dropped_whole_and_nulls_keep_its_structure(batch):
    _, cond = batch
    keys = jax.random.split(jax.random.key(0), BATCH)
    dropped = TEACHER.conditioning.drop(cond, keys, 0.5)
    is_null = {
        name: np.array([np.array_equal(row, NULL[name]) for row in np.asarray(leaf)])
        for name, leaf in dropped.items()
    }
    assert_array_equal(is_null["text"], is_null["pooled"])
    assert 0 < is_null["text"].sum() < BATCH
    kept = ~is_null["text"]
    assert_array_equal(dropped["text"][kept], cond["text"][kept])


@pytest.mark.parametrize("sampler", ["ddim", "stochastic", "ancestral"])
@pytest.mark.parametrize("guided", [False, True])
def test_every_sampler_takes_it_and_clips_nothing(batch, sampler, guided):
    _, cond = batch
    generator = Generator(TEACHER, sampler, guided=guided, mesh=make_mesh(), batch_size=BATCH)
    draw = lambda w: generator(  # noqa: E731
        init(jax.random.key(1)), cond=cond, w=np.full(BATCH, w), indices=np.arange(BATCH),
        num_steps=8, seed=0,
    )  # fmt: skip
    x = draw(3.0)
    assert x.shape == (BATCH, *LATENT) and np.isfinite(x).all() and np.abs(x).max() > 1.0
    # Only a guided pair asks for w where the model knows none.
    assert np.array_equal(x, draw(0.0)) is not guided


def test_encoding_and_decoding_return_the_latents(batch):
    x, cond = batch
    params, mesh = init(jax.random.key(1)), make_mesh()
    on = dict(cond=cond, w=np.zeros(BATCH), indices=np.arange(BATCH), num_steps=500, seed=0)
    decode = Generator(TEACHER, "ddim", guided=False, mesh=mesh, batch_size=BATCH)
    encoded = encode_ddim(
        TEACHER.denoiser(params, cond), x, jnp.zeros(BATCH),
        num_steps=500, logsnr_fn=TEACHER.schedule.logsnr,
    )  # fmt: skip
    assert np.sqrt(np.mean((decode(params, start=encoded, **on) - x) ** 2)) < 0.05 * np.std(x)


@pytest.mark.parametrize("num_steps", [1, 4, 500])
def test_where_time_0_is_data_alone_an_encoder_begins_at_the_first_time(batch, num_steps):
    """Of a schedule whose λ(0) is infinite: x stands for z at 1/T, as where λ(0) is λ(1/T)."""
    x, cond = batch
    denoise = STUDENT.denoiser(init(jax.random.key(1)), cond)
    teacher = TEACHER.guided(init(jax.random.key(2)), cond)
    setting = dict(
        num_steps=num_steps, w_range=(0.0, 4.0), loss_weight=LOSS_WEIGHTS["snr_trunc"]
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(0), BATCH)
    losses, encoded = [], []
    for schedule in (alphas_bar_schedule(ALPHAS_BAR), table_schedule(LOGSNRS)):
        loss = ALGORITHMS["encoder"].loss(denoise, teacher, x, keys, schedule=schedule, **setting)
        model = dataclasses.replace(TEACHER, schedule=schedule)
        encode = Generator(model, ENCODE, guided=False, mesh=make_mesh(), batch_size=BATCH)
        losses.append(loss)
        encoded.append(
            encode(
                init(jax.random.key(1)), cond=cond, w=np.zeros(BATCH), indices=np.arange(BATCH),
                num_steps=num_steps, seed=0, start=x,
            )
        )  # fmt: skip
    assert np.isfinite(losses[0]).all() and np.min(losses[0]) > 0.0
    assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert np.isfinite(encoded[0]).all()
    assert_allclose(encoded[0], encoded[1], atol=1e-5 * np.abs(encoded[1]).max())


def test_decoding_of_such_a_schedule_still_ends_in_data():
    schedule = alphas_bar_schedule(ALPHAS_BAR)
    assert np.isinf(schedule.logsnr(0.0)) and np.isfinite(schedule.from_first_time().logsnr(0.0))
    times = np.arange(1, TIMES + 1, dtype=np.float32) / TIMES
    assert_array_equal(schedule.logsnr(times), schedule.from_first_time().logsnr(times))
