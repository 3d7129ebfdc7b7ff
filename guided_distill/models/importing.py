"""From a PyTorch module to a model's folder, which needs no PyTorch any more."""

import hashlib
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from guided_distill.diffusion.known_schedules import ends_in_noise, prediction_of, read_schedule
from guided_distill.diffusion.parameterization import X_FROM_PREDICTION
from guided_distill.errors import UserError, nearest
from guided_distill.models.from_torch import BATCH, export_graph, measure_parity, paths_of
from guided_distill.models.imported import FORMAT, NULL
from guided_distill.models.nodes import PARAM
from guided_distill.system.files import local_path, read_json, tree_sha256, write_json
from guided_distill.system.progress import to_stderr
from guided_distill.system.tensors import write_tensors
from guided_distill.system.workdir import (
    CONSTANTS_FILE,
    GRAPH_FILE,
    IMPORTED_FILE,
    PARAMS_FILE,
    imported_record,
)

LAYOUTS = ("NCHW", "NHWC")
W_INPUTS = ("guidance", "timestep_cond")  # as diffusers' networks call them
LARGEST_DIFFERENCE = 1e-4  # between module and graph, of the largest value
TOLD = ("index", "sigma", "t", "logsnr")


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
      w: the input that is a guidance weight already; None takes `W_INPUTS` where there is one.
      w_sites: layers (`time_embedding.linear_1`) whose input a student adds what it learns of w
        to; None takes the linear layers that the time's embedding feeds.
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
    out = _new_folder(out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own deprecations.
        graph, params = export_graph(module, example, output=result)
    _check_roles(graph, z=z, time=time, prediction=prediction)
    schedule = _schedule(schedule, prediction)
    w = _w_input(graph, w, (z, time, *(null or ())))
    conditioning = [name for name in graph.inputs if name not in (z, time, w)]
    null = _null(null, conditioning, graph)
    layout = _layout(layout, graph.inputs[z].shape)
    sites = {} if w else _sites(graph, time, w_sites)
    description = {
        "format": FORMAT,
        "inputs": {"z": z, "time": time, "w": w},
        "conditioning": conditioning,
        "prediction": prediction,
        "schedule": schedule.spec,
        "told": _told(told, time_scale, schedule, paths_of(example)[time]),
        "layout": layout,
        "channels": _channels(output, graph, params, z, layout),
        "sample_shape": _channels_last(graph.inputs[z].shape, layout),
        "bound": bound,
        "is_guided": null is not None,
        "sites": sites,
    }
    trained = {name: params[name] for name in graph.trainable}
    buffers = {name: value for name, value in params.items() if name not in trained}
    _check_slot(description, graph, params)
    parity = measure_parity(module, example, graph, params, output=result)
    if not parity <= LARGEST_DIFFERENCE:
        raise UserError(
            f"the graph of {type(module).__name__} differs from the module by {parity:.1e} of its "
            "largest value: an operation of it is not what its rule says"
        )
    constants = buffers | {NULL + name: value for name, value in (null or {}).items()}
    _write(out, graph, trained, constants, description, w_range, type(module).__name__)
    _tell(out, description, graph, trained, parity)
    return out


def _new_folder(out):
    """The folder to write, which holds nothing."""
    out = local_path(out, "`out`")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"`out` {out} is not empty: name a new folder, or remove it first")
    except OSError as error:
        raise UserError(f"`out` {out} cannot be written: {error.strerror}") from error
    return out


def _check_roles(graph, *, z, time, prediction):
    for role, name in {"z": z, "time": time}.items():
        if name not in graph.inputs:
            raise UserError(
                f"`{role}` {name!r} is no input of the module, which takes "
                f"{', '.join(graph.inputs)} (tensors of the example with a leading axis of "
                f"{BATCH}){nearest(name, graph.inputs)}"
            )
    if z == time:
        raise UserError(f"`z` and `time` are both {z!r}: name the noisy latent and the time")
    if graph.inputs[time].shape:
        raise UserError(
            f"`time` {time} must be one number an example, [{BATCH}], got "
            f"{[BATCH, *graph.inputs[time].shape]}"
        )
    if not graph.inputs[z].shape:
        raise UserError(f"`z` {z} must have axes beside the batch, got [{BATCH}]")
    if prediction not in X_FROM_PREDICTION:
        raise UserError(
            f"`prediction` must be one of {', '.join(X_FROM_PREDICTION)}, got {prediction!r}"
            f"{nearest(prediction, X_FROM_PREDICTION)}"
        )


def _schedule(given, prediction):
    """The `Schedule`, which must have a spec and fit the prediction."""
    if isinstance(given, str | pathlib.Path) and pathlib.Path(given).expanduser().exists():
        path = pathlib.Path(given).expanduser()
        path = path / "scheduler_config.json" if path.is_dir() else path
        given = read_json(path)
        if given is None:
            raise UserError(f"`schedule` {path} is missing")
    if isinstance(given, Mapping) or hasattr(given, "items"):
        declared = prediction_of(dict(given))
        if "name" not in given and declared not in (None, prediction):
            raise UserError(
                f"`prediction` is {prediction}, but the scheduler's config says {declared}"
            )
    schedule = read_schedule(given)
    if schedule.spec is None:
        raise UserError("`schedule` has no spec, so it cannot be written: give its α̅ as a table")
    if prediction == "eps" and ends_in_noise(schedule):
        raise UserError(
            "`schedule` ends in noise alone (zero terminal SNR), of which eps says nothing: a "
            "model of such a schedule predicts v or flow"
        )
    return schedule


def _w_input(graph, w, others):
    """The input that is a guidance weight and none of the others; None where there is none."""
    if w is None:
        return next((n for n in W_INPUTS if n in graph.inputs and n not in others), None)
    if w not in graph.inputs or w in others:
        raise UserError(f"`w` {w!r} is no input of the module{nearest(w, graph.inputs)}")
    if len(graph.inputs[w].shape) > 1:
        raise UserError(f"`w` {w} must be [B] or an embedding [B, D]")
    return w


def _null(null, conditioning, graph):
    """`{conditioning: array}` in the graph's dtypes; None for a model that is not guided."""
    if null is None:
        return None
    for name in null:
        if name not in conditioning:
            known = ", ".join(conditioning) or "nothing"
            raise UserError(
                f"`null` names {name!r}, but the module's conditioning is {known}"
                f"{nearest(name, conditioning)}"
            )
    missing = [name for name in conditioning if name not in null]
    if missing or not conditioning:
        raise UserError(
            f"`null` lacks {', '.join(missing)}: say what each conditioning is where it means none"
            if conditioning
            else "`null` is given, but the module has no conditioning: there is nothing to guide"
        )
    arrays = {}
    for name in conditioning:
        spec, array = graph.inputs[name], np.asarray(null[name])
        if array.shape != spec.shape:
            raise UserError(
                f"`null` of {name} must have the shape of one example, {list(spec.shape)}, got "
                f"{list(array.shape)}"
            )
        if not np.isfinite(array).all():
            raise UserError(f"`null` of {name} is not finite")
        arrays[name] = array.astype(spec.dtype)
        if not np.array_equal(arrays[name], array) and np.issubdtype(spec.dtype, np.integer):
            raise UserError(f"`null` of {name} must be {spec.dtype}, got {array}")
    return arrays


def _layout(layout, z_shape):
    if layout is None:
        return "NCHW" if len(z_shape) >= 3 else "NHWC"
    if layout not in LAYOUTS:
        raise UserError(f"`layout` must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    return layout


def _channels_last(shape, layout):
    return [*shape[1:], shape[0]] if layout == "NCHW" else list(shape)


def _sites(graph, time, named):
    """`{linear node: its layer}` whose input w is added to: as named by layer, or as found."""
    layers = {
        node.name: node.args[1].name.removesuffix(".weight")
        for node in graph.nodes
        if node.operation == "linear.default" and getattr(node.args[1], "kind", "") == PARAM
    }
    if named is None:
        sites = graph.find_sites(time)
        if not sites:
            raise UserError(
                "no linear layer is fed by an embedding of the time: name in `w_sites` one or more "
                "linear layers whose input w may be added to"
            )
        return {site: layers[site] for site in sites}
    named = (named,) if isinstance(named, str) else tuple(named)
    for name in named:
        if name not in layers.values():
            known = set(layers.values())
            raise UserError(f"`w_sites` {name!r} is no linear layer{nearest(name, known)}")
    return {site: layer for site, layer in layers.items() if layer in named}


def _told(told, scale, schedule, times):
    """`{"kind", "scale"}` of what the network is told of the time."""
    of_schedule = {"table": "index", "flow": "sigma", "cosine": "t"}[schedule.spec["name"]]
    kind = told or of_schedule
    if kind not in TOLD or (kind in ("index", "t") and kind != of_schedule):
        raise UserError(
            f"`told` must be {of_schedule} (the schedule's own), sigma or logsnr, got {told!r}"
        )
    if scale is None:
        scale = 1000.0 if kind == "sigma" and float(times.max()) > 1.0 else 1.0
    return {"kind": kind, "scale": float(scale)}


def _channels(output, graph, params, z, layout):
    """Positions of the prediction among the result's channels; None for all of them."""
    inputs = {
        name: jax.ShapeDtypeStruct((BATCH, *spec.shape), spec.dtype)
        for name, spec in graph.inputs.items()
    }
    shape = jax.eval_shape(graph.run, params, inputs).shape[1:]
    axis = 0 if layout == "NCHW" else -1
    wanted = graph.inputs[z].shape
    chosen = _positions(output, shape[axis])
    found = list(shape)
    found[axis] = shape[axis] if chosen is None else len(chosen)
    if tuple(found) != wanted:
        way_out = f": name the prediction's channels, such as `output`={wanted[axis]}"
        raise UserError(
            f"the module gives {list(shape)} for z of {list(wanted)}, of which `output` takes "
            f"{found}{way_out if shape[axis] != wanted[axis] else ''}"
        )
    return chosen


def _positions(output, num):
    """Channels as a list: of a slice, a list of them, or how many of the first."""
    if output is None:
        return None
    if isinstance(output, int):
        output = slice(0, output)
    if isinstance(output, slice):
        return list(range(num))[output]
    positions = [int(position) for position in output]
    if any(not 0 <= position < num for position in positions):
        raise UserError(f"`output` must lie in 0 to {num - 1}, got {positions}")
    return positions


def _check_slot(description, graph, params):
    """Refuses a guided module whose own guidance input has an effect already.

    A guided pair is no model of w: what it says must not depend on that input, which is its
    student's to learn.
    """
    if not description["inputs"]["w"] or not description["is_guided"]:
        return
    name = description["inputs"]["w"]
    rng = np.random.default_rng(0)
    inputs = {
        key: rng.standard_normal((BATCH, *spec.shape)).astype(spec.dtype)
        for key, spec in graph.inputs.items()
    }
    run = jax.jit(graph.run)
    one, two = (run(params, inputs | {name: inputs[name] * scale}) for scale in (1.0, -2.0))
    if np.abs(np.asarray(one) - np.asarray(two)).max() > 0.0:
        raise UserError(
            f"the module knows a guidance weight by {name}, and `null` is given: leave `null` out "
            f"where it was distilled for its weight, or set what {name} feeds to zero"
        )


def _write(out, graph, params, constants, description, w_range, name):
    """Writes the folder; `model.json`, last, makes it whole."""
    graph.write(out / GRAPH_FILE)
    write_tensors(out / PARAMS_FILE, params)
    write_tensors(out / CONSTANTS_FILE, constants)
    description = description | {"constants_sha256": tree_sha256(constants)}
    record = _record(description, w_range, name)
    record["config"]["model"]["graph"] = hashlib.sha256((out / GRAPH_FILE).read_bytes()).hexdigest()
    write_json(out / IMPORTED_FILE, record | {"params_sha256": tree_sha256(params)})


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
    into = ", ".join(dict.fromkeys(description["sites"].values())) or roles["w"]
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
