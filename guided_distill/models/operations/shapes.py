"""Shapes: views, joins, cuts, repeats and reorderings."""

import jax.numpy as jnp

from guided_distill.errors import UserError


def _expand(x, shape, *, implicit=False):
    """Broadcast; −1 keeps the axis that x has there, counted from the last."""
    new = len(shape) - x.ndim
    sizes = [x.shape[i - new] if size == -1 else size for i, size in enumerate(shape)]
    return jnp.broadcast_to(x, sizes)


def _squeeze(x, dims):
    """Without those of the axes that have length 1."""
    ones = [dim % x.ndim for dim in dims if x.ndim and x.shape[dim] == 1]
    return jnp.squeeze(x, tuple(ones))


def _split(x, size, dim=0):
    """Pieces of `size` along an axis, the last one shorter where it does not divide."""
    return jnp.split(x, list(range(size, x.shape[dim], size)), dim)


def _split_sizes(x, sizes, dim=0):
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return jnp.split(x, ends, dim)


def _unbind(x, dim=0):
    return [jnp.squeeze(piece, dim) for piece in jnp.split(x, x.shape[dim], dim)]


def _repeat_interleave(x, repeats, dim=None, *, output_size=None):
    return jnp.repeat(x, repeats, dim)


def _meshgrid(axes, *, indexing="ij"):
    return jnp.meshgrid(*axes, indexing=indexing)


def _windows(x, dim, size, step):
    """Sliding windows along an axis, laid out on a new last axis."""
    starts = jnp.arange(0, x.shape[dim] - size + 1, step)
    windows = jnp.take(x, starts[:, None] + jnp.arange(size), dim)
    return jnp.moveaxis(windows, dim % x.ndim + 1, -1)


def _pixel_shuffle(x, factor):
    """`[…, C r², H, W]` -> `[…, C, H r, W r]`."""
    *batch, channels, height, width = x.shape
    x = x.reshape(*batch, channels // factor**2, factor, factor, height, width)
    x = jnp.moveaxis(x, (-4, -3), (-3, -1))
    return x.reshape(*batch, channels // factor**2, height * factor, width * factor)


def _pixel_unshuffle(x, factor):
    """`[…, C, H r, W r]` -> `[…, C r², H, W]`."""
    *batch, channels, height, width = x.shape
    x = x.reshape(*batch, channels, height // factor, factor, width // factor, factor)
    x = jnp.moveaxis(x, (-3, -1), (-4, -3))
    return x.reshape(*batch, channels * factor**2, height // factor, width // factor)


def _channel_shuffle(x, groups):
    """`[B, C, …]`, its channels dealt out in turn from each group."""
    split = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    return jnp.swapaxes(split, 1, 2).reshape(x.shape)


def _view_as_dtype(x, dtype):
    raise UserError(f"view as {dtype} reads bytes as another dtype: export a module without it")


def _roll(x, shifts, dims=()):
    """Rolls axes; without any, the flattened entries."""
    return jnp.roll(x, tuple(shifts), tuple(dims)) if dims else jnp.roll(x, shifts[0])


SHAPES = {
    "view.default": jnp.reshape,
    "_unsafe_view.default": jnp.reshape,
    "view.dtype": _view_as_dtype,
    "transpose.int": jnp.swapaxes,
    "t.default": jnp.transpose,
    "permute.default": jnp.transpose,
    "expand.default": _expand,
    "squeeze.default": jnp.squeeze,
    "squeeze.dim": lambda x, dim: _squeeze(x, [dim]),
    "squeeze.dims": _squeeze,
    "unsqueeze.default": jnp.expand_dims,
    "repeat.default": jnp.tile,
    "tile.default": jnp.tile,
    "repeat_interleave.self_int": _repeat_interleave,
    "flip.default": jnp.flip,
    "roll.default": _roll,
    "rot90.default": lambda x, k=1, dims=(0, 1): jnp.rot90(x, k, tuple(dims)),
    "broadcast_tensors.default": lambda arrays: jnp.broadcast_arrays(*arrays),
    "meshgrid.default": _meshgrid,
    "meshgrid.indexing": _meshgrid,
    "pixel_shuffle.default": _pixel_shuffle,
    "pixel_unshuffle.default": _pixel_unshuffle,
    "channel_shuffle.default": _channel_shuffle,
    "unfold.default": _windows,
}

CUTS = {
    "split.Tensor": _split,
    "split_with_sizes.default": _split_sizes,
    "unbind.int": _unbind,
}

JOINS = {
    "cat.default": lambda arrays, dim=0: jnp.concatenate(arrays, dim),
    "concat.default": lambda arrays, dim=0: jnp.concatenate(arrays, dim),
    "stack.default": lambda arrays, dim=0: jnp.stack(arrays, dim),
    "hstack.default": jnp.hstack,
    "vstack.default": jnp.vstack,
    "column_stack.default": jnp.column_stack,
}
