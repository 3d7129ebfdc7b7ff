"""The job `import`: a model that others trained, as a folder that a run can begin with."""

import dataclasses
import importlib.util
import os
import pathlib
import runpy

from guided_distill.errors import UserError
from guided_distill.system.files import local_path
from guided_distill.system.torchvision import hide_broken_torchvision

WHAT = (
    "a Python file whose get_teacher() gives the arguments of guided_distill.import_torch, or "
    "whose get_function() gives those of guided_distill.import_function"
)
WHAT_ELSE = "a diffusers folder, or one of transformers' CLIPModel"
NEEDED = {  # of the arguments that each function of such a file gives
    "get_teacher": {"module", "example", "z", "time", "prediction", "schedule"},
    "get_function": {"module", "example"},
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `import`: the flags of these names, which `--help` explains."""

    from_: str = ""
    out: str = ""


def run(request):
    """Imports a folder of others, or what a Python file gives; writes the folder `out`."""
    path = local_path(request.from_, "`from`")
    if not request.from_:
        raise UserError(f"`from` is missing: name {WHAT_ELSE}, or {WHAT}")
    if not request.out:
        raise UserError("`out` is missing: name the folder to write, such as teachers/mine")
    if not path.is_dir() and (path.suffix != ".py" or not path.is_file()):
        raise UserError(f"`from` {path} must be {WHAT_ELSE}, or {WHAT}")
    check_torch()
    if path.is_dir():
        import_folder(path, request.out)
    else:
        import_file(path, request.out)


def import_folder(path, out):
    """Imports a folder of diffusers or of CLIP; their packages are told to stay off the network."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    from guided_distill.models.clip_folder import import_clip, is_clip
    from guided_distill.models.diffusers_folder import import_diffusers

    write = import_clip if is_clip(path) else import_diffusers
    write(path, out=out)


def import_file(path, out):
    """Imports what a Python file gives."""
    from guided_distill.models.importing import import_function, import_torch

    name, arguments = read_arguments(path)
    write = {"get_teacher": import_torch, "get_function": import_function}[name]
    write(**(arguments | {"out": out}))


def check_torch():
    """Refuses an import where PyTorch is not installed; a broken torchvision is hidden."""
    if not importlib.util.find_spec("torch"):
        raise UserError("importing a model needs PyTorch: pip install -e '.[torch]'")
    hide_broken_torchvision()


def read_arguments(path):
    """(name, arguments) of the one of a Python file's functions `NEEDED` that it defines."""
    defined = runpy.run_path(str(path))
    found = [name for name in NEEDED if callable(defined.get(name))]
    if len(found) != 1:
        which = "both get_teacher() and get_function()" if found else "no get_teacher()"
        raise UserError(f"{pathlib.Path(path)} defines {which}: it must be {WHAT}")
    (name,) = found
    arguments = dict(defined[name]())
    missing = NEEDED[name] - set(arguments)
    if missing:
        raise UserError(f"{name}() of {path} gives no {', '.join(sorted(missing))}")
    return name, arguments
