"""A model that others trained, as a folder of data: what it is, its graph, its parameters.

    model.json             a finished stage's record; its `model` says what each input is for
    graph.json             named operations (`models.graph.Graph`)
    params.safetensors     what training moves, under PyTorch's names
    constants.safetensors  what it does not: buffers, and the null conditioning

Nothing in it is code, and PyTorch is not needed. A student's folder has the same graph and
constants; its parameters are the graph's and, under `W_BRANCH`, what it learns of w.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.diffusion.known_schedules import read_schedule
from guided_distill.diffusion.schedule import cosine_time, flow_sigma, nearest_index
from guided_distill.errors import UserError, nearest
from guided_distill.models.embeddings import sinusoids
from guided_distill.models.graph import Graph
from guided_distill.models.model import Conditioning, Model
from guided_distill.models.precision import plan_precision
from guided_distill.models.unet import REMAT_POLICIES
from guided_distill.system.files import check_format
from guided_distill.system.tensors import read_tensors
from guided_distill.system.workdir import CONSTANTS_FILE, GRAPH_FILE

FORMAT = 2  # of `model`; 1 had no `outputs`
W_BRANCH = "w_branch"
NULL = "null:"  # prefix of the null conditioning's names among the constants
W_FEATURES = 256
# Of the sinusoids of 1000 w, the fast ones turn many times between neighbouring weights: they are
# noise to a student, and their rows stay at zero.
FASTEST_FEATURE = 10.0  # radians per unit of w


class NamedConditioning(Conditioning):
    """A null per input, by name; a model with one such input takes the bare array too."""

    def nulls(self, cond):
        """As of `Conditioning`, in the form that `cond` has."""
        if isinstance(cond, Mapping):
            return super().nulls(dict(cond))
        (null,) = self.null.values()
        return Conditioning(null).nulls(cond)


def imported_model(description, folder, *, knows_w, dtype="float32", remat="none"):
    """The `Model` of an imported folder, or of a student of one.

    Args:
      description: `model` of its record.
      folder: that holds its graph and constants.
      knows_w: whether it is conditioned on w: a student, or a model that was trained so.
      dtype: compute dtype; what stays float32 is said in `models.precision`.
      remat: one of `REMAT_POLICIES`.

    Raises:
      UserError: where the folder is damaged or of a newer version.
    """
    check_format(folder, description["format"], FORMAT)
    graph = Graph.read(folder / GRAPH_FILE)
    constants = read_tensors(folder / CONSTANTS_FILE, description["constants_sha256"])
    null = {
        name.removeprefix(NULL): value for name, value in constants.items() if name.startswith(NULL)
    }
    buffers = {name: value for name, value in constants.items() if not name.startswith(NULL)}
    network = Network(description, graph, buffers, dtype=dtype, remat=remat)
    return Model(
        apply=network.apply,
        init=functools.partial(network.init, knows_w=knows_w),
        prediction=description["prediction"],
        schedule=network.schedule,
        conditioning=NamedConditioning(
            null if description["is_guided"] else None,
            {
                name: jax.ShapeDtypeStruct(graph.inputs[name].shape, graph.inputs[name].dtype)
                for name in description["conditioning"]
            },
        ),
        sample_shape=tuple(description["sample_shape"]),
        knows_w=knows_w,
        bound=description["bound"],
        raw=network.raw,
        with_w=functools.partial(
            imported_model, description, folder, knows_w=True, dtype=dtype, remat=remat
        ),
    )


class Network:
    """An imported graph with its inputs' roles; all its methods are pure.

    Args:
      description: `model` of a record.
      graph: `Graph`.
      buffers: `{name: array}`, the graph's parameters that training does not move.
      dtype, remat: as in `imported_model`.
    """

    def __init__(self, description, graph, buffers, *, dtype="float32", remat="none"):
        self.description, self.graph, self.buffers = description, graph, buffers
        self.schedule = read_schedule(description["schedule"])
        roles = {name for name in description["inputs"].values() if name is not None}
        self.precision = plan_precision(graph, dtype, roles)
        self.remat = None if remat == "none" else REMAT_POLICIES[remat]
        self.told = tell_time(description["told"], self.schedule)

    def raw(self, params, inputs):
        """The module's own output, in its own layout, at any batch size.

        `inputs` are the module's own, by name, `[B, …]`.
        """
        return self.graph.run(self.buffers | dict(params), inputs)

    def apply(self, params, z, logsnr, cond, w, dropout_keys):
        """A prediction, as `Model.apply`; imported networks have no dropout."""
        del dropout_keys
        branch = params.get(W_BRANCH, {})
        own = {name: value for name, value in params.items() if name != W_BRANCH}
        out = self._run(own, branch, self._inputs(z, logsnr, cond, w), w)
        return to_channels_last(self._prediction(out), self.description["layout"])

    def init(self, key, *, knows_w):
        """Parameters of the right shapes, drawn at random; the w branch is zero, as a student's."""
        specs = {name: self.graph.params[name] for name in self.graph.trainable}
        keys = jax.random.split(key, max(1, len(specs)))
        params = {
            name: 0.02 * jax.random.normal(one, spec.shape, jnp.dtype(spec.dtype))
            for one, (name, spec) in zip(keys, specs.items(), strict=False)
        }
        return params | (self.fresh_branch() if knows_w else {})

    def fresh_branch(self):
        """What a student has beside its teacher's parameters: zeros, one matrix a layer.

        A layer that is called more than once has one, as it has one bias to fold a weight into.
        """
        widths = {
            layer: self.graph.input_width(site) for site, layer in self.description["sites"].items()
        } | {layer: self.graph.output_width(site) for site, layer in self._outputs.items()}
        zeros = {layer: jnp.zeros((W_FEATURES, width)) for layer, width in widths.items()}
        return {W_BRANCH: zeros} if zeros else {}

    @property
    def _outputs(self):
        """`{node: its layer}` whose value w is added to; models without have no such entry."""
        return self.description.get("outputs", {})

    def _run(self, params, branch, inputs, w):
        added = {layer: slow_features(w) @ matrix for layer, matrix in branch.items()}
        into, onto = (
            {site: added[layer] for site, layer in sites.items() if added}
            for sites in (self.description["sites"], self._outputs)
        )
        return self.graph.run(
            self.buffers | params,
            inputs,
            add_to_input=into,
            add_to_output=onto,
            precision=self.precision,
            remat=self.remat,
        )

    def _inputs(self, z, logsnr, cond, w):
        """The graph's inputs by name."""
        roles = self.description["inputs"]
        inputs = {
            roles["z"]: from_channels_last(z, self.description["layout"]),
            roles["time"]: self._time(logsnr),
            **self._conditioning(cond),
        }
        if roles["w"] is not None:
            inputs[roles["w"]] = self._guidance(jnp.zeros_like(logsnr) if w is None else w)
        return inputs

    def _time(self, logsnr):
        dtype = jnp.dtype(self.graph.inputs[self.description["inputs"]["time"]].dtype)
        told = self.told(logsnr)
        return (jnp.round(told) if jnp.issubdtype(dtype, jnp.integer) else told).astype(dtype)

    def _guidance(self, w):
        """w as an input of the module: its sinusoids, or 1 + w, as diffusers' pipelines give it."""
        shape = self.graph.inputs[self.description["inputs"]["w"]].shape
        return guidance_features(w, shape[0]) if shape else 1.0 + w

    def _conditioning(self, cond):
        """`{input: array}` of a dict by name, of one bare array, or of None where there is none."""
        names = self.description["conditioning"]
        if cond is None:
            cond = {}
        if not isinstance(cond, Mapping):
            if not names and cond.ndim == 1:
                return {}  # Labels of data of one class, which say nothing.
            if len(names) != 1:
                raise UserError(
                    f"the model's conditioning is {', '.join(names) or 'nothing'}: give a dict by "
                    "name, not one array"
                )
            cond = {names[0]: cond}
        for name in cond:
            if name not in names:
                raise UserError(f"conditioning {name!r} is unknown{nearest(name, names)}")
        return {name: jnp.asarray(value) for name, value in cond.items()}

    def _prediction(self, out):
        """The channels of the module's result that are the prediction."""
        channels = self.description["channels"]
        if channels is None:
            return out
        axis = 1 if self.description["layout"] == "NCHW" else -1
        return jnp.take(out, np.asarray(channels), axis=axis)


def tell_time(told, schedule):
    """`λ [B] -> [B]`: what a network is told of the time.

    Args:
      told: `{"kind", "scale"}`: one of `TELLERS`, and what its number is multiplied by.
      schedule: `Schedule`.
    """
    return lambda logsnr: told["scale"] * TELLERS[told["kind"]](logsnr, schedule)


def _tell_index(logsnr, schedule):
    """n − 1 of the table's time n/T."""
    times = np.arange(schedule.num_times + 1, dtype=np.float32) / schedule.num_times
    index = nearest_index(logsnr, schedule.logsnr(times)) - 1
    return jnp.maximum(index, 0).astype(jnp.float32)


def _tell_t(logsnr, schedule):
    """t of the cosine schedule."""
    return cosine_time(logsnr, **{k: v for k, v in schedule.spec.items() if k != "name"})


TELLERS = {
    "index": _tell_index,
    "sigma": lambda logsnr, schedule: flow_sigma(logsnr),
    "t": _tell_t,
    "logsnr": lambda logsnr, schedule: logsnr,
}


def guidance_features(w, dim=W_FEATURES):
    """Sinusoids of 1000 w as diffusers' pipelines give them: `[B]` -> `[B, dim]` float32."""
    features = sinusoids(1000.0 * w, dim, low=1.0, high=1e-4)
    return jnp.pad(features, ((0, 0), (0, dim % 2)))


def slow_features(w):
    """`guidance_features` without those that turn faster than `FASTEST_FEATURE`."""
    return jnp.where(slow_rows(), guidance_features(w), 0.0)


def slow_rows():
    """Which of `guidance_features` are slow enough to say something, `[W_FEATURES]` bool."""
    rates = 1000.0 * np.geomspace(1.0, 1e-4, W_FEATURES // 2)
    return np.tile(rates <= FASTEST_FEATURE, 2)


def from_channels_last(x, layout):
    """`[B, …, C]` in the layout of the module: "NCHW" has the channels second."""
    return jnp.moveaxis(x, -1, 1) if layout == "NCHW" else x


def to_channels_last(x, layout):
    """The inverse of `from_channels_last`."""
    return jnp.moveaxis(x, 1, -1) if layout == "NCHW" else x
