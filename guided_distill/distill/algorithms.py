"""The paper's training algorithms, one function each, in the paper's order.

A denoiser is any function `(z, logsnr, w) -> x_hat` with its label already bound. `x` is
`[B, H, W, C]` in [-1, 1]; `keys` is `[B]`, one PRNG key per example, so that a draw does not
depend on how the batch lies on devices. Every loss is per example, `[B]`. Gradients flow to
the student alone.
"""

import jax
import jax.numpy as jnp

from guided_distill.diffusion.ddim import ddim_step, x_tilde
from guided_distill.diffusion.schedule import alpha_sigma
from guided_distill.distill.losses import weighted_mse


def teacher_loss(denoise, x, keys, *, logsnr_fn, loss_weight):
    """The diffusion loss (Eq. 1), continuous time. Label dropout happens before `denoise` is bound.

    Args:
      denoise: the model being trained.
      x: data, `[B, H, W, C]`.
      keys: `[B]` PRNG keys.
      logsnr_fn: schedule t -> λ_t.
      loss_weight: ω: λ_t `[B]` -> `[B]`.

    Returns:
      Loss per example, `[B]`.
    """
    t_keys, eps_keys = split_keys(keys, 2)
    t = draw_uniform(t_keys, 0.0, 1.0)
    logsnr_t = logsnr_fn(t)
    z_t = add_noise(x, eps_keys, logsnr_t)
    x_hat = denoise(z_t, logsnr_t, jnp.zeros_like(t))
    return weighted_mse(x_hat, x, loss_weight(logsnr_t))


def step_one_loss(student, teacher, x, keys, *, w_range, logsnr_fn, loss_weight):
    """Algorithm 1 (Eq. 3): one w-conditioned student matches the guided teacher at any t.

    Args:
      student: w-conditioned model being trained.
      teacher: the guided pair (x̂_c, x̂) as one denoiser.
      x: data, `[B, H, W, C]`.
      keys: `[B]` PRNG keys.
      w_range: (w_min, w_max).
      logsnr_fn: schedule t -> λ_t.
      loss_weight: ω: λ_t `[B]` -> `[B]`.

    Returns:
      Loss per example, `[B]`.
    """
    t_keys, w_keys, eps_keys = split_keys(keys, 3)
    t = draw_uniform(t_keys, 0.0, 1.0)
    w = draw_uniform(w_keys, *w_range)
    logsnr_t = logsnr_fn(t)
    z_t = add_noise(x, eps_keys, logsnr_t)
    x_hat_w = jax.lax.stop_gradient(teacher(z_t, logsnr_t, w))
    return weighted_mse(student(z_t, logsnr_t, w), x_hat_w, loss_weight(logsnr_t))


def step_two_loss(student, teacher, x, keys, *, num_steps, w_range, logsnr_fn, loss_weight):
    """Algorithm 2: one student step of 1/N matches two teacher steps of 0.5/N.

    Args:
      student: w-conditioned model being trained.
      teacher: w-conditioned model of 2N steps.
      x: data, `[B, H, W, C]`.
      keys: `[B]` PRNG keys.
      num_steps: the student's N, a Python or traced integer.
      w_range: (w_min, w_max).
      logsnr_fn: schedule t -> λ_t.
      loss_weight: ω: λ_t `[B]` -> `[B]`.

    Returns:
      Loss per example, `[B]`.
    """
    i_keys, w_keys, eps_keys = split_keys(keys, 3)
    i = draw_index(i_keys, 1, num_steps)
    w = draw_uniform(w_keys, *w_range)
    t, t_mid, t_end = i / num_steps, (i - 0.5) / num_steps, (i - 1) / num_steps
    logsnr_t = logsnr_fn(t)
    z_t = add_noise(x, eps_keys, logsnr_t)
    x_tilde_w = ddim_target((teacher, teacher), z_t, w, (t, t_mid, t_end), logsnr_fn)
    return weighted_mse(student(z_t, logsnr_t, w), x_tilde_w, loss_weight(logsnr_t))


def ddim_target(denoisers, z_t, w, times, logsnr_fn):
    """x̃: what ONE step from times[0] to times[-1] must predict to match the teachers' sub-steps.

    Args:
      denoisers: one denoiser per sub-step.
      z_t: latent at times[0], `[B, H, W, C]`.
      w: guidance weight, `[B]`.
      times: `len(denoisers) + 1` arrays `[B]`: (t, …, t_end), in either direction.
      logsnr_fn: schedule t -> λ_t.

    Returns:
      x̃, `[B, H, W, C]`, never differentiated.
    """
    if len(times) != len(denoisers) + 1:
        raise ValueError(
            f"{len(denoisers)} sub-steps need {len(denoisers) + 1} times, got {len(times)}"
        )
    logsnrs = [logsnr_fn(time) for time in times]
    z = z_t
    for denoise, logsnr_a, logsnr_b in zip(denoisers, logsnrs[:-1], logsnrs[1:], strict=True):
        z = ddim_step(denoise(z, logsnr_a, w), z, logsnr_t=logsnr_a, logsnr_s=logsnr_b)
    target = x_tilde(z, z_t, logsnr_s=logsnrs[-1], logsnr_t=logsnrs[0])
    return jax.lax.stop_gradient(target)


def add_noise(x, keys, logsnr_t):
    """z_t = α_t x + σ_t ε with one ε ~ N(0, I) per key; `x` `[B, H, W, C]`, the rest `[B]`."""
    alpha_t, sigma_t = alpha_sigma(logsnr_t, x.ndim)
    eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], jnp.float32))(keys)
    return alpha_t * x + sigma_t * eps


def draw_uniform(keys, low, high):
    """One U[low, high) draw per key, `[B]`."""
    return jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(keys)


def draw_index(keys, first, last):
    """One integer per key, uniform on first, …, last (both included; may be traced), `[B]`."""
    return jax.vmap(lambda key: jax.random.randint(key, (), first, last + 1))(keys)


def split_keys(keys, num):
    """`num` arrays of keys `[B]` out of one."""
    return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys)
