"""A diffusion transformer (Peebles & Xie 2023) written in Flax, to compare imported ones with.

AdaLN-Zero blocks on patches with fixed sinusoidal positions. As diffusers has it, each block
embeds the time and the class by itself, and the last layer takes the first block's embedding. A
guidance weight is added to what each embedding of the time is given, by a projection that starts
at zero.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from guided_distill.models.embeddings import sinusoids
from guided_distill.models.imported import slow_features, tell_time
from guided_distill.models.model import Conditioning, Model

NUM_FEATURES = 256


class FlaxDiT(nn.Module):
    """Predicts eps, and a variance that is cut off, from `z` `[B, H, W, C]`."""

    num_classes: int = 10
    width: int = 128
    heads: int = 4
    depth: int = 4
    patch: int = 2

    @nn.compact
    def __call__(self, z, time, labels, w=None):
        batch, height, _, channels = z.shape
        side, stride = height // self.patch, (self.patch, self.patch)
        x = nn.Conv(self.width, stride, stride, padding="VALID", name="patches")(z)
        x = x.reshape(batch, side * side, self.width) + positions(side, self.width)[None]
        added = [0.0] * self.depth if w is None else WBranch(self.depth, name="w_branch")(w)
        first = None
        for i in range(self.depth):
            emb = Embedding(self.num_classes, self.width, name=f"emb_{i}")(time, labels, added[i])
            first = emb if first is None else first
            x = Block(self.heads, name=f"block_{i}")(x, emb)
        shift, scale = split(nn.Dense(2 * self.width, name="film")(nn.silu(first)), 2)
        x = nn.Dense(2 * channels * self.patch**2, name="out")(norm(x) * (1 + scale) + shift)
        x = x.reshape(batch, side, side, self.patch, self.patch, 2 * channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, height, 2 * channels)
        return x[..., :channels]


class WBranch(nn.Module):
    """What w adds to the features of the time, `[B, NUM_FEATURES]` for each block."""

    depth: int

    @nn.compact
    def __call__(self, w):
        zeros, told = nn.initializers.zeros, slow_features(w)
        project = lambda i: nn.Dense(  # noqa: E731
            NUM_FEATURES, use_bias=False, kernel_init=zeros, name=f"emb_{i}"
        )
        return [project(i)(told) for i in range(self.depth)]


class Embedding(nn.Module):
    """Of the time, the class and w, `[B, width]`."""

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, time, labels, added):
        told = sinusoids(time, NUM_FEATURES, low=1e-4, high=1.0) + added
        emb = nn.Dense(self.width)(nn.silu(nn.Dense(self.width)(told)))
        return emb + nn.Embed(self.num_classes + 1, self.width)(labels)


class Block(nn.Module):
    """Attention and an MLP, shifted, scaled and gated by the embedding."""

    heads: int

    @nn.compact
    def __call__(self, x, emb):
        width = x.shape[-1]
        films = split(nn.Dense(6 * width, name="film")(nn.silu(emb)), 6)
        h = norm(x) * (1 + films[1]) + films[0]
        q, k, v = (nn.DenseGeneral((self.heads, width // self.heads), name=n)(h) for n in "qkv")
        h = nn.dot_product_attention(q, k, v).reshape(x.shape)
        x = x + films[2] * nn.Dense(width, name="attended")(h)
        h = norm(x) * (1 + films[4]) + films[3]
        h = nn.Dense(width, name="down")(nn.gelu(nn.Dense(4 * width, name="up")(h)))
        return x + films[5] * h


def norm(x):
    return nn.LayerNorm(use_bias=False, use_scale=False)(x)


def split(film, parts):
    return jnp.split(film[:, None], parts, axis=-1)


def positions(side, width):
    """`[side², width]`: half of the sinusoids are of the row, half of the column."""
    rows, columns = np.divmod(np.arange(side * side), side)
    of = lambda place: sinusoids(place, width // 2, low=1e-4, high=1.0)  # noqa: E731
    return jnp.concatenate([of(rows), of(columns)], axis=-1)


def flax_dit_models(imported, **settings):
    """(teacher, student), `Model`s told the time as an imported one of the same schedule."""
    network = FlaxDiT(**settings)
    tell = tell_time({"kind": "index", "scale": 1.0}, imported.schedule)

    def apply(params, z, logsnr, labels, w, dropout_keys):
        return network.apply({"params": params}, z, tell(logsnr), labels, w)

    def make(knows_w):
        def init(key):
            one, label = jnp.zeros(1), jnp.zeros(1, jnp.int32)
            z = jnp.zeros((1, *imported.sample_shape))
            return network.init(key, z, one, label, one if knows_w else None)["params"]

        return Model(
            apply=apply,
            init=init,
            prediction=imported.prediction,
            schedule=imported.schedule,
            conditioning=Conditioning(null=network.num_classes),
            sample_shape=imported.sample_shape,
            knows_w=knows_w,
            bound=imported.bound,
        )

    return make(False), make(True)
