"""A PyTorch module as a `Graph` and its parameters. Only this module needs PyTorch."""

import inspect
from collections.abc import Mapping

import jax
import numpy as np
import torch
from torch import nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from guided_distill.errors import UserError
from guided_distill.models.graph import Graph
from guided_distill.models.nodes import BATCH, INPUT, NODE, PARAM, Node, Ref, Spec

# Some modules ask whether a batch is large, or a multiple of it, as of frames: then a smaller one.
LARGEST_BATCHES = (63, 7)
SAME = 1e-3  # of the largest value; rounding is far below, another function above
NARROWED = {
    torch.float64: "float32",
    torch.float16: "float32",
    torch.bfloat16: "float32",
    torch.int64: "int32",
    torch.complex128: "complex64",
}
PLACEMENT = {"device", "layout", "pin_memory", "memory_format", "non_blocking"}
LARGEST_FLOAT = float(np.finfo(np.float32).max)
CONSTANTS = "example."  # prefix of the names of an example's tensors that are no inputs


def export_graph(module, example, *, output=""):
    """The graph of a module's forward pass, and `{name: array}` of what it uses.

    Args:
      module: `nn.Module` in eval mode; half and double precision become float32.
      example: keyword arguments of its forward. Tensors whose leading axis is 2, nested ones
        too, are batches and become inputs; everything else is a constant of the graph.
      output: of a forward that returns more than a tensor, the key or position of the one to take,
        dotted where nested; the first tensor where "".

    Returns:
      (`Graph`, params): at any batch size `graph.run(params, inputs)` is the module's output.

    Raises:
      UserError: where the module trains, does not take the example, cannot be traced (its control
        flow depends on the data), fixes its batch and mixes the rows, writes to itself, has
        operations or arguments without a rule, or weights that are no numbers.
    """
    _check_eval(module)
    output, expected = _select(_call(module, example), output)
    program, row_by_row = _trace(module, example)
    graph, params = _convert(program, example, output, row_by_row)
    graph.check_params(params)
    _check_shape(graph, params, tuple(expected.shape))
    if row_by_row:
        _check_rows(module, example, graph, params, output)
    return graph, params


def measure_parity(module, example, graph, params, *, output="", batch=3):
    """Largest difference between graph and module, of floats, over the module's largest value.

    Both are run on the example's batches cut or repeated to `batch`, another than the exported.
    """
    rows = np.arange(batch) % BATCH
    inputs = {name: tensor[rows] for name, tensor in paths_of(example).items() if _is_batch(tensor)}
    repeated = pytree.tree_map(lambda leaf: leaf[rows] if _is_batch(leaf) else leaf, example)
    theirs = _to_numpy(_select(_call(module, repeated), output)[1], "output")
    ours = jax.jit(graph.run)(params, {name: _to_numpy(t, name) for name, t in inputs.items()})
    error = np.abs(np.subtract(ours, theirs, dtype=theirs.dtype)).max()
    return float(error / max(np.abs(theirs).max(), np.finfo(np.float32).tiny))


def paths_of(tree, prefix=""):
    """`{dotted path: leaf}` of nested mappings, lists and tuples."""
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        return {prefix: tree}
    paths = {}
    for key, value in items:
        paths |= paths_of(value, f"{prefix}.{key}" if prefix else str(key))
    return paths


def _is_batch(leaf):
    return isinstance(leaf, torch.Tensor) and leaf.shape[:1] == (BATCH,)


def _check_eval(module):
    training = [name or "the module" for name, part in module.named_modules() if part.training]
    if training:
        raise UserError(
            f"{training[0]} is in training mode, where dropout and batch norm act otherwise: "
            "call .eval() on the module first"
        )


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _call(module, example):
    """The module's own output for an example."""
    try:
        inspect.signature(module.forward).bind(**example)
        with torch.no_grad():
            return module(**example)
    except Exception as error:  # A forward of another's code fails in any way it likes.
        raise UserError(
            f"forward of {type(module).__name__} does not take the example: {_first_line(error)}"
        ) from error


def _select(result, output):
    """(dotted name, tensor) of the output that was asked for."""
    paths = paths_of(result)
    tensors = [name for name, leaf in paths.items() if isinstance(leaf, torch.Tensor)]
    if (output and output not in tensors) or not tensors:
        raise UserError(f"forward returns no tensor {output!r}: it returns {tensors}")
    name = output or tensors[0]
    return name, paths[name]


def _trace(module, example):
    """(the exported program, whether it is of one row): of any batch where that can be."""
    for largest in LARGEST_BATCHES:
        try:
            return _trace_batches(largest, module, example), False
        except Exception:  # PyTorch raises many kinds; a single row may do.
            continue
    try:
        one = pytree.tree_map(lambda leaf: leaf[:1] if _is_batch(leaf) else leaf, example)
        return _export(module, one, None), True
    except Exception as error:
        raise _explained(type(module).__name__, error) from error


def _trace_batches(largest, module, example):
    """The program of every batch up to `largest`."""
    batch = torch.export.Dim("batch", min=BATCH, max=largest)
    shapes = pytree.tree_map(lambda leaf: {0: batch} if _is_batch(leaf) else None, example)
    return _export(module, example, _by_argument(module, shapes))


def _export(module, example, shapes):
    """A program in which nothing is written in place."""
    program = torch.export.export(module, (), example, dynamic_shapes=shapes, strict=False)
    return program.run_decompositions({})


def _by_argument(module, shapes):
    """Shapes by the names of forward's parameters; those that `**kwargs` takes are nested."""
    parameters = inspect.signature(module.forward).parameters
    rest = [p.name for p in parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    named = {name: shape for name, shape in shapes.items() if name in parameters}
    others = {name: shape for name, shape in shapes.items() if name not in parameters}
    return named | ({rest[0]: others} if others else {})


def _explained(name, error):
    """A `UserError` of what kept `torch.export` from tracing."""
    text = str(error)
    if "ata-dependent" in text or "data dependent" in text or "SymInt" in text:
        return UserError(
            f"the control flow of {name} depends on the values of tensors ({_first_line(error)}): "
            "write it with torch.where"
        )
    return UserError(f"{name} cannot be traced: {type(error).__name__}: {_first_line(error)}")


def _convert(program, example, output, row_by_row):
    """(Graph, params) of a program: every input, and what the output needs of the rest."""
    _check_no_writes(program.graph_signature)
    inputs, params, refs = _placeholders(program, example)
    wanted = _outputs(program)[output]
    nodes = _needed(program.graph, wanted)
    refs |= {node.name: Ref(NODE, node.name) for node in nodes}
    used = {refs[needed.name] for node in nodes for needed in node.all_input_nodes}
    used.add(refs[wanted])
    params = {name: value for name, value in params.items() if Ref(PARAM, name) in used}
    trainable = _trainable(program.state_dict)
    graph = Graph(
        inputs,
        {name: _spec(value, name in trainable) for name, value in params.items()},
        tuple(_to_node(node, refs) for node in nodes),
        refs[wanted],
        row_by_row,
    )
    return graph, params


def _trainable(tensors):
    """Names of the parameters that ask for gradients; all, where a module is frozen as a whole."""
    parameters = {n: tensor for n, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
    return {n for n, tensor in parameters.items() if tensor.requires_grad} or set(parameters)


def _spec(array, trainable):
    return Spec(array.shape, str(array.dtype), trainable and array.dtype.kind == "f")


def _check_no_writes(signature):
    for spec in signature.output_specs:
        if spec.kind is OutputKind.BUFFER_MUTATION:
            raise UserError(
                f"forward writes to the buffer {spec.target}: export a module that does not"
            )


def _outputs(program):
    """`{dotted name: name of a node}` of what the program returns."""
    specs = program.graph_signature.output_specs
    names = [getattr(s.arg, "name", None) for s in specs if s.kind is OutputKind.USER_OUTPUT]
    return paths_of(pytree.tree_unflatten(names, program.call_spec.out_spec))


def _placeholders(program, example):
    """(inputs, params, `{placeholder: Ref}`) of a program."""
    specs = program.graph_signature.input_specs
    params, refs = _own_tensors(program, specs)
    given = [spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT]
    names = paths_of(pytree.tree_unflatten(given, program.call_spec.in_spec)[1])
    inputs = {}
    for path, value in paths_of(example).items():
        if _is_batch(value):
            array = _to_numpy(value, path)
            inputs[path] = Spec(array.shape[1:], str(array.dtype))
            refs[names[path]] = Ref(INPUT, path)
        elif isinstance(value, torch.Tensor):
            params[CONSTANTS + path] = _to_numpy(value, path)
            refs[names[path]] = Ref(PARAM, CONSTANTS + path)
    return inputs, params, refs


def _own_tensors(program, specs):
    """(params, `{placeholder: Ref}`) of a module's parameters, buffers and constants."""
    tensors = dict(program.state_dict) | dict(program.constants)
    first = _first_names(tensors)
    own = [spec for spec in specs if spec.kind is not InputKind.USER_INPUT]
    params = {first[s.target]: _to_numpy(tensors[s.target], s.target) for s in own}
    return params, {s.arg.name: Ref(PARAM, first[s.target]) for s in own}


def _first_names(tensors):
    """`{name: the first name of the same tensor}`, for one that a module has under several."""
    first = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return {name: first[id(tensor)] for name, tensor in tensors.items()}


def _to_numpy(tensor, name):
    """A copy in the dtype that the graph has for it; zeros of no size in memory, of a meta tensor.

    Raises:
      UserError: where an integer is beyond int32.
    """
    if tensor.is_meta:
        zero = _to_numpy(torch.zeros((), dtype=tensor.dtype), name)
        return np.broadcast_to(zero, tuple(tensor.shape))
    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.int64 and tensor.numel():
        low, high = (int(bound) for bound in torch.aminmax(tensor))
        if max(-low - 1, high) > np.iinfo(np.int32).max:
            raise UserError(f"{name} holds the integer {high}, beyond int32: export without it")
    dtype = getattr(torch, NARROWED.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")))
    return np.array(tensor.to(dtype).numpy())


def _needed(graph, wanted):
    """The operations that a value needs, in order; assertions are needed by none."""
    needed, nodes = {wanted}, []
    for node in reversed(graph.nodes):
        if node.op == "call_function" and node.name in needed:
            nodes.append(node)
            needed |= {other.name for other in node.all_input_nodes}
    return nodes[::-1]


def _to_node(node, refs):
    kwargs = {name: value for name, value in node.kwargs.items() if name not in PLACEMENT}
    args = tuple(_to_argument(argument, refs, node) for argument in node.args)
    kwargs = {name: _to_argument(value, refs, node) for name, value in kwargs.items()}
    return Node(node.name, _operation(node.target), args, kwargs)


def _operation(target):
    """Its name in the table: "add.Tensor" of ATen, "operator.mul" and "torch.sym_max" of sizes."""
    if isinstance(target, torch._ops.OpOverload):
        aten = target.namespace == "aten"
        return target.__name__ if aten else f"{target.namespace}.{target.__name__}"
    module = getattr(target, "__module__", "").removeprefix("_")
    return f"{module}.{getattr(target, '__name__', target)}"


def _to_argument(argument, refs, node):
    """An argument of an operation as a `Graph` has it; numbers within float32's range."""
    if isinstance(argument, torch.fx.Node):
        return refs[argument.name]
    if isinstance(argument, list | tuple):
        return [_to_argument(item, refs, node) for item in argument]
    if isinstance(argument, torch.dtype):
        return NARROWED.get(argument, str(argument).removeprefix("torch."))
    if isinstance(argument, float) and abs(argument) < float("inf"):
        return min(max(argument, -LARGEST_FLOAT), LARGEST_FLOAT)
    if isinstance(argument, str | int | float | None):
        return argument
    raise UserError(f"{node.name} ({node.target}) is given {argument!r}, which no graph can hold")


def _check_shape(graph, params, shape):
    """Tries every rule on shapes alone, so that a refusal comes before anything is computed."""
    found = graph.output_shape(params, BATCH)
    if found != shape:
        raise UserError(f"the graph gives the shape {found} where the module gives {shape}")


def _check_rows(module, example, graph, params, output):
    """Compares with the module, whose rows need not be each for itself."""
    if measure_parity(module, example, graph, params, output=output, batch=BATCH) > SAME:
        raise UserError(
            f"{type(module).__name__} fixes the batch axis at {BATCH} and mixes its rows: forward "
            "must take the batch from a shape, and a tensor of the example that is no batch must "
            f"not have the length {BATCH}"
        )
