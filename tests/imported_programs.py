"""Updates of imported networks, by the programs of a run."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.run.programs import StagePrograms, given_of, make_models
from guided_distill.run.settings import load_config
from guided_distill.run.stages import first_teacher, plan_stages
from guided_distill.system import sharding

SMALL = pathlib.Path(__file__).with_name("small.py")
NUM_CLASSES = 10
KINDS = ("step_one", "step_two")  # Algorithm 1, and the first round by Algorithm 2


def programs_of(folder, mesh, *, models=None, **settings):
    """(programs, {kind: stage}, teacher) of the small run that begins with an imported folder.

    `models` (teacher, student) replace those of the folder; `settings` are keys with `__` for dots.
    """
    config = load_config(str(SMALL))
    config.teacher.path = str(folder)
    # Of a key's bias the gradient is rounding alone, of which Adam would make a whole step.
    config.optimizer.adam_eps = 1e-3
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in settings.items()})
    teacher = first_teacher(config)
    shape = tuple(teacher.record["image_shape"])
    models = models or make_models(config, shape, NUM_CLASSES, teacher)
    example = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    stages = {stage.kind: stage for stage in reversed(plan_stages(config, teacher))}
    return StagePrograms(config, mesh, models, example), stages, teacher


def random_batch(shape, size=8):
    """(latents, classes), as a data set gives them."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((size, *shape)).astype(np.float32)
    return latents, rng.integers(0, NUM_CLASSES, size, dtype=np.int32)


def prepare_update(programs, stage, params, batch):
    """(update, first state, given, batch): laid on the devices of the programs."""
    mesh = programs.mesh
    if stage.kind == "step_two":
        params = programs.with_w_branch(stage, params)
    params = sharding.place(params, mesh)
    given = given_of(stage, sharding.put_key(programs.stage_key(stage), mesh), params)
    batch = tuple(sharding.put(part, sharding.batch_sharding(mesh)) for part in batch)
    state = programs.fresh_state(stage, params)
    return programs.update_of(stage), state, given.replace(learning_rate=np.float32(1e-3)), batch


def updated(folder, kind, mesh, **settings):
    """(first params, params after one update, its metrics), on the host."""
    programs, stages, teacher = programs_of(folder, mesh, **settings)
    batch = random_batch(programs.student.sample_shape)
    update, state, given, batch = prepare_update(programs, stages[kind], teacher.params, batch)
    before = sharding.to_host(state.params)
    state, metrics = update(state, given, batch)
    return before, sharding.to_host(state.params), jax.device_get(metrics)
