"""Noise schedules. Time t runs in [0, 1]: 0 is data, 1 is noise."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

FLOW_LOGSNR_MAX = 20.0  # as of the cosine schedule: σ = 4.5e-5
CONTINUOUS_TIMES = 1000  # at which two continuous schedules are compared
SAME_LOGSNR = 1e-3  # apart are tables that were computed in other precisions


@dataclasses.dataclass(frozen=True)
class Schedule:
    """λ over time, and at which times a model is trained.

    Attributes:
      logsnr: t -> λ_t, any shape, float32; λ may be infinite at the ends.
      num_times: T of a model that is trained and asked at t = 1/T, …, 1 alone; None where t is
        continuous.
      spec: what `read_schedule` makes the same of, plain JSON; None where Python alone knows it.
    """

    logsnr: Callable
    num_times: int | None = None
    spec: dict | None = None

    def agrees_with(self, other):
        """Whether both are asked at the same times, with the same λ at each."""
        count = self.num_times or CONTINUOUS_TIMES
        times = np.arange(1, count + 1, dtype=np.float32) / count
        same = np.allclose(self.logsnr(times), other.logsnr(times), rtol=0.0, atol=SAME_LOGSNR)
        return same and self.num_times == other.num_times

    def draw_times(self, keys):
        """One t per key that the model is trained at, uniform, `[B]` float32."""
        if self.num_times is None:
            return draw_uniform(keys, 0.0, 1.0)
        draw = lambda key: jax.random.randint(key, (), 1, self.num_times + 1)  # noqa: E731
        return jax.vmap(draw)(keys) / jnp.float32(self.num_times)

    def from_first_time(self):
        """The `Schedule` of a run from data to noise, whose λ is finite at t = 0.

        Where λ(0) is infinite, no ε can be told from z = x. So such a run begins at the table's
        first time: λ(1/T) in place of λ(0), with x for z, as DDIM inversion has it.
        """
        if self.num_times is None:
            return self

        def logsnr(t):
            at_0, at_first = self.logsnr(0.0), self.logsnr(1.0 / self.num_times)
            return jnp.minimum(self.logsnr(t), jnp.where(jnp.isinf(at_0), at_first, at_0))

        return dataclasses.replace(self, logsnr=logsnr, spec=None)


def cosine_schedule(logsnr_min=-20.0, logsnr_max=20.0):
    """The continuous cosine `Schedule`; arguments as in `cosine_logsnr`."""
    ends = {"logsnr_min": float(logsnr_min), "logsnr_max": float(logsnr_max)}
    return Schedule(functools.partial(cosine_logsnr, **ends), spec={"name": "cosine"} | ends)


def table_schedule(logsnrs, spec=None):
    """The `Schedule` of a model of T discrete times.

    Args:
      logsnrs: λ at t = 0, 1/T, …, 1, `[T + 1]`, falling; the first may be infinite (x itself).
      spec: as in `Schedule`.
    """
    table = np.asarray(logsnrs, np.float32)
    last = len(table) - 1

    def logsnr(t):
        return jnp.asarray(table)[jnp.round(jnp.asarray(t) * last).astype(jnp.int32)]

    return Schedule(logsnr, last, spec)


def flow_schedule(shift=1.0):
    """The continuous `Schedule` of rectified flow, whose z is (1 − σ) x + σ ε.

    In unit-variance latents that is λ = 2 log((1 − σ) / σ), with σ = shift · t /
    (1 + (shift − 1) t). λ ends at −∞, which is noise alone, and is cut at `FLOW_LOGSNR_MAX`.
    """
    shift = float(shift)

    def logsnr(t):
        t = jnp.asarray(t, jnp.float32)
        # (1 − σ) / σ = (1 − t) / (shift · t).
        rising = 2.0 * (jnp.log1p(-t) - jnp.log(t) - math.log(shift))
        return jnp.minimum(rising, FLOW_LOGSNR_MAX)

    return Schedule(logsnr, spec={"name": "flow", "shift": shift})


def flow_sigma(logsnr):
    """σ of rectified flow at λ: what such networks are told, any shape."""
    return jax.nn.sigmoid(-0.5 * jnp.asarray(logsnr, jnp.float32))


def nearest_index(logsnr, logsnrs):
    """Index of each λ, `[B]`, in the table `logsnrs`, `[T + 1]`, as discrete networks are told.

    Counted, as `jnp.searchsorted` does not run on a device's part of a batch (JAX 0.10).
    """
    midpoints = 0.5 * (logsnrs[1:] + logsnrs[:-1])
    return jnp.sum(midpoints[None, :] > jnp.asarray(logsnr, jnp.float32)[:, None], axis=1)


def draw_uniform(keys, low, high):
    """One U[low, high) draw per key, `[B]`."""
    return jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(keys)


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
    slope, angle_0, angle_1 = _cosine_angles(logsnr_min, logsnr_max)
    # float32 cannot resolve angles near π/2, so the noisy half is measured from π/2 down.
    clean_half = -2.0 * jnp.log(jnp.tan(slope * t + angle_0))
    noisy_half = 2.0 * jnp.log(jnp.tan(slope * (1.0 - t) + angle_1))
    return jnp.where(t < 0.5, clean_half, noisy_half)


def cosine_time(logsnr, logsnr_min=-20.0, logsnr_max=20.0):
    """t of λ_t on the cosine schedule, the inverse of `cosine_logsnr`."""
    slope, angle_0, _ = _cosine_angles(logsnr_min, logsnr_max)
    return (jnp.arctan(jnp.exp(-0.5 * jnp.asarray(logsnr, jnp.float32))) - angle_0) / slope


def _cosine_angles(logsnr_min, logsnr_max):
    """(slope over t, angle at t = 0, π/2 less the angle at t = 1) of the cosine schedule."""
    angle_0 = math.atan(math.exp(-0.5 * logsnr_max))
    angle_1 = math.atan(math.exp(0.5 * logsnr_min))
    return 0.5 * math.pi - angle_0 - angle_1, angle_0, angle_1


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
