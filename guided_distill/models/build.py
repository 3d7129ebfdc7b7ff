"""Networks from their settings."""

import jax
import jax.numpy as jnp

from guided_distill.models.unet import UNet


def build_unet(settings, *, num_classes, w_conditioned, dropout=0.0, remat="none"):
    """The U-Net that a mapping of `config.model`'s keys describes."""
    return UNet(
        num_classes=num_classes,
        width=settings["width"],
        channel_mults=tuple(settings["channel_mults"]),
        num_res_blocks=settings["num_res_blocks"],
        attention_resolutions=tuple(settings["attention_resolutions"]),
        head_dim=settings["head_dim"],
        dropout=dropout,
        dtype=jnp.dtype(settings["dtype"]),
        w_conditioned=w_conditioned,
        remat=remat,
    )


def init_params(network, key, image_shape):
    """Fresh parameters for pictures of `image_shape` (H, W, C); jit this, it is slow otherwise."""
    one = jnp.zeros((1,))
    w = one if network.w_conditioned else None
    z = jnp.zeros((1, *image_shape))
    return network.init(key, z, one, jnp.zeros((1,), jnp.int32), w)["params"]


def count_params(params):
    """Number of scalars in a tree of parameters or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
