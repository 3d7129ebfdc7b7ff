"""Samplers: from noise to pictures in exactly `num_steps` calls of a denoiser.

A denoiser is any function `(z, logsnr, w) -> x_hat` with its label already bound: a guided
teacher pair, a distilled student, a closed form. Step counts may be traced, so one
compilation serves every N.
"""

import jax
import jax.numpy as jnp

from guided_distill.diffusion.ddim import ddim_step


def sample_ddim(denoise, z_1, w, *, num_steps, logsnr_fn, clip=True):
    """N-step deterministic DDIM sampling (Eq. 2) over the grid t = N/N, …, 1/N.

    The last step returns the prediction x̂ at t = 1/N: N steps are N calls.

    Args:
      denoise: denoiser `(z, logsnr, w) -> x_hat`.
      z_1: standard normal noise, `[B, H, W, C]`.
      w: guidance weight, `[B]`; 0 is unguided.
      num_steps: N ≥ 1, a Python or traced integer.
      logsnr_fn: schedule t -> λ_t.
      clip: clip each x̂ to [-1, 1] before it is used.

    Returns:
      Samples, `[B, H, W, C]` float32.
    """
    num_steps = jnp.asarray(num_steps, jnp.int32)

    def logsnr_at(index):
        return logsnr_fn(jnp.full(z_1.shape[:1], index / num_steps))

    def step(k, carry):
        z_t, _ = carry
        logsnr_t, logsnr_s = logsnr_at(num_steps - k), logsnr_at(num_steps - k - 1)
        x_hat = denoise(z_t, logsnr_t, w)
        if clip:
            x_hat = jnp.clip(x_hat, -1.0, 1.0)
        return ddim_step(x_hat, z_t, logsnr_t=logsnr_t, logsnr_s=logsnr_s), x_hat

    z_1 = jnp.asarray(z_1, jnp.float32)
    _, x_hat = jax.lax.fori_loop(0, num_steps, step, (z_1, jnp.zeros_like(z_1)))
    return x_hat
