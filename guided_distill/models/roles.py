"""What the inputs and the output of an imported graph are for, as a person declares them."""

import pathlib

import jax
import numpy as np

from guided_distill.diffusion.known_schedules import ends_in_noise, prediction_of, read_schedule
from guided_distill.diffusion.parameterization import X_FROM_PREDICTION
from guided_distill.errors import UserError, nearest
from guided_distill.models.imported import FORMAT, TELLERS
from guided_distill.models.nodes import BATCH
from guided_distill.models.sites import is_linear, layer_of
from guided_distill.system.files import read_json

LAYOUTS = ("NCHW", "NHWC")
W_INPUTS = ("guidance", "timestep_cond")  # as diffusers' networks call them


def describe(
    graph, params, values, *,
    z, time, prediction, schedule, null=None, output=None, w=None, w_sites=None, bound=None,
    layout=None, told=None, time_scale=None,
):  # fmt: skip
    """(what a record's `model` says, the null conditioning by name or None), all of it checked.

    Args:
      graph: `Graph`.
      params: `{name: array}` of all that it uses.
      values: `{input: tensor}` of the example that it was traced with.
      others: as of `import_torch`.

    Raises:
      UserError: naming the first role that does not fit the graph.
    """
    _check_roles(graph, z=z, time=time, prediction=prediction)
    schedule = schedule_of(schedule, prediction)
    w = _w_input(graph, w, (z, time, *(null or ())))
    conditioning = [name for name in graph.inputs if name not in (z, time, w)]
    null = _null(null, conditioning, graph)
    layout = _layout(layout, graph.inputs[z].shape)
    description = {
        "format": FORMAT,
        "inputs": {"z": z, "time": time, "w": w},
        "conditioning": conditioning,
        "prediction": prediction,
        "schedule": schedule.spec,
        "told": _told(told, time_scale, schedule, values[time]),
        "layout": layout,
        "channels": _channels(output, graph, params, z, layout),
        "sample_shape": _channels_last(graph.inputs[z].shape, layout),
        "bound": bound,
        "is_guided": null is not None,
    } | _sites(graph, time, w, w_sites)
    _check_slot(description, graph, params)
    return description, null


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


def schedule_of(given, prediction):
    """The `Schedule`, which must have a spec and fit the prediction."""
    if isinstance(given, str | pathlib.Path) and pathlib.Path(given).expanduser().exists():
        path = pathlib.Path(given).expanduser()
        path = path / "scheduler_config.json" if path.is_dir() else path
        given = read_json(path)
        if given is None:
            raise UserError(f"`schedule` {path} is missing")
    if hasattr(given, "items"):
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


def _sites(graph, time, w, named):
    """`{"sites", "outputs"}` of `{node: its layer}` whose input or value w is added to.

    As named by layer: a linear one's input, another's value; else as found.
    """
    if w is not None:
        return {"sites": {}, "outputs": {}}
    if named is not None:
        return _named_sites(graph, (named,) if isinstance(named, str) else tuple(named))
    layers = {node.name: layer_of(graph, node) for node in graph.nodes}
    found = {site: layers[site] for site in graph.find_sites(time)}
    onto = {} if found else {site: layers[site] for site in graph.find_outputs(time)}
    if not found and not onto:
        raise UserError(
            "no layer sees the time: name in `w_sites` one or more whose input or value w may be "
            "added to"
        )
    return {"sites": found, "outputs": onto}


def _named_sites(graph, named):
    layers = {node.name: layer_of(graph, node) for node in graph.nodes}
    known = {layer for node, layer in layers.items() if layer != node}
    for name in named:
        if name not in known:
            raise UserError(f"`w_sites` {name!r} is no layer{nearest(name, known)}")
    linear = {node.name for node in graph.nodes if is_linear(node)}
    chosen = {site: layer for site, layer in layers.items() if layer in named}
    return {
        "sites": {site: layer for site, layer in chosen.items() if site in linear},
        "outputs": {site: layer for site, layer in chosen.items() if site not in linear},
    }


def _told(told, scale, schedule, times):
    """`{"kind", "scale"}` of what the network is told of the time."""
    of_schedule = {"table": "index", "flow": "sigma", "cosine": "t"}[schedule.spec["name"]]
    kind = told or of_schedule
    if kind not in TELLERS or (kind in ("index", "t") and kind != of_schedule):
        raise UserError(
            f"`told` must be {of_schedule} (the schedule's own), sigma or logsnr, got {told!r}"
        )
    if scale is None:
        scale = 1000.0 if kind == "sigma" and float(times.max()) > 1.0 else 1.0
    return {"kind": kind, "scale": float(scale)}


def _channels(output, graph, params, z, layout):
    """Positions of the prediction among the result's channels; None for all of them."""
    shape = graph.output_shape(params, BATCH)[1:]
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
