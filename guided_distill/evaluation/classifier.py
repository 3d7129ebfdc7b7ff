"""Features without downloads: a small classifier trained on the data set itself."""

import dataclasses
import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from guided_distill.data.batches import batch_indices
from guided_distill.data.pixels import to_float
from guided_distill.evaluation.features import FeatureExtractor
from guided_distill.system.compilation import jit_once
from guided_distill.system.files import (
    Damaged,
    load_params,
    read_json,
    save_params,
    tree_sha256,
    write_json,
)
from guided_distill.system.progress import Progress
from guided_distill.system.sharding import apply_in_batches

BATCH_SIZE = 100
LEARNING_RATE = 2e-3
IMAGES_AT_ONCE = 1_000
MAX_SHIFT = 1  # pixels; training pictures are moved by up to so much


class Classifier(nn.Module):
    """Three convolutions and two dense layers; the wide hidden layer is the feature vector."""

    num_classes: int
    num_features: int = 64

    @nn.compact
    def __call__(self, x):
        """`x` `[B, H, W, C]` in [-1, 1] -> (features `[B, D]`, logits `[B, num_classes]`)."""
        h = nn.relu(nn.Conv(32, (3, 3))(x))
        h = nn.relu(nn.Conv(64, (3, 3), strides=(2, 2))(h))
        h = nn.relu(nn.Conv(64, (3, 3), strides=(2, 2))(h))
        features = nn.relu(nn.Dense(self.num_features)(h.reshape(len(h), -1)))
        return features, nn.Dense(self.num_classes)(features)


@dataclasses.dataclass(frozen=True)
class TrainedClassifier(FeatureExtractor):
    """A feature extractor that knows the data set's classes.

    Attributes:
      accuracy: share of the held-out pictures it gets right.
    """

    accuracy: float


def load_or_train_classifier(folder, train_source, test_source, *, num_updates, seed):
    """The workdir's classifier, trained now if it is not there; same inputs, same weights.

    Args:
      folder: where it is kept.
      train_source: pictures to learn.
      test_source: pictures to state the accuracy on.
      num_updates: of training.
      seed: of its first weights and batches.

    Returns:
      A `TrainedClassifier`.
    """
    folder = pathlib.Path(folder)
    network = Classifier(train_source.num_classes)
    settings = {"data_sha256": train_source.sha256, "num_updates": num_updates, "seed": seed}
    record = read_json(folder / "classifier.json", derived=True)
    params = None
    if record and record["settings"] == settings:
        try:
            params = load_params(folder / "params", record["params_sha256"])
        except Damaged:
            params = None  # Damaged: it is cheap to train again.
    if params is None:
        params = train_classifier(network, train_source, num_updates=num_updates, seed=seed)
        accuracy = measure_accuracy(network, params, test_source)
        sha256 = save_params(folder / "params", params)
        record = {"settings": settings, "params_sha256": sha256, "accuracy": accuracy}
        write_json(folder / "classifier.json", record)
    return TrainedClassifier(
        name=f"{train_source.name}-classifier-{record['params_sha256'][:12]}",
        num_features=network.num_features,
        resize="none",
        accuracy=record["accuracy"],
        apply=functools.partial(apply_classifier, network, params),
    )


def random_extractor(image_shape, seed):
    """A `FeatureExtractor` of a classifier that has learnt nothing: for pictures without classes.

    Args:
      image_shape: (H, W, C).
      seed: of its weights.
    """
    network = Classifier(1)
    params = jit_once(network.init)(jax.random.key(seed), jnp.zeros((1, *image_shape)))["params"]

    def apply(images):
        features, _ = apply_classifier(network, params, images)
        return features, None

    name = f"random-features-{tree_sha256(params)[:12]}"
    return FeatureExtractor(name, network.num_features, "none", apply)


def train_classifier(network, source, *, num_updates, seed):
    """Adam with a linear decay to 0 on shifted pictures; returns the parameters."""
    schedule = optax.linear_schedule(LEARNING_RATE, 0.0, num_updates)
    optimizer = optax.adam(schedule)
    seed_key = jax.random.key(seed)
    images, _ = source.read(np.arange(1))
    params = jit_once(network.init)(seed_key, to_float(images))["params"]

    @jax.jit
    def update(params, opt_state, key, images, labels):
        def loss(params):
            _, logits = network.apply({"params": params}, shift(key, to_float(images)))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    progress = Progress("classifier", total=num_updates, images_per_step=BATCH_SIZE)
    for step in range(num_updates):
        batch = source.read(batch_indices(len(source), BATCH_SIZE, seed, step))
        params, opt_state = update(params, opt_state, jax.random.fold_in(seed_key, step), *batch)
        if (step + 1) % 100 == 0 or step + 1 == num_updates:
            jax.block_until_ready(params)
            progress(step + 1)
    progress.close()
    return params


def measure_accuracy(network, params, source):
    """Share of a source's pictures that the classifier gets right."""
    right = 0
    for start in range(0, len(source), IMAGES_AT_ONCE):
        indices = np.arange(start, min(start + IMAGES_AT_ONCE, len(source)))
        images, labels = source.read(indices)
        _, log_p = apply_classifier(network, params, images)
        right += np.count_nonzero(log_p.argmax(axis=1) == labels)
    return right / len(source)


def shift(key, x):
    """The whole batch moved by up to `MAX_SHIFT` pixels each way; edges are filled with -1."""
    padded = jnp.pad(x, ((0, 0), (MAX_SHIFT,) * 2, (MAX_SHIFT,) * 2, (0, 0)), constant_values=-1.0)
    top, left = jax.random.randint(key, (2,), 0, 2 * MAX_SHIFT + 1)
    return jax.lax.dynamic_slice(padded, (0, top, left, 0), x.shape)


@functools.partial(jax.jit, static_argnums=0)
def _apply_batch(network, params, images):
    features, logits = network.apply({"params": params}, to_float(images))
    return features, jax.nn.log_softmax(logits)


def apply_classifier(network, params, images, batch_size=500):
    """(features `[n, D]`, log-probabilities `[n, classes]`) of `images` `[n, H, W, C]` uint8."""
    return apply_in_batches(functools.partial(_apply_batch, network, params), images, batch_size)
