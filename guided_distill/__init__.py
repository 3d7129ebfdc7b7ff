"""Distillation of classifier-free-guided diffusion models."""

import importlib

HOMES = {"Sampler": "sampler", "load_config": "runs", "train": "runs"}


def __getattr__(name):
    """`guided_distill.Sampler` and the like, imported when first asked for: that takes seconds."""
    if name in HOMES:
        return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
