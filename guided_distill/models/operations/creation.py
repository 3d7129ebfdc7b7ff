"""New arrays, and numbers computed from sizes."""

import operator

import jax
import jax.numpy as jnp


def _arange(*bounds, dtype=None):
    return jnp.arange(*bounds, dtype=dtype)


def _linspace(start, end, steps, *, dtype=None):
    return jnp.linspace(start, end, steps, dtype=dtype or "float32")


def _filled(shape, value, *, dtype=None):
    """A number everywhere, of its own dtype where none is told."""
    return jnp.full(shape, value, dtype)


def _filled_like(x, value, *, dtype=None):
    return jnp.full_like(x, value, dtype=dtype)


def _new_filled(x, shape, value, *, dtype=None):
    return jnp.full(shape, value, dtype or x.dtype)


def _with(rule, value, dtype=None):
    """The rule that fills, filling with one value."""
    return lambda *args, **kwargs: rule(*args, value, **({"dtype": dtype} | kwargs))


def _plain(value):
    return lambda shape, *, dtype=None: jnp.full(shape, value, dtype or "float32")


def _eye(rows, columns=None, *, dtype=None):
    return jnp.eye(rows, columns, dtype=dtype)


CREATION = {
    "arange.default": _arange,
    "arange.start": _arange,
    "arange.start_step": _arange,
    "linspace.default": _linspace,
    "eye.default": _eye,
    "eye.m": _eye,
    "scalar_tensor.default": lambda value, *, dtype=None: jnp.asarray(value, dtype or "float32"),
    "full.default": _filled,
    "zeros.default": _plain(0),
    "ones.default": _plain(1),
    "empty.memory_format": _plain(0),
    "full_like.default": _filled_like,
    "zeros_like.default": _with(_filled_like, 0),
    "ones_like.default": _with(_filled_like, 1),
    "empty_like.default": _with(_filled_like, 0),
    "new_full.default": _new_filled,
    "new_zeros.default": _with(_new_filled, 0),
    "new_ones.default": _with(_new_filled, 1),
    "new_empty.default": _with(_new_filled, 0),
    "fill.Scalar": _filled_like,
    "zero.default": jnp.zeros_like,
}

COMPLEX = {
    "complex.default": jax.lax.complex,
    "view_as_complex.default": lambda x: jax.lax.complex(x[..., 0], x[..., 1]),
    "view_as_real.default": lambda z: jnp.stack([z.real, z.imag], -1),
    "polar.default": lambda size, angle: jax.lax.complex(
        size * jnp.cos(angle), size * jnp.sin(angle)
    ),
}

SIZES = {
    "sym_size.int": lambda x, dim: x.shape[dim],
    "sym_numel.default": lambda x: x.size,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_float": float,
    "torch.sym_not": operator.not_,
    "operator.add": operator.add,
    "operator.sub": operator.sub,
    "operator.mul": operator.mul,
    "operator.truediv": operator.truediv,
    "operator.floordiv": operator.floordiv,
    "operator.mod": operator.mod,
    "operator.neg": operator.neg,
    "operator.pow": operator.pow,
    "operator.eq": operator.eq,
    "operator.ne": operator.ne,
    "operator.lt": operator.lt,
    "operator.le": operator.le,
    "operator.gt": operator.gt,
    "operator.ge": operator.ge,
    "operator.getitem": operator.getitem,
}
