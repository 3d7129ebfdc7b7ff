"""A config's programs on the devices at hand, with random parameters, to time them."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.data.pixels import as_learnt, widen
from guided_distill.run.costs import parts_of
from guided_distill.run.programs import StagePrograms, given_of
from guided_distill.sampling.generator import sample_with
from guided_distill.system import sharding
from guided_distill.training.update import example_keys

SAMPLING_STEPS = 4


class Rehearsal:
    """Stages of a config with random parameters and a batch of zeros.

    Args:
      config: a checked ConfigDict.
      models: (teacher, student), of `make_models`.
      example: one (x, conditioning) of the data, as shapes.
    """

    def __init__(self, config, models, example):
        self.config, self.models, self.example = config, models, example
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        self.layout = sharding.batch_sharding(self.mesh)
        self.programs = StagePrograms(config, self.mesh, models, example)
        self.sampling_size = sharding.round_up(config.evaluation.batch_size, self.mesh)
        self._params = {}

    def batch(self, size):
        """(x, conditioning) of `size` examples, zeros."""
        return jax.tree.map(
            lambda one: sharding.put(np.zeros((size, *one.shape), one.dtype), self.layout),
            self.example,
        )

    def begin(self, stage):
        """(state, `Given`) of a stage, on the devices."""
        teacher_params = None
        if stage.kind != "teacher":
            of = self.models[0] if stage.kind == "step_one" else self.programs.student_of(stage)
            teacher_params = self._params_of(of)
        state = self.programs.fresh_state(stage, teacher_params)
        if teacher_params is not None:
            teacher_params = sharding.place(teacher_params, self.mesh)
        key = sharding.put_key(self.programs.stage_key(stage), self.mesh)
        return state, given_of(stage, key, teacher_params)

    def updating(self, stage):
        """A function that does one update of a stage, and another the next time."""
        state, given = self.begin(stage)
        update, batch = self.programs.update_of(stage), self.batch(stage.optimization["batch_size"])

        def once():
            nonlocal state
            state, metrics = update(state, given, batch)
            return metrics

        return once

    def parts(self, stage):
        """`{name: function without arguments}` of `UpdateParts` but for the update itself."""
        state, given = self.begin(stage)
        size = stage.optimization["batch_size"]
        x, cond = self.batch(size)
        x, cond, parts = as_learnt(x), widen(cond), parts_of(self.programs, stage)
        one, keys = jnp.ones((size,)), example_keys(given.key, 0, size)
        one, keys = jax.device_put((one, keys), self.layout)
        calls = {
            "student": (parts.student, (state.params, x, one, one, cond)),
            "losses": (parts.losses, (state.params, given, x, cond, keys)),
            "gradient": (parts.gradient, (state.params, given, (x, cond, keys))),
        }
        return {name: _bound(function, args) for name, (function, args) in calls.items()}

    def sampling(self, *, guided, num_steps=SAMPLING_STEPS):
        """A function that draws `sampling_size` samples in so many steps, of student or pair."""
        model = self.models[0] if guided else self.models[1]
        args = self._sampling_args(model)
        return _bound(sample_with(model, "ddim", guided=guided), (*args, np.int32(num_steps)))

    def forward(self):
        """A function that calls the student's network once, on `sampling_size` examples."""
        model = self.models[1]
        params, x, _, cond, w = self._sampling_args(model)

        def forward(params, x, cond, w):
            return model.denoiser(params, cond)(x, w, w)

        return _bound(forward, (params, x, cond, w))

    def _sampling_args(self, model):
        size = self.sampling_size
        x, cond = self.batch(size)
        keys, w = jax.random.split(jax.random.key(0), size), np.ones(size, np.float32)
        keys, w = jax.device_put((keys, w), self.layout)
        params = sharding.place(self._params_of(model), self.mesh)
        return params, as_learnt(x), keys, widen(cond), w

    def _params_of(self, model):
        """Random parameters of a model, drawn once; on the host, where nothing is compiled."""
        if id(model) not in self._params:
            shapes = jax.eval_shape(model.init, jax.random.key(0))
            draw = np.random.default_rng(0).standard_normal
            self._params[id(model)] = jax.tree.map(
                lambda leaf: (0.02 * draw(leaf.shape, np.float32)).astype(leaf.dtype), shapes
            )
        return self._params[id(model)]


def _bound(function, args):
    jitted = jax.jit(function)
    return lambda: jitted(*args)


def time_each(functions, *, rounds):
    """Seconds of functions that are called in turn, `{name: [seconds] * rounds}`.

    Each is called once before, for its compilation. What a machine does meanwhile falls on all.
    """
    seconds = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function())
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - started)
    return seconds


def middle(seconds):
    """The median."""
    return statistics.median(seconds)


def spread(seconds):
    """How far apart the middle half of the times lies, as a share of the median."""
    if len(seconds) < 3:
        return 0.0
    low, _, high = statistics.quantiles(seconds, n=4)
    return (high - low) / middle(seconds)
