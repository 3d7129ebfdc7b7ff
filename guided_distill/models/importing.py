"""From a PyTorch module to a folder of a model or a function, which needs no PyTorch any more."""

import hashlib
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from guided_distill.errors import UserError
from guided_distill.models.from_torch import export_graph, measure_parity, paths_of
from guided_distill.models.function import Function
from guided_distill.models.imported import NULL
from guided_distill.models.roles import describe
from guided_distill.system.files import check_empty, file_sha256, local_path, write_json
from guided_distill.system.progress import to_stderr
from guided_distill.system.tensors import write_tensors
from guided_distill.system.workdir import (
    CONSTANTS_FILE,
    GRAPH_FILE,
    IMPORTED_FILE,
    PARAMS_FILE,
    imported_record,
)

LARGEST_DIFFERENCE = 1e-4  # between module and graph, of the largest value


def import_torch(
    module: Any,
    example: Mapping[str, Any],
    *,
    out: str | pathlib.Path,
    z: str,
    time: str,
    prediction: str,
    schedule: Any,
    null: Mapping[str, Any] | None = None,
    output: Any = None,
    result: str = "",
    w: str | None = None,
    w_sites: tuple[str, ...] | None = None,
    w_range: tuple[float, float] | None = None,
    bound: float | None = None,
    layout: str | None = None,
    told: str | None = None,
    time_scale: float | None = None,
) -> pathlib.Path:
    """Writes a PyTorch module as a folder that `config.teacher.path` and `Model.load` take.

        guided_distill.import_torch(
            unet.eval(),
            dict(sample=torch.zeros(2, 3, 32, 32), timestep=torch.tensor([10.0, 500.0]),
                 class_labels=torch.tensor([0, 1])),
            out="teachers/mine", z="sample", time="timestep", prediction="eps",
            schedule="scaled_linear", null=dict(class_labels=10),
        )

    Args:
      module: `torch.nn.Module` in eval mode.
      example: its forward's keyword arguments; tensors with a leading batch axis of 2 are inputs,
        nested ones too, the rest constants.
      out: folder to write, new or empty.
      z, time: names of the noisy latent and of the time among the inputs; every other input is
        conditioning, by its name (dotted where nested).
      prediction: "eps", "v", "x" or "flow".
      schedule: a `Schedule`, or what `read_schedule` takes, or the path of a diffusers
        `scheduler_config.json`.
      null: `{conditioning: one example without the batch axis}` that means none; None for a model
        that is not guided.
      output: which channels of the result are the prediction: a slice, a list of them, or how
        many of the first; None takes all.
      result: of a forward that returns several tensors, the key or position of the prediction.
      w: the input that is a guidance weight already; None takes diffusers' `guidance` or
        `timestep_cond` where there is one.
      w_sites: layers (`time_embedding.linear_1`) to whose input, of linear ones, or value, of
        others, a student adds what it learns of w; None takes the linear layers that the time's
        embedding feeds, else that embedding itself, else the first layers that see the time.
      w_range: (w_min, w_max) that a model that knows w was trained on.
      bound: of x's values, 1.0 for images in [-1, 1]; None for none, as of latents.
      layout: "NCHW" (channels second) or "NHWC" (last); None takes the first where z has height
        and width.
      told: what `time` is: "index" of the table, "sigma" of rectified flow, "t" of the cosine
        schedule, or "logsnr"; None takes what the schedule's networks are told.
      time_scale: times which `told` is given; None takes 1, and 1000 for sigmas where the
        example's times are above 1.

    Returns:
      `out`.

    Raises:
      UserError: where the module cannot be traced, has an operation without a rule, or the roles
        do not fit it; before anything is written.
    """
    out = new_folder(out)
    write_denoiser(
        out,
        module,
        example,
        result=result,
        w_range=w_range,
        z=z,
        time=time,
        prediction=prediction,
        schedule=schedule,
        null=null,
        output=output,
        w=w,
        w_sites=w_sites,
        bound=bound,
        layout=layout,
        told=told,
        time_scale=time_scale,
    )
    return out


def write_denoiser(out, module, example, *, result="", w_range=None, diffusers=None, **roles):
    """What `import_torch` writes, into a folder that has nothing of the kind.

    Args:
      out: the folder, a path.
      module, example, result, w_range, roles: as of `import_torch`.
      diffusers: of a module of a diffusers folder, plain JSON that takes its students home.
    """
    graph, params = _export(module, example, result)
    description, null = describe(graph, params, paths_of(example), **roles)
    if diffusers:
        description["diffusers"] = diffusers
    trained = {name: params[name] for name in graph.trainable}
    parity = _check_parity(module, example, graph, params, result)
    constants = _constants(graph, params, null)
    _write(out, graph, trained, constants, description, w_range, type(module).__name__)
    _tell(out, description, graph, trained, parity)


def import_shapes(module, example, *, out, result="", **roles):
    """Writes a module without its parameters: what `--mode=compile_check` needs of a teacher.

    Args:
      module: of PyTorch's meta device, whose tensors have shapes and nothing else; so has the
        example's.
      example, out, result, roles: as of `import_torch`.

    Returns:
      `out`.
    """
    out = new_folder(out)
    graph, params = _export(module, example, result)
    description, null = describe(graph, params, paths_of(example), **roles)
    constants = _constants(graph, params, null)
    _write(out, graph, None, constants, description, None, type(module).__name__)
    return out


def import_function(
    module: Any,
    example: Mapping[str, Any],
    *,
    out: str | pathlib.Path,
    results: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes a PyTorch module that is no denoiser as a folder that `Function.load` takes.

        guided_distill.import_function(decoder.eval(), dict(latent=torch.zeros(2, 4, 32, 32)),
                                       out="teachers/decoder")

    Args:
      module, example, out: as of `import_torch`.
      results: `{name: key or position}` of what is taken of a forward that returns several
        tensors; None takes the first as "output".

    Returns:
      `out`.

    Raises:
      UserError: where the module cannot be traced or has an operation without a rule; before
        anything is written.
    """
    out = new_folder(out)
    graphs, params, parity = {}, {}, 0.0
    for name, key in (results or {"output": ""}).items():
        graph, of_graph = _export(module, example, str(key))
        parity = max(parity, _check_parity(module, example, graph, of_graph, str(key)))
        graphs[name] = graph
        params |= of_graph
    function = Function(type(module).__name__, graphs, params)
    function.write(out)
    takes = ", ".join(f"{name} {['B', *spec.shape]}" for name, spec in function.inputs.items())
    gives = ", ".join(f"{name} {['B', *function.output_shape(name)]}" for name in graphs)
    count = sum(value.size for value in params.values())
    to_stderr(
        f"{out}: {count:,} parameters; as the module to {parity:.0e} of its largest value\n"
        f"  {takes} -> {gives}".replace("'B'", "B")
    )
    return out


def _export(module, example, result):
    """`export_graph` without PyTorch's own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export_graph(module, example, output=result)


def _constants(graph, params, null):
    """What training does not move, and the null conditioning, by name."""
    trained = set(graph.trainable)
    buffers = {name: value for name, value in params.items() if name not in trained}
    return buffers | {NULL + name: value for name, value in (null or {}).items()}


def new_folder(out):
    """The folder to write, which holds nothing."""
    out = local_path(out, "`out`")
    try:
        out.mkdir(parents=True, exist_ok=True)
        check_empty(out)
    except OSError as error:
        raise UserError(f"`out` {out} cannot be written: {error.strerror}") from error
    return out


def _check_parity(module, example, graph, params, result):
    """How far the graph is from the module, of its largest value; refuses what is too far."""
    parity = measure_parity(module, example, graph, params, output=result)
    if not parity <= LARGEST_DIFFERENCE:
        raise UserError(
            f"the graph of {type(module).__name__} differs from the module by {parity:.1e} of its "
            "largest value: an operation of it is not what its rule says"
        )
    return parity


def _write(out, graph, params, constants, description, w_range, name):
    """Writes the folder; `model.json`, last, makes it whole but for parameters that are None."""
    graph.write(out / GRAPH_FILE)
    params_sha256 = "" if params is None else write_tensors(out / PARAMS_FILE, params)
    description = description | {"constants_sha256": write_tensors(out / CONSTANTS_FILE, constants)}
    record = _record(description, w_range, name)
    record["config"]["model"]["graph"] = file_sha256(out / GRAPH_FILE)
    write_json(out / IMPORTED_FILE, record | {"params_sha256": params_sha256})


def _record(description, w_range, name):
    """What `model.json` says: what the record of a finished stage does, and its `model`."""
    knows_w = description["inputs"]["w"] is not None and not description["is_guided"]
    schedule = _in_short(description["schedule"])
    record = imported_record(
        name,
        schedule=schedule,
        prediction=description["prediction"],
        sample_shape=description["sample_shape"],
        model={},
    )
    if knows_w:
        record |= {"name": "step_one", "stage": "step_one"}
    return record | {"model": description, "w_range": list(w_range) if w_range else None}


def _in_short(spec):
    """A schedule's spec with a digest in place of a table."""
    if "alphas_bar" not in spec:
        return spec
    table = np.asarray(spec["alphas_bar"], np.float64)
    digest = hashlib.sha256(table.tobytes()).hexdigest()
    return {"name": "table", "num_times": len(table), "sha256": digest}


def _tell(out, description, graph, params, parity):
    """Says what was understood, so that a wrong role is seen now."""
    roles, count = description["inputs"], sum(value.size for value in params.values())
    sites = [*description["sites"].values(), *description["outputs"].values()]
    into = ", ".join(dict.fromkeys(sites)) or roles["w"]
    to_stderr(
        f"{out}: {count:,} parameters, {len(graph.nodes)} operations; as the module to "
        f"{parity:.0e} of its largest value\n"
        f"  z: {roles['z']} {description['sample_shape']}, told by {roles['time']}: "
        f"{description['told']['scale']:g} x {description['told']['kind']}, "
        f"predicts {description['prediction']} on the schedule {description['schedule']['name']}\n"
        f"  conditioning: {', '.join(description['conditioning']) or 'none'}"
        f"{'' if description['is_guided'] else ', not guided'}\n"
        f"  w enters at: {into}"
    )
