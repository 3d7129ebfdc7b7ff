"""A torchvision that was built for another PyTorch, which diffusers and transformers trip over."""

import functools
import importlib
import importlib.util
import sys


@functools.cache
def hide_broken_torchvision():
    """Lets diffusers and transformers go without a torchvision that cannot be imported."""
    if not importlib.util.find_spec("torchvision"):
        return
    try:
        importlib.import_module("torchvision")
    except Exception:  # Its operators are registered while it is imported.
        sys.modules["torchvision"] = None
