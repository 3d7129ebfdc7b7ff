"""The paper's training algorithms, one function each, in the paper's order.

What differs between Algorithms 2 to 5 is where the student's step starts and ends, and which
teacher leads there:

  2  deterministic   from t = i/N down to t − 1/N
  3  stochastic      from t = i/N down to max(t − 2/N, 0)
  4  encoder         from t = i/N up to t + 1/N
  5  two students    as 2, the last sub-step once conditional, once not

The teacher goes there in `factor` sub-steps, 2 in the paper. Arguments of all losses:

  student: model being trained, a denoiser `(z, logsnr, w) -> x_hat` with its label already
    bound; w-conditioned from step one on.
  teacher: denoiser of the model distilled; gradients never reach it.
  x: data, `[B, H, W, C]`; images lie in [-1, 1].
  keys: `[B]`, one PRNG key per example, so that a draw does not depend on how the batch lies on
    devices.
  num_steps: the student's N, a Python or traced integer; the teacher has factor · N.
  w_range: (w_min, w_max), which may be traced.
  schedule: `Schedule`, which draws t and gives λ_t.
  loss_weight: ω: λ_t `[B]` -> `[B]`.

Every loss is per example, `[B]`.
"""

import jax
import jax.numpy as jnp

from guided_distill.diffusion.ddim import ddim_step, x_tilde
from guided_distill.diffusion.guidance import guide
from guided_distill.diffusion.schedule import alpha_sigma, draw_uniform
from guided_distill.distill.losses import weighted_mse


def teacher_loss(student, x, keys, *, schedule, loss_weight):
    """The diffusion loss (Eq. 1). Conditioning is dropped before it is bound."""
    t_keys, eps_keys = split_keys(keys, 2)
    t = schedule.draw_times(t_keys)
    logsnr_t = schedule.logsnr(t)
    z_t = add_noise(x, eps_keys, logsnr_t)
    x_hat = student(z_t, logsnr_t, jnp.zeros_like(t))
    return weighted_mse(x_hat, x, loss_weight(logsnr_t))


def step_one_loss(student, teacher, x, keys, *, w_range, schedule, loss_weight):
    """Algorithm 1 (Eq. 3): one w-conditioned student matches the guided pair `teacher` at any t."""
    t_keys, w_keys, eps_keys = split_keys(keys, 3)
    t = schedule.draw_times(t_keys)
    w = draw_uniform(w_keys, *w_range)
    logsnr_t = schedule.logsnr(t)
    z_t = add_noise(x, eps_keys, logsnr_t)
    x_hat_w = jax.lax.stop_gradient(teacher(z_t, logsnr_t, w))
    return weighted_mse(student(z_t, logsnr_t, w), x_hat_w, loss_weight(logsnr_t))


def deterministic_loss(student, teacher, x, keys, **setting):
    """Algorithm 2: one student step of 1/N matches `factor` teacher steps of 1/(factor·N)."""
    return _jump_loss(student, teacher, x, keys, starts_down, times_down, **setting)


def stochastic_loss(student, teacher, x, keys, **setting):
    """Algorithm 3: as Algorithm 2 with steps of 2/N, for `sample_stochastic`.

    No time goes below 0, and a step of length zero is the identity: at t = 1/N that leaves the
    paper's else-case, ONE teacher step to 0. At N = 1 (teacher of 2) the target is x̂ of the
    teacher itself.
    """
    return _jump_loss(student, teacher, x, keys, starts_down, times_down_twice, **setting)


def encoder_loss(student, teacher, x, keys, *, schedule, **setting):
    """Algorithm 4: as Algorithm 2 with time reversed, for `encode_ddim`."""
    schedule = schedule.from_first_time()
    return _jump_loss(student, teacher, x, keys, starts_up, times_up, schedule=schedule, **setting)


def _jump_loss(
    student, teacher, x, keys, starts, times_of, *,
    num_steps, w_range, schedule, loss_weight, factor=2,
):  # fmt: skip
    """Algorithms 2 to 4, which differ in `starts` and in the times `times_of`."""
    w, times, logsnr_t, z_t = _draw(x, keys, starts, times_of, num_steps, w_range, schedule, factor)
    x_tilde_w = ddim_target(teacher, z_t, w, times, schedule.logsnr)
    return weighted_mse(student(z_t, logsnr_t, w), x_tilde_w, loss_weight(logsnr_t))


def two_student_loss(
    student, teacher, x, keys, *, num_steps, w_range, schedule, loss_weight, factor=2
):
    """Algorithm 5, the naive baseline: `student` and `teacher` are pairs (x̂_c, x̂) of denoisers.

    The guided teacher leads to the last sub-step, which its two halves take separately.
    """
    w, times, logsnr_t, z_t = _draw(
        x, keys, starts_down, times_down, num_steps, w_range, schedule, factor
    )

    def guided(z, logsnr, w):
        return guide(*(half(z, logsnr, w) for half in teacher), w)

    z_mid = ddim_path(guided, z_t, w, times[:-1], schedule.logsnr)
    loss = jnp.zeros_like(w)
    for student_half, teacher_half in zip(student, teacher, strict=True):
        z_end = ddim_path(teacher_half, z_mid, w, times[-2:], schedule.logsnr)
        target = x_tilde(z_end, z_t, logsnr_s=schedule.logsnr(times[-1]), logsnr_t=logsnr_t)
        target = jax.lax.stop_gradient(target)
        loss += weighted_mse(student_half(z_t, logsnr_t, w), target, loss_weight(logsnr_t))
    return loss


def _draw(x, keys, starts, times_of, num_steps, w_range, schedule, factor):
    """(w, times from t = i/N on, λ_t, z_t): what Algorithms 2 to 5 begin with."""
    i_keys, w_keys, eps_keys = split_keys(keys, 3)
    i = draw_index(i_keys, *starts(num_steps))
    w = draw_uniform(w_keys, *w_range)
    times = times_of(i, num_steps, factor)
    logsnr_t = schedule.logsnr(times[0])
    return w, times, logsnr_t, add_noise(x, eps_keys, logsnr_t)


def starts_down(num_steps):
    """(first, last) i of a step down from t = i/N."""
    return 1, num_steps


def starts_up(num_steps):
    """(first, last) i of a step up from t = i/N."""
    return 0, num_steps - 1


def times_down(i, num_steps, factor):
    """(t, …, t − 1/N) from t = i/N, in `factor` sub-steps."""
    return [(i - k / factor) / num_steps for k in range(factor + 1)]


def times_down_twice(i, num_steps, factor):
    """(t, …, max(t − 2/N, 0)) from t = i/N."""
    return [jnp.maximum(i - 2 * k / factor, 0) / num_steps for k in range(factor + 1)]


def times_up(i, num_steps, factor):
    """(t, …, t + 1/N) from t = i/N."""
    return [(i + k / factor) / num_steps for k in range(factor + 1)]


def ddim_target(denoise, z_t, w, times, logsnr_fn):
    """x̃: what ONE step from times[0] to times[-1] must predict to match the teacher's sub-steps.

    Args:
      denoise: the teacher.
      z_t: latent at times[0], `[B, H, W, C]`.
      w: guidance weight, `[B]`.
      times: (t, …, t_end) of the sub-steps, arrays `[B]`, in either direction.
      logsnr_fn: schedule t -> λ_t.

    Returns:
      x̃, `[B, H, W, C]`, never differentiated.
    """
    z_end = ddim_path(denoise, z_t, w, times, logsnr_fn)
    logsnr_end, logsnr_t = logsnr_fn(times[-1]), logsnr_fn(times[0])
    return jax.lax.stop_gradient(x_tilde(z_end, z_t, logsnr_s=logsnr_end, logsnr_t=logsnr_t))


def ddim_path(denoise, z_t, w, times, logsnr_fn):
    """Where DDIM steps lead from z_t: arguments of `ddim_target`.

    Written out: for a loop of them the TPU's compiler takes more memory.
    """
    logsnrs = [logsnr_fn(time) for time in times]
    z = z_t
    for logsnr_a, logsnr_b in zip(logsnrs[:-1], logsnrs[1:], strict=True):
        z = ddim_step(denoise(z, logsnr_a, w), z, logsnr_t=logsnr_a, logsnr_s=logsnr_b)
    return z


def add_noise(x, keys, logsnr_t):
    """z_t = α_t x + σ_t ε with one ε ~ N(0, I) per key; `x` `[B, H, W, C]`, the rest `[B]`."""
    alpha_t, sigma_t = alpha_sigma(logsnr_t, x.ndim)
    eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], jnp.float32))(keys)
    return alpha_t * x + sigma_t * eps


def draw_index(keys, first, last):
    """One integer per key, uniform on first, …, last (both included; may be traced), `[B]`."""
    return jax.vmap(lambda key: jax.random.randint(key, (), first, last + 1))(keys)


def split_keys(keys, num):
    """`num` arrays of keys `[B]` out of one."""
    return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys)
