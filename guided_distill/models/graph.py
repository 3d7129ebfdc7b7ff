"""A network as data: a graph of named operations, run in JAX by the rules of their table.

A graph holds names, constants and shapes, and no code; its parameters are a flat dict of arrays
under their PyTorch names. float64, float16 and bfloat16 have become float32, and int64 int32.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from guided_distill.errors import UserError, nearest
from guided_distill.models import sites
from guided_distill.models.nodes import (
    BATCH,
    INPUT,
    NODE,
    PARAM,
    Node,
    Ref,
    Spec,
    decode,
    encode,
    refs_of,
)
from guided_distill.models.operations.table import CONVOLUTIONS, OPERATIONS
from guided_distill.models.segments import segments_of
from guided_distill.system.files import check_format, read_json, write_json

FORMAT = 1  # of the JSON file


@dataclasses.dataclass(frozen=True)
class Graph:
    """A pure function `(params, inputs) -> output` that knows what it is given.

    Attributes:
      inputs: `{name: Spec}`, names dotted where nested, as "added_cond_kwargs.text_embeds".
      params: `{name: Spec}` under PyTorch's names; constants are "example.NAME".
      nodes: in an order in which each needs only those before it.
      output: of which array.
      row_by_row: whether the nodes take one row of the batch: they are then mapped over its rows.
    """

    inputs: dict[str, Spec]
    params: dict[str, Spec]
    nodes: tuple[Node, ...]
    output: Ref
    row_by_row: bool = False

    def __post_init__(self):
        _check_operations(self.nodes)
        _check_order(self)

    @property
    def trainable(self):
        """Names of the parameters that training moves."""
        return tuple(name for name, spec in self.params.items() if spec.trainable)

    def run(
        self, params, inputs, *, add_to_input=None, add_to_output=None, precision=None, remat=None
    ):
        """The output at any batch size; pure, to be differentiated, jitted and vmapped.

        Args:
          params: `{name: array}` of `self.params`.
          inputs: `{name: [B, …]}` of `self.inputs`; cast to their dtypes.
          add_to_input: `{node: [B, width]}` that is added to the first argument of that node,
            alike along the axes between.
          add_to_output: `{node: [B, width]}` that is added to its value, along the channels of a
            convolution and else the only other axis that is not one, or the last.
          precision: `Precision`; None computes all in float32.
          remat: policy of `jax.checkpoint` for each of `segments_of` the nodes; None keeps all.

        Raises:
          UserError: where an input is missing, unknown or of another shape, where no node has such
            a name, or where a rule refuses its arguments, naming the node.
        """
        add = (add_to_input or {}, add_to_output or {})
        _check_names("a node to add to", [*add[0], *add[1]], {node.name for node in self.nodes})
        inputs = self._bind(inputs)
        run = functools.partial(self._run_nodes, params, precision=precision, remat=remat)
        with jax.numpy_rank_promotion("allow"):  # PyTorch broadcasts by ranks.
            return jax.vmap(_of_row(run))(inputs, add) if self.row_by_row else run(inputs, add)

    def output_shape(self, params, batch):
        """Of the output, by shapes alone: a rule that refuses its arguments does so now.

        Args:
          params: `{name: array}` of `self.params`.
          batch: length of the leading axis.
        """
        inputs = {
            name: jax.ShapeDtypeStruct((batch, *spec.shape), spec.dtype)
            for name, spec in self.inputs.items()
        }
        return jax.eval_shape(self.run, params, inputs).shape

    def find_sites(self, time_input):
        """Names of the linear nodes that are fed by an embedding of the time, in order.

        Fed through element-wise operations, casts, joins and reshapes alone by a sinusoid of the
        time or a row that the time picks in a table; where there is none, by the time itself.
        A guidance weight enters there: `add_to_input={site: [B, input_width(site)]}`.

        Raises:
          UserError: where no input has that name.
        """
        _check_names("the time", [time_input], self.inputs)
        return sites.find_sites(self, time_input)

    def find_outputs(self, time_input):
        """Names of the nodes whose value a guidance weight may be added to, without `find_sites`.

        The embeddings of the time where they meet anything else: `add_to_output={site: [B,
        output_width(site)]}`. Where there are none, the first layers that see the time.
        """
        return sites.find_outputs(self, time_input)

    def input_width(self, site):
        """Width of what a linear node of `find_sites` is fed."""
        return self.params[self._node(site).args[1].name].shape[1]

    def output_width(self, site):
        """Width of a node's value, as `run` adds to it."""
        params = {
            name: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for name, spec in self.params.items()
        }
        up_to = dataclasses.replace(self, output=Ref(NODE, site))
        shape = up_to.output_shape(params, BATCH)
        return shape[_channel_axis(self._node(site), shape)]

    def _node(self, name):
        (node,) = (node for node in self.nodes if node.name == name)
        return node

    def check_params(self, params):
        """Raises a `UserError` where params are not those of the graph, or are no numbers."""
        missing = sorted(set(self.params) - set(params))
        extra = sorted(set(params) - set(self.params))
        if missing or extra:
            raise UserError(
                f"params do not fit the graph: missing {missing[:3]} ({len(missing)}), "
                f"unknown {extra[:3]} ({len(extra)}): take those written with it"
            )
        for name, spec in self.params.items():
            _check_param(name, spec, params[name])

    def write(self, path):
        """Writes the graph as JSON."""
        write_json(path, _to_record(self))

    @classmethod
    def read(cls, path):
        """The graph of a file.

        Raises:
          UserError: where it is missing, damaged, of a newer format, or has an operation that no
            rule is for.
        """
        record = read_json(path)
        if record is None:
            raise UserError(f"{path} is missing: a model's graph is written where it is imported")
        found = record.get("format")
        if isinstance(found, int):
            check_format(path, found, FORMAT)
        try:
            return _from_record(record)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no graph, or damaged ({error!r})"[:200]) from error

    def _run_nodes(self, params, inputs, add, *, precision, remat):
        values = {Ref(PARAM, name): params[name] for name in self.params}
        values |= {Ref(INPUT, name): value for name, value in inputs.items()}

        def evaluate(node, values):
            before, after = (added.get(node.name) for added in add)
            value = _evaluate(node, values, before, precision)
            if after is not None:
                value = value + _along_channels(after, node, value.shape).astype(value.dtype)
            values[Ref(NODE, node.name)] = value

        if remat is None:
            for node in self.nodes:
                evaluate(node, values)
        else:
            for segment in segments_of(self):
                segment.run(evaluate, values, policy=remat)
        return values[self.output]

    def _bind(self, inputs):
        """The inputs, checked against their specs and cast."""
        _check_names("an input", inputs, self.inputs)
        missing = sorted(set(self.inputs) - set(inputs))
        if missing:
            raise UserError(f"inputs {missing} are missing: the graph takes {sorted(self.inputs)}")
        inputs = {name: jnp.asarray(inputs[name]) for name in self.inputs}
        batches = {value.shape[:1] for value in inputs.values()}
        for name, spec in self.inputs.items():
            _check_input(name, spec, inputs[name].shape, inputs[name].dtype, len(batches))
        return {name: inputs[name].astype(spec.dtype) for name, spec in self.inputs.items()}


def _of_row(run):
    """A function of arrays `[B, …]` given one row of each."""

    def run_row(*rows):
        return run(*jax.tree.map(lambda row: row[None], rows))[0]

    return run_row


def _evaluate(node, values, added, precision):
    """A node's value; `added` goes onto its first argument, in the dtype of that."""
    args, kwargs = _resolve(list(node.args), values), _resolve(node.kwargs, values)
    if added is not None:
        args[0] = args[0] + _laid_along(added, args[0].ndim).astype(args[0].dtype)
    rule = OPERATIONS[node.operation]
    try:
        if precision is not None:
            return precision.evaluate(node, rule, args, kwargs)
        return rule(*args, **kwargs)
    except (IndexError, NotImplementedError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{node.name} ({node.operation}): {reason}") from error


def _laid_along(added, ndim):
    """`[B, width]` with axes of length 1 between, up to `ndim`."""
    return added.reshape(added.shape[0], *[1] * (ndim - added.ndim), *added.shape[1:])


def _along_channels(added, node, shape):
    """`[B, width]` laid along the channels of a value of this shape."""
    axis = _channel_axis(node, shape)
    shape = [added.shape[0], *[1] * (len(shape) - 1)]
    shape[axis] = added.shape[1]
    return added.reshape(shape)


def _channel_axis(node, shape):
    """Of a node's value: of a convolution 1; else the only axis but the batch's, or the last."""
    wide = [axis for axis, size in enumerate(shape) if axis and size > 1]
    if node.operation in CONVOLUTIONS:
        return 1
    return wide[0] if len(wide) == 1 else len(shape) - 1


def _resolve(argument, values):
    if isinstance(argument, Ref):
        return values[argument]
    if isinstance(argument, list):
        return [_resolve(item, values) for item in argument]
    if isinstance(argument, dict):
        return {key: _resolve(item, values) for key, item in argument.items()}
    return argument


def _check_operations(nodes):
    unknown = sorted({node.operation for node in nodes} - set(OPERATIONS))
    if unknown:
        raise UserError(
            f"no rule for {', '.join(unknown)}: write the module without, or add a rule to "
            "guided_distill/models/operations"
        )


def _check_order(graph):
    known = {Ref(INPUT, name) for name in graph.inputs}
    known |= {Ref(PARAM, name) for name in graph.params}
    for node in (*graph.nodes, Node("the output", "", (graph.output,), {})):
        for ref in refs_of([node.args, node.kwargs]):
            if ref not in known:
                raise UserError(f"{node.name} needs the {ref.kind} {ref.name}, which is not there")
        known.add(Ref(NODE, node.name))


def _check_names(what, names, known):
    for name in names:
        if name not in known:
            raise UserError(f"{what} {name!r} is not in the graph{nearest(name, known)}")


def _check_input(name, spec, shape, dtype, batches):
    if shape[1:] != spec.shape or not shape or batches > 1:
        raise UserError(f"input {name} must be {['B', *spec.shape]}, B the same for all: {shape}")
    if jnp.issubdtype(dtype, jnp.inexact) and not jnp.issubdtype(spec.dtype, jnp.inexact):
        raise UserError(f"input {name} must be {spec.dtype}, got {dtype}: round it yourself")


def _check_param(name, spec, array):
    if tuple(array.shape) != spec.shape:
        raise UserError(f"param {name} must have the shape {spec.shape}, got {tuple(array.shape)}")
    if jnp.issubdtype(array.dtype, jnp.inexact) != jnp.issubdtype(spec.dtype, jnp.inexact):
        raise UserError(f"param {name} must be {spec.dtype}, got {array.dtype}")
    if jnp.issubdtype(array.dtype, jnp.inexact) and bool(jnp.isnan(array).any()):
        raise UserError(f"param {name} holds NaN: take weights from before the training broke")


def _to_record(graph):
    def specs(of):
        return {name: [list(s.shape), s.dtype, s.trainable] for name, s in of.items()}

    nodes = [
        [n.name, n.operation, encode(list(n.args)), {k: encode(v) for k, v in n.kwargs.items()}]
        for n in graph.nodes
    ]
    return {
        "format": FORMAT,
        "inputs": specs(graph.inputs),
        "params": specs(graph.params),
        "nodes": nodes,
        "output": encode(graph.output),
        "row_by_row": graph.row_by_row,
    }


def _from_record(record):
    def specs(of):
        return {name: Spec(tuple(shape), dtype, flag) for name, (shape, dtype, flag) in of.items()}

    nodes = tuple(
        Node(name, operation, tuple(decode(args)), {k: decode(v) for k, v in kwargs.items()})
        for name, operation, args, kwargs in record["nodes"]
    )
    inputs, params = specs(record["inputs"]), specs(record["params"])
    return Graph(inputs, params, nodes, decode(record["output"]), record["row_by_row"])
