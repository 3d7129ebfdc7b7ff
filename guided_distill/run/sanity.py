"""Whether a teacher that was brought is what it is declared to be, tried on the data themselves.

At a few times the data are noised and the network is asked once. What its answer says of x, by the
declared kind of prediction, schedule and scale of the data, has an error; so it has by any other.
A trained network beats the best linear guess by far where it is read rightly, and hardly anywhere
else: where it does so only when it is read otherwise, the declaration is wrong.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.data.pixels import as_learnt, widen
from guided_distill.diffusion.known_schedules import DISCRETE, ends_in_noise, read_schedule
from guided_distill.diffusion.parameterization import X_FROM_PREDICTION
from guided_distill.diffusion.schedule import Schedule, alpha_sigma
from guided_distill.errors import UserError
from guided_distill.system.progress import to_stderr

EXAMPLES = 64
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
CLEARLY = 0.85  # times the declared reading's error is clearly below it
LEARNT = 0.7  # times the linear guess's error is below what has learnt nothing
SCALES = {  # of the data, which lie in [-1, 1], or as they are given
    "data as they are": lambda x: x,
    "data scaled to [0, 1]": lambda x: 0.5 * (x + 1.0),
    "data scaled to [-1, 1]": lambda x: 2.0 * x - 1.0,
}
AS_GIVEN, *OTHER_SCALES = SCALES


@dataclasses.dataclass(frozen=True)
class Reading:
    """One way to read a network: what it predicts, on which schedule, of which data."""

    prediction: str
    schedule: Schedule
    scale: str = AS_GIVEN
    way_out: str = ""


def check_reading(model, params, source, *, path, seed=0):
    """Tries a teacher on the data, and says or refuses what does not fit.

    Args:
      model: `Model`, as it is declared.
      params: its parameters.
      source: data source.
      path: of the teacher, for messages.
      seed: of the noise.

    Returns:
      The declared reading's error over that of the best linear guess.

    Raises:
      UserError: where another prediction, schedule or scale of the data fits, naming it.
    """
    x, cond = source.read(np.arange(min(EXAMPLES, len(source))))
    x, cond = as_learnt(x), model.conditioning.select(widen(cond))
    eps = jax.random.normal(jax.random.key(seed), (len(TIMES), *x.shape))
    answer = jax.jit(lambda z, logsnr: model.apply(params, z, logsnr, cond, None, None))

    def error_of(reading):
        return measure_error(answer, model, reading, SCALES[reading.scale](x), eps)

    declared = Reading(model.prediction, model.schedule)
    error, others = error_of(declared), list_others(model)
    errors = [error_of(other) for other in others]
    best = int(np.argmin(errors)) if errors else None
    if best is not None and errors[best] < min(LEARNT, CLEARLY * error):
        raise UserError(
            f"{path}: on these data its error is {error:.2f} times that of a linear guess as it is "
            f"declared, and {errors[best]:.2f} times with {others[best].way_out}"
        )
    if error > LEARNT:
        to_stderr(
            f"{path}: on these data its error is {error:.2f} times that of a linear guess: it has "
            "hardly been trained, or on other data"
        )
    return error


def list_others(model):
    """Every reading that differs from the declared one in one thing."""
    declared = Reading(model.prediction, model.schedule)
    kinds = [kind for kind in X_FROM_PREDICTION if kind != model.prediction]
    if ends_in_noise(model.schedule) and "eps" in kinds:
        kinds.remove("eps")
    readings = [
        dataclasses.replace(declared, prediction=kind, way_out=f"prediction {kind!r}")
        for kind in kinds
    ]
    if model.schedule.num_times is not None:
        for name in DISCRETE:
            other = read_schedule(name)
            reads = not (model.prediction == "eps" and ends_in_noise(other))
            is_other = other.spec != model.schedule.spec
            if reads and is_other and other.num_times == model.schedule.num_times:
                way_out = f"schedule {name!r}"
                readings.append(dataclasses.replace(declared, schedule=other, way_out=way_out))
    return readings + [
        dataclasses.replace(declared, scale=scale, way_out=scale) for scale in OTHER_SCALES
    ]


def measure_error(answer, model, reading, x, eps):
    """Squared error of v by a reading over that of the linear guess, mean over `TIMES`.

    The network is told the time as its own schedule has it; x is noised as the reading's has it.
    """
    errors = []
    for t, noise in zip(TIMES, eps, strict=True):
        told, logsnr = (
            jnp.full(len(x), schedule.logsnr(jnp.float32(t)))
            for schedule in (model.schedule, reading.schedule)
        )
        alpha, sigma = alpha_sigma(logsnr, x.ndim)
        z = alpha * x + sigma * noise
        read = dataclasses.replace(
            model,
            apply=lambda params, z, *_, told=told: answer(z, told),
            prediction=reading.prediction,
        )
        x_hat = read.denoiser(None, None)(z, logsnr, None)
        guess = guess_linearly(x, z, alpha, sigma)
        errors.append(float(jnp.mean(jnp.square(x_hat - x)) / jnp.mean(jnp.square(guess - x))))
    return float(np.mean(errors))


def guess_linearly(x, z, alpha, sigma):
    """The best guess of x that is linear in each value of z alone, knowing the data's spread."""
    mean, variance = jnp.mean(x), jnp.var(x)
    gain = alpha * variance / (jnp.square(alpha) * variance + jnp.square(sigma))
    return mean + gain * (z - alpha * mean)
