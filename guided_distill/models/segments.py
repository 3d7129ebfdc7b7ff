"""A graph cut in segments, which the backward pass computes again one by one.

What is kept between them is what the forward pass holds at the cuts, so they are made where it
holds few values: between blocks rather than within.
"""

import dataclasses
import functools
import math

import jax

from guided_distill.models.nodes import NODE, Node, Ref, refs_of


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive nodes.

    Attributes:
      nodes: `Node`s.
      takes: `Ref`s of what they need from outside.
      gives: `Ref`s of those of their values that are needed after them.
    """

    nodes: tuple[Node, ...]
    takes: tuple[Ref, ...]
    gives: tuple[Ref, ...]

    def run(self, evaluate, values, *, policy):
        """Puts the segment's values into `values`, by `evaluate(node, values)` of each node.

        What is no array, as a size, is the same each time and is kept outside.
        """
        kept = {ref: values[ref] for ref in self.takes if not _has_arrays(values[ref])}
        takes = [ref for ref in self.takes if ref not in kept]

        @functools.partial(jax.checkpoint, policy=policy)
        def compute(arrays):
            inner = kept | dict(zip(takes, arrays, strict=True))
            for node in self.nodes:
                evaluate(node, inner)
            given = {ref: inner[ref] for ref in self.gives}
            values.update({ref: one for ref, one in given.items() if not _has_arrays(one)})
            return [one if _has_arrays(one) else None for one in given.values()]

        given = compute([values[ref] for ref in takes])
        for ref, one in zip(self.gives, given, strict=True):
            if one is not None:
                values[ref] = one


def segments_of(graph):
    """About √n `Segment`s of a graph's n nodes, cut where the fewest values are held."""
    last_use = {}
    for place, node in enumerate(graph.nodes):
        last_use |= dict.fromkeys(refs_of([node.args, node.kwargs]), place)
    last_use[graph.output] = len(graph.nodes)
    cuts = [0, *_cuts(_held(graph.nodes, last_use)), len(graph.nodes)]
    return [
        _segment(graph.nodes[start:end], end, last_use)
        for start, end in zip(cuts[:-1], cuts[1:], strict=True)
        if start < end
    ]


def _held(nodes, last_use):
    """How many of the nodes' values are held after each of them."""
    held, count, ends = [], 0, [0] * (len(nodes) + 1)
    for place, node in enumerate(nodes):
        ref = Ref(NODE, node.name)
        if last_use.get(ref, -1) > place:
            count += 1
            ends[last_use[ref]] += 1
        count -= ends[place]
        held.append(count)
    return held


def _cuts(held):
    """One place to cut in each stretch of √n nodes: after the last of those that hold fewest."""
    length = math.isqrt(len(held))
    for start in range(0, len(held) - length, max(1, length)):
        stretch = range(start, start + length)
        yield 1 + min(stretch, key=lambda place: (held[place], -place))


def _segment(nodes, end, last_use):
    own = {Ref(NODE, node.name) for node in nodes}
    used = dict.fromkeys(ref for node in nodes for ref in refs_of([node.args, node.kwargs]))
    takes = tuple(ref for ref in used if ref not in own)
    gives = tuple(
        Ref(NODE, node.name) for node in nodes if last_use.get(Ref(NODE, node.name), -1) >= end
    )
    return Segment(tuple(nodes), takes, gives)


def _has_arrays(value):
    return any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(value))
