"""What a config's stages and its evaluation cost, from shapes alone: nothing is compiled or run."""

import copy
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from guided_distill.data.pixels import as_learnt, widen
from guided_distill.distill.distillations import ALGORITHMS
from guided_distill.evaluation.contenders import list_contenders
from guided_distill.run.programs import StagePrograms
from guided_distill.system.sharding import make_mesh, state_shardings
from guided_distill.system.workdir import FinishedStage
from guided_distill.training.counts import count_flops, live_bytes
from guided_distill.training.gradient import batch_gradient
from guided_distill.training.program import shard_bytes

PARTS = ("teacher", "student", "backward", "optimizer")  # of an update


@dataclasses.dataclass(frozen=True)
class UpdateCosts:
    """Of one kind of update.

    Attributes:
      flops: `{part: operations}` of all devices together: teacher, student, backward, optimizer.
      bytes: `{part: bytes}` of one device: params, optimizer, average, teacher; and activations,
        with the gradient, a rough estimate.
    """

    flops: dict
    bytes: dict

    @property
    def total_flops(self):
        return sum(self.flops.values())


@dataclasses.dataclass(frozen=True)
class UpdateParts:
    """One kind of update, and what it is made of, each as a function of its own.

    Attributes:
      student: `(params, z, logsnr, w, cond)`, the student's network alone.
      losses: `(params, given, x, cond, keys)`, with the teacher's passes.
      gradient: `(params, given, examples)`, backwards too.
      update: `(state, given, batch)`, with the optimizer.
    """

    student: Callable
    losses: Callable
    gradient: Callable
    update: Callable


def parts_of(programs, stage):
    """The `UpdateParts` of a stage of `StagePrograms`."""
    model, losses = programs.model_of(stage), programs.losses_of(stage)
    row = ALGORITHMS.get(stage.algorithm)

    def student(params, z, logsnr, w, cond):
        learns_pair = row is not None and row.learns_pair
        halves = model.pair(params, cond) if learns_pair else (model.denoiser(params, cond),)
        return [half(z, logsnr, w) for half in halves]

    def gradient(params, given, examples):
        return batch_gradient(lambda p, *each: losses(p, given, *each), params, examples)

    return UpdateParts(student, losses, gradient, programs.update_of(stage).function)


def split(student, losses, gradient, update):
    """`{part: amount}` of an update, given the amounts of the functions of `UpdateParts`."""
    amounts = (losses - student, student, gradient - losses, update - gradient)
    return dict(zip(PARTS, amounts, strict=True))


def update_costs(config, models, example, stage, num_devices):
    """The `UpdateCosts` of a stage's updates.

    Args:
      config: a checked ConfigDict.
      models: (teacher, student), of `make_models`.
      example: one (x, conditioning) of the data, as shapes.
      stage: `Stage`.
      num_devices: that share the batch.
    """
    programs, local, times = of_one_device(config, models, example, stage, num_devices)
    parts = parts_of(programs, local)
    state, given, (x, cond) = programs.arguments(local)
    z, cond = jax.eval_shape(as_learnt, x), jax.eval_shape(widen, cond)
    one = jax.ShapeDtypeStruct((x.shape[0],), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), x.shape[0]))
    flops = split(
        student=count_flops(parts.student, state.params, z, one, one, cond),
        losses=count_flops(parts.losses, state.params, given, z, cond, keys),
        gradient=count_flops(parts.gradient, state.params, given, (z, cond, keys)),
        update=count_flops(parts.update, state, given, (x, cond)),
    )
    held = state_bytes(config, state, given.teacher_params, num_devices)
    alive = live_bytes(parts.gradient, state.params, given, (z, cond, keys))
    return UpdateCosts(
        {
            part: num_devices * count * (1 if part == "optimizer" else times)
            for part, count in flops.items()
        },
        held | {"activations": alive + held["params"]},
    )


def of_one_device(config, models, example, stage, num_devices):
    """(programs, stage, number of parts) of one part of one device's share of the batch.

    The parts are those of `memory.gradient_accumulation`: all do the same, one after the other.
    """
    parts = config.memory.gradient_accumulation
    config = copy.deepcopy(config)
    config.memory.gradient_accumulation = 1
    size = stage.optimization["batch_size"] // num_devices // parts
    local = dataclasses.replace(stage, optimization=stage.optimization | {"batch_size": size})
    mesh = make_mesh(1, 1, jax.devices()[:1])
    return StagePrograms(config, mesh, models, example), local, parts


def state_bytes(config, state, teacher_params, num_devices):
    """`{part: bytes}` of what one device holds between updates."""
    fsdp = config.mesh.fsdp
    sizes = (num_devices // fsdp, fsdp)
    mesh = AbstractMesh(sizes, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def held(tree):
        layouts = state_shardings(tree, mesh)
        return sum(jax.tree.leaves(jax.tree.map(shard_bytes, tree, layouts)))

    return {
        "params": held(state.params),
        "optimizer": held(state.opt_state),
        "average": held(state.ema),
        "teacher": held(teacher_params),
    }


@dataclasses.dataclass(frozen=True)
class PlannedGenerators:
    """In the place of `Generators` where nothing is drawn."""

    ancestral_mix: float

    def of(self, stage, sampler=None):
        """None."""
        return None


def evaluation_calls(config, stages):
    """Network calls of a config's evaluation, all rows and draws, of its `Stage`s."""
    planned = {stage.name: FinishedStage(".", record_of(stage)) for stage in stages}
    evaluation = config.evaluation
    contenders = list_contenders(
        planned,
        PlannedGenerators(evaluation.ancestral_mix),
        start_steps=config.step_two.start_steps,
        num_steps=evaluation.num_steps,
        baselines=evaluation.baselines,
        baseline_num_steps=evaluation.baseline_num_steps,
    )
    rows = [(w, c) for w in evaluation.w for c in contenders if c.knows(w)]
    a_sample = sum(contender.network_calls for _, contender in rows)
    return a_sample * evaluation.num_samples * evaluation.num_draws


def record_of(stage):
    """What a planned stage's record will say that rows of the evaluation ask."""
    keys = ("name", "algorithm", "num_steps", "factor", "w_range")
    return {key: getattr(stage, key) for key in keys} | {"stage": stage.kind}


def call_flops(model, example):
    """Operations of one network call on one example.

    Args:
      model: `Model`.
      example: one (x, conditioning), as shapes.
    """
    one = jax.tree.map(lambda spec: jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype), example)
    x, cond = jax.eval_shape(as_learnt, one[0]), jax.eval_shape(widen, one[1])
    params = jax.eval_shape(model.init, jax.random.key(0))
    number = jax.ShapeDtypeStruct((1,), jnp.float32)

    def call(params, z, logsnr, w, cond):
        return model.denoiser(params, cond)(z, logsnr, w)

    return count_flops(call, params, x, number, number, cond)
