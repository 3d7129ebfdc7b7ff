"""Resizing and padding of the last axes: `[B, C, …]`."""

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.errors import UserError
from guided_distill.models.operations.convolution import apply_along

PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
CUBIC_A = -0.75  # PyTorch's constant of the cubic kernel


def _targets(x, sizes, factors):
    """(axis, new length, old units per new unit or None) of each axis after the channels."""
    for i in range(x.ndim - 2):
        old = x.shape[i + 2]
        size = int(old * factors[i]) if sizes is None else sizes[i]
        yield i + 2, size, None if factors is None else 1 / factors[i]


def _nearest(offset):
    """Repeats entries: new entry j is the old one under j + offset."""

    def rule(x, sizes, factors):
        for axis, size, step in _targets(x, sizes, factors):
            old = x.shape[axis]
            if size % old == 0 and step in (None, old / size):
                x = jnp.repeat(x, size // old, axis)
                continue
            step = np.float32(old / size if step is None else step)
            entry = np.floor((np.arange(size, dtype=np.float32) + np.float32(offset)) * step)
            x = jnp.take(x, np.minimum(entry.astype(int), old - 1), axis)
        return x

    return rule


def _linear_weights(fraction):
    """Weights `[size, 2]` of the entries at floor and floor + 1."""
    return np.stack([1 - fraction, fraction], 1)


def _cubic_weights(fraction):
    """Weights `[size, 4]` of the entries from floor − 1 to floor + 2."""
    distance = np.abs(fraction[:, None] - np.arange(-1, 3))
    near = (CUBIC_A + 2) * distance**3 - (CUBIC_A + 3) * distance**2 + 1
    far = CUBIC_A * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, far)


def _positions(old, size, step, align_corners, below_zero):
    """Where each new entry lies among the old ones."""
    if align_corners:
        return np.arange(size) * ((old - 1) / max(size - 1, 1))
    at = (np.arange(size) + 0.5) * (old / size if step is None else step) - 0.5
    return at if below_zero else np.maximum(at, 0)


def _interpolated(weigh, first):
    """Weighs the neighbours from floor + `first` on; beyond an edge is the edge's entry."""

    def rule(x, sizes, align_corners, factors):
        for axis, size, step in _targets(x, sizes, factors):
            old = x.shape[axis]
            at = _positions(old, size, step, align_corners, below_zero=first < 0)
            left = np.floor(at)
            weights = weigh(at - left)
            neighbours = left[:, None] + first + np.arange(weights.shape[1])
            neighbours = np.clip(neighbours, 0, old - 1).astype(int)
            matrix = np.zeros((size, old))
            np.add.at(matrix, (np.arange(size)[:, None], neighbours), weights)
            x = apply_along(x, matrix, axis)
        return x

    return rule


def _pad(x, pad, mode="constant", value=None):
    """`pad` is (before, after) of the last axis, then of the one before it, …; negative cuts."""
    pairs = list(zip(pad[0::2], pad[1::2], strict=True))[::-1]
    pairs = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    if mode == "constant":
        fill = jnp.asarray(0 if value is None else value, x.dtype)
        return jax.lax.pad(x, fill, [(*pair, 0) for pair in pairs])
    if mode not in PAD_MODES or min(pad) < 0:
        raise UserError(f"pad of {pad} in mode {mode!r} has no rule: pad in another way")
    return jnp.pad(x, pairs, mode=PAD_MODES[mode])


RESAMPLING = {
    **{f"upsample_nearest{n}d.vec": _nearest(0.0) for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d.vec": _nearest(0.5) for n in (1, 2, 3)},
    "upsample_linear1d.vec": _interpolated(_linear_weights, 0),
    "upsample_bilinear2d.vec": _interpolated(_linear_weights, 0),
    "upsample_trilinear3d.vec": _interpolated(_linear_weights, 0),
    "upsample_bicubic2d.vec": _interpolated(_cubic_weights, -1),
    "pad.default": _pad,
    "constant_pad_nd.default": lambda x, pad, value=0: _pad(x, pad, value=value),
}
