"""The ancestral step of DDPM (Ho et al. 2020), the stochastic baseline for guided teachers."""

import jax.numpy as jnp

from guided_distill.diffusion.schedule import alpha_sigma, expand_dims


def ancestral_step(x_hat, z_t, eps, *, logsnr_t, logsnr_s, variance_mix):
    """A draw of z_s given z_t, the data taken to be x̂.

    The mean is that of q(z_s | z_t, x̂). With 1 − exp(λ_t − λ_s) =: g, the log-variance lies
    between that posterior's, log(g σ_s²), and that of the forward step, log(g σ_t²).

    Args:
      x_hat: prediction of x at time t, `[B, H, W, C]`.
      z_t: latent at time t, `[B, H, W, C]`.
      eps: standard normal noise, `[B, H, W, C]`.
      logsnr_t: λ_t, `[B]`.
      logsnr_s: λ_s ≥ λ_t, `[B]`.
      variance_mix: 0 for the posterior's variance, 1 for the forward step's.

    Returns:
      z_s, `[B, H, W, C]`; z_t itself where s = t.
    """
    alpha_t, sigma_t = alpha_sigma(logsnr_t, z_t.ndim)
    alpha_s, sigma_s = alpha_sigma(logsnr_s, z_t.ndim)
    log_ratio = expand_dims(logsnr_t - logsnr_s, z_t.ndim)
    gain = -jnp.expm1(log_ratio)
    mean = jnp.exp(log_ratio) * (alpha_s / alpha_t) * z_t + gain * alpha_s * x_hat
    spread = sigma_s ** (1.0 - variance_mix) * sigma_t**variance_mix
    return mean + jnp.sqrt(gain) * spread * eps
