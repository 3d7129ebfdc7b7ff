"""What a compiled update takes of a device, read from the compiled program."""

import dataclasses
import math
import re

import jax

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# "%x = (f32[8]{0}, f32[3,2]{1,0}) all-reduce-start(": the result's type, the operation.
OPERATION = re.compile(rf" = (.+?) ({'|'.join(COLLECTIVES)})(-start)?\(")
ARRAY = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Program:
    """Costs of one compiled update, per device.

    Attributes:
      state_bytes: of the state that it changes.
      peak_bytes: of arguments, results and temporaries together.
      donated: share of the state whose memory the new state takes over.
      collectives: `{kind: (operations, bytes of their results)}`, those of a loop's body once.
      flops: floating-point operations, None where the compiler does not count.
    """

    state_bytes: int
    peak_bytes: int
    donated: float
    collectives: dict
    flops: float | None


def describe_program(lowered, compiled):
    """The `Program` of an update that was lowered and compiled; its state is argument 0."""
    memory = compiled.memory_analysis()
    state, layout = lowered.args_info[0][0], compiled.input_shardings[0][0]
    state_bytes = sum(jax.tree.leaves(jax.tree.map(shard_bytes, state, layout)))
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    cost = compiled.cost_analysis() or {}
    return Program(
        state_bytes=state_bytes,
        peak_bytes=held - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
        donated=min(1.0, memory.alias_size_in_bytes / state_bytes),
        collectives=count_collectives(compiled.as_text()),
        flops=cost.get("flops"),
    )


def count_collectives(text):
    """`{kind: (operations, bytes of their results)}` of a compiled program's text."""
    found = {}
    for result, kind, start in OPERATION.findall(text):
        sizes = [array_bytes(*array) for array in ARRAY.findall(result)]
        if start and kind != "all-reduce":  # Its result names the operands too, first.
            sizes = sizes[len(sizes) // 2 :]
        operations, total = found.get(kind, (0, 0))
        found[kind] = (operations + 1, total + sum(sizes))
    return found


def array_bytes(dtype, shape):
    """Bytes of `f32[8,3]`, taken apart: "f32", "8,3"."""
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype).group())
    return math.prod(int(n) for n in shape.split(",") if n) * bits // 8


def shard_bytes(array, layout):
    """Bytes of one device's part of an array that is laid out by a sharding."""
    return math.prod(layout.shard_shape(array.shape)) * array.dtype.itemsize
