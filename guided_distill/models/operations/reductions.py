"""Sums, means, extremes, norms and running sums, over one axis, several or all."""

import jax
import jax.numpy as jnp

from guided_distill.models.operations.refusals import refuse


def _axes(x, dim):
    """Axes as a tuple; None and an empty list mean all."""
    if dim is None or dim == []:
        return tuple(range(x.ndim))
    return tuple(dim) if isinstance(dim, list) else (dim,)


def _summable(x, dtype=None):
    """x as sums need it: bools and small integers as int32."""
    if dtype is None and not jnp.issubdtype(x.dtype, jnp.inexact):
        dtype = "int32"
    return x if dtype is None else x.astype(dtype)


def _over_axes(reduce):
    return lambda x, dim=None, keepdim=False: reduce(x, _axes(x, dim), keepdims=keepdim)


def _summing(reduce):
    def rule(x, dim=None, keepdim=False, *, dtype=None):
        return reduce(_summable(x, dtype), _axes(x, dim), keepdims=keepdim)

    return rule


def _total(rule):
    """The rule over all axes, which takes no `dim`."""
    return lambda x, *, dtype=None: rule(x, dtype=dtype)


def _truth(reduce):
    return lambda x, dim=None, keepdim=False: reduce(x != 0, _axes(x, dim), keepdims=keepdim)


def _variance(x, dim=None, *, correction=1, keepdim=False):
    ddof = 1 if correction is None else correction
    return jnp.var(x, _axes(x, dim), ddof=ddof, keepdims=keepdim)


def _deviation(x, dim=None, *, correction=1, keepdim=False):
    return jnp.sqrt(_variance(x, dim, correction=correction, keepdim=keepdim))


def _unbiased(rule):
    """The rule told `unbiased` in place of a correction."""

    def told(x, dim=None, unbiased=True, keepdim=False):
        return rule(x, dim, correction=int(unbiased), keepdim=keepdim)

    return told


def _unbiased_total(rule):
    return lambda x, unbiased=True: rule(x, correction=int(unbiased))


def _with_mean(rule):
    def both(x, dim=None, *, correction=1, keepdim=False):
        mean = jnp.mean(x, _axes(x, dim), keepdims=keepdim)
        return rule(x, dim, correction=correction, keepdim=keepdim), mean

    return both


def _extreme(arg):
    """(values, indices) of one axis's extreme; the gradient goes to the entry found."""

    def rule(x, dim, keepdim=False):
        index = arg(x, axis=dim, keepdims=True)
        value = jnp.take_along_axis(x, index, dim)
        return tuple(a if keepdim else jnp.squeeze(a, dim) for a in (value, index))

    return rule


def _arg(arg):
    return lambda x, dim=None, keepdim=False: arg(x, axis=dim, keepdims=keepdim)


def vector_norm(x, ord=2, dim=None, keepdim=False, *, dtype=None):
    """(Σ |x|^ord)^(1/ord); of zeros it is 0, and so is its gradient."""
    axes = _axes(x, dim)
    size = jnp.abs(x if dtype is None else x.astype(dtype))
    if ord in (float("inf"), float("-inf")):
        return (jnp.max if ord > 0 else jnp.min)(size, axes, keepdims=keepdim)
    if ord == 0:
        return jnp.sum(size != 0, axes, keepdims=keepdim).astype(size.dtype)
    total = jnp.sum(size**ord, axes, keepdims=keepdim)
    some = total > 0
    return jnp.where(some, jnp.where(some, total, 1) ** (1 / ord), 0)


def _norm(x, ord=None, dim=None, keepdim=False, *, dtype=None):
    refuse("linalg_norm", ord=(ord, None))
    return vector_norm(x, 2, dim, keepdim, dtype=dtype)


def _running(accumulate):
    return lambda x, dim, *, dtype=None: accumulate(_summable(x, dtype), dim)


def _cosine_similarity(a, b, dim=1, eps=1e-8):
    """Of vectors along `dim`; shorter ones than ε count as long as ε, to no gradient."""

    def direction(x):
        length = vector_norm(x, 2, dim, keepdim=True)
        return x / (length + jax.lax.stop_gradient(jnp.maximum(eps - length, 0)))

    a, b = jnp.broadcast_arrays(a, b)
    return jnp.sum(direction(a) * direction(b), dim)


def _differences(x, n=1, dim=-1, prepend=None, append=None):
    return jnp.diff(x, n, dim, prepend, append)


def _logsumexp(x, dim, keepdim=False):
    return jax.nn.logsumexp(x, _axes(x, dim), keepdims=keepdim)


_sum, _mean = _summing(jnp.sum), _summing(jnp.mean)

REDUCTIONS = {
    "sum.default": _total(_sum),
    "sum.dim_IntList": _sum,
    "mean.default": _total(_mean),
    "mean.dim": _mean,
    "prod.default": _total(_summing(jnp.prod)),
    "prod.dim_int": _summing(jnp.prod),
    "amax.default": _over_axes(jnp.max),
    "amin.default": _over_axes(jnp.min),
    "max.default": jnp.max,
    "min.default": jnp.min,
    "max.dim": _extreme(jnp.argmax),
    "min.dim": _extreme(jnp.argmin),
    "argmax.default": _arg(jnp.argmax),
    "argmin.default": _arg(jnp.argmin),
    "any.default": _truth(jnp.any),
    "any.dim": _truth(jnp.any),
    "all.default": _truth(jnp.all),
    "all.dim": _truth(jnp.all),
    "var.default": _unbiased_total(_variance),
    "var.dim": _unbiased(_variance),
    "var.correction": _variance,
    "std.default": _unbiased_total(_deviation),
    "std.dim": _unbiased(_deviation),
    "std.correction": _deviation,
    "var_mean.dim": _unbiased(_with_mean(_variance)),
    "var_mean.correction": _with_mean(_variance),
    "std_mean.dim": _unbiased(_with_mean(_deviation)),
    "std_mean.correction": _with_mean(_deviation),
    "linalg_vector_norm.default": vector_norm,
    "linalg_norm.default": _norm,
    "count_nonzero.default": lambda x, dim=None: jnp.sum(x != 0, _axes(x, dim), dtype="int32"),
    "count_nonzero.dim_IntList": lambda x, dim: jnp.sum(x != 0, _axes(x, dim), dtype="int32"),
    "cosine_similarity.default": _cosine_similarity,
    "logsumexp.default": _logsumexp,
    "diff.default": _differences,
    "cumsum.default": _running(jnp.cumsum),
    "cumprod.default": _running(jnp.cumprod),
}
