"""Which round lost what: each student's one step against its teacher's sub-steps, by w and t."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.data.pixels import to_float
from guided_distill.diffusion.schedule import cosine_logsnr
from guided_distill.distill.algorithms import ROUND_TIMES, add_noise, ddim_target
from guided_distill.models.build import build_unet
from guided_distill.models.denoiser import bind, clip_prediction
from guided_distill.progress import Progress

PICTURES = 200  # the first of the training split, the same for every round
TIMES = 8  # at most, of each round, evenly spaced on its grid


def measure_round_gaps(stages, source, weights, *, seed):
    """RMSE of x̂ from the target x̃ of each finished round of Algorithms 2 to 4, on fixed noise.

    Args:
      stages: `{name: StageFolder}`.
      source: data source.
      weights: guidance weights; those that a student does not know are left out.
      seed: of the noise.

    Returns:
      Rows as plain JSON: `stage`, `num_steps`, `w`, `t` (where the step starts), `rmse`.
    """
    rounds = [stage for stage in stages.values() if stage.record["algorithm"] in ROUND_TIMES]
    images, labels = source.read(np.arange(min(PICTURES, len(source))))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(len(images)))
    compiled, rows = {}, []
    progress = Progress("gap of each round", total=len(rounds), unit="round")
    for done, stage in enumerate(rounds, start=1):
        student, record = stage.load()
        teacher, _ = stage.parent().load()
        factor = record["factor"]
        gap = compiled.setdefault(factor, compile_gap(record, factor))
        bound = np.float32(1.0 if record["config"]["step_two"]["clip_teacher"] else np.inf)
        low, high = record["w_range"]
        for w in (w for w in weights if low <= w <= high):
            for i in starts(record["algorithm"], record["num_steps"]):
                times = ROUND_TIMES[record["algorithm"]](i, record["num_steps"], factor)
                times = np.asarray([float(time) for time in times], np.float32)
                rmse = gap(student, teacher, bound, keys, images, labels, np.float32(w), times)
                rows.append(
                    {
                        "stage": record["name"],
                        "num_steps": record["num_steps"],
                        "w": w,
                        "t": float(times[0]),
                        "rmse": float(rmse),
                    }
                )
        progress(done)
    progress.close()
    return rows


def starts(algorithm, num_steps):
    """i of the times t = i/N that are measured."""
    first, last = (0, num_steps - 1) if algorithm == "encoder" else (1, num_steps)
    return np.unique(np.linspace(first, last, min(TIMES, num_steps)).round().astype(int)).tolist()


def compile_gap(record, factor):
    """`(student, teacher, bound, keys, images, labels, w, times [factor + 1]) -> RMSE`."""
    config = record["config"]
    network = build_unet(config["model"], num_classes=record["num_classes"], w_conditioned=True)
    logsnr_fn = functools.partial(cosine_logsnr, **config["schedule"])
    bind_model = functools.partial(bind, network, prediction=config["model"]["prediction"])

    @jax.jit
    def gap(student_params, teacher_params, bound, keys, images, labels, w, times):
        batch = images.shape[0]
        times = [jnp.full(batch, time) for time in times]
        w = jnp.full(batch, w)
        logsnr_t = logsnr_fn(times[0])
        z_t = add_noise(to_float(images), keys, logsnr_t)
        teacher = clip_prediction(bind_model(teacher_params, labels), bound)
        target = ddim_target((teacher,) * factor, z_t, w, times, logsnr_fn)
        x_hat = bind_model(student_params, labels)(z_t, logsnr_t, w)
        return jnp.sqrt(jnp.mean(jnp.square(x_hat - target)))

    return gap
