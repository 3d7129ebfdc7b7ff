"""Samples by the thousand: each a function of (seed, index, label, w) and of nothing else."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.diffusion.samplers import sample_ddim
from guided_distill.diffusion.schedule import cosine_logsnr
from guided_distill.models.build import build_unet
from guided_distill.models.denoiser import bind, bind_guided
from guided_distill.training.sharding import batch_sharding


class Samplers:
    """The generators of finished stages; stages of one architecture share a compilation.

    Args:
      mesh: device mesh.
      batch_size: samples per compiled call.
    """

    def __init__(self, mesh, batch_size):
        self.mesh, self.batch_size = mesh, batch_size
        self._made = {}

    def of(self, record):
        """The `Generator` for a stage's record: a guided pair or a w-conditioned student."""
        guided = record["stage"] == "teacher"
        parts = [record["config"]["model"], record["config"]["schedule"]]
        parts += [record["num_classes"], record["image_shape"], guided]
        key = json.dumps(parts, sort_keys=True)
        if key not in self._made:
            self._made[key] = self._make(*parts)
        return self._made[key]

    def _make(self, model, schedule, num_classes, image_shape, guided):
        network = build_unet(model, num_classes=num_classes, w_conditioned=not guided)

        def bind_denoiser(params, labels):
            if not guided:
                return bind(network, params, labels, prediction=model["prediction"])
            null_labels = jnp.full_like(labels, num_classes)
            return bind_guided(network, params, labels, null_labels, prediction=model["prediction"])

        return Generator(
            bind_denoiser,
            image_shape=tuple(image_shape),
            logsnr_fn=functools.partial(cosine_logsnr, **schedule),
            mesh=self.mesh,
            batch_size=self.batch_size,
        )


class Generator:
    """Deterministic sampling over all devices; one compilation serves every N, w and label.

    Args:
      bind_denoiser: `(params, labels) -> denoiser`.
      image_shape: (H, W, C).
      logsnr_fn: schedule t -> λ_t.
      mesh: device mesh.
      batch_size: samples per compiled call; divides over the devices.
    """

    def __init__(self, bind_denoiser, *, image_shape, logsnr_fn, mesh, batch_size):
        self.batch_size = batch_size
        self._sharding = batch_sharding(mesh)

        def sample(params, sample_key, indices, labels, w, num_steps):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(sample_key, indices)
            z_1 = jax.vmap(lambda key: jax.random.normal(key, image_shape))(keys)
            denoise = bind_denoiser(params, labels)
            return sample_ddim(denoise, z_1, w, num_steps=num_steps, logsnr_fn=logsnr_fn)

        self._sample = jax.jit(sample)

    def __call__(self, params, *, labels, w, indices, num_steps, seed, on_batch=None):
        """Draws samples.

        Args:
          params: the network's parameters.
          labels: `[n]` int32.
          w: guidance weights, `[n]`.
          indices: `[n]`; samples of equal index (and seed) start from equal noise.
          num_steps: N.
          seed: of the noise.
          on_batch: called with the number of samples done.

        Returns:
          `[n, H, W, C]` float32 in [-1, 1].
        """
        n = len(indices)
        sample_key = jax.random.key(seed)
        outputs = []
        for start in range(0, n, self.batch_size):
            rows = np.minimum(np.arange(start, start + self.batch_size), n - 1)
            batch = [
                jax.device_put(np.asarray(values, dtype)[rows], self._sharding)
                for values, dtype in ((indices, np.int32), (labels, np.int32), (w, np.float32))
            ]
            x = self._sample(params, sample_key, *batch, np.int32(num_steps))
            outputs.append(np.asarray(x)[: n - start])
            if on_batch:
                on_batch(min(start + self.batch_size, n))
        return np.concatenate(outputs)
