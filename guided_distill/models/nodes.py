"""What a graph is made of, and how JSON has it."""

import dataclasses
from typing import Any

BATCH = 2  # of an example: no other size tells the batch from what is one or fixed
KINDS = NODE, INPUT, PARAM = "node", "input", "param"


@dataclasses.dataclass(frozen=True)
class Ref:
    """An argument that is the value of a node, an input or a parameter."""

    kind: str
    name: str


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an array must be.

    Attributes:
      shape: of an input without its leading axis, the batch.
      dtype: name, as "float32".
      trainable: whether training moves it: a parameter that PyTorch trains, no buffer, no constant.
    """

    shape: tuple[int, ...]
    dtype: str
    trainable: bool = False


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation; its arguments are constants, `Ref`s, and lists of them."""

    name: str
    operation: str
    args: tuple
    kwargs: dict[str, Any]


def refs_of(argument):
    """Every `Ref` in an argument, in order."""
    if isinstance(argument, Ref):
        yield argument
    elif isinstance(argument, list | tuple):
        for item in argument:
            yield from refs_of(item)
    elif isinstance(argument, dict):
        yield from refs_of(list(argument.values()))


def encode(argument):
    """An argument as JSON has it: a `Ref` is `{kind: name}`, an infinity `{"float": "inf"}`."""
    if isinstance(argument, Ref):
        return {argument.kind: argument.name}
    if isinstance(argument, list):
        return [encode(item) for item in argument]
    if isinstance(argument, float) and not abs(argument) < float("inf"):
        return {"float": str(argument)}
    return argument


def decode(value):
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, name),) = value.items()
    if kind == "float":
        return float(name)
    if kind not in KINDS:
        raise ValueError(f"an argument of the kind {kind!r}")
    return Ref(kind, name)
