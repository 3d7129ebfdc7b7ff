"""What a network predicts (x, eps or v) and how it becomes a prediction of x.

All from z_t = α_t x + σ_t ε and v = α_t ε − σ_t x (Salimans & Ho 2022, section 4).
Arrays are `[B, H, W, C]`, `logsnr_t` is `[B]`.
"""

from guided_distill.diffusion.schedule import alpha_sigma


def x_from_eps(eps, z_t, logsnr_t):
    """x = (z_t − σ_t ε) / α_t."""
    alpha_t, sigma_t = alpha_sigma(logsnr_t, z_t.ndim)
    return (z_t - sigma_t * eps) / alpha_t


def x_from_v(v, z_t, logsnr_t):
    """x = α_t z_t − σ_t v."""
    alpha_t, sigma_t = alpha_sigma(logsnr_t, z_t.ndim)
    return alpha_t * z_t - sigma_t * v


def eps_from_x(x, z_t, logsnr_t):
    """ε = (z_t − α_t x) / σ_t."""
    alpha_t, sigma_t = alpha_sigma(logsnr_t, z_t.ndim)
    return (z_t - alpha_t * x) / sigma_t


def v_from_x(x, z_t, logsnr_t):
    """v = (α_t z_t − x) / σ_t."""
    alpha_t, sigma_t = alpha_sigma(logsnr_t, z_t.ndim)
    return (alpha_t * z_t - x) / sigma_t


X_FROM_PREDICTION = {
    "x": lambda x, z_t, logsnr_t: x,
    "eps": x_from_eps,
    "v": x_from_v,
}
