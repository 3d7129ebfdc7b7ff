"""Reading and writing entries: cuts, lookups, gathers and scatters, triangles."""

import jax
import jax.numpy as jnp

from guided_distill.errors import UserError
from guided_distill.models.operations.refusals import refuse


def _at(x, dim, index):
    """The index of one axis among all axes of x."""
    where = [slice(None)] * x.ndim
    where[dim] = index
    return tuple(where)


def _slice(x, dim=0, start=None, end=None, step=1):
    return x[_at(x, dim, slice(start, end, step))]


def _slice_scatter(x, source, dim=0, start=None, end=None, step=1):
    return x.at[_at(x, dim, slice(start, end, step))].set(source.astype(x.dtype))


def _select(x, dim, index):
    return jax.lax.index_in_dim(x, index, dim, keepdims=False)


def _select_scatter(x, source, dim, index):
    return x.at[_at(x, dim, index)].set(source.astype(x.dtype))


def _indices(indices):
    """Indices of the leading axes, None for all of one.

    Raises:
      UserError: where one is a mask, whose number of entries is not known beforehand.
    """
    if any(index is not None and index.dtype == bool for index in indices):
        raise UserError("an index that is a mask picks an unknown number of entries: use `where`")
    return tuple(slice(None) if index is None else index for index in indices)


def _index_put(x, indices, values, accumulate=False):
    at = x.at[_indices(indices)]
    return (at.add if accumulate else at.set)(values.astype(x.dtype))


def _corner(x, index, dim):
    """x cut to the shape of `index` on every axis but `dim`."""
    sizes = [None if axis == dim % x.ndim else size for axis, size in enumerate(index.shape)]
    return x[tuple(slice(size) for size in sizes)]


def _gather(x, dim, index, *, sparse_grad=False):
    return jnp.take_along_axis(_corner(x, index, dim), index, dim)


def _places(index, dim):
    """Where along all axes `index[i, …]` points that counts along `dim`."""
    where = list(jnp.indices(index.shape, sparse=True))
    where[dim] = index
    return tuple(where)


def _written(x, index, source):
    """The source of a scatter, cut to the shape of `index`."""
    source = jnp.broadcast_to(source, index.shape) if jnp.ndim(source) == 0 else source
    return source[tuple(slice(size) for size in index.shape)].astype(x.dtype)


def _scatter(x, dim, index, source):
    """x with source[i, …] written where `index[i, …]` says along `dim`."""
    return x.at[_places(index, dim)].set(_written(x, index, source))


def _scatter_add(x, dim, index, source):
    return x.at[_places(index, dim)].add(_written(x, index, source))


def _index_add(x, dim, index, source, *, alpha=1):
    return x.at[_at(x, dim, index)].add(alpha * source)


def _sort(x, dim=-1, descending=False, *, stable=True):
    """(values, indices), equal ones in their order."""
    order = jnp.argsort(x, dim, stable=True, descending=descending)
    return jnp.take_along_axis(x, order, dim), order


def _top_k(x, k, dim=-1, largest=True, sorted=True):
    values, order = _sort(x, dim, descending=largest)
    return tuple(_slice(a, dim, 0, k) for a in (values, order))


def _embedding(table, index, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    """Rows of a table `[N, D]`; the row `padding_idx` gets no gradient."""
    refuse("embedding", scale_grad_by_freq=(scale_grad_by_freq, False))
    rows = jnp.take(table, index, axis=0)
    if padding_idx < 0:
        return rows
    return jnp.where((index == padding_idx)[..., None], jax.lax.stop_gradient(rows), rows)


def _one_hot(index, num_classes=-1):
    if num_classes < 0:
        raise UserError("one_hot needs its num_classes: the largest index is not known beforehand")
    return jax.nn.one_hot(index, num_classes, dtype="int32")


def _diagonal(x, offset=0, dim1=0, dim2=1):
    return jnp.diagonal(x, offset, dim1, dim2)


INDEXING = {
    "slice.Tensor": _slice,
    "select.int": _select,
    "slice_scatter.default": _slice_scatter,
    "select_scatter.default": _select_scatter,
    "scatter.value": _scatter,
    "scatter.src": _scatter,
    "scatter_add.default": _scatter_add,
    "index_add.default": _index_add,
    "index_put.default": _index_put,
    "tril.default": jnp.tril,
    "triu.default": jnp.triu,
    "diagonal.default": _diagonal,
    "sort.default": _sort,
    "sort.stable": lambda x, *, stable, dim=-1, descending=False: _sort(x, dim, descending),
    "argsort.default": lambda x, dim=-1, descending=False: _sort(x, dim, descending)[1],
    "topk.default": _top_k,
    "one_hot.default": _one_hot,
}

LOOKUPS = {
    "index.Tensor": lambda x, indices: x[_indices(indices)],
    "index_select.default": lambda x, dim, index: jnp.take(x, index, dim),
    "gather.default": _gather,
    "take_along_dim.default": lambda x, index, dim=None: jnp.take_along_axis(x, index, dim),
    "embedding.default": _embedding,
}
