"""InceptionV3 as FID means it: the TensorFlow network of 2015-12-05, in Flax.

The layout is the one that PyTorch's FID tools carry, with its peculiarities: the resize of
TensorFlow 1 (no half-pixel centres), average pools that leave the padding out, a maximum pool in
the last block, 1008 logits. Batch normalization is folded into the convolutions, so each layer is
a convolution with a bias and a ReLU (Szegedy et al. 2015; Heusel et al. 2017).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

INPUT_SIZE = 299
NUM_FEATURES = 2048
NUM_LOGITS = 1008
AVERAGE_POOL, MAX_POOL = "average_pool", "max_pool"


def conv(name, features, kernel, stride=1, padding=None):
    """One convolution of a branch; `padding` is "SAME" for stride 1, else "VALID"."""
    return (name, features, kernel, stride, padding or ("SAME" if stride == 1 else "VALID"))


def block_a(pool_features):
    """35x35."""
    return (
        (conv("branch1x1", 64, (1, 1)),),
        (conv("branch5x5_1", 48, (1, 1)), conv("branch5x5_2", 64, (5, 5))),
        (
            conv("branch3x3dbl_1", 64, (1, 1)),
            conv("branch3x3dbl_2", 96, (3, 3)),
            conv("branch3x3dbl_3", 96, (3, 3)),
        ),
        (AVERAGE_POOL, conv("branch_pool", pool_features, (1, 1))),
    )


BLOCK_B = (  # 35x35 to 17x17
    (conv("branch3x3", 384, (3, 3), stride=2),),
    (
        conv("branch3x3dbl_1", 64, (1, 1)),
        conv("branch3x3dbl_2", 96, (3, 3)),
        conv("branch3x3dbl_3", 96, (3, 3), stride=2),
    ),
    ("halve",),
)


def block_c(inner):
    """17x17."""
    return (
        (conv("branch1x1", 192, (1, 1)),),
        (
            conv("branch7x7_1", inner, (1, 1)),
            conv("branch7x7_2", inner, (1, 7)),
            conv("branch7x7_3", 192, (7, 1)),
        ),
        (
            conv("branch7x7dbl_1", inner, (1, 1)),
            conv("branch7x7dbl_2", inner, (7, 1)),
            conv("branch7x7dbl_3", inner, (1, 7)),
            conv("branch7x7dbl_4", inner, (7, 1)),
            conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (AVERAGE_POOL, conv("branch_pool", 192, (1, 1))),
    )


BLOCK_D = (  # 17x17 to 8x8
    (conv("branch3x3_1", 192, (1, 1)), conv("branch3x3_2", 320, (3, 3), stride=2)),
    (
        conv("branch7x7x3_1", 192, (1, 1)),
        conv("branch7x7x3_2", 192, (1, 7)),
        conv("branch7x7x3_3", 192, (7, 1)),
        conv("branch7x7x3_4", 192, (3, 3), stride=2),
    ),
    ("halve",),
)


def block_e(pool):
    """8x8; a tuple inside a branch forks it, and both halves are kept."""
    return (
        (conv("branch1x1", 320, (1, 1)),),
        (
            conv("branch3x3_1", 384, (1, 1)),
            (conv("branch3x3_2a", 384, (1, 3)), conv("branch3x3_2b", 384, (3, 1))),
        ),
        (
            conv("branch3x3dbl_1", 448, (1, 1)),
            conv("branch3x3dbl_2", 384, (3, 3)),
            (conv("branch3x3dbl_3a", 384, (1, 3)), conv("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, conv("branch_pool", 192, (1, 1))),
    )


STEM = (
    conv("Conv2d_1a_3x3", 32, (3, 3), stride=2),
    conv("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
    conv("Conv2d_2b_3x3", 64, (3, 3)),
    "halve",
    conv("Conv2d_3b_1x1", 80, (1, 1)),
    conv("Conv2d_4a_3x3", 192, (3, 3), padding="VALID"),
    "halve",
)
BLOCKS = {
    "Mixed_5b": block_a(32),
    "Mixed_5c": block_a(64),
    "Mixed_5d": block_a(64),
    "Mixed_6a": BLOCK_B,
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": BLOCK_D,
    "Mixed_7b": block_e(AVERAGE_POOL),
    "Mixed_7c": block_e(MAX_POOL),
}


class Block(nn.Module):
    """Branches side by side, concatenated over channels."""

    branches: tuple

    @nn.compact
    def __call__(self, x):
        return jnp.concatenate([run_layers(branch, x) for branch in self.branches], axis=-1)


class InceptionV3(nn.Module):
    """`images` `[B, H, W, 3]` uint8 -> (features `[B, 2048]`, logits without bias `[B, 1008]`)."""

    @nn.compact
    def __call__(self, images):
        x = (resize_like_tensorflow_1(images.astype(jnp.float32), INPUT_SIZE) - 128.0) / 128.0
        x = run_layers(STEM, x)
        for name, branches in BLOCKS.items():
            x = Block(branches, name=name)(x)
        features = x.mean(axis=(1, 2))
        logits = nn.Dense(
            NUM_LOGITS, use_bias=False, name="fc", precision=jax.lax.Precision.HIGHEST
        )(features)
        return features, logits


def run_layers(layers, x):
    """Layers in turn, inside a module's compact call."""
    for layer in layers:
        if layer == "halve":
            x = max_pool(x, stride=2, pad=0)
        elif layer == MAX_POOL:
            x = max_pool(x, stride=1, pad=1)
        elif layer == AVERAGE_POOL:
            x = average_pool(x)
        elif isinstance(layer[0], tuple):
            x = jnp.concatenate([run_layers((half,), x) for half in layer], axis=-1)
        else:
            name, features, kernel, stride, padding = layer
            x = nn.Conv(
                features,
                kernel,
                strides=(stride, stride),
                padding=padding,
                precision=jax.lax.Precision.HIGHEST,  # TPUs and GPUs round inputs otherwise.
                name=name,
            )(x)
            x = nn.relu(x)
    return x


def average_pool(x):
    """3x3 mean of the neighbours that exist: the padding is not counted."""
    counts = [np.full(size, 3.0, np.float32) for size in x.shape[1:3]]
    for along in counts:
        along[[0, -1]] -= 1.0
    sums = pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), jnp.add, stride=1)
    return sums / (counts[0][:, None] * counts[1])[None, :, :, None]


def max_pool(x, *, stride, pad):
    """3x3 maximum; `pad` rows and columns that no value is smaller than are put around."""
    widths = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return pool(jnp.pad(x, widths, constant_values=-jnp.inf), jnp.maximum, stride=stride)


def pool(x, combine, *, stride):
    """3x3 windows combined one axis after the other, which compilers make fast on any device."""
    for axis in (1, 2):
        last = x.shape[axis] - 3
        parts = [jax.lax.slice_in_dim(x, k, k + last + 1, stride, axis) for k in range(3)]
        x = combine(combine(parts[0], parts[1]), parts[2])
    return x


def resize_like_tensorflow_1(x, size):
    """Bilinear resize to size x size without half-pixel centres: output i looks at i · in/out.

    Args:
      x: `[B, H, W, C]` float32.
      size: pixels.

    Returns:
      `[B, size, size, C]` float32.
    """
    rows, columns = (interpolation(length, size) for length in x.shape[1:3])
    highest = jax.lax.Precision.HIGHEST
    x = jnp.einsum("ih,bhwc->biwc", rows, x, precision=highest)
    return jnp.einsum("jw,biwc->bijc", columns, x, precision=highest)


def interpolation(length, size):
    """Weights `[size, length]` of a linear interpolation that puts output i at i · length/size."""
    position = np.arange(size, dtype=np.float32) * np.float32(length / size)
    low = position.astype(np.int64)
    share = position - low.astype(np.float32)
    weights = np.zeros((size, length), np.float32)
    np.add.at(weights, (np.arange(size), low), 1.0 - share)
    np.add.at(weights, (np.arange(size), np.minimum(low + 1, length - 1)), share)
    return weights
