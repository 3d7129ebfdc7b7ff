"""Eight virtual devices, strict ranks, and pieces that many tests share."""

import atexit
import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
XLA_FLAGS = [  # Tests compile much and compute little.
    os.environ.get("XLA_FLAGS", ""),
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_force_host_platform_device_count=",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # Others may not know these.
    XLA_FLAGS[1:1] = [
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
os.environ["XLA_FLAGS"] = " ".join(XLA_FLAGS) + "8"
CACHE = "JAX_COMPILATION_CACHE_DIR"  # Shared by all processes of the tests.
if CACHE not in os.environ:
    os.environ[CACHE] = tempfile.mkdtemp(prefix="compiled")
    atexit.register(shutil.rmtree, os.environ[CACHE], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from guided_distill.diffusion.schedule import (  # noqa: E402
    alpha_sigma,
    cosine_logsnr,
    cosine_schedule,
)
from guided_distill.models.build import wrap_network  # noqa: E402
from guided_distill.models.unet import UNet  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
SMALL = ROOT / "tests" / "small.py"

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def logsnr_fn():
    return cosine_logsnr


@pytest.fixture
def schedule():
    return cosine_schedule()


@pytest.fixture
def keys():
    """One key per example of a batch of 16."""
    return jax.random.split(jax.random.key(0), 16)


@pytest.fixture
def noise():
    """`[16, 4, 4, 1]` standard normal."""
    return jax.random.normal(jax.random.key(1), (16, 4, 4, 1))


def gaussian_denoiser(spread):
    """The exact denoiser E[x | z_t] of x ~ N(0, spread²)."""

    def denoise(z, logsnr, w):
        alpha, sigma = alpha_sigma(logsnr, z.ndim)
        return alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * z

    return denoise


def constant_denoiser(value):
    """Predicts the same everywhere."""
    return lambda z, logsnr, w: jnp.full_like(z, value)


def small_unet(**kwargs):
    """A U-Net of a few thousand parameters with every kind of layer."""
    settings = dict(
        num_classes=3,
        width=8,
        channel_mults=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
    )
    return UNet(**(settings | kwargs))


def small_model(prediction="v", image_shape=(8, 8, 1), **kwargs):
    """The `Model` of a `small_unet`, compiled: op by op it would take seconds."""
    model = wrap_network(
        small_unet(**kwargs),
        image_shape=image_shape,
        prediction=prediction,
        schedule=cosine_schedule(),
    )
    return dataclasses.replace(model, apply=jax.jit(model.apply))


def plain_model(**kwargs):
    """A `small_model` of one level and no attention, where only the update is looked at."""
    return small_model(**(dict(channel_mults=(1,), attention_resolutions=()) | kwargs))


def random_params(model, seed=0, scale=0.3):
    """Parameters of which none is zero by construction, made without compiling an init."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan_in = max(1, leaf.size // leaf.shape[-1])
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        return values * (scale if leaf.ndim == 1 else fan_in**-0.5)

    return jax.tree.map(draw, shapes)


def environment(devices=1):
    """Of a process of its own, which sees this package and some virtual devices."""
    flags = " ".join(XLA_FLAGS) + str(devices)
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "XLA_FLAGS": flags}


def command(workdir, *arguments):
    """A run of `small.py` on the command line."""
    main = [sys.executable, "-m", "guided_distill.main"]
    return [*main, f"--config={SMALL}", f"--workdir={workdir}", *arguments]


def params_hashes(workdir, stages):
    """`{stage: params_sha256}` of a workdir, None where a stage is not finished."""
    paths = {stage: pathlib.Path(workdir, stage, "stage.json") for stage in stages}
    return {
        stage: json.loads(path.read_text())["params_sha256"] if path.exists() else None
        for stage, path in paths.items()
    }


class CompileLog(logging.Handler):
    """Notes what JAX says it compiles, by function name."""

    def __init__(self):
        super().__init__(level=logging.DEBUG)
        self.names = []

    def emit(self, record):
        match = re.match(r"Compiling (?:jit\()?(\w+)\)?", record.getMessage())
        if match:
            self.names.append(match.group(1))


@contextlib.contextmanager
def compilations():
    """Within this context, the list of everything that was compiled."""
    log, logger = CompileLog(), logging.getLogger("jax")
    logger.addHandler(log)
    with jax.log_compiles():
        yield log.names
    logger.removeHandler(log)
