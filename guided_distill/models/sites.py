"""Where the time enters a graph: the linear layers that its embedding feeds."""

from guided_distill.models.nodes import INPUT, NODE, PARAM, Ref, refs_of
from guided_distill.models.operations.table import (
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


def find_sites(graph, time_input):
    """Names of the linear nodes fed by an embedding of the time, else by the time itself."""
    made_of = {Ref(INPUT, name): OTHER for name in graph.inputs} | {Ref(INPUT, time_input): TIME}
    fed = {EMBEDDING: [], TIME: []}
    for node in graph.nodes:
        kinds = [made_of.get(ref, CONSTANT) for ref in refs_of([node.args, node.kwargs])]
        made_of[Ref(NODE, node.name)] = _kind(node.operation, kinds)
        if is_linear(node) and kinds[0] in fed:
            fed[kinds[0]].append(node.name)
    return fed[EMBEDDING] or fed[TIME]


def is_linear(node):
    """Whether a node is a linear layer whose weight is a parameter."""
    return node.operation == "linear.default" and node.args[1].kind == PARAM


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
