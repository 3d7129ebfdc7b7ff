"""Loss weights ω(λ_t): each multiplies the squared error in x (Salimans & Ho 2022, section 4)."""

import jax.numpy as jnp

LOSS_WEIGHTS = {
    "snr": jnp.exp,  # α²/σ²: the error in eps
    "snr_trunc": lambda logsnr: jnp.exp(jnp.maximum(logsnr, 0.0)),  # max(SNR, 1)
    "v": lambda logsnr: 1.0 + jnp.exp(logsnr),  # SNR + 1: the error in v
    "x": jnp.ones_like,
}


def weighted_mse(x_hat, x_target, loss_weight):
    """ω ‖x_target − x̂‖², a mean over height, width and channels.

    Args:
      x_hat: prediction, `[B, H, W, C]`.
      x_target: target, `[B, H, W, C]`.
      loss_weight: ω(λ_t), `[B]`.

    Returns:
      Loss per example, `[B]` float32.
    """
    error = jnp.asarray(x_hat, jnp.float32) - jnp.asarray(x_target, jnp.float32)
    return loss_weight * jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
