"""Distillation of classifier-free-guided diffusion models."""


def __getattr__(name):
    """`guided_distill.Sampler`, imported when it is first asked for: that takes seconds."""
    if name == "Sampler":
        from guided_distill.sampler import Sampler

        return Sampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
