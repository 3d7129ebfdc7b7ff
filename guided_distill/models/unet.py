"""The U-Net of the field (Ho et al. 2020; Salimans & Ho 2022), conditioned on λ, class and w.

Arrays are `[B, H, W, C]`. Every residual branch, attention branch and the last convolution
start at zero; so does the w branch, which makes a fresh student equal to its teacher.
"""

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp

from guided_distill.models.embeddings import embed_logsnr, embed_w
from guided_distill.models.group_norm import group_norm

# What the forward pass keeps of a block for the backward pass; what it drops is computed again.
REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "elementwise": lambda primitive, *_, **__: (
        primitive in (jax.lax.conv_general_dilated_p, jax.lax.dot_general_p)
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}
MAX_NORM_GROUPS = 32
MIN_GROUP_CHANNELS = 4
NORM_EPS = 1e-6


class UNet(nn.Module):
    """Predicts x, eps or v (same shape as z) from a noisy picture.

    Attributes:
      num_classes: classes; the label `num_classes` means none.
      width: channels at full size.
      channel_mults: channels per resolution as multiples of `width`; each level halves the size.
      num_res_blocks: residual blocks per resolution.
      attention_resolutions: picture sizes (height) that get self-attention.
      head_dim: channels per attention head; 0 means a single head.
      dropout: rate inside the residual blocks.
      dtype: compute dtype; parameters, the first and last layer and softmax stay float32.
      w_conditioned: add the branch that embeds the guidance weight.
      remat: one of `REMAT_POLICIES`, for training in less memory; the numbers stay.
    """

    num_classes: int
    width: int
    channel_mults: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    head_dim: int = 0
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    w_conditioned: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, z, logsnr, labels, w=None, dropout_keys=None):
        """One prediction.

        Args:
          z: `[B, H, W, C]`, H = W divisible by 2 ** (levels − 1).
          logsnr: λ, `[B]`.
          labels: `[B]` int32 in [0, num_classes]; num_classes is the null label.
          w: guidance weight, `[B]`; only where `w_conditioned`.
          dropout_keys: `[B]` PRNG keys; None runs without dropout.

        Returns:
          `[B, H, W, C]` float32.
        """
        emb = self._embed(logsnr, labels, w)
        rematerialised = lambda block: (  # noqa: E731
            nn.remat(block, policy=REMAT_POLICIES[self.remat]) if self.remat != "none" else block
        )
        res_block = lambda features, name, resample=None: rematerialised(ResBlock)(  # noqa: E731
            features, self.dropout, self.dtype, resample, name=name
        )
        attention = lambda name: rematerialised(Attention)(self.head_dim, self.dtype, name=name)  # noqa: E731

        def res_attend(h, features, name):
            h = res_block(features, name)(h, emb, dropout_keys)
            if h.shape[1] in self.attention_resolutions:
                h = attention(f"{name}_attention")(h)
            return h

        h = nn.Conv(self.width, (3, 3), name="conv_in")(z).astype(self.dtype)
        skips = [h]
        for level, mult in enumerate(self.channel_mults):
            if level > 0:
                features = h.shape[-1]
                h = res_block(features, f"down{level}_resample", "down")(h, emb, dropout_keys)
                skips.append(h)
            for block in range(self.num_res_blocks):
                h = res_attend(h, self.width * mult, f"down{level}_{block}")
                skips.append(h)

        h = res_block(h.shape[-1], "middle_0")(h, emb, dropout_keys)
        h = attention("middle_attention")(h)
        h = res_block(h.shape[-1], "middle_1")(h, emb, dropout_keys)

        for level, mult in reversed(list(enumerate(self.channel_mults))):
            for block in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res_attend(h, self.width * mult, f"up{level}_{block}")
            if level > 0:
                h = res_block(h.shape[-1], f"up{level}_resample", "up")(h, emb, dropout_keys)

        h = Norm(swish=True, name="norm_out")(h.astype(jnp.float32))
        return zero_conv(z.shape[-1], jnp.float32, "conv_out")(h)

    def _embed(self, logsnr, labels, w):
        """Sum of the noise-level, class and w embeddings, `[B, 4 width]`."""
        dim = 4 * self.width
        dense = lambda name, **kwargs: nn.Dense(dim, dtype=self.dtype, name=name, **kwargs)  # noqa: E731
        emb = nn.swish(dense("logsnr_0")(embed_logsnr(logsnr, self.width)))
        emb = dense("logsnr_1")(emb)
        # The null label, outside the one-hot range, is the zero vector.
        emb += dense("label")(jax.nn.one_hot(labels, self.num_classes))
        if self.w_conditioned:
            w_emb = nn.swish(dense("w_0")(embed_w(w, self.width)))
            emb += dense("w_1", kernel_init=nn.initializers.zeros)(w_emb)
        return emb


class ResBlock(nn.Module):
    """GroupNorm, swish, convolution twice; FiLM from the embedding; optional resampling by 2."""

    features: int
    dropout: float
    dtype: jnp.dtype
    resample: str | None = None

    @nn.compact
    def __call__(self, x, emb, dropout_keys):
        """`x` `[B, H, W, C]`, `emb` `[B, E]` -> `[B, H', W', features]`."""
        h = Norm(swish=True, name="norm_0")(x)
        if self.resample:
            x, h = RESAMPLE[self.resample](x), RESAMPLE[self.resample](h)
        h = nn.Conv(self.features, (3, 3), dtype=self.dtype, name="conv_0")(h)
        film = nn.Dense(2 * self.features, dtype=self.dtype, name="film")(nn.swish(emb))
        h = Norm(swish=True, name="norm_1")(h, film)
        h = Dropout(self.dropout)(h, dropout_keys)
        h = zero_conv(self.features, self.dtype, "conv_1")(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + h


class Attention(nn.Module):
    """Self-attention over all pixels, added to its input `[B, H, W, C]`."""

    head_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        head_dim = self.head_dim or channels
        h = Norm(name="norm")(x).reshape(batch, height * width, channels)
        project = lambda name: nn.DenseGeneral(  # noqa: E731
            (channels // head_dim, head_dim), dtype=self.dtype, name=name
        )(h)
        h = nn.dot_product_attention(
            project("query"), project("key"), project("value"), force_fp32_for_softmax=True
        )
        h = nn.DenseGeneral(
            channels,
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="out",
        )(h)
        return x + h.reshape(x.shape)


class Norm(nn.Module):
    """GroupNorm in groups of at least `MIN_GROUP_CHANNELS`, at most `MAX_NORM_GROUPS` of them.

    Then a scale and a shift for each channel, then FiLM's: those of the embedding for each example.
    """

    swish: bool = False

    @nn.compact
    def __call__(self, x, film=None):
        """`x` `[B, H, W, C]`, `film` `[B, 2 C]` or None -> as x; computed in float32."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))[None]
        shift = self.param("bias", nn.initializers.zeros, (channels,))[None]
        if film is not None:
            film_scale, film_shift = jnp.split(film.astype(jnp.float32), 2, axis=-1)
            scale, shift = scale * (1 + film_scale), shift * (1 + film_scale) + film_shift
        most = max(1, min(MAX_NORM_GROUPS, channels // MIN_GROUP_CHANNELS))
        groups = next(n for n in range(most, 0, -1) if channels % n == 0)
        return group_norm(x, scale, shift, groups, NORM_EPS, -1, self.swish)


class Dropout(nn.Module):
    """Dropout whose mask depends on each example's own key and on the layer's place alone."""

    rate: float

    @nn.compact
    def __call__(self, x, keys):
        """`x` `[B, …]`, `keys` `[B]`; None is the identity."""
        if keys is None or self.rate == 0.0:
            return x
        layer = zlib.crc32("/".join(self.path).encode())

        def mask(key):
            return jax.random.bernoulli(
                jax.random.fold_in(key, layer), 1.0 - self.rate, x.shape[1:]
            )

        return jnp.where(jax.vmap(mask)(keys), x / (1.0 - self.rate), 0.0).astype(x.dtype)


def zero_conv(features, dtype, name):
    """A 3x3 convolution that starts at zero."""
    return nn.Conv(features, (3, 3), dtype=dtype, kernel_init=nn.initializers.zeros, name=name)


def halve(x):
    """Mean over 2x2 pixels."""
    return nn.avg_pool(x, (2, 2), strides=(2, 2))


def double(x):
    """Each pixel becomes 2x2."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


RESAMPLE = {"down": halve, "up": double}
