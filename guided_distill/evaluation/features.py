"""What turns samples into features: a classifier, InceptionV3, a network that was imported."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.data.pixels import to_float, to_uint8
from guided_distill.errors import UserError
from guided_distill.evaluation.inception import NUM_FEATURES, InceptionV3
from guided_distill.evaluation.inception_weights import load_inception
from guided_distill.models.function import load_unary, named_with_digest
from guided_distill.models.imported import from_channels_last
from guided_distill.system.sharding import apply_over, place

PER_DEVICE = 32  # pictures per call
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
      see: samples `[n, …]` float32 -> what `apply` takes of them.
      of_pictures: whether it looks at pictures, and not at latents.
    """

    name: str
    num_features: int
    resize: str
    apply: object
    see: object = dataclasses.field(default=to_uint8, kw_only=True)
    of_pictures: bool = dataclasses.field(default=True, kw_only=True)


def through(decoder, extractor):
    """An extractor that sees latents through a `Decoder`, and is named so; None changes nothing."""
    if decoder is None:
        return extractor
    name = f"{extractor.name}-of-{decoder.name}"
    return dataclasses.replace(extractor, name=name, see=decoder)


def latent_extractor(sample_shape):
    """Latents laid flat, or where they have many numbers, a fixed random projection of them.

    The projection keeps squared distances in the mean.
    """
    size = math.prod(sample_shape)
    if size <= LATENT_FEATURES:
        return _latent_extractor(f"latents-{size}", size, _flat)
    rng = np.random.Generator(np.random.Philox(PROJECTION_SEED))
    matrix = rng.standard_normal((size, LATENT_FEATURES), np.float32) / LATENT_FEATURES**0.5

    name = f"latents-{size}-projected-to-{LATENT_FEATURES}-seed-{PROJECTION_SEED}"
    return _latent_extractor(name, LATENT_FEATURES, lambda x: _flat(x) @ matrix)


def _latent_extractor(name, num_features, features):
    """An extractor that looks at latents as they are; it gives no probabilities."""
    as_they_are = {"see": lambda x: x, "of_pictures": False}
    return FeatureExtractor(
        name, num_features, "none", lambda x: (features(x), None), **as_they_are
    )


def _flat(x):
    return np.asarray(x, np.float32).reshape(len(x), -1)


def load_inception_extractor(path, mesh):
    """InceptionV3 over all devices of a mesh, from a file of `convert_inception`.

    Its probabilities are those of the inception score: 1008 logits without their bias.
    """
    params, sha256 = load_inception(path)
    params = place(params, mesh)

    def extract(params, images):
        if images.shape[-1] == 1:
            images = jnp.repeat(images, 3, axis=-1)
        features, logits = InceptionV3().apply({"params": params}, images)
        return features, jax.nn.log_softmax(logits)

    compiled = jax.jit(extract)  # Weights are an argument: as constants they would be folded.

    def apply(images):
        return apply_over(
            mesh, lambda batch: compiled(params, batch), images, per_device=PER_DEVICE
        )

    return FeatureExtractor(
        name=f"inception-2015-12-05-{sha256[:12]}",
        num_features=NUM_FEATURES,
        resize="bilinear to 299x299 as in TensorFlow 1",
        apply=apply,
    )


def load_imported_extractor(path, image_shape, mesh):
    """An imported network of features (`evaluation.features`) over all devices of a mesh.

    Args:
      path: folder of a `Function` of pictures `[B, C, H, W]` in [-1, 1] to features `[B, D]`; its
        one result, or its results `features` and, where there is one, `logits` `[B, classes]`.
      image_shape: (H, W, C) of the pictures.
      mesh: device mesh.

    Raises:
      UserError: where the network takes or gives something else.
    """
    key = "evaluation.features"
    function, name, result = load_unary(path, key, "features")
    takes, (height, width, channels) = function.inputs[name].shape, image_shape
    if takes != (channels, height, width):
        raise UserError(
            f"{key} {path} takes {list(takes)}, but the pictures are [{channels}, {height}, "
            f"{width}]: a network that wants another size must change it itself"
        )
    shape = function.output_shape(result)
    if len(shape) != 1:
        raise UserError(
            f"{key} {path} gives [B, {', '.join(map(str, shape))}]: features must be [B, D]"
        )
    params = place(function.params, mesh)

    def extract(params, images):
        results = function.apply(params, {name: from_channels_last(to_float(images), "NCHW")})
        classes = [jax.nn.log_softmax(results["logits"])] if "logits" in results else []
        return results[result], *classes

    compiled = jax.jit(extract)

    def apply(images):
        features, *log_p = apply_over(
            mesh, lambda batch: compiled(params, batch), images, per_device=PER_DEVICE
        )
        return features, (log_p or [None])[0]

    return FeatureExtractor(named_with_digest(function), shape[0], "none", apply)
