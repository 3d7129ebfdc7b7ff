"""Arithmetic on pixels: ranges, crops, area resize, borders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.diffusion.pixels import to_float as to_float
from guided_distill.diffusion.pixels import to_uint8 as to_uint8


def as_learnt(x):
    """What networks see of x: uint8 pictures in [-1, 1], latents as they are, all float32."""
    return to_float(x) if x.dtype == np.uint8 else x.astype(np.float32)


def widen(cond):
    """Conditioning with float32 in place of halves; labels and masks stay."""
    return jax.tree.map(
        lambda leaf: leaf.astype(np.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        cond,
    )


def crop_and_resize(images, size):
    """Centre square crop, then area resize: the field's way to ImageNet 64x64.

    Args:
      images: `[..., H, W, C]` uint8.
      size: S, pixels.

    Returns:
      `[..., S, S, C]` uint8.
    """
    return area_resize(center_crop(images), size)


def center_crop(images):
    """The largest centred square of `[..., H, W, C]`."""
    height, width = images.shape[-3:-1]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side, :]


def area_resize(images, size):
    """`[..., H, W, C]` uint8 -> `[..., size, size, C]`: means over areas, parts of pixels counted.

    Rounded to uint8, which moves a value by at most half a step of 255.
    """
    height, width, channels = images.shape[-3:]
    if (height, width) == (size, size):
        return images
    rows = images.reshape(*images.shape[:-2], width * channels).astype(np.float32)
    rows = _area_weights(height, size) @ rows
    rows = rows.reshape(*images.shape[:-3], size, width, channels)
    return np.round(_area_weights(width, size) @ rows).astype(np.uint8)


@functools.lru_cache(maxsize=256)
def _area_weights(source, target):
    """Share of each source pixel in each target pixel, `[target, source]`; rows sum to 1."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(overlap, 0.0, None) * (target / source)).astype(np.float32)


def pad(images, size):
    """`[..., H, W, C]` -> `[..., size, size, C]`: centred, with a border of zeros (black).

    Raises:
      ValueError: where the pictures are larger than that.
    """
    height, width = images.shape[-3:-1]
    if max(height, width) > size:
        raise ValueError(f"{height}x{width} is larger than {size}x{size}: pad only adds a border")
    top, left = (size - height) // 2, (size - width) // 2
    borders = [(0, 0)] * (images.ndim - 3)
    borders += [(top, size - height - top), (left, size - width - left), (0, 0)]
    return np.pad(images, borders)


FITS = {"crop": crop_and_resize, "pad": pad}
