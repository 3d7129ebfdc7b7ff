"""Whether an update fits a device, known before it runs."""

import re

import jax

from guided_distill.errors import UserError
from guided_distill.system.devices import GIB, KINDS

# Of one device, where it is described and not there to be asked.
TPU_MEMORY = {kind.jax_kind: kind.memory for kind in KINDS.values() if kind.topologies}
TPU_MEMORY |= {"TPU v2": 8 * GIB, "TPU v3": 16 * GIB}
COMPILER_OUT_OF_MEMORY = re.compile(
    r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm"
    r"|temporaries \(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)"
)
WAYS_OUT = (
    "take memory.remat=full, a larger memory.gradient_accumulation or mesh.fsdp, "
    "model.dtype=bfloat16 or a smaller batch"
)


def device_memory(device):
    """Bytes of a device's memory, None where it has no limit of its own (a CPU)."""
    try:
        stats = device.memory_stats()
    except jax.errors.JaxRuntimeError:  # Described, not here.
        stats = None
    return (stats or {}).get("bytes_limit") or TPU_MEMORY.get(device.device_kind)


def check_fits(program, limit, what):
    """Refuses a `Program` that takes more than a device has.

    Args:
      program: of an update.
      limit: bytes of a device's memory, None for no limit.
      what: whose update, for people.
    """
    if limit is not None and program.peak_bytes > limit:
        raise UserError(
            f"{what}: an update takes {program.peak_bytes / GIB:.2f} GiB of a device, which has "
            f"{limit / GIB:.2f}: {WAYS_OUT}"
        )


def compile_to_fit(lowered, what):
    """Compiles; a compiler that finds too little memory says so as `check_fits` does."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        match = COMPILER_OUT_OF_MEMORY.search(str(error))
        if match is None:
            raise
        takes, has = filter(None, match.groups())
        raise UserError(
            f"{what}: an update takes {takes} of a device, which has {has}: {WAYS_OUT}"
        ) from error
