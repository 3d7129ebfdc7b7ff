"""Distillation of classifier-free-guided diffusion models."""

import importlib
import types
from typing import TYPE_CHECKING

import guided_distill.distill

__version__ = "0.1.0"

if TYPE_CHECKING:
    from guided_distill.errors import UserError as UserError
    from guided_distill.jobs.distill import distill as distill
    from guided_distill.jobs.train import train as train
    from guided_distill.models.diffusers_folder import import_diffusers as import_diffusers
    from guided_distill.models.function import Function as Function
    from guided_distill.models.importing import import_function as import_function
    from guided_distill.models.importing import import_torch as import_torch
    from guided_distill.models.model import Model as Model
    from guided_distill.models.pipeline import Pipeline as Pipeline
    from guided_distill.run.settings import load_config as load_config
    from guided_distill.sampling.sampler import Sampler as Sampler

HOMES = {
    "Function": "models.function",
    "Model": "models.model",
    "Pipeline": "models.pipeline",
    "Sampler": "sampling.sampler",
    "UserError": "errors",
    "import_diffusers": "models.diffusers_folder",
    "import_function": "models.importing",
    "import_torch": "models.importing",
    "load_config": "run.settings",
    "train": "jobs.train",
}


def __getattr__(name):
    """`guided_distill.Sampler` and the like, imported when first asked for: that takes seconds."""
    if name in HOMES:
        return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*HOMES, "distill", "__doc__", "__file__", "__name__", "__path__", "__version__"])


class _Distill(types.ModuleType):
    """The folder of the algorithms, which is the public function of its name as well."""

    def __call__(self, *args, **kwargs):
        """`guided_distill.jobs.distill.distill`, imported when first called."""
        return importlib.import_module(f"{__name__}.jobs.distill").distill(*args, **kwargs)


guided_distill.distill.__class__ = _Distill
