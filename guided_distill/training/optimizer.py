"""Adam after a clip of the averaged gradient; the learning rate comes in as an argument."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

LEARNING_RATE_DECAYS = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
}


def make_optimizer(*, clip_norm, adam_b1, adam_b2, adam_eps):
    """Gradient clip to a global norm, then Adam's direction; the rate is applied by `descend`."""
    return optax.chain(
        clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=adam_b1, b2=adam_b2, eps=adam_eps),
    )


def clip_by_global_norm(max_norm):
    """The gradient times min(1, max_norm / its norm).

    One factor for all arrays, which the moments' own passes apply: optax's clip of that name
    writes every array once more.
    """

    def update(grads, state, params=None):
        del params
        factor = jnp.minimum(1.0, max_norm / optax.tree.norm(grads))
        return jax.tree.map(lambda g: factor * g, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def descend(params, direction, learning_rate, weight_decay=0.0):
    """params − learning_rate · (direction + weight_decay · params): the decay is AdamW's."""
    if weight_decay:
        direction = jax.tree.map(lambda d, p: d + weight_decay * p, direction, params)
    return jax.tree.map(lambda p, d: p - learning_rate * d, params, direction)


def learning_rate_at(update, *, peak, warmup_updates, decay, num_updates):
    """Learning rate of one update: a linear warm-up times a decay over the whole stage.

    Args:
      update: 0, …, num_updates − 1.
      peak: the rate after warm-up, before decay.
      warmup_updates: updates until the peak; 0 starts there.
      decay: "constant", or "linear" to 0 at num_updates.
      num_updates: updates of the stage.

    Returns:
      np.float32: always one kind, so that the compiled update is reused.
    """
    warmup = min(1.0, (update + 1) / max(1, warmup_updates))
    return np.float32(peak * warmup * LEARNING_RATE_DECAYS[decay](update / num_updates))
