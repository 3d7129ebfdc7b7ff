"""Samplers: from noise to images, and back, in exactly `num_steps` calls of a denoiser.

A denoiser is any function `(z, logsnr, w) -> x_hat` with its conditioning already bound: a guided
teacher pair, a distilled student, a closed form. Step counts may be traced, so one
compilation serves every N.

The samplers go down the grid t = N/N, …, 1/N. Their last step returns the prediction x̂ at
t = 1/N: N steps are N calls. Each x̂ is clipped to ±`bound` before it is used (1 for images; None
clips nothing, as latents need). In all of them:

  denoise: denoiser `(z, logsnr, w) -> x_hat`.
  z_1: standard normal noise, `[B, H, W, C]`.
  w: guidance weight, `[B]`; 0 is unguided.
  keys: `[B]` PRNG keys, one per sample, of the noise drawn on the way.
  num_steps: N ≥ 1, a Python or traced integer.
  logsnr_fn: schedule t -> λ_t.

and the samples are `[B, H, W, C]` float32.
"""

import jax
import jax.numpy as jnp

from guided_distill.diffusion.ancestral import ancestral_step
from guided_distill.diffusion.ddim import ddim_step, renoise


def sample_ddim(denoise, z_1, w, *, num_steps, logsnr_fn, bound=1.0):
    """Deterministic DDIM sampling (Eq. 2). Arguments: see the module."""

    def advance(x_hat, z_t, i, logsnr_at):
        return ddim_step(x_hat, z_t, logsnr_t=logsnr_at(i), logsnr_s=logsnr_at(i - 1))

    return _sample(denoise, z_1, w, advance, num_steps, logsnr_fn, bound)


def sample_stochastic(denoise, z_1, w, keys, *, num_steps, logsnr_fn, bound=1.0):
    """The paper's stochastic sampling (Eqs. 4-5). Arguments: see the module.

    From t a DDIM step of twice the length to k = t − 2/N, then noise back up to s = t − 1/N; at
    t = 1/N the deterministic end. N = 1 is `sample_ddim`.
    """

    def advance(x_hat, z_t, i, logsnr_at):
        logsnr_s, logsnr_k = logsnr_at(i - 1), logsnr_at(jnp.maximum(i - 2, 0))
        z_k = ddim_step(x_hat, z_t, logsnr_t=logsnr_at(i), logsnr_s=logsnr_k)
        return renoise(z_k, _noise(keys, i, z_t), logsnr_k=logsnr_k, logsnr_s=logsnr_s)

    return _sample(denoise, z_1, w, advance, num_steps, logsnr_fn, bound)


def sample_ancestral(denoise, z_1, w, keys, *, num_steps, logsnr_fn, variance_mix, bound=1.0):
    """DDPM's ancestral sampling (Ho et al. 2020). Arguments: see the module, and

    variance_mix: where the log-variance lies between the posterior's (0) and that of the
      forward step (1).
    """

    def advance(x_hat, z_t, i, logsnr_at):
        return ancestral_step(
            x_hat,
            z_t,
            _noise(keys, i, z_t),
            logsnr_t=logsnr_at(i),
            logsnr_s=logsnr_at(i - 1),
            variance_mix=variance_mix,
        )

    return _sample(denoise, z_1, w, advance, num_steps, logsnr_fn, bound)


def encode_ddim(denoise, x, w, *, num_steps, logsnr_fn):
    """DDIM run backwards: from images at t = 0 over 1/N, …, to latents at t = 1.

    Never clipped: a clip would lose what decoding needs.

    Args:
      denoise: denoiser; for a distilled encoder, of this N.
      x: images or latents, `[B, H, W, C]`.
      w: guidance weight, `[B]`.
      num_steps: N ≥ 1, a Python or traced integer.
      logsnr_fn: schedule t -> λ_t.

    Returns:
      Latents z_1, `[B, H, W, C]` float32, for `sample_ddim` to decode.
    """
    num_steps = jnp.asarray(num_steps, jnp.int32)
    logsnr_at = _on_grid(logsnr_fn, num_steps, x.shape[0])

    def step(i, z_t):
        logsnr_t, logsnr_s = logsnr_at(i), logsnr_at(i + 1)
        return ddim_step(denoise(z_t, logsnr_t, w), z_t, logsnr_t=logsnr_t, logsnr_s=logsnr_s)

    return jax.lax.fori_loop(0, num_steps, step, jnp.asarray(x, jnp.float32))


def _sample(denoise, z_1, w, advance, num_steps, logsnr_fn, bound):
    """N calls of `denoise`; `advance(x_hat, z_t, i, logsnr_at)` leads from t = i/N to (i − 1)/N."""
    num_steps = jnp.asarray(num_steps, jnp.int32)
    logsnr_at = _on_grid(logsnr_fn, num_steps, z_1.shape[0])

    def step(k, carry):
        z_t, _ = carry
        i = num_steps - k
        x_hat = denoise(z_t, logsnr_at(i), w)
        if bound is not None:
            x_hat = jnp.clip(x_hat, -bound, bound)
        return advance(x_hat, z_t, i, logsnr_at), x_hat

    z_1 = jnp.asarray(z_1, jnp.float32)
    _, x_hat = jax.lax.fori_loop(0, num_steps, step, (z_1, jnp.zeros_like(z_1)))
    return x_hat


def _on_grid(logsnr_fn, num_steps, batch_size):
    """i -> λ(i/N), `[B]`."""
    return lambda i: logsnr_fn(jnp.full((batch_size,), i / num_steps))


def _noise(keys, i, z_t):
    """Standard normal noise of the step that starts at i/N, a key per sample."""
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, i), z_t.shape[1:])  # noqa: E731
    return jax.vmap(draw)(keys)
