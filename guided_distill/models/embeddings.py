"""What conditions the network: the noise level and the guidance weight, as sinusoids."""

import math

import jax.numpy as jnp


def sinusoids(value, dim, *, low, high):
    """Sines and cosines of `value` at `dim // 2` frequencies, log-spaced from `low` to `high`.

    Args:
      value: `[B]`.
      dim: even number of features.
      low: lowest angular frequency.
      high: highest angular frequency.

    Returns:
      `[B, dim]` float32.
    """
    steps = jnp.linspace(math.log(low), math.log(high), dim // 2, dtype=jnp.float32)
    angles = jnp.asarray(value, jnp.float32)[:, None] * jnp.exp(steps)[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def embed_logsnr(logsnr, dim):
    """Sinusoids of 1000 u, u = atan(exp(−λ/2)) · 2/π: about t again (Salimans & Ho 2022).

    λ is `[B]`; returns `[B, dim]`.
    """
    u = jnp.arctan(jnp.exp(-0.5 * jnp.asarray(logsnr, jnp.float32))) * (2.0 / jnp.pi)
    return sinusoids(1000.0 * u, dim, low=1e-4, high=1.0)


def embed_w(w, dim):
    """Fourier embedding of the guidance weight (section 3, step one): `[B]` -> `[B, dim]`.

    Periods from 0.8 to 25: smooth over the paper's interval [0, 4], apart for weights 0.1 apart.
    """
    return sinusoids(w, dim, low=0.25, high=8.0)
