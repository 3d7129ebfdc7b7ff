"""A student's whole sampler as `jax.export` artifacts, for programs that have only JAX.

Two functions, each for any number of samples and every platform of `PLATFORMS`:

    noise.jax.gz    (seed uint32, indices [n] int32) -> noise [n, …]
    sample.jax.gz   (params {name: array}, noise [n, …], w [n], cond, seed, indices [n]) -> x [n, …]

`cond` is the label `[n]` int32, or arrays by name. Seed and indices are of the noise that a
stochastic sampler draws on the way; the others leave them unused. What they draw is what `Sampler`
draws, on the CPU bit for bit from two samples on. The files are compressed, and no operation in
them says from which lines of which file it came, as JAX would have it.
"""

import contextlib
import gzip
import json

import jax
import jax.export
import jax.numpy as jnp

from guided_distill.distill.distillations import choose_sampler
from guided_distill.errors import UserError
from guided_distill.models.build import model_of
from guided_distill.sampling.generator import draw_noise, sample_with
from guided_distill.system.files import reason_of
from guided_distill.system.workdir import flat_params, nested_params

PLATFORMS = ("cpu", "cuda", "tpu")
FORMAT = 2
PROGRAM_FILE, NOISE_FILE = "sample.jax.gz", "noise.jax.gz"
DESCRIPTION_FILE = "program.json"


def write_program(folder, stage, num_steps):
    """Writes the two artifacts of a `FinishedStage` sampled in N steps, and what they take.

    Raises:
      UserError: where a part of the network cannot be lowered for every platform.
    """
    model, sampler = model_of(stage), choose_sampler(stage.record)
    (n,) = jax.export.symbolic_shape("n")
    row = lambda shape=(), dtype=jnp.float32: jax.ShapeDtypeStruct((n, *shape), dtype)  # noqa: E731
    seed, indices = jax.ShapeDtypeStruct((), jnp.uint32), row(dtype=jnp.int32)
    takes = model.conditioning.takes
    cond = row(dtype=jnp.int32)
    if takes is not None:
        cond = {name: row(one.shape, one.dtype) for name, one in takes.items()}
    params = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in flat_params(stage.params).items()
    }
    sample = sample_with(model, sampler)

    def noise(seed, indices):
        return draw_noise(jax.random.key(seed), indices, model.sample_shape)[0]

    def run(params, noise, w, cond, seed, indices):
        keys = draw_noise(jax.random.key(seed), indices, model.sample_shape)[1]
        # Behind a barrier N is no constant to compute with beforehand, in other roundings.
        steps = jax.lax.optimization_barrier(jnp.int32(num_steps))
        return sample(nested_params(params), noise, keys, cond, w, steps)

    start = row(model.sample_shape)
    write(folder / NOISE_FILE, noise, seed, indices)
    write(folder / PROGRAM_FILE, run, params, start, row(), cond, seed, indices)
    described = {
        "format": FORMAT,
        "num_steps": num_steps,
        "sampler": sampler,
        "w_range": stage.record["w_range"],
        "sample_shape": list(model.sample_shape),
        "pictures": stage.draws_pictures,
        "num_classes": stage.record["num_classes"],
        "conditioning": None if takes is None else {k: list(v.shape) for k, v in takes.items()},
        "platforms": list(PLATFORMS),
    }
    text = json.dumps(described, indent=2) + "\n"
    (folder / DESCRIPTION_FILE).write_text(text, encoding="utf-8")


def write(path, function, *args):
    """Writes one artifact of a function of arrays such as `args`."""
    try:
        with without_places():
            exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*args)
    except Exception as error:  # Many kinds, of lowering and of shapes that must be known.
        raise UserError(
            f"the network cannot be exported for {', '.join(PLATFORMS)} at any number of samples "
            f"({reason_of(error)}): take `format` safetensors"
        ) from error
    path.write_bytes(gzip.compress(exported.serialize(), mtime=0))


@contextlib.contextmanager
def without_places():
    """No operation that is lowered meanwhile says from which lines it came."""
    key = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, key)
    jax.config.update(key, 0)
    try:
        yield
    finally:
        jax.config.update(key, before)
