"""What a network predicts (x, eps, v or flow) and how it becomes a prediction of x.

All from z_t = α_t x + σ_t ε and v = α_t ε − σ_t x (Salimans & Ho 2022, section 4). A network of
rectified flow lives on the straight path y_t = (1 − s) x + s ε, s = σ_t / (α_t + σ_t), which is
z_t / (α_t + σ_t), and predicts ε − x (Liu et al. 2023). Arrays are `[B, …]`, `logsnr_t` is `[B]`.
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


def x_from_flow(flow, z_t, logsnr_t):
    """x = (z_t − σ_t (ε − x)) / (α_t + σ_t)."""
    alpha_t, sigma_t = alpha_sigma(logsnr_t, z_t.ndim)
    return (z_t - sigma_t * flow) / (alpha_t + sigma_t)


def straight_path(z_t, logsnr_t):
    """y_t, the latent that a network of rectified flow is given."""
    alpha_t, sigma_t = alpha_sigma(logsnr_t, z_t.ndim)
    return z_t / (alpha_t + sigma_t)


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
    "flow": x_from_flow,
}
CONVERTIBLE = ("x", "eps", "v")  # into one another: their networks are given z_t itself
