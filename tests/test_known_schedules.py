"""Schedules of models that others trained: by name, as tables, of schedulers' configs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from guided_distill.diffusion.ddim import ddim_step, renoise, x_tilde
from guided_distill.diffusion.known_schedules import (
    DISCRETE,
    NAMES,
    ends_in_noise,
    prediction_of,
    read_schedule,
)
from guided_distill.diffusion.parameterization import X_FROM_PREDICTION, straight_path
from guided_distill.diffusion.samplers import sample_ddim
from guided_distill.diffusion.schedule import (
    cosine_logsnr,
    cosine_schedule,
    cosine_time,
    flow_schedule,
    flow_sigma,
)
from guided_distill.errors import UserError

SHAPE = (7, 4, 4, 3)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", NAMES)
def test_known_schedules_fall_and_are_read_back_from_their_spec(name):
    schedule = read_schedule(name)
    again = read_schedule(json.loads(json.dumps(schedule.spec)))
    t = jnp.linspace(0.0, 1.0, 1001)
    logsnrs = np.asarray(schedule.logsnr(t))
    assert (logsnrs[1:] < logsnrs[:-1]).sum() >= 999
    np.testing.assert_array_equal(logsnrs, again.logsnr(t))
    assert again.num_times == schedule.num_times == (1000 if name in DISCRETE else None)


@pytest.mark.parametrize(
    ("config", "prediction"),
    [
        ({"beta_schedule": "linear"}, "eps"),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, "eps"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "x"),
        (
            {
                "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
                "rescale_betas_zero_snr": True,
            },
            "v",
        ),
        ({"trained_betas": list(np.linspace(1e-3, 0.1, 50)), "num_train_timesteps": 50}, "eps"),
    ],
)  # fmt: skip
def test_schedulers_configs_give_the_schedulers_own_numbers(tmp_path, config, prediction):
    diffusers = pytest.importorskip("diffusers")
    kind = {"eps": "epsilon", "x": "sample", "v": "v_prediction"}[prediction]
    scheduler = diffusers.DDIMScheduler(**config, prediction_type=kind)
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    for given in (dict(scheduler.config), saved):
        table = read_schedule(given).spec["alphas_bar"]
        assert_allclose(table, scheduler.alphas_cumprod.numpy(), atol=1e-6)
    assert prediction_of(scheduler.config) == prediction
    assert ends_in_noise(read_schedule(config)) == ("rescale_betas_zero_snr" in config)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_schedulers_give_their_sigmas(shift):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = read_schedule(dict(scheduler.config))
    assert prediction_of(scheduler.config) == "flow" and schedule.spec["shift"] == shift
    t = np.linspace(1.0, 0.25, 4)
    scheduler.set_timesteps(sigmas=t.tolist())
    assert_allclose(flow_sigma(schedule.logsnr(t)), scheduler.sigmas[:-1], rtol=1e-6)


def test_a_ddim_step_of_rectified_flow_is_eulers_and_its_inversion_leads_back(rng):
    """Ends included, where λ is infinite."""
    sigma_t = np.array([1, 0.999, 0.75, 0.5, 0.25, 0.01, 1e-3])
    sigma_s = np.array([0.5, 0.5, 0.5, 0.1, 0.1, 1e-3, 1e-4])
    y, flow = rng.normal(size=SHAPE), rng.normal(size=SHAPE)
    wide = lambda a: a[:, None, None, None]  # noqa: E731
    with np.errstate(divide="ignore"):
        logsnr_t, logsnr_s = (
            jnp.asarray(2 * (np.log1p(-s) - np.log(s)), jnp.float32) for s in (sigma_t, sigma_s)
        )
    length = lambda s: np.hypot(1 - s, s)  # noqa: E731
    z_t = jnp.asarray(y / wide(length(sigma_t)), jnp.float32)
    assert_allclose(straight_path(z_t, logsnr_t), y, atol=2e-6)
    x_hat = X_FROM_PREDICTION["flow"](jnp.asarray(flow, jnp.float32), z_t, logsnr_t)
    z_s = ddim_step(x_hat, z_t, logsnr_t=logsnr_t, logsnr_s=logsnr_s)
    euler = y + wide(sigma_s - sigma_t) * flow
    assert_allclose(np.asarray(z_s) * wide(length(sigma_s)), euler, atol=3e-6)
    back = x_tilde(z_s, z_t, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    assert_allclose(back, x_hat, atol=2e-5)


def test_a_step_between_equal_infinite_logsnrs_is_the_identity(rng):
    """As at the end of Algorithm 3, whose last sub-step has no length."""
    z, eps = (jnp.asarray(rng.normal(size=SHAPE), jnp.float32) for _ in range(2))
    for end in (jnp.inf, -jnp.inf):
        logsnr = jnp.full(SHAPE[0], end)
        assert_allclose(ddim_step(eps, z, logsnr_t=logsnr, logsnr_s=logsnr), z)
    clean = jnp.full(SHAPE[0], jnp.inf)
    assert_allclose(renoise(z, eps, logsnr_k=clean, logsnr_s=clean), z)
    assert_allclose(x_tilde(z, eps, logsnr_s=clean, logsnr_t=-clean), z)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_steps", [1, 2, 8, 1000])
def test_sampling_an_exact_denoiser_ends_in_the_data(name, num_steps, rng):
    x = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    z_1 = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    schedule = read_schedule(name)
    drawn = sample_ddim(
        lambda z, logsnr, w: x, z_1, jnp.zeros(SHAPE[0]),
        num_steps=num_steps, logsnr_fn=schedule.logsnr, bound=None,
    )  # fmt: skip
    assert_allclose(drawn, x)


@pytest.mark.parametrize("name", NAMES)
def test_times_drawn_have_a_finite_loss_weight(name):
    schedule = read_schedule(name)
    t = schedule.draw_times(jax.random.split(jax.random.key(0), 4096))
    assert np.isfinite(np.exp(schedule.logsnr(t))).all() and (t >= 0).all() and (t <= 1).all()


@pytest.mark.parametrize("ends", [(-20.0, 20.0), (-10.0, 15.0)])
def test_the_cosine_schedules_time_is_its_inverse(ends):
    t = jnp.linspace(0.01, 0.99, 99)
    assert_allclose(cosine_time(cosine_logsnr(t, *ends), *ends), t, atol=2e-6)


def test_flow_is_cut_where_the_cosine_schedule_is():
    assert float(flow_schedule(3.0).logsnr(0.0)) == float(cosine_schedule().logsnr(0.0)) == 20.0
    assert np.isneginf(flow_schedule().logsnr(1.0))


@pytest.mark.parametrize(
    ("schedule", "match"),
    [
        ("scaled_lnear", "none of cosine, flow.*mean scaled_linear"),
        ({"beta_schedule": "scaled_linear", "beta_end": 0.02}, "scaled_linear. and no beta_start"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is none of linear"),
        ({"num_train_timesteps": 1000}, "beta_schedule None is none of"),
        ({"shift": 1.0, "use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ({"shift": 1.0, "use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"name": "tabel"}, "'tabel' is none of"),
        ([0.9, 0.5, 0.6], "must fall: it is 0.5 at time 2 and 0.6 at the next"),
        ([0.9, 0.9], "must fall"),
        ([1.0, 0.5], r"lie in \[0, 1\)"),
        ([0.9, -0.1], r"lie in \[0, 1\)"),
        ([0.9, float("nan")], "finite"),
        ([[0.9, 0.1]], r"must be \[T\]"),
        ([], r"must be \[T\]"),
        (0.5, r"must be \[T\]"),
    ],
)
def test_schedules_that_cannot_be_are_refused(schedule, match):
    with pytest.raises(UserError, match=match):
        read_schedule(schedule)
