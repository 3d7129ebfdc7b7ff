"""Samples by the thousand: each a function of (seed, index, conditioning, w) and nothing else."""

import functools
import json

import jax
import numpy as np

from guided_distill.data.pixels import widen
from guided_distill.diffusion.samplers import (
    encode_ddim,
    sample_ancestral,
    sample_ddim,
    sample_stochastic,
)
from guided_distill.distill.distillations import ENCODE, choose_sampler, is_pair
from guided_distill.models.build import model_of
from guided_distill.system.sharding import batch_sharding, place, put, round_up, to_host

NOISE_STREAM = 2**31 - 1  # sets the noise drawn on the way apart from the noise at the start


class Generators:
    """The generators of finished stages; stages of one architecture share a compilation.

    Args:
      mesh: device mesh.
      batch_size: samples per compiled call, rounded up to what divides over the devices.
      ancestral_mix: of the ancestral sampler's log-variance: 0 = posterior's, 1 = forward step's.
    """

    def __init__(self, mesh, batch_size, ancestral_mix=0.3):
        self.mesh, self.ancestral_mix = mesh, ancestral_mix
        self.batch_size = round_up(batch_size, mesh)
        self._made = {}

    def of(self, stage, sampler=None):
        """The `Generator` of a `FinishedStage`; the sampler is its own unless named.

        `ENCODE` gives one that leads from images to latents.
        """
        record = stage.record
        sampler = sampler or choose_sampler(record)
        parts = [record["config"]["model"], record["config"]["schedule"]]
        parts += [record["num_classes"], record["image_shape"]]
        parts += [bool(is_pair(record)), record["stage"] != "teacher", sampler]
        parts += [stage.guide and stage.guide.record["params_sha256"]]
        key = json.dumps(parts, sort_keys=True)
        if key not in self._made:
            self._made[key] = Generator(
                model_of(stage),
                sampler,
                guided=is_pair(record),
                mesh=self.mesh,
                batch_size=self.batch_size,
                ancestral_mix=self.ancestral_mix,
            )
        return self._made[key]


class Generator:
    """Sampling over all devices; one compilation serves every N, w and conditioning.

    Args:
      model: `Model`.
      sampler: one of `SAMPLERS`, or `ENCODE`.
      guided: whether the model is used as a guided pair.
      mesh: device mesh.
      batch_size: samples per compiled call; divides over the devices.
      ancestral_mix: as in `Generators`.
    """

    def __init__(self, model, sampler, *, guided, mesh, batch_size, ancestral_mix=0.3):
        self.batch_size, self._mesh = batch_size, mesh
        self._sharding = batch_sharding(mesh)
        draw = functools.partial(draw_noise, shape=model.sample_shape)
        self._draw_noise = jax.jit(draw, out_shardings=self._sharding)
        sample = sample_with(model, sampler, guided=guided, ancestral_mix=ancestral_mix)
        self._sample = jax.jit(sample)

    def place(self, params):
        """Parameters of the host laid on the devices, once for many calls."""
        on_host = any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
        return place(params, self._mesh) if on_host else params

    def __call__(self, params, *, cond, w, indices, num_steps, seed, start=None):
        """Draws samples.

        Args:
          params: the model's parameters, of `place` or on the host.
          cond: conditioning, a pytree with leading axis n, such as labels `[n]` int32.
          w: guidance weights, `[n]`.
          indices: `[n]`; samples of equal index (and seed) see equal noise.
          num_steps: N.
          seed: of the noise.
          start: `[n, …]` latents to decode, or images to encode; None draws noise.

        Returns:
          `[n, …]` float32, within the model's bound but for an encoder.
        """
        n, params = len(indices), self.place(params)  # Else they would be compiled for twice.
        sample_key = jax.random.key(seed)
        outputs = []
        for first in range(0, n, self.batch_size):
            rows = np.minimum(np.arange(first, first + self.batch_size), n - 1)
            here = lambda values, rows=rows: put(np.asarray(values)[rows], self._sharding)  # noqa: E731
            z_1, keys = self._draw_noise(sample_key, here(np.asarray(indices, np.int32)))
            if start is not None:
                z_1 = here(np.asarray(start, np.float32))
            x = self._sample(
                params,
                z_1,
                keys,
                jax.tree.map(here, widen(cond)),
                here(np.asarray(w, np.float32)),
                np.int32(num_steps),
            )
            outputs.append(to_host(x)[: n - first])
        return np.concatenate(outputs)


def draw_noise(sample_key, indices, shape):
    """(z_1 `[n, *shape]`, keys `[n]` of the noise on the way), functions of key and index alone."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(sample_key, indices)
    z_1 = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    way_key = jax.random.fold_in(sample_key, NOISE_STREAM)
    return z_1, jax.vmap(jax.random.fold_in, (None, 0))(way_key, indices)


def sample_with(model, sampler, *, guided=False, ancestral_mix=0.3):
    """`(params, start, keys, cond, w, num_steps) -> x` of a model; arguments as of `Generator`."""
    bind = model.guided if guided else model.denoiser
    run = choose_run(sampler, model.bound, ancestral_mix)
    schedule = model.schedule.from_first_time() if sampler == ENCODE else model.schedule

    def sample(params, start, keys, cond, w, num_steps):
        denoise = bind(params, cond)
        return run(denoise, start, w, keys, num_steps=num_steps, logsnr_fn=schedule.logsnr)

    return sample


def choose_run(sampler, bound, ancestral_mix):
    """`(denoise, start, w, keys, *, num_steps, logsnr_fn) -> samples` of a sampler's name."""
    return {
        "ddim": lambda denoise, z_1, w, keys, **on: sample_ddim(denoise, z_1, w, bound=bound, **on),
        "stochastic": functools.partial(sample_stochastic, bound=bound),
        "ancestral": functools.partial(sample_ancestral, bound=bound, variance_mix=ancestral_mix),
        ENCODE: lambda denoise, x, w, keys, **on: encode_ddim(denoise, x, w, **on),
    }[sampler]
