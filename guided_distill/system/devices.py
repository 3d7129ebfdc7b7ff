"""What accelerators can do at best, and how many of them lie together: one table.

Rates are of dense matrix products, of one JAX device; memory is what it has. Sources: the pages of
Google Cloud's TPU documentation on each version, NVIDIA's data sheets of A100, H100 and H200 (SXM,
without sparsity).
"""

import dataclasses
import re

from guided_distill.errors import UserError, nearest

GIB = 2**30
TERA = 1e12


@dataclasses.dataclass(frozen=True)
class DeviceKind:
    """One kind of accelerator.

    Attributes:
      title: for people.
      jax_kind: `device_kind` of JAX.
      bfloat16: FLOP/s.
      float32: FLOP/s of float32 as JAX multiplies it unless told otherwise: one bfloat16 pass on a
        TPU, TF32 on a GPU.
      memory: bytes.
      topologies: `{count: topology}` that the TPU's compiler knows; none of a GPU.
    """

    title: str
    jax_kind: str
    bfloat16: float
    float32: float
    memory: int
    topologies: dict = dataclasses.field(default_factory=dict)

    def rate(self, dtype):
        """FLOP/s in the compute dtype of a model."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32


FLAT = {
    1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16",
}  # fmt: skip
CUBES = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
    512: "8x8x8",
}  # fmt: skip


def _tpu(title, jax_kind, rate, memory, topologies):
    return DeviceKind(title, jax_kind, rate * TERA, rate * TERA, memory * GIB, topologies)


def _gpu(title, bfloat16, tf32, memory):
    return DeviceKind(title, title, bfloat16 * TERA, tf32 * TERA, int(memory * 1e9))


KINDS = {
    "v4": _tpu("TPU v4", "TPU v4", 275.0, 32, CUBES),  # a chip: a megacore of two
    "v5e": _tpu("TPU v5e", "TPU v5 lite", 197.0, 16, FLAT),
    "v5p": _tpu("TPU v5p", "TPU v5", 459.0, 95, CUBES),
    "v6e": _tpu("TPU v6e", "TPU v6 lite", 918.0, 32, FLAT),
    "a100": _gpu("NVIDIA A100", 312.0, 156.0, 80.0),
    "h100": _gpu("NVIDIA H100", 989.4, 494.7, 80.0),
    "h200": _gpu("NVIDIA H200", 989.4, 494.7, 141.0),
}


def parse_devices(text):
    """(key of `KINDS`, count) of `v5e-64`, `h100-8`, `v4`.

    Raises:
      UserError: where there is no such kind, or no slice of so many.
    """
    match = re.fullmatch(r"([A-Za-z]\w*?)(?:[-:x](\d+))?", text.strip())
    name, count = (match[1].lower(), int(match[2] or 1)) if match else (text, 1)
    if name not in KINDS or count < 1:
        known = ", ".join(KINDS)
        raise UserError(
            f"`devices` must be a kind and a number, such as v5e-64 or h100-8, of {known}; got "
            f"{text!r}{nearest(name, KINDS)}"
        )
    there = KINDS[name].topologies
    if there and count not in there:
        raise UserError(
            f"`devices` {text}: slices of {name} have {', '.join(map(str, there))} chips"
        )
    return name, count
