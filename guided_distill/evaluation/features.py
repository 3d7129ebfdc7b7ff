"""What turns pictures into features: the data set's own classifier, or InceptionV3."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.evaluation.inception import NUM_FEATURES, InceptionV3
from guided_distill.evaluation.inception_weights import load_inception
from guided_distill.system.sharding import batch_sharding, place, put, to_host

INCEPTION_BATCH = 32  # pictures per device and call


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """A network that features come from.

    Attributes:
      name: with the digest of its weights.
      num_features: D.
      resize: what is done to pictures of another size, in words.
      apply: `images [n, H, W, C]` uint8 -> (features `[n, D]`, log-probabilities
        `[n, classes]`).
    """

    name: str
    num_features: int
    resize: str
    apply: object


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
