"""Group normalisation (Wu & He 2018) with all that follows it in a block: affine map, FiLM, swish.

What depends on an example and its channel alone is worked out on tables `[B, C]`, and the backward
pass keeps the input alone: it is read twice for the two sums that all gradients need and once for
its own. Differentiated line by line, each of the steps keeps and reads arrays of its own.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def group_norm(x, scale, shift, groups, eps, axis, swish=False):
    """swish?(((x − mean) / √(variance + ε)) · scale + shift), computed in float32.

    Args:
      x: `[B, …]` of any float, with C channels along one axis.
      scale, shift: `[B, C]`, or `[1, C]` for all examples alike; float32.
      groups: into how many the channels are split, in order; each has its mean and variance.
      eps: ε.
      axis: that of the channels.
      swish: whether y · sigmoid(y) follows.

    Returns:
      As x, in its dtype.
    """
    return _normalize(x, scale, shift, groups, eps, axis, swish)[0]


def _normalize(x, scale, shift, groups, eps, axis, swish):
    along, mean_of = _tables(x, groups, axis)
    mean = mean_of(x.astype(jnp.float32))
    rate = jax.lax.rsqrt(mean_of((x - along(mean)) ** 2) + eps)
    y = (x - along(mean)) * along(rate * scale) + along(shift)
    y = jax.nn.swish(y) if swish else y
    return y.astype(x.dtype), (x, mean, rate, scale, shift)


def _differentiate(groups, eps, axis, swish, kept, grad):
    """With g of what comes before swish, x̄ the standardised x and r = 1/√(variance + ε):

    ∂/∂shift = Σ g, ∂/∂scale = Σ g x̄, ∂/∂x = r (scale g − mean(scale g) − x̄ mean(scale g x̄)), with
    sums over an example's channel and means over its group.
    """
    del eps
    x, mean, rate, scale, shift = kept
    along, _ = _tables(x, groups, axis)
    others = _others(x, axis)
    grad = grad.astype(jnp.float32)
    standardised = (x - along(mean)) * along(rate)
    if swish:
        y = standardised * along(scale) + along(shift)
        gate = jax.nn.sigmoid(y)
        grad = grad * gate * (1.0 + y * (1.0 - gate))
    sums = jnp.sum(grad, others), jnp.sum(grad * standardised, others)
    size = x[0].size // x.shape[axis]
    level, slope = (rate * _mean_of_groups(scale * total, groups) / size for total in sums)
    grad_x = grad * along(rate * scale) - along(level) - standardised * along(slope)
    grad_shift, grad_scale = (
        _summed_as(total, like) for total, like in zip(sums, (shift, scale), strict=True)
    )
    return grad_x.astype(x.dtype), grad_scale, grad_shift


group_norm.defvjp(_normalize, _differentiate)


def _tables(x, groups, axis):
    """(how a table `[B, C]` lies along x, the mean of each group of an array like x as a table)."""
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]

    def along(table):
        return table.reshape(-1, *shape[1:])

    def mean_of(array):
        return _mean_of_groups(jnp.mean(array, _others(x, axis)), groups)

    return along, mean_of


def _others(x, axis):
    """All axes but the batch and the channels."""
    return tuple(i for i in range(1, x.ndim) if i != axis % x.ndim)


def _mean_of_groups(table, groups):
    """`[B, C]` -> `[B, C]`: each channel has the mean of its group."""
    grouped = table.reshape(table.shape[0], groups, -1)
    means = jnp.mean(grouped, -1, keepdims=True)
    return jnp.broadcast_to(means, grouped.shape).reshape(table.shape)


def _summed_as(table, like):
    """`[B, C]` summed over the examples where `like` has one row for all of them."""
    return table if like.shape[0] == table.shape[0] else jnp.sum(table, 0, keepdims=True)
