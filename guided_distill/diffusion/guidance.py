"""Classifier-free guidance (Ho & Salimans 2022)."""

import jax.numpy as jnp

from guided_distill.diffusion.schedule import expand_dims


def guide(x_cond, x_uncond, w):
    """Guided prediction x̂^w = (1 + w) x̂_c − w x̂, written so that w = 0 gives x̂_c exactly.

    Args:
      x_cond: conditional prediction x̂_c, `[B, H, W, C]`.
      x_uncond: unconditional prediction x̂, `[B, H, W, C]`.
      w: guidance weight, `[B]` (or a scalar); 0 is unguided.

    Returns:
      x̂^w, `[B, H, W, C]`.
    """
    w = expand_dims(jnp.asarray(w, x_cond.dtype), x_cond.ndim)
    return x_cond + w * (x_cond - x_uncond)
