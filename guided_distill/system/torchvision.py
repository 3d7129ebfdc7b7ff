"""A torchvision that was built for another PyTorch, which diffusers and transformers trip over."""

import functools
import importlib
import importlib.util
import sys

from guided_distill.system.progress import to_stderr


@functools.cache
def hide_broken_torchvision():
    """Lets diffusers and transformers go without a torchvision that cannot be imported."""
    if not importlib.util.find_spec("torchvision"):
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # Its operators are registered while it is imported.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        to_stderr(f"torchvision does not fit the PyTorch beside it ({reason}): going on without")
        sys.modules["torchvision"] = None
