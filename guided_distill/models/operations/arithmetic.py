"""Element-wise arithmetic, comparisons, logic and casts.

PyTorch's type promotion is JAX's for float32, int32 and bool: Python numbers are weak, an integer
divided by an integer is a float. float64 is float32 here and int64 is int32.
"""

import jax
import jax.numpy as jnp

from guided_distill.models.operations.refusals import refuse


def _add(a, b, alpha=1):
    return jnp.add(a, b if alpha == 1 else alpha * b)


def _subtract(a, b, alpha=1):
    return jnp.subtract(a, b if alpha == 1 else alpha * b)


def _divide(a, b, *, rounding_mode=None):
    """a / b; rounded down or to zero where told, then of their common dtype."""
    if rounding_mode is None:
        return jnp.true_divide(a, b)
    if rounding_mode == "floor":
        return jnp.floor_divide(a, b)
    dtype = jnp.result_type(a, b)
    whole = jnp.issubdtype(dtype, jnp.integer)
    quotient = jax.lax.div(*_promoted(a, b)) if whole else jnp.trunc(jnp.true_divide(a, b))
    return quotient.astype(dtype)


def _promoted(a, b):
    dtype = jnp.result_type(a, b)
    return jnp.broadcast_arrays(jnp.asarray(a, dtype), jnp.asarray(b, dtype))


def _clamp(x, min=None, max=None):
    """x within bounds; at a bound the gradient is x's, as PyTorch has it."""
    if min is not None:
        x = jnp.where(x < min, min, x)
    return x if max is None else jnp.where(x > max, max, x)


def _nan_to_num(x, nan=None, posinf=None, neginf=None):
    return jnp.nan_to_num(x, nan=0.0 if nan is None else nan, posinf=posinf, neginf=neginf)


def _lerp(a, b, weight):
    return a + weight * (b - a)


def _copy_to(x, dtype=None):
    return x if dtype is None else x.astype(dtype)


def _copy_into(x, source, non_blocking=False):
    return jnp.broadcast_to(source, x.shape).astype(x.dtype)


def _floating(function):
    """A function of floats that takes integers too."""
    return lambda x: function(x * 1.0)


def _round(x, *, decimals=0):
    refuse("round", decimals=(decimals, 0))
    return jnp.round(x)


ARITHMETIC = {
    "add.Tensor": _add,
    "add.Scalar": _add,
    "sub.Tensor": _subtract,
    "sub.Scalar": _subtract,
    "rsub.Scalar": lambda a, b, alpha=1: _subtract(b, a, alpha=alpha),
    "rsub.Tensor": lambda a, b, alpha=1: _subtract(b, a, alpha=alpha),
    "mul.Tensor": jnp.multiply,
    "mul.Scalar": jnp.multiply,
    "div.Tensor": _divide,
    "div.Scalar": _divide,
    "div.Tensor_mode": _divide,
    "div.Scalar_mode": _divide,
    "true_divide.Tensor": _divide,
    "floor_divide.default": jnp.floor_divide,
    "floor_divide.Scalar": jnp.floor_divide,
    "remainder.Scalar": jnp.remainder,
    "remainder.Tensor": jnp.remainder,
    "fmod.Scalar": jnp.fmod,
    "fmod.Tensor": jnp.fmod,
    "pow.Tensor_Scalar": lambda x, exponent: x**exponent,
    "pow.Tensor_Tensor": jnp.power,
    "pow.Scalar": jnp.power,
    "neg.default": jnp.negative,
    "reciprocal.default": lambda x: 1.0 / x,
    "abs.default": jnp.abs,
    "sign.default": jnp.sign,
    "square.default": jnp.square,
    "sqrt.default": jnp.sqrt,
    "rsqrt.default": _floating(jax.lax.rsqrt),
    "exp.default": jnp.exp,
    "exp2.default": jnp.exp2,
    "expm1.default": jnp.expm1,
    "log.default": jnp.log,
    "log2.default": jnp.log2,
    "log10.default": jnp.log10,
    "log1p.default": jnp.log1p,
    "logaddexp.default": jnp.logaddexp,
    "sin.default": jnp.sin,
    "cos.default": jnp.cos,
    "tan.default": jnp.tan,
    "asin.default": jnp.arcsin,
    "acos.default": jnp.arccos,
    "atan.default": jnp.arctan,
    "atan2.default": jnp.arctan2,
    "sinh.default": jnp.sinh,
    "cosh.default": jnp.cosh,
    "erf.default": _floating(jax.lax.erf),
    "erfc.default": _floating(jax.lax.erfc),
    "erfinv.default": _floating(jax.lax.erf_inv),
    "sinc.default": jnp.sinc,
    "floor.default": jnp.floor,
    "ceil.default": jnp.ceil,
    "trunc.default": jnp.trunc,
    "round.default": _round,
    "round.decimals": _round,
    "frac.default": lambda x: x - jnp.trunc(x),
    "minimum.default": jnp.minimum,
    "maximum.default": jnp.maximum,
    "min.other": jnp.minimum,
    "max.other": jnp.maximum,
    "clamp.default": _clamp,
    "clamp.Tensor": _clamp,
    "clamp_min.default": lambda x, min: _clamp(x, min=min),
    "clamp_max.default": lambda x, max: _clamp(x, max=max),
    "nan_to_num.default": _nan_to_num,
    "lerp.Scalar": _lerp,
    "lerp.Tensor": _lerp,
    "addcmul.default": lambda x, a, b, *, value=1: x + value * a * b,
    "addcdiv.default": lambda x, a, b, *, value=1: x + value * a / b,
    "hypot.default": jnp.hypot,
}

COMPARISONS = {
    "eq.Tensor": jnp.equal,
    "eq.Scalar": jnp.equal,
    "ne.Tensor": jnp.not_equal,
    "ne.Scalar": jnp.not_equal,
    "lt.Tensor": jnp.less,
    "lt.Scalar": jnp.less,
    "le.Tensor": jnp.less_equal,
    "le.Scalar": jnp.less_equal,
    "gt.Tensor": jnp.greater,
    "gt.Scalar": jnp.greater,
    "ge.Tensor": jnp.greater_equal,
    "ge.Scalar": jnp.greater_equal,
    "isnan.default": jnp.isnan,
    "isinf.default": jnp.isinf,
    "isfinite.default": jnp.isfinite,
    "logical_and.default": jnp.logical_and,
    "logical_or.default": jnp.logical_or,
    "logical_xor.default": jnp.logical_xor,
    "logical_not.default": jnp.logical_not,
    "bitwise_and.Tensor": jnp.bitwise_and,
    "bitwise_or.Tensor": jnp.bitwise_or,
    "bitwise_xor.Tensor": jnp.bitwise_xor,
    "__and__.Tensor": jnp.bitwise_and,
    "__and__.Scalar": jnp.bitwise_and,
    "__or__.Tensor": jnp.bitwise_or,
    "__or__.Scalar": jnp.bitwise_or,
    "__xor__.Tensor": jnp.bitwise_xor,
    "__xor__.Scalar": jnp.bitwise_xor,
    "bitwise_not.default": jnp.bitwise_not,
    "where.self": jnp.where,
    "where.ScalarOther": jnp.where,
    "where.ScalarSelf": jnp.where,
    "where.Scalar": jnp.where,
    "masked_fill.Scalar": lambda x, mask, value: jnp.where(mask, jnp.asarray(value, x.dtype), x),
    "masked_fill.Tensor": lambda x, mask, value: jnp.where(mask, value.astype(x.dtype), x),
}

CASTS = {
    "_to_copy.default": _copy_to,
    "type_as.default": lambda x, like: x.astype(like.dtype),
    "clone.default": lambda x: x,
    "alias.default": lambda x: x,
    "detach.default": jax.lax.stop_gradient,
    "copy.default": _copy_into,
}
