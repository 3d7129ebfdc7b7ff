"""What turns samples into features: a classifier, InceptionV3, or of latents the latents."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.data.pixels import to_uint8
from guided_distill.evaluation.inception import NUM_FEATURES, InceptionV3
from guided_distill.evaluation.inception_weights import load_inception
from guided_distill.system.sharding import batch_sharding, place, put, to_host

INCEPTION_BATCH = 32  # pictures per device and call
LATENT_FEATURES = 256  # at most
PROJECTION_SEED = 0


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """A network that features come from.

    Attributes:
      name: with the digest of its weights.
      num_features: D.
      resize: what is done to pictures of another size, in words.
      apply: `images [n, H, W, C]` uint8 -> (features `[n, D]`, log-probabilities
        `[n, classes]`, None where it has no classes).
      of_pictures: whether it looks at pictures, and not at latents.
    """

    name: str
    num_features: int
    resize: str
    apply: object
    of_pictures = True

    def see(self, x):
        """Samples as `apply` takes them: pictures of x in [-1, 1]."""
        return to_uint8(x)


class LatentExtractor(FeatureExtractor):
    """Latents themselves as features; it gives no probabilities."""

    of_pictures = False

    def see(self, x):
        """x as it is."""
        return x


def latent_extractor(sample_shape):
    """Latents laid flat, or where they have many numbers, a fixed random projection of them.

    The projection keeps squared distances in the mean.
    """
    size = math.prod(sample_shape)
    if size <= LATENT_FEATURES:
        apply = lambda x: (np.asarray(x, np.float32).reshape(len(x), -1), None)  # noqa: E731
        return LatentExtractor(f"latents-{size}", size, "none", apply)
    rng = np.random.Generator(np.random.Philox(PROJECTION_SEED))
    matrix = rng.standard_normal((size, LATENT_FEATURES), np.float32) / LATENT_FEATURES**0.5

    def project(x):
        return np.asarray(x, np.float32).reshape(len(x), -1) @ matrix, None

    name = f"latents-{size}-projected-to-{LATENT_FEATURES}-seed-{PROJECTION_SEED}"
    return LatentExtractor(name, LATENT_FEATURES, "none", project)


def load_inception_extractor(path, mesh):
    """InceptionV3 over all devices of a mesh, from a file of `convert_inception`.

    Its probabilities are those of the inception score: 1008 logits without their bias.
    """
    params, sha256 = load_inception(path)
    params = place(params, mesh)
    sharding = batch_sharding(mesh)

    def extract(params, images):
        if images.shape[-1] == 1:
            images = jnp.repeat(images, 3, axis=-1)
        features, logits = InceptionV3().apply({"params": params}, images)
        return features, jax.nn.log_softmax(logits)

    compiled = jax.jit(extract)  # Weights are an argument: as constants they would be folded.

    def apply(images):
        per_device = min(INCEPTION_BATCH, -(-len(images) // mesh.size))
        return apply_in_batches(
            lambda batch: compiled(params, put(batch, sharding)),
            images,
            per_device * mesh.size,
        )

    return FeatureExtractor(
        name=f"inception-2015-12-05-{sha256[:12]}",
        num_features=NUM_FEATURES,
        resize="bilinear to 299x299 as in TensorFlow 1",
        apply=apply,
    )


def apply_in_batches(apply, images, batch_size):
    """`apply` on batches of one size, its outputs put together as NumPy arrays `[n, …]`."""
    outputs = []
    for start in range(0, len(images), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
        outputs.append([out[: len(images) - start] for out in to_host(apply(images[rows]))])
    return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))
