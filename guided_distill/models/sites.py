"""Where the time enters a graph: what its embedding feeds, or the first layers that see it."""

from guided_distill.models.nodes import INPUT, NODE, PARAM, Ref, refs_of
from guided_distill.models.operations.table import (
    CONVOLUTIONS,
    CREATION,
    CUTS,
    ELEMENTWISE,
    INDEXING,
    JOINS,
    LOOKUPS,
    PRODUCTS,
    RESAMPLING,
    SHAPES,
    SIZES,
)

# What a value is made of: of numbers and parameters alone; of the time and those; of a sinusoid of
# the time, or a row that it picks in a table; of anything else.
CONSTANT, TIME, EMBEDDING, OTHER = range(4)
THROUGH = set(ELEMENTWISE | SHAPES | CUTS | INDEXING | RESAMPLING) | {"operator.getitem"}
EMBEDS = {"sin.default", "cos.default", *LOOKUPS}
JOINED = {"add.Tensor", *JOINS}  # An embedding beside or plus anything is still there.
SIZES_ALONE = set(CREATION | SIZES) - {"operator.getitem"}  # They look at no entry.
FREQUENCIES = set(PRODUCTS) - {"linear.default"}  # The time times a table of them is the time.
LAYERS = set(PRODUCTS | CONVOLUTIONS)


def find_sites(graph, time_input):
    """Names of the linear nodes fed by an embedding of the time, else by the time itself."""
    made_of = _made_of(graph, time_input)
    fed = {EMBEDDING: [], TIME: []}
    for node in graph.nodes:
        kind = made_of.get(node.args[0], CONSTANT) if is_linear(node) else CONSTANT
        if kind in fed:
            fed[kind].append(node.name)
    return fed[EMBEDDING] or fed[TIME]


def find_outputs(graph, time_input):
    """Names of the nodes onto whose value w may be added where the time feeds no linear layer.

    The embeddings of the time as they meet anything else, of which there may be one for each block;
    else the layers of any kind that are the first to see the time.
    """
    return _embeddings(graph, time_input) or _first_layers(graph, time_input)


def is_linear(node):
    """Whether a node is a linear layer whose weight is a parameter."""
    return node.operation == "linear.default" and node.args[1].kind == PARAM


def layer_of(graph, node):
    """Name of the layer whose weight a node multiplies by, else the node's own."""
    if node.operation in LAYERS:
        for ref in refs_of(node.args):
            if ref.kind == PARAM and len(graph.params[ref.name].shape) > 1:
                return ref.name.removesuffix(".weight")
    return node.name


def _embeddings(graph, time_input):
    """Nodes of an embedding of the time alone that others than such nodes take."""
    made_of = _made_of(graph, time_input)
    apart = _sees(graph, set(graph.inputs) - {time_input})
    pure = {ref for ref, kind in made_of.items() if kind == EMBEDDING and ref not in apart}
    met = set()
    for node in graph.nodes:
        if Ref(NODE, node.name) not in pure:
            met |= pure & set(refs_of([node.args, node.kwargs]))
    return [node.name for node in graph.nodes if Ref(NODE, node.name) in met]


def _first_layers(graph, time_input):
    """Layers that see the time and are fed by none that does."""
    sees, found, after = _sees(graph, {time_input}), [], set()
    for node in graph.nodes:
        ref = Ref(NODE, node.name)
        if after & set(refs_of([node.args, node.kwargs])):
            after.add(ref)
        elif ref in sees and layer_of(graph, node) != node.name:
            found.append(node.name)
            after.add(ref)
    return found


def _sees(graph, names):
    """`Ref`s of all whose entries depend on one of these inputs."""
    sees = {Ref(INPUT, name) for name in names}
    for node in graph.nodes:
        takes = sees & set(refs_of([node.args, node.kwargs]))
        if takes and node.operation not in SIZES_ALONE:
            sees.add(Ref(NODE, node.name))
    return sees


def _made_of(graph, time_input):
    """`{Ref: kind}` of inputs and nodes."""
    made_of = {Ref(INPUT, name): OTHER for name in graph.inputs} | {Ref(INPUT, time_input): TIME}
    for node in graph.nodes:
        kinds = [made_of.get(ref, CONSTANT) for ref in refs_of([node.args, node.kwargs])]
        made_of[Ref(NODE, node.name)] = _kind(node.operation, kinds)
    return made_of


def _kind(operation, kinds):
    """What an operation's value is made of, from what its arguments are."""
    most = max(kinds, default=CONSTANT)
    if most == CONSTANT or operation in SIZES_ALONE:
        return CONSTANT
    if operation in JOINED and EMBEDDING in kinds:
        return EMBEDDING
    if operation in EMBEDS and most == TIME:
        return EMBEDDING
    if operation in THROUGH or (operation in FREQUENCIES | set(JOINS) and most == TIME):
        return most
    return OTHER
