"""A finished student as a folder of its own, apart from the run that it comes from.

    stage.json              a finished stage's record, without a parent on disk
    params.safetensors      its parameters; names of nested ones are joined with "/"
    graph.json, constants.safetensors   where its network was imported
    README.md               its card

and, with its program, what samples it where this package is not installed:

    sample.jax.gz, noise.jax.gz   `jax.export` artifacts (`export.program`)
    program.json                  what they take
    load.py                       loads them, with JAX and NumPy alone

`Sampler.load` takes the folder as it takes a workdir.
"""

import importlib.resources
import shutil

from guided_distill.distill.distillations import distillation_of
from guided_distill.export.program import write_program
from guided_distill.export.student_card import write_card
from guided_distill.system.files import replacing_folder, write_json
from guided_distill.system.tensors import write_tensors
from guided_distill.system.workdir import (
    CONSTANTS_FILE,
    EXPORT_FORMAT,
    GRAPH_FILE,
    PARAMS_FILE,
    RECORD_FILE,
    flat_params,
)

LOADER = "load.py"
OF_THE_RUN = ("parent", "parent_guide", "guide")  # paths to folders that the student leaves


def export_student(stage, num_steps, out, *, with_program, results):
    """Writes a finished student.

    Args:
      stage: `FinishedStage`.
      num_steps: N.
      out: folder to write, new or empty.
      with_program: whether what samples it goes with it.
      results: `results.json` of the run, None where it was not measured.

    Returns:
      What was written and how it is sampled, in words.

    Raises:
      UserError: where its program cannot be exported.
    """
    with replacing_folder(out) as partial:
        write_student(partial, stage)
        if with_program:
            write_program(partial, stage, num_steps)
            source = importlib.resources.files("guided_distill.export") / "loader.py"
            with importlib.resources.as_file(source) as path:
                shutil.copyfile(path, partial / LOADER)
        write_card(partial / "README.md", stage.record, num_steps, results, name=out.name,
                   with_program=with_program)  # fmt: skip
    what = "program and parameters" if with_program else "parameters"
    return f"{out}: {what} of {describe(stage.record, num_steps)}"


def write_student(folder, stage):
    """Writes record, parameters and, of an imported network, its graph."""
    record = {key: value for key, value in stage.record.items() if key not in OF_THE_RUN}
    record |= {"parent": None, "exported": EXPORT_FORMAT}
    write_tensors(folder / PARAMS_FILE, flat_params(stage.params))
    if "model" in record:
        for name in (GRAPH_FILE, CONSTANTS_FILE):
            shutil.copyfile(stage.path / name, folder / name)
    write_json(folder / RECORD_FILE, record)


def describe(record, num_steps):
    """A student in words."""
    row = distillation_of(record)
    low, high = record["w_range"]
    title = row.title if row else "step one"
    return f"the {title} of {num_steps} steps, w in [{low:g}, {high:g}]"
