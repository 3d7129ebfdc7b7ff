"""Normalisations, computed in float32 and given in the dtype of x."""

import functools

import jax
import jax.numpy as jnp

from guided_distill.models.group_norm import group_norm
from guided_distill.models.operations.reductions import vector_norm

FLOAT32_EPS = float(jnp.finfo(jnp.float32).eps)


def _standardised(x, axes, eps):
    """(x − mean) / √(variance + ε) over `axes`, float32."""
    return _standardise(x.astype(jnp.float32), axes, eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _standardise(x, axes, eps):
    """As above, with the gradient that needs the fewest passes over x.

    Derived line by line it is one in which XLA works the same sums out several times over.
    """
    return _standardise_and_keep(x, axes, eps)[0]


def _standardise_and_keep(x, axes, eps):
    centred = x - jnp.mean(x, axes, keepdims=True)
    rate = jax.lax.rsqrt(jnp.mean(centred**2, axes, keepdims=True) + eps)
    y = centred * rate
    return y, (y, rate)


def _standardise_back(axes, eps, kept, grad):
    """∂/∂x = (g − mean(g) − y mean(g y)) / √(variance + ε)."""
    y, rate = kept
    mean = jnp.mean(grad, axes, keepdims=True)
    along = jnp.mean(grad * y, axes, keepdims=True)
    return (rate * (grad - mean - y * along),)


_standardise.defvjp(_standardise_and_keep, _standardise_back)


def _affine(x, weight, bias):
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _per_channel(vector, x):
    """`[C]` laid along axis 1 of x."""
    return None if vector is None else vector.reshape(-1, *[1] * (x.ndim - 2))


def _group_norm(x, groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    channels = x.shape[1]
    scale = jnp.ones(channels) if weight is None else weight.astype(jnp.float32)
    shift = jnp.zeros(channels) if bias is None else bias.astype(jnp.float32)
    return group_norm(x, scale[None], shift[None], groups, eps, axis=1)


def _layer_norm(x, shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    axes = tuple(range(-len(shape), 0))
    return _affine(_standardised(x, axes, eps), weight, bias).astype(x.dtype)


def _rms_norm(x, shape, weight=None, eps=None):
    axes = tuple(range(-len(shape), 0))
    y = x.astype(jnp.float32)
    mean_square = jnp.mean(y**2, axes, keepdims=True)
    y = y * jax.lax.rsqrt(mean_square + (FLOAT32_EPS if eps is None else eps))
    return _affine(y, weight, None).astype(x.dtype)


def _batch_norm(x, weight, bias, mean, variance, momentum, eps):
    """By the running mean and variance `[C]`; returns (y, two empty arrays)."""
    y = x.astype(jnp.float32) - _per_channel(mean, x)
    y = y * jax.lax.rsqrt(_per_channel(variance, x) + eps)
    y = _affine(y, _per_channel(weight, x), _per_channel(bias, x))
    return y.astype(x.dtype), jnp.zeros(0), jnp.zeros(0)


def _instance_norm(
    x, weight, bias, mean, variance, use_input_stats, momentum, eps, cudnn_enabled=True
):
    if use_input_stats:
        return _group_norm(x, x.shape[1], weight, bias, eps)
    return _batch_norm(x, weight, bias, mean, variance, momentum, eps)[0]


def _weight_norm(direction, length, dim=0):
    """The direction at the given length, over all axes but `dim`; with −1, over all."""
    axes = [axis for axis in range(direction.ndim) if axis != dim]
    return direction * (length / vector_norm(direction, 2, axes, keepdim=True))


NORMALISATIONS = {
    "group_norm.default": _group_norm,
    "layer_norm.default": _layer_norm,
    "rms_norm.default": _rms_norm,
    "_native_batch_norm_legit_no_training.default": _batch_norm,
    "instance_norm.default": _instance_norm,
    "_weight_norm.default": _weight_norm,
}
