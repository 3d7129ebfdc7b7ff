"""Samples the student beside this file with JAX and NumPy alone: `sample(cond, w, seed=0)`.

`cond` is a class number a sample, or arrays by name; w a weight each, or one for all. What comes
back is `[n, …]` float32: pictures in [-1, 1], or latents.
"""

import gzip
import json
import pathlib

import jax.export
import jax.numpy as jnp
import numpy as np

HERE = pathlib.Path(__file__).parent
FORMAT = 2  # of program.json
TYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": jnp.bfloat16, "I64": "i8", "I32": "i4"}
about = json.loads((HERE / "program.json").read_text())
if about["format"] != FORMAT:
    raise ValueError(f"{HERE} has format {about['format']}: take the load.py that came with it")


def read_params(path):
    """`{name: array}` of a safetensors file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    specs = {k: v for k, v in json.loads(data[8:start]).items() if k != "__metadata__"}
    at = {name: slice(*(start + np.array(one["data_offsets"]))) for name, one in specs.items()}
    return {
        name: np.frombuffer(data[at[name]], TYPES[one["dtype"]]).reshape(one["shape"])
        for name, one in specs.items()
    }


def read_program(path):
    """The function of a `jax.export` artifact."""
    return jax.jit(jax.export.deserialize(bytearray(gzip.decompress(path.read_bytes()))).call)


make_noise, run = (read_program(HERE / name) for name in ("noise.jax.gz", "sample.jax.gz"))
params = jax.device_put(read_params(HERE / "params.safetensors"))


def sample(cond, w, seed=0, indices=None):
    """Draws a sample for each example of `cond`; equal seed and index see equal noise."""
    cond = jax.tree.map(np.asarray, cond) if isinstance(cond, dict) else np.asarray(cond, np.int32)
    n = len(next(iter(jax.tree.leaves(cond))))
    w = np.broadcast_to(np.asarray(w, np.float32), (n,))
    low, high = about["w_range"]
    if not ((w >= np.float32(low)) & (w <= np.float32(high))).all():
        raise ValueError(f"w must lie in {low:g} to {high:g}, got {w.min():g} to {w.max():g}")
    if about["num_classes"] and not ((cond >= 0) & (cond < about["num_classes"])).all():
        raise ValueError(f"classes are 0 to {about['num_classes'] - 1}, got {cond.tolist()}")
    indices = np.arange(n) if indices is None else np.asarray(indices)
    padded = np.minimum(
        np.arange(1 << (n - 1).bit_length()), n - 1
    )  # A compilation a power of two.
    cond, w, indices = jax.tree.map(lambda a: a[padded], (cond, w, indices.astype(np.int32)))
    noise = make_noise(np.uint32(seed), indices)
    return np.asarray(run(params, noise, w, cond, np.uint32(seed), indices))[:n]
