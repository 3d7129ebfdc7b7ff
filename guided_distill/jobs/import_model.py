"""The job `import`: a model that others trained, as a folder that a run can begin with."""

import dataclasses
import importlib.util
import os
import pathlib
import runpy

from guided_distill.errors import UserError
from guided_distill.system.files import local_path

WHAT = "a Python file whose get_teacher() gives the arguments of guided_distill.import_torch"
WHAT_ELSE = "a diffusers folder"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `import`: the flags of these names, which `--help` explains."""

    from_: str = ""
    out: str = ""


def run(request):
    """Imports a diffusers folder or the model of a Python file; writes the folder `out`."""
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
        from guided_distill.models.importing import import_torch

        import_torch(**(read_arguments(path) | {"out": request.out}))


def import_folder(path, out):
    """Imports a diffusers folder; its packages are told to stay off the network."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    from guided_distill.models.diffusers_folder import import_diffusers

    import_diffusers(path, out=out)


def check_torch():
    """Refuses an import where PyTorch is not installed."""
    if not importlib.util.find_spec("torch"):
        raise UserError("importing a model needs PyTorch: pip install -e '.[torch]'")


def read_arguments(path):
    """The arguments that a Python file's `get_teacher()` gives."""
    found = runpy.run_path(str(path)).get("get_teacher")
    if not callable(found):
        raise UserError(f"{pathlib.Path(path)} defines no get_teacher(): it must be {WHAT}")
    arguments = dict(found())
    missing = {"module", "example", "z", "time", "prediction", "schedule"} - set(arguments)
    if missing:
        raise UserError(f"get_teacher() of {path} gives no {', '.join(sorted(missing))}")
    return arguments
