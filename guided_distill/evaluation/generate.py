"""Samples by the thousand: each a function of (seed, index, label, w) and of nothing else."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.diffusion.samplers import (
    encode_ddim,
    sample_ancestral,
    sample_ddim,
    sample_stochastic,
)
from guided_distill.diffusion.schedule import cosine_logsnr
from guided_distill.errors import UserError
from guided_distill.models.build import build_unet
from guided_distill.models.denoiser import bind, bind_guided
from guided_distill.training.sharding import batch_sharding, put, to_host

# What each model was made for, the default first. A continuous-time model takes any sampler, and
# the paper samples the pair of Algorithm 5 with both of its own.
FITTING_SAMPLERS = {
    "teacher": ("ddim", "ancestral", "stochastic"),
    "step_one": ("ddim", "ancestral", "stochastic"),
    "deterministic": ("ddim",),
    "stochastic": ("stochastic",),
    "two_student": ("ddim", "stochastic"),
    "encoder": (),
}
SAMPLERS = ("ddim", "stochastic", "ancestral")
WHY_NOT = {
    "deterministic": "its steps were distilled to be of length 1/N, for the ddim sampler",
    "stochastic": "its steps were distilled to be of length 2/N, for the stochastic sampler",
    "two_student": "its steps were distilled to be of length 1/N",
}
NOISE_STREAM = 2**31 - 1  # sets the noise drawn on the way apart from the noise at the start


def choose_sampler(record, name="", *, force=False):
    """The sampler of a stage: its own, or the named one where it fits.

    Args:
      record: of the stage.
      name: one of `SAMPLERS`; '' chooses.
      force: take the named sampler though it does not fit.

    Raises:
      UserError: where the model is no sampler's, or not this one's.
    """
    kind = record["algorithm"] or record["stage"]
    fitting = FITTING_SAMPLERS[kind]
    if not fitting:
        raise UserError(
            f"{record['name']} is an encoder, which leads from pictures to noise: "
            "it has no samples; use --mode=translate"
        )
    if name and name not in fitting and not force:
        raise UserError(
            f"--sampler={name} does not fit {record['name']}: {WHY_NOT[kind]}; "
            f"take --sampler={fitting[0]}, or --force to see what happens"
        )
    return name or fitting[0]


def calls_per_step(record):
    """Network calls per sampling step: 2 for a guided pair."""
    return 2 if _is_pair(record) else 1


def _is_pair(record):
    return record["stage"] == "teacher" or record["algorithm"] == "two_student"


class Samplers:
    """The generators of finished stages; stages of one architecture share a compilation.

    Args:
      mesh: device mesh.
      batch_size: samples per compiled call, rounded up to what divides over the devices.
      ancestral_mix: of the ancestral sampler's log-variance: 0 = posterior's, 1 = forward step's.
    """

    def __init__(self, mesh, batch_size, ancestral_mix=0.3):
        self.mesh, self.ancestral_mix = mesh, ancestral_mix
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._runs = {
            "ddim": lambda denoise, z_1, w, keys, **on: sample_ddim(denoise, z_1, w, **on),
            "stochastic": sample_stochastic,
            "ancestral": functools.partial(sample_ancestral, variance_mix=ancestral_mix),
            "encode": lambda denoise, x, w, keys, **on: encode_ddim(denoise, x, w, **on),
        }
        self._made = {}

    def of(self, record, sampler=None):
        """The `Generator` of a stage's record; the sampler is its own unless named.

        "encode" gives one that leads from pictures to latents.
        """
        sampler = sampler or choose_sampler(record)
        parts = [record["config"]["model"], record["config"]["schedule"]]
        parts += [record["num_classes"], record["image_shape"]]
        parts += [_is_pair(record), record["stage"] != "teacher", sampler]
        key = json.dumps(parts, sort_keys=True)
        if key not in self._made:
            self._made[key] = self._make(*parts)
        return self._made[key]

    def _make(self, model, schedule, num_classes, image_shape, is_pair, w_conditioned, sampler):
        network = build_unet(model, num_classes=num_classes, w_conditioned=w_conditioned)

        def bind_denoiser(params, labels):
            if not is_pair:
                return bind(network, params, labels, prediction=model["prediction"])
            null_labels = jnp.full_like(labels, num_classes)
            return bind_guided(network, params, labels, null_labels, prediction=model["prediction"])

        return Generator(
            bind_denoiser,
            functools.partial(
                self._runs[sampler], logsnr_fn=functools.partial(cosine_logsnr, **schedule)
            ),
            image_shape=tuple(image_shape),
            mesh=self.mesh,
            batch_size=self.batch_size,
        )


class Generator:
    """Sampling over all devices; one compilation serves every N, w and label.

    Args:
      bind_denoiser: `(params, labels) -> denoiser`.
      run: `(denoise, z_1, w, keys, num_steps=N) -> samples`.
      image_shape: (H, W, C).
      mesh: device mesh.
      batch_size: samples per compiled call; divides over the devices.
    """

    def __init__(self, bind_denoiser, run, *, image_shape, mesh, batch_size):
        self.batch_size = batch_size
        self._sharding = batch_sharding(mesh)

        def draw_noise(sample_key, indices):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(sample_key, indices)
            z_1 = jax.vmap(lambda key: jax.random.normal(key, image_shape))(keys)
            way_key = jax.random.fold_in(sample_key, NOISE_STREAM)
            return z_1, jax.vmap(jax.random.fold_in, (None, 0))(way_key, indices)

        def sample(params, z_1, keys, labels, w, num_steps):
            return run(bind_denoiser(params, labels), z_1, w, keys, num_steps=num_steps)

        self._draw_noise = jax.jit(draw_noise, out_shardings=self._sharding)
        self._sample = jax.jit(sample)

    def __call__(self, params, *, labels, w, indices, num_steps, seed, start=None):
        """Draws samples.

        Args:
          params: the network's parameters.
          labels: `[n]` int32.
          w: guidance weights, `[n]`.
          indices: `[n]`; samples of equal index (and seed) see equal noise.
          num_steps: N.
          seed: of the noise.
          start: `[n, H, W, C]` latents to decode, or pictures to encode; None draws noise.

        Returns:
          `[n, H, W, C]` float32, in [-1, 1] but for an encoder.
        """
        n = len(indices)
        sample_key = jax.random.key(seed)
        outputs = []
        for first in range(0, n, self.batch_size):
            rows = np.minimum(np.arange(first, first + self.batch_size), n - 1)
            indices_here, labels_here, w_here = (
                put(np.asarray(values, dtype)[rows], self._sharding)
                for values, dtype in ((indices, np.int32), (labels, np.int32), (w, np.float32))
            )
            z_1, keys = self._draw_noise(sample_key, indices_here)
            if start is not None:
                z_1 = put(np.asarray(start, np.float32)[rows], self._sharding)
            x = self._sample(params, z_1, keys, labels_here, w_here, np.int32(num_steps))
            outputs.append(to_host(x)[: n - first])
        return np.concatenate(outputs)
