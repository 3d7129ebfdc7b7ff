"""Laws of schedule, parameterizations, guidance, DDIM step and sampler."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import constant_denoiser, gaussian_denoiser
from numpy.testing import assert_allclose, assert_array_equal

from guided_distill.diffusion.ddim import ddim_step, x_tilde
from guided_distill.diffusion.guidance import guide
from guided_distill.diffusion.parameterization import (
    X_FROM_PREDICTION,
    eps_from_x,
    v_from_x,
    x_from_eps,
    x_from_v,
)
from guided_distill.diffusion.samplers import sample_ddim
from guided_distill.diffusion.schedule import alpha_sigma, cosine_logsnr


def test_cosine_schedule_meets_its_ends_and_falls_between():
    t = jnp.arange(1025) / 1024
    for low, high in ((-20.0, 20.0), (-12.0, 15.0)):
        logsnr = cosine_logsnr(t, low, high)
        assert_allclose(logsnr[0], high, rtol=1e-6)
        assert_allclose(logsnr[-1], low, rtol=1e-6)
        assert np.all(np.diff(logsnr) < 0)


def test_cosine_schedule_agrees_with_its_definition_in_float64():
    t = np.arange(1025) / 1024
    start = math.atan(math.exp(-10.0))
    slope = math.atan(math.exp(10.0)) - start
    expected = -2.0 * np.log(np.tan(slope * t + start))
    assert_allclose(cosine_logsnr(jnp.asarray(t, jnp.float32)), expected, atol=2e-5)


def test_alpha_is_a_cosine_of_time():
    """At the limit of a wide schedule α = cos(πt/2): the schedule's name."""
    t = jnp.linspace(0.01, 0.99, 50)
    alpha, sigma = alpha_sigma(cosine_logsnr(t, -40.0, 40.0), ndim=1)
    assert_allclose(alpha, np.cos(0.5 * np.pi * t), atol=1e-5)
    assert_allclose(sigma, np.sin(0.5 * np.pi * t), atol=1e-5)


@pytest.mark.parametrize("logsnr", [-20.0, -3.0, 0.0, 5.0, 20.0])
def test_alpha_and_sigma_preserve_variance_and_give_the_ratio_back(logsnr):
    alpha, sigma = alpha_sigma(jnp.array([logsnr]), ndim=4)
    assert alpha.shape == sigma.shape == (1, 1, 1, 1)
    assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-6)
    assert_allclose(2 * (np.log(alpha) - np.log(sigma)).item(), logsnr, rtol=1e-5, atol=1e-6)


def test_parameterizations_are_round_trips(noise):
    x = jax.random.uniform(jax.random.key(7), noise.shape, minval=-1.0)
    logsnr = jnp.linspace(-6.0, 6.0, 16)
    alpha, sigma = alpha_sigma(logsnr, 4)
    z = alpha * x + sigma * noise
    assert_allclose(eps_from_x(x, z, logsnr), noise, atol=1e-4)
    assert_allclose(v_from_x(x, z, logsnr), alpha * noise - sigma * x, atol=1e-4)
    assert_allclose(x_from_eps(noise, z, logsnr), x, atol=1e-4)
    assert_allclose(x_from_v(alpha * noise - sigma * x, z, logsnr), x, atol=1e-5)
    assert_array_equal(X_FROM_PREDICTION["x"](x, z, logsnr), x)


def test_guidance_is_the_papers_combination(noise):
    cond, uncond = noise, noise[::-1]
    w = jnp.linspace(0.0, 4.0, 16)
    expected = np.stack([(1 + a) * c - a * u for a, c, u in zip(w, cond, uncond, strict=True)])
    assert_allclose(guide(cond, uncond, w), expected, atol=1e-5)
    assert_array_equal(guide(cond, uncond, jnp.zeros(16)), cond)
    assert_allclose(guide(cond, uncond, -jnp.ones(16)), uncond, atol=1e-6)


def test_ddim_step_keeps_signal_and_noise_of_a_perfect_prediction(noise):
    """With the true x, z_t = α_t x + σ_t ε goes to z_s = α_s x + σ_s ε with the same ε."""
    x = jnp.tanh(noise[::-1])
    t, s = jnp.linspace(0.1, 1.0, 16), jnp.linspace(0.0, 0.9, 16)
    logsnr_t, logsnr_s = cosine_logsnr(t), cosine_logsnr(s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t, 4), alpha_sigma(logsnr_s, 4)
    z_t = alpha_t * x + sigma_t * noise
    z_s = ddim_step(x, z_t, logsnr_t=logsnr_t, logsnr_s=logsnr_s)
    assert_allclose(z_s, alpha_s * x + sigma_s * noise, atol=2e-6)


def test_ddim_step_of_length_zero_is_the_identity(noise):
    logsnr = jnp.linspace(-20.0, 20.0, 16)
    z = ddim_step(jnp.ones_like(noise), noise, logsnr_t=logsnr, logsnr_s=logsnr)
    assert_array_equal(z, noise)


@pytest.mark.parametrize("num_steps", [1, 4, 64, 1024])
@pytest.mark.parametrize("forward", [True, False])
def test_x_tilde_inverts_a_ddim_step_in_both_directions(noise, num_steps, forward):
    t = jnp.linspace(1, num_steps, 16).round() / num_steps
    logsnr_t, logsnr_s = cosine_logsnr(t), cosine_logsnr(t - 1 / num_steps)
    if not forward:
        logsnr_t, logsnr_s = logsnr_s, logsnr_t
    x = jnp.tanh(noise[::-1])
    z_s = ddim_step(x, noise, logsnr_t=logsnr_t, logsnr_s=logsnr_s)
    recovered = x_tilde(z_s, noise, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    assert_allclose(recovered, x, atol=1e-6 * num_steps + 2e-6)
    again = ddim_step(recovered, noise, logsnr_t=logsnr_t, logsnr_s=logsnr_s)
    assert_allclose(again, z_s, rtol=1e-5, atol=1e-5)


def exact_gaussian_flow(z_1, spread, t_end):
    """Where the probability flow of x ~ N(0, spread²) carries z_1: the spread scales."""

    def total(t):
        alpha, sigma = alpha_sigma(cosine_logsnr(jnp.array([t])), 1)
        return np.sqrt(alpha.item() ** 2 * spread**2 + sigma.item() ** 2)

    return z_1 * total(t_end) / total(1.0)


def test_ddim_on_gaussian_data_converges_with_order_one(noise):
    """The last call predicts x at t = 1/N from z at 1/N; z itself follows the exact flow."""
    spread = 0.5
    errors = []
    for num_steps in (32, 64, 128):
        x = sample_ddim(
            gaussian_denoiser(spread), noise, jnp.zeros(16),
            num_steps=num_steps, logsnr_fn=cosine_logsnr, clip=False,
        )  # fmt: skip
        errors.append(np.abs(x - exact_gaussian_flow(noise, spread, 0.0)).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all((0.8 < orders) & (orders < 1.3)), (errors, orders)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_sampler_calls_the_denoiser_on_the_grid_and_nowhere_else(noise, num_steps):
    seen = []

    def denoise(z, logsnr, w):
        jax.debug.callback(lambda value: seen.append(float(value)), logsnr[0])
        return jnp.zeros_like(z)

    sample_ddim(denoise, noise, jnp.zeros(16), num_steps=num_steps, logsnr_fn=cosine_logsnr)
    jax.effects_barrier()
    grid = jnp.arange(num_steps, 0, -1, dtype=jnp.float32) / num_steps
    assert_allclose(seen, cosine_logsnr(grid), rtol=1e-6)


def test_sampler_returns_the_last_prediction_clipped_on_request(noise):
    run = lambda clip: sample_ddim(  # noqa: E731
        constant_denoiser(1.5), noise, jnp.zeros(16),
        num_steps=3, logsnr_fn=cosine_logsnr, clip=clip,
    )  # fmt: skip
    assert_array_equal(run(False), np.full(noise.shape, 1.5, np.float32))
    assert_array_equal(run(True), np.ones(noise.shape, np.float32))


def test_sampler_compiles_once_for_every_number_of_steps(noise):
    @jax.jit
    def sample(z_1, w, num_steps):
        return sample_ddim(
            gaussian_denoiser(0.5), z_1, w, num_steps=num_steps, logsnr_fn=cosine_logsnr
        )

    traced = {n: sample(noise, jnp.zeros(16), np.int32(n)) for n in (1, 3, 8)}
    assert sample._cache_size() == 1
    for n, x in traced.items():
        eager = sample_ddim(
            gaussian_denoiser(0.5), noise, jnp.zeros(16), num_steps=n, logsnr_fn=cosine_logsnr
        )
        assert_allclose(x, eager, atol=1e-6)
