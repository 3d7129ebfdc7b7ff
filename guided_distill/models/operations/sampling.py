"""Values of a picture at any points: `[B, C, …]` at a grid `[B, …, axes]` in [-1, 1]."""

import itertools

import jax.numpy as jnp

from guided_distill.models.operations.refusals import refuse

NEAREST, BORDER = 1, 1  # modes; 0 is bilinear, and zeros beyond an edge


def _at_points(x, grid, mode, padding, align_corners):
    """Nearest entries, or neighbours weighed; beyond an edge zeros, or the edge's entry."""
    refuse("grid_sampler", interpolation_mode=(mode, min(mode, NEAREST)))
    refuse("grid_sampler", padding_mode=(padding, min(padding, BORDER)))
    sizes = jnp.asarray(x.shape[2:], x.dtype)
    at = grid[..., ::-1]  # A grid has the last axis first.
    at = (at + 1) / 2 * (sizes - 1) if align_corners else ((at + 1) * sizes - 1) / 2
    if padding == BORDER:
        at = jnp.clip(at, 0, sizes - 1)
    if mode == NEAREST:
        return _entries(x, jnp.round(at))
    low = jnp.floor(at)
    total = 0
    for corner in itertools.product((0, 1), repeat=at.shape[-1]):
        corner = jnp.asarray(corner, x.dtype)
        weight = jnp.prod(1 - jnp.abs(at - low - corner), axis=-1)
        total = total + weight[:, None] * _entries(x, low + corner)
    return total


def _entries(x, at):
    """`[B, C, …]` at whole places `[B, …, axes]`, zero outside."""
    sizes = jnp.asarray(x.shape[2:], at.dtype)
    inside = jnp.all((at >= 0) & (at < sizes), axis=-1)
    index = jnp.clip(at, 0, sizes - 1).astype(jnp.int32)
    rows = jnp.arange(len(x)).reshape(-1, *[1] * (index.ndim - 2))
    found = jnp.moveaxis(x, 1, -1)[(rows, *jnp.moveaxis(index, -1, 0))]
    return jnp.moveaxis(jnp.where(inside[..., None], found, 0), -1, 1)


def _centres(length, align_corners):
    """Where the entries of an axis lie in [-1, 1], the first and last at its ends if asked."""
    if align_corners and length > 1:
        return 2 * jnp.arange(length, dtype=jnp.float32) / (length - 1) - 1
    return (2 * jnp.arange(length, dtype=jnp.float32) + 1) / length - 1


def _affine_grid(theta, size, align_corners):
    """The grid `[B, …, axes]` of affine maps `[B, axes, axes + 1]` for a picture of `size`."""
    lines = [_centres(length, align_corners) for length in size[2:]]
    points = jnp.stack([*jnp.meshgrid(*lines, indexing="ij")[::-1], jnp.ones(size[2:])], -1)
    return jnp.einsum("...j,bij->b...i", points, theta)


SAMPLING = {
    "grid_sampler.default": _at_points,
    "affine_grid_generator.default": _affine_grid,
}
