"""Which nodes of a graph compute in a lower precision than float32.

A *layer* is a product or a convolution with a trained weight. In float32 stay:

- all that no layer comes before: the sinusoid of the time, positions, weights made of weights;
- the first layers: those that read z, the time or a guidance weight with no layer between;
- the last ones: those that no layer comes between and the output, and all that follows them.

Every other node gives the lower dtype and is given it. A float32 operand (a bias, a table of
positions, a class's row) is rounded where it enters, and a cast to float32 that the module has is
undone where it ends, so that a sum of residuals is never promoted. Softmaxes, reductions and
complex numbers compute in float32 and round what they give; so do norms, whose weights stay
float32.
"""

import dataclasses

import jax
import jax.numpy as jnp

from guided_distill.models.nodes import INPUT, NODE, PARAM, Ref, refs_of
from guided_distill.models.operations.convolution import CONVOLUTIONS
from guided_distill.models.operations.table import (
    COMPLEX,
    NORMALISATIONS,
    PRODUCTS,
    REDUCTIONS,
    SOFTMAXES,
)

WEIGHED = set(PRODUCTS | CONVOLUTIONS)
ATTENTION = "scaled_dot_product_attention.default"
IN_FLOAT32 = set(SOFTMAXES | REDUCTIONS | COMPLEX)


@dataclasses.dataclass(frozen=True)
class Precision:
    """Evaluates a graph's nodes in the dtypes of this module.

    Attributes:
      dtype: the lower one.
      exact: names of the nodes that stay float32.
    """

    dtype: jnp.dtype
    exact: frozenset[str]

    def evaluate(self, node, rule, args, kwargs):
        """What a node's rule gives for its arguments."""
        if node.name in self.exact:
            return rule(*_raised(args), **_raised(kwargs))
        if node.operation in IN_FLOAT32:
            return self._rounded(rule(*_raised(args), **_raised(kwargs)))
        if node.operation in NORMALISATIONS:
            return self._rounded(rule(self._rounded(args[0]), *args[1:], **kwargs))
        is_product = node.operation in WEIGHED and node.operation != ATTENTION
        lower = self._rounded if is_product else self._rounded_as_mask
        return self._rounded(rule(*lower(args), **lower(kwargs)))

    def _rounded(self, tree):
        """Its float32 arrays in the lower dtype."""
        return _map_float32(lambda leaf: leaf.astype(self.dtype), tree)

    def _rounded_as_mask(self, tree):
        """As `_rounded`, but float32's lowest number, which masks add, does not become -inf."""
        largest = float(jnp.finfo(self.dtype).max)

        def lower(leaf):
            finite = jnp.clip(leaf, -largest, largest)
            return jnp.where(jnp.isinf(leaf), leaf, finite).astype(self.dtype)

        return _map_float32(lower, tree)


def plan_precision(graph, dtype, told):
    """The `Precision` of a graph; None for float32.

    Args:
      graph: `Graph`.
      dtype: name of the compute dtype.
      told: names of the inputs that its first layers read: z, the time, a guidance weight.
    """
    if jnp.dtype(dtype) == jnp.float32:
        return None
    layers = find_layers(graph)
    exact = _first(graph, layers, told) | _last(graph, layers)
    return Precision(jnp.dtype(dtype), frozenset(exact))


def find_layers(graph):
    """Names of the products and convolutions with a weight made of trained parameters alone."""
    weights = {Ref(PARAM, name) for name in graph.trainable}
    varies = {Ref(INPUT, name) for name in graph.inputs}
    layers = set()
    for node in graph.nodes:
        refs, value = set(_refs(node)), Ref(NODE, node.name)
        if refs & varies:
            varies.add(value)
        elif refs & weights:
            weights.add(value)
        if node.operation in WEIGHED and refs & weights and refs & varies:
            layers.add(node.name)
    return layers


def _first(graph, layers, told):
    """Nodes that no layer comes before, and the layers that read what is told."""
    before = {Ref(INPUT, name) for name in graph.inputs} | {Ref(PARAM, n) for n in graph.params}
    of_told = {Ref(INPUT, name) for name in told}
    first = set()
    for node in graph.nodes:
        refs, value = set(_refs(node)), Ref(NODE, node.name)
        if not refs <= before:
            continue
        if node.name not in layers:
            before.add(value)
            of_told |= {value} if refs & of_told else set()
        if node.name not in layers or refs & of_told:
            first.add(node.name)
    return first


def _last(graph, layers):
    """Nodes that no layer comes between and the output, and the layers before them."""
    wanted, last = {graph.output}, set()
    for node in reversed(graph.nodes):
        if Ref(NODE, node.name) in wanted:
            last.add(node.name)
            wanted |= set() if node.name in layers else set(_refs(node))
    return last


def _refs(node):
    return refs_of([node.args, node.kwargs])


def _raised(tree):
    """Its arrays of lower floats as float32."""

    def raise_(leaf):
        lower = jnp.issubdtype(getattr(leaf, "dtype", None) or bool, jnp.floating)
        return leaf.astype(jnp.float32) if lower else leaf

    return jax.tree.map(raise_, tree)


def _map_float32(function, tree):
    def apply(leaf):
        return function(leaf) if getattr(leaf, "dtype", None) == jnp.float32 else leaf

    return jax.tree.map(apply, tree)
