"""Weights of InceptionV3: from the file that PyTorch's FID tools use to one of ours."""

import json
import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.errors import UserError
from guided_distill.evaluation.inception import InceptionV3
from guided_distill.evaluation.pytorch_weights import read_state_dict
from guided_distill.system.files import file_sha256, local_path, output_path, replacing, tree_sha256

FILE_NAME = "pt_inception-2015-12-05-6726825d.pth"
WHERE = (
    f"the field uses {FILE_NAME}, from the releases of the pytorch-fid and torch-fidelity projects"
)
BATCH_NORM_EPS = 1e-3
FORMAT = "guided_distill inception-2015-12-05, 1"


def convert_inception(source, out):
    """Writes our weights file from PyTorch's; executes nothing in it.

    Args:
      source: path of the `.pth` file.
      out: path of the `.npz` to write.

    Returns:
      SHA-256 of the parameters, as `load_inception` gives it.

    Raises:
      UserError: where `source` is not the weights of this network.
    """
    source, out = local_path(source, "`weights`"), output_path(out)
    if out.suffix != ".npz":
        raise UserError(f"`out` must end in .npz, got {out}")
    params = fold_batch_norm(read_state_dict(source), source)
    record = {
        "format": FORMAT,
        "source": source.name,
        "source_sha256": file_sha256(source),
        "params_sha256": tree_sha256(params),
    }
    with replacing(out, ".npz") as partial:
        np.savez(partial, record=json.dumps(record), **params)
    return record["params_sha256"]


def load_inception(path):
    """(params, SHA-256) of a file that `convert_inception` wrote.

    Raises:
      UserError: where there is none, or it is something else or damaged.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(
            f"{path} is missing: {WHERE}; the job convert_inception makes our file of it"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            flat = {name: file[name] for name in file.files}
        record = json.loads(str(flat.pop("record")))
        sha256 = record["params_sha256"]
    except Exception as error:  # A damaged archive fails in many ways.
        raise UserError(
            f"{path} is no weights file of the job convert_inception, or a damaged one"
        ) from error
    if record["format"] != FORMAT or tree_sha256(flat) != sha256:
        raise UserError(f"{path} is damaged: its contents do not match their digest")
    check_shapes(flat, path)
    return flax.traverse_util.unflatten_dict(flat, sep="/"), sha256


def fold_batch_norm(state, source):
    """`{path of a parameter: array}` of `InceptionV3` from a state dict of PyTorch's network.

    y = γ (Wx − μ)/√(σ² + ε) + β is a convolution with the kernel γW/√(σ² + ε) and a bias.
    """
    params = {}
    try:
        for key in sorted(state):
            if not key.endswith(".conv.weight"):
                continue
            prefix = key.removesuffix(".conv.weight")
            gamma, beta, mean, variance = (
                np.asarray(state[f"{prefix}.bn.{name}"], np.float64)
                for name in ("weight", "bias", "running_mean", "running_var")
            )
            scale = gamma / np.sqrt(variance + BATCH_NORM_EPS)
            kernel = np.asarray(state[key], np.float64).transpose(2, 3, 1, 0) * scale
            path = prefix.replace(".", "/")
            params[f"{path}/kernel"] = kernel.astype(np.float32)
            params[f"{path}/bias"] = (beta - mean * scale).astype(np.float32)
        params["fc/kernel"] = np.ascontiguousarray(np.asarray(state["fc.weight"], np.float32).T)
    except (KeyError, ValueError) as error:
        raise UserError(f"{source} is not InceptionV3 of 2015-12-05: {WHERE}") from error
    check_shapes(params, source)
    return params


def check_shapes(params, source):
    """Refuses parameters that are not `InceptionV3`'s, all of them and no more."""
    shapes = jax.eval_shape(
        InceptionV3().init, jax.random.key(0), jnp.zeros((1, 299, 299, 3), jnp.uint8)
    )["params"]
    expected = flax.traverse_util.flatten_dict(shapes, sep="/")
    wrong = sorted(
        path
        for path in set(expected) | set(params)
        if path not in params or path not in expected or params[path].shape != expected[path].shape
    )
    if wrong:
        raise UserError(
            f"{source} is not InceptionV3 of 2015-12-05 ({len(wrong)} parameters differ, such as "
            f"{wrong[0]}): {WHERE}"
        )
