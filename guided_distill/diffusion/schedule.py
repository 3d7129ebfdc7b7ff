"""Noise schedules. Time t runs in [0, 1]: 0 is data, 1 is noise."""

import math

import jax
import jax.numpy as jnp


def cosine_logsnr(t, logsnr_min=-20.0, logsnr_max=20.0):
    """Log signal-to-noise ratio λ_t = log(α_t²/σ_t²) of the cosine schedule.

    λ(t) = −2 log tan(a t + b), scaled so that λ(0) = logsnr_max and λ(1) = logsnr_min
    (Nichol & Dhariwal 2021; Salimans & Ho 2022).

    Args:
      t: any shape, in [0, 1].
      logsnr_min: λ at t = 1.
      logsnr_max: λ at t = 0.

    Returns:
      λ_t, the shape of `t`, float32.
    """
    t = jnp.asarray(t, jnp.float32)
    angle_0 = math.atan(math.exp(-0.5 * logsnr_max))  # the angle at t = 0
    angle_1 = math.atan(math.exp(0.5 * logsnr_min))  # π/2 less the angle at t = 1
    slope = 0.5 * math.pi - angle_0 - angle_1
    # float32 cannot resolve angles near π/2, so the noisy half is measured from π/2 down.
    clean_half = -2.0 * jnp.log(jnp.tan(slope * t + angle_0))
    noisy_half = 2.0 * jnp.log(jnp.tan(slope * (1.0 - t) + angle_1))
    return jnp.where(t < 0.5, clean_half, noisy_half)


def alpha_sigma(logsnr, ndim):
    """α and σ with α² = sigmoid(λ) and σ² = sigmoid(−λ), so α² + σ² = 1.

    Args:
      logsnr: λ, `[B]`.
      ndim: rank of the arrays they will multiply.

    Returns:
      (α, σ), each `[B, 1, …, 1]` of rank `ndim`, float32.
    """
    logsnr = expand_dims(jnp.asarray(logsnr, jnp.float32), ndim)
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def expand_dims(value, ndim):
    """`value` with trailing axes of length 1 until its rank is `ndim`."""
    return jnp.reshape(value, value.shape + (1,) * (ndim - value.ndim))
