"""The DDIM step, its inversion, and noising (Eqs. 2, 4, 5; the x̃ line of Algorithms 2-5).

A DDIM step is linear in the prediction: with r = σ_s/σ_t,

    z_s = r z_t + (α_s − r α_t) x̂,

so the x̂ that carries z_t to a given z_s in ONE step is x̃ = (z_s − r z_t) / (α_s − r α_t).
Times may go either way: s < t removes noise, s > t encodes.
"""

import jax
import jax.numpy as jnp

from guided_distill.diffusion.schedule import alpha_sigma, expand_dims


def ddim_step(x_hat, z_t, *, logsnr_t, logsnr_s):
    """DDIM step from time t to time s (Eq. 2).

    Args:
      x_hat: prediction of x at time t, `[B, H, W, C]`.
      z_t: latent at time t, `[B, H, W, C]`.
      logsnr_t: λ_t, `[B]`.
      logsnr_s: λ_s, `[B]`.

    Returns:
      z_s, `[B, H, W, C]`; z_t itself where s = t.
    """
    z_weight, x_weight = _step_weights(logsnr_t, logsnr_s, z_t.ndim)
    return z_weight * z_t + x_weight * x_hat


def x_tilde(z_s, z_t, *, logsnr_s, logsnr_t):
    """The prediction x̃ that makes `ddim_step` lead from z_t to z_s (Algorithm 2).

    Args:
      z_s: latent at the step's end, `[B, H, W, C]`.
      z_t: latent at the step's start, `[B, H, W, C]`.
      logsnr_s: λ_s, `[B]`.
      logsnr_t: λ_t, `[B]`; must differ from λ_s.

    Returns:
      x̃, `[B, H, W, C]`.
    """
    z_weight, x_weight = _step_weights(logsnr_t, logsnr_s, z_t.ndim)
    return (z_s - z_weight * z_t) / x_weight


def renoise(z_k, eps, *, logsnr_k, logsnr_s):
    """Noise added from time k up to s: a draw from q(z_s | z_k) (Eqs. 4-5).

    z_s = (α_s/α_k) z_k + σ_{s|k} ε, with σ²_{s|k} = (1 − exp(λ_s − λ_k)) σ_s².

    Args:
      z_k: latent at the cleaner time k, `[B, H, W, C]`.
      eps: standard normal noise, `[B, H, W, C]`.
      logsnr_k: λ_k, `[B]`.
      logsnr_s: λ_s ≤ λ_k, `[B]`.

    Returns:
      z_s, `[B, H, W, C]`; z_k itself where s = k.
    """
    alpha_k, _ = alpha_sigma(logsnr_k, z_k.ndim)
    alpha_s, sigma_s = alpha_sigma(logsnr_s, z_k.ndim)
    noise_share = -jnp.expm1(expand_dims(_difference(logsnr_s, logsnr_k), z_k.ndim))
    return alpha_s / alpha_k * z_k + jnp.sqrt(noise_share) * sigma_s * eps


def _step_weights(logsnr_t, logsnr_s, ndim):
    """(r, α_s − r α_t), the weights of z_t and of x̂ in a DDIM step.

    σ² = exp(−softplus λ) gives r without a division, and r α_t/α_s = exp((λ_t − λ_s)/2) turns
    the difference, which cancels for short steps, into an `expm1`.
    """
    logsnr_t = jnp.asarray(logsnr_t, jnp.float32)
    logsnr_s = jnp.asarray(logsnr_s, jnp.float32)
    alpha_s, _ = alpha_sigma(logsnr_s, ndim)
    softplus = jax.nn.softplus
    ratio = jnp.exp(0.5 * _difference(softplus(logsnr_t), softplus(logsnr_s)))
    shrink = -jnp.expm1(0.5 * _difference(logsnr_t, logsnr_s))
    return expand_dims(ratio, ndim), alpha_s * expand_dims(shrink, ndim)


def _difference(a, b):
    """a − b, which is 0 where both are the same infinity: λ at the end of a schedule may be one."""
    return jnp.where(a == b, 0.0, a - b)
