"""Activations and softmaxes."""

import jax
import jax.numpy as jnp


def _elu(x, alpha=1, scale=1, input_scale=1):
    below = alpha * jnp.expm1(input_scale * jnp.minimum(x, 0))
    return scale * jnp.where(x > 0, x, below)


def _softplus(x, beta=1, threshold=20):
    return jnp.where(x * beta > threshold, x, jax.nn.softplus(x * beta) / beta)


def _gelu(x, *, approximate="none"):
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def _glu(x, dim=-1):
    value, gate = jnp.split(x, 2, dim)
    return value * jax.nn.sigmoid(gate)


def _prelu(x, slope):
    """Its slope is one number, or one for each channel (axis 1)."""
    if slope.size > 1:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    return jnp.where(x > 0, x, slope * x)


def _softmax(x, dim, dtype=None):
    return jax.nn.softmax(x if dtype is None else x.astype(dtype), dim)


def _log_softmax(x, dim, dtype=None):
    return jax.nn.log_softmax(x if dtype is None else x.astype(dtype), dim)


ACTIVATIONS = {
    "relu.default": jax.nn.relu,
    "relu6.default": jax.nn.relu6,
    "leaky_relu.default": lambda x, slope=0.01: jnp.where(x > 0, x, slope * x),
    "prelu.default": _prelu,
    "elu.default": _elu,
    "celu.default": lambda x, alpha=1.0: jax.nn.celu(x, alpha),
    "selu.default": jax.nn.selu,
    "silu.default": jax.nn.silu,
    "gelu.default": _gelu,
    "mish.default": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "sigmoid.default": lambda x: jax.nn.sigmoid(x * 1.0),
    "special_expit.default": lambda x: jax.nn.sigmoid(x * 1.0),
    "log_sigmoid.default": jax.nn.log_sigmoid,
    "tanh.default": jnp.tanh,
    "softplus.default": _softplus,
    "hardtanh.default": lambda x, low=-1, high=1: jnp.clip(x, low, high),
    "hardsigmoid.default": lambda x: jnp.clip(x + 3, 0, 6) / 6,
    "hardswish.default": lambda x: x * jnp.clip(x + 3, 0, 6) / 6,
    "threshold.default": lambda x, threshold, value: jnp.where(x > threshold, x, value),
}

SOFTMAXES = {  # They and the gated unit mix entries, the others do not.
    "glu.default": _glu,
    "softmax.int": _softmax,
    "log_softmax.int": _log_softmax,
}
