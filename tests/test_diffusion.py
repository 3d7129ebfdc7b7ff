"""Laws of schedule, parameterizations, guidance, DDIM step and sampler."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import constant_denoiser, gaussian_denoiser
from numpy.testing import assert_allclose, assert_array_equal

from guided_distill.diffusion.ancestral import ancestral_step
from guided_distill.diffusion.ddim import ddim_step, renoise, x_tilde
from guided_distill.diffusion.guidance import guide
from guided_distill.diffusion.parameterization import (
    X_FROM_PREDICTION,
    eps_from_x,
    v_from_x,
    x_from_eps,
    x_from_v,
)
from guided_distill.diffusion.samplers import (
    encode_ddim,
    sample_ancestral,
    sample_ddim,
    sample_stochastic,
)
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


def test_renoise_keeps_the_marginals_of_the_diffusion(noise):
    """α_k x + σ_k ε becomes α_s x plus noise of variance σ_s², for every k ≤ s."""
    k, s = jnp.linspace(0.0, 0.9, 16), jnp.linspace(0.05, 1.0, 16)
    logsnr_k, logsnr_s = cosine_logsnr(k), cosine_logsnr(s)
    (alpha_k, sigma_k), (alpha_s, sigma_s) = alpha_sigma(logsnr_k, 4), alpha_sigma(logsnr_s, 4)
    x, ones, zeros = jnp.tanh(noise), jnp.ones_like(noise), jnp.zeros_like(noise)
    add = lambda z, eps: renoise(z, eps, logsnr_k=logsnr_k, logsnr_s=logsnr_s)  # noqa: E731
    assert_allclose(add(alpha_k * x, zeros), alpha_s * x, atol=1e-6)
    variance = add(sigma_k * ones, zeros) ** 2 + add(zeros, ones) ** 2
    assert_allclose(variance, sigma_s**2 * ones, rtol=1e-5)
    assert_array_equal(renoise(x, ones, logsnr_k=logsnr_s, logsnr_s=logsnr_s), x)


@pytest.mark.parametrize("variance_mix", [0.0, 0.3, 1.0])
def test_ancestral_step_is_the_posterior_and_its_mix_only_adds_noise(noise, variance_mix):
    t, s = jnp.linspace(0.1, 1.0, 16), jnp.linspace(0.0, 0.9, 16)
    logsnr_t, logsnr_s = cosine_logsnr(t), cosine_logsnr(s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t, 4), alpha_sigma(logsnr_s, 4)
    x, ones, zeros = jnp.tanh(noise), jnp.ones_like(noise), jnp.zeros_like(noise)
    kwargs = dict(logsnr_t=logsnr_t, logsnr_s=logsnr_s, variance_mix=variance_mix)
    assert_allclose(ancestral_step(x, alpha_t * x, zeros, **kwargs), alpha_s * x, atol=1e-6)
    carried = ancestral_step(zeros, sigma_t * ones, zeros, **kwargs)
    added = ancestral_step(zeros, zeros, ones, **kwargs)
    excess = (carried**2 + added**2) / sigma_s**2  # 1 is the diffusion's own marginal
    gain = -jnp.expm1(logsnr_t - logsnr_s).reshape(-1, 1, 1, 1)
    ratio = (sigma_t / sigma_s) ** 2
    assert_allclose(excess, ones + gain * (ratio**variance_mix - 1), rtol=1e-4)


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
            num_steps=num_steps, logsnr_fn=cosine_logsnr, bound=None,
        )  # fmt: skip
        errors.append(np.abs(x - exact_gaussian_flow(noise, spread, 0.0)).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all((0.8 < orders) & (orders < 1.3)), (errors, orders)


def run_sampler(name, denoise, z_1, **kwargs):
    """Any of the samplers, on equal terms."""
    keys = jax.random.split(jax.random.key(5), len(z_1))
    w = jnp.zeros(len(z_1))
    if name == "ddim":
        return sample_ddim(denoise, z_1, w, logsnr_fn=cosine_logsnr, **kwargs)
    if name == "stochastic":
        return sample_stochastic(denoise, z_1, w, keys, logsnr_fn=cosine_logsnr, **kwargs)
    return sample_ancestral(
        denoise, z_1, w, keys, logsnr_fn=cosine_logsnr, variance_mix=0.3, **kwargs
    )


def ideal_jump(spread, num_steps):
    """The x̃ that carries the spread of x ~ N(0, spread²) at t exactly to k = max(t − 2/N, 0)."""

    def denoise(z, logsnr, w):
        grid = jnp.arange(1, num_steps + 1) / num_steps
        t = grid[jnp.abs(cosine_logsnr(grid)[None] - logsnr[:, None]).argmin(axis=1)]
        logsnr_k = cosine_logsnr(jnp.maximum(t - 2 / num_steps, 0.0))
        total_t, total_k = (
            jnp.sqrt(alpha**2 * spread**2 + sigma**2)
            for alpha, sigma in (alpha_sigma(logsnr, 4), alpha_sigma(logsnr_k, 4))
        )
        return x_tilde(total_k / total_t * z, z, logsnr_s=logsnr_k, logsnr_t=logsnr)

    return denoise


@pytest.fixture(scope="module")
def many():
    """Enough noise to measure a spread to half a percent, `[4096, 4, 4, 1]`."""
    return jax.random.normal(jax.random.key(2), (4096, 4, 4, 1))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 32])
def test_stochastic_sampler_keeps_the_spread_of_the_ideal_jump_at_every_n(many, num_steps):
    x = run_sampler("stochastic", ideal_jump(0.5, num_steps), many, num_steps=num_steps, bound=None)
    assert_allclose(x.std(), 0.5, rtol=0.01)
    assert abs(x.mean()) < 0.01


@pytest.mark.parametrize("name", ["stochastic", "ancestral"])
def test_bias_of_the_posterior_mean_falls_as_one_over_n(many, name):
    denoise = gaussian_denoiser(0.5)
    biases = []
    for num_steps in (8, 16, 32):
        x = run_sampler(name, denoise, many, num_steps=num_steps, bound=None)
        biases.append(abs(x.std().item() / 0.5 - 1))
    ratios = np.array(biases[:-1]) / np.array(biases[1:])
    assert np.all((1.5 < ratios) & (ratios < 2.7)), biases


@pytest.mark.parametrize("name", ["stochastic", "ancestral"])
def test_noise_on_the_way_comes_from_each_samples_key(noise, name):
    def run(keys):
        more = {"variance_mix": 0.3} if name == "ancestral" else {}
        sampler = {"stochastic": sample_stochastic, "ancestral": sample_ancestral}[name]
        return sampler(
            gaussian_denoiser(0.5), noise, jnp.zeros(16), keys,
            num_steps=4, logsnr_fn=cosine_logsnr, **more,
        )  # fmt: skip

    keys = jax.random.split(jax.random.key(3), 16)
    x = run(keys)
    assert_array_equal(run(keys), x)
    changed = run(keys.at[3].set(jax.random.key(4)))
    differs = np.abs(changed - x).max(axis=(1, 2, 3)) > 1e-3
    assert differs.tolist() == [i == 3 for i in range(16)]


@pytest.mark.parametrize("name", ["stochastic", "ancestral"])
def test_one_step_is_the_deterministic_sampler(noise, name):
    denoise = gaussian_denoiser(0.5)
    x = run_sampler(name, denoise, noise, num_steps=1)
    assert_array_equal(x, run_sampler("ddim", denoise, noise, num_steps=1))


def test_encoding_and_decoding_return_the_image_with_order_one(noise):
    """The exact flow is undone exactly, so what is left is the samplers' own error."""
    denoise, x = gaussian_denoiser(0.5), 0.5 * noise
    errors, latent_errors = [], []
    for num_steps in (32, 64, 128):
        z_1 = encode_ddim(denoise, x, jnp.zeros(16), num_steps=num_steps, logsnr_fn=cosine_logsnr)
        back = sample_ddim(
            denoise, z_1, jnp.zeros(16), num_steps=num_steps, logsnr_fn=cosine_logsnr, bound=None
        )
        errors.append(np.abs(back - x).max())
        latent_errors.append(np.abs(z_1 - noise).max())  # x has the spread of noise times 0.5
    for measured in (errors, latent_errors):
        orders = np.log2(np.array(measured[:-1]) / measured[1:])
        assert np.all((0.8 < orders) & (orders < 1.3)), (measured, orders)


def test_encoding_climbs_the_grid_from_the_image_and_never_clips(noise):
    seen = []

    def denoise(z, logsnr, w):
        jax.debug.callback(lambda value: seen.append(float(value)), logsnr[0])
        return jnp.full_like(z, 2.0)

    z_1 = encode_ddim(denoise, noise, jnp.zeros(16), num_steps=4, logsnr_fn=cosine_logsnr)
    jax.effects_barrier()
    assert_allclose(seen, cosine_logsnr(jnp.arange(4) / 4), rtol=1e-6)
    ends = dict(logsnr_t=jnp.full(16, 20.0), logsnr_s=jnp.full(16, -20.0))
    assert_allclose(z_1, ddim_step(jnp.full_like(noise, 2.0), noise, **ends), rtol=1e-3)


@pytest.mark.parametrize("name", ["ddim", "stochastic", "ancestral"])
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_sampler_calls_the_denoiser_on_the_grid_and_nowhere_else(noise, num_steps, name):
    seen = []

    def denoise(z, logsnr, w):
        jax.debug.callback(lambda value: seen.append(float(value)), logsnr[0])
        return jnp.zeros_like(z)

    run_sampler(name, denoise, noise, num_steps=num_steps)
    jax.effects_barrier()
    grid = jnp.arange(num_steps, 0, -1, dtype=jnp.float32) / num_steps
    assert_allclose(seen, cosine_logsnr(grid), rtol=1e-6)


@pytest.mark.parametrize("name", ["ddim", "stochastic", "ancestral"])
def test_sampler_returns_the_last_prediction_clipped_on_request(noise, name):
    run = lambda clip: run_sampler(  # noqa: E731
        name, constant_denoiser(1.5), noise, num_steps=3, bound=1.0 if clip else None
    )
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
