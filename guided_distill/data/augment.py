"""Augmentations, on the device: each a function of the example's key alone."""

import zlib

import jax
import jax.numpy as jnp

SHIFT_SHARE = 16  # a shift moves by up to 1/16 of the size, each way


def flip(key, image):
    """Left and right exchanged, with probability one half; `image` is `[H, W, C]`."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def shift(key, image):
    """Moved by up to 1/16 of its size each way; edges are repeated. `image` is `[H, W, C]`."""
    margin = max(1, image.shape[0] // SHIFT_SHARE)
    padded = jnp.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    top, left = jax.random.randint(key, (2,), 0, 2 * margin + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


AUGMENTATIONS = {"flip": flip, "shift": shift}


def augment(x, keys, names):
    """Applies augmentations in order.

    Args:
      x: `[B, H, W, C]`.
      keys: one key per example, `[B]`.
      names: of `AUGMENTATIONS`.

    Returns:
      `[B, H, W, C]`.
    """
    for name in names:
        own_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(name.encode()))
        x = jax.vmap(AUGMENTATIONS[name])(own_keys, x)
    return x
