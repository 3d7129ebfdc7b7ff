"""Pictures as bytes, and as the x that is diffused."""

import numpy as np


def to_float(images):
    """uint8 [0, 255] -> float32 [-1, 1]; NumPy or JAX arrays."""
    return images.astype(np.float32) / 127.5 - 1.0


def to_uint8(x):
    """Float [-1, 1] -> uint8 [0, 255], by rounding."""
    return np.round((np.clip(x, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
