"""The job `compile_check`: every kind of update compiled ahead of time, for devices near or far."""

import dataclasses
import importlib.util
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from guided_distill.data.dataset import picture_example
from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError
from guided_distill.report.tables import align
from guided_distill.run import settings
from guided_distill.run.programs import StagePrograms, make_models
from guided_distill.run.stages import first_teacher, stages_asked
from guided_distill.system.devices import GIB
from guided_distill.system.files import output_path, write_json
from guided_distill.system.progress import to_stderr, to_stdout
from guided_distill.system.sharding import make_mesh
from guided_distill.training.memory import check_fits, device_memory

# One host of a slice, as far as the compiler asks; it looks for no TPU then.
LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_CHIPS_PER_HOST_BOUNDS": "2,4,1",
    "TPU_HOST_BOUNDS": "1,1,1",
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of `compile_check`: the flags of these names, which `--help` explains."""

    config: Any
    stage: str = ""
    topology: str = ""
    image_shape: tuple[int, ...] = ()
    num_classes: int | None = None
    out: str = ""


def run(request):
    """Compiles a config's updates and says what each takes of a device.

    Returns:
      The exit code: 0 where all of them compile and fit.

    Raises:
      UserError: where the topology is unknown or the config does not fit its devices.
    """
    config = request.config
    if request.image_shape and len(request.image_shape) != 3:
        raise UserError(f"`image_shape` takes height, width, channels, got {request.image_shape}")
    settings.prepare_config(config)
    out = output_path(request.out) if request.out else None
    devices = find_devices(request.topology)
    settings.check_devices(config, len(devices))
    teacher = first_teacher(config)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    programs = StagePrograms(config, mesh, *models_and_example(request, teacher))
    limit = device_memory(devices[0])
    stages = programs.kinds(stages_asked(config, teacher, request.stage))
    rows = [check_stage(programs, stage, limit) for stage in stages]
    found = {
        "devices": len(devices),
        "kind": devices[0].device_kind,
        "memory_bytes": limit,
        "mesh": dict(mesh.shape),
        "updates": rows,
    }
    if out:
        write_json(out, found)
    to_stdout(describe(found))
    return 1 if any(row["error"] for row in rows) else 0


def models_and_example(request, teacher):
    """((teacher, student), one (x, conditioning) as shapes) of a request.

    A model that is brought says itself what it takes; else flags or the data set do.
    """
    config, image_shape, num_classes = request.config, request.image_shape, request.num_classes
    if teacher is not None and teacher.is_brought:
        models = make_models(config, None, None, teacher)
        return models, example_of(models[0], image_shape, teacher.path)
    example = picture_example(image_shape)
    if not image_shape or num_classes is None:
        dataset = open_dataset(config.data)
        example = example if image_shape else dataset.example
        num_classes = num_classes or dataset.num_classes
    if teacher is None:
        settings.check_model(config.model, example[0].shape)
    return make_models(config, example[0].shape, num_classes, teacher), example


def example_of(model, image_shape, path):
    """One (x, conditioning) of a model that is brought, as shapes: pictures where x has a bound."""
    if image_shape and tuple(image_shape) != model.sample_shape:
        raise UserError(
            f"`image_shape` is {list(image_shape)}, but {path} takes {list(model.sample_shape)}"
        )
    dtype = jnp.float32 if model.bound is None else jnp.uint8
    takes = model.conditioning.takes
    label = jax.ShapeDtypeStruct((), jnp.int32)
    cond = label if takes is None else {name: takes[name] for name in sorted(takes)}
    return jax.ShapeDtypeStruct(model.sample_shape, dtype), cond


def find_devices(topology):
    """The devices at hand, or those of a TPU topology that libtpu describes."""
    if not topology:
        return jax.devices()
    jax.config.update("jax_platforms", "cpu")
    if not importlib.util.find_spec("libtpu"):
        raise UserError(
            f"`topology` {topology} needs libtpu, the TPU's compiler: pip install -e '.[tpu]'"
        )
    os.environ.update(LIBTPU_ENVIRONMENT)
    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"`topology` {topology} is none that libtpu knows, such as v5e:2x4, v5e:8x8, v6e:4x4 "
            f"or v5p:2x2x4 ({reason})"
        ) from error


def check_stage(programs, stage, limit):
    """What the update of one kind of stage takes, as plain JSON; `error` says why it cannot run."""
    to_stderr(f"{stage.name}: compiling")
    started = time.perf_counter()
    row = {"update": stage.name, "error": None}
    try:
        program = programs.program(stage)
        row |= dataclasses.asdict(program)
        check_fits(program, limit, stage.name)
    except (UserError, jax.errors.JaxRuntimeError) as error:
        row["error"] = str(error).splitlines()[0]
    row["seconds"] = round(time.perf_counter() - started, 1)
    needs = f"{row['peak_bytes'] / GIB:.3f} GiB a device" if "peak_bytes" in row else row["error"]
    to_stderr(f"{stage.name}: {needs}, after {row['seconds']:.0f} s")
    return row


def describe(found):
    """The table for a terminal."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    has = f" with {found['memory_bytes'] / GIB:.0f} GiB each" if found["memory_bytes"] else ""
    cells = [["update", "compiled in", "GiB a device", "of state", "donated", "GFLOP a device"]]
    cells[0] += ["collectives: operations, MB"]
    errors = []
    for row in found["updates"]:
        if "peak_bytes" not in row:
            cells.append([row["update"], f"{row['seconds']:.0f} s"] + ["-"] * 5)
        else:
            collectives = ", ".join(
                f"{kind} {operations}, {size / 1e6:.3g}"
                for kind, (operations, size) in sorted(row["collectives"].items())
            )
            cells.append(
                [
                    row["update"],
                    f"{row['seconds']:.0f} s",
                    f"{row['peak_bytes'] / GIB:.3f}",
                    f"{row['state_bytes'] / GIB:.3f}",
                    f"{row['donated']:.0%}",
                    f"{row['flops'] / 1e9:.4g}" if row["flops"] else "-",
                    collectives or "none",
                ]
            )
        if row["error"]:
            errors.append(row["error"])
    verdict = ["does not run: " + error for error in errors] or ["all compile and fit"]
    title = f"{found['devices']} x {found['kind']}{has}, mesh {mesh}"
    return "\n".join([title, align(cells), *verdict])
