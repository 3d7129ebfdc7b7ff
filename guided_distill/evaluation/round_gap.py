"""Which round lost what: each student's one step against its teacher's sub-steps, by w and t."""

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.data.pixels import as_learnt, widen
from guided_distill.distill.algorithms import add_noise, ddim_target
from guided_distill.distill.distillations import distillation_of
from guided_distill.models.build import model_of
from guided_distill.models.model import clip_prediction
from guided_distill.system.progress import Progress
from guided_distill.system.workdir import teacher_of

EXAMPLES = 200  # the first of the training split, the same for every round
TIMES = 8  # at most, of each round, evenly spaced on its grid


def measure_round_gaps(stages, source, weights, *, seed):
    """RMSE of x̂ from the target x̃ of each finished round of Algorithms 2 to 4, on fixed noise.

    Args:
      stages: `{name: FinishedStage}`.
      source: data source.
      weights: guidance weights; those that a student does not know are left out.
      seed: of the noise.

    Returns:
      Rows as plain JSON: `stage`, `num_steps`, `w`, `t` (where the step starts), `rmse`.
    """
    rounds = [stage for stage in stages.values() if times_of(stage.record)]
    x, cond = source.read(np.arange(min(EXAMPLES, len(source))))
    x, cond = as_learnt(x), widen(cond)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(len(x)))
    compiled, rows = {}, []
    progress = Progress("gap of each round", total=len(rounds), unit="round")
    for done, stage in enumerate(rounds, start=1):
        record, teacher = stage.record, teacher_of(stage, stages)
        params = jax.device_put((stage.params, teacher.params))
        model = model_of(stage)
        schedule = model.schedule
        if distillation_of(record).encodes:
            schedule = schedule.from_first_time()
        of_own_schedule = schedule is model.schedule
        gap = compiled.setdefault(of_own_schedule, compile_gap(model, schedule))
        bound = np.float32(1.0 if record["config"]["step_two"]["clip_teacher"] else np.inf)
        low, high = record["w_range"]
        for w in (w for w in weights if low <= w <= high):
            for times in times_measured(record):
                rmse = gap(*params, bound, keys, x, cond, np.float32(w), times)
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


def times_of(record):
    """Where a round's step leads, as `Distillation.times`; None for other stages."""
    row = distillation_of(record)
    return row and row.times


def times_measured(record):
    """Times of a round's steps, `[factor + 1]` float32 each: at most `TIMES`, evenly spaced."""
    num_steps = record["num_steps"]
    first, last = distillation_of(record).starts(num_steps)
    starts = np.linspace(first, last, min(TIMES, num_steps)).round().astype(int)
    for i in np.unique(starts).tolist():
        times = times_of(record)(i, num_steps, record["factor"])
        yield np.asarray([float(time) for time in times], np.float32)


def compile_gap(model, schedule):
    """`(student, teacher, bound, keys, x, cond, w, times [factor + 1]) -> RMSE`."""
    logsnr_fn = schedule.logsnr

    @jax.jit
    def gap(student_params, teacher_params, bound, keys, x, cond, w, times):
        batch = x.shape[0]
        times = [jnp.full(batch, time) for time in times]
        w = jnp.full(batch, w)
        logsnr_t = logsnr_fn(times[0])
        z_t = add_noise(x, keys, logsnr_t)
        teacher = clip_prediction(model.denoiser(teacher_params, cond), bound)
        target = ddim_target(teacher, z_t, w, times, logsnr_fn)
        x_hat = model.denoiser(student_params, cond)(z_t, logsnr_t, w)
        return jnp.sqrt(jnp.mean(jnp.square(x_hat - target)))

    return gap
