"""Discrete Fourier transforms, whose arguments are those of `numpy.fft`."""

import jax.numpy as jnp

NAMES = [f"{way}fft{axes}" for way in ("", "i", "r", "ir") for axes in ("", "2", "n")]

FOURIER = {
    **{f"fft_{name}.default": getattr(jnp.fft, name) for name in NAMES},
    "fft_fftshift.default": jnp.fft.fftshift,
    "fft_ifftshift.default": jnp.fft.ifftshift,
}
