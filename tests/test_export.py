"""Students that go home: diffusers folders that stock pipelines load and sample as we do."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from conftest import environment  # noqa: E402
from diffusers_folders import (  # noqa: E402
    class_of,
    ddim,
    make_dit,
    make_sd,
    make_sdxl,
    make_unet2d,
    save,
    stock,
    vae,
)
from students import bring_teacher, finish_student  # noqa: E402
from torch_networks import network  # noqa: E402

from guided_distill.errors import UserError  # noqa: E402
from guided_distill.jobs import export  # noqa: E402
from guided_distill.models.imported import slow_rows  # noqa: E402
from guided_distill.sampling.sampler import Sampler  # noqa: E402
from guided_distill.system.files import read_json, write_json  # noqa: E402
from guided_distill.system.tensors import read_tensors  # noqa: E402
from guided_distill.system.workdir import IMPORTED_FILE  # noqa: E402

STEPS = (1, 2, 4, 5, 8, 10)
WEIGHTS = (0.0, 0.5, 1.0, 2.5, 4.0)
PROMPTS = ["a cat", "two dogs"]


def to_torch(x):
    """`[n, H, W, C]` as diffusers has it."""
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def to_numpy(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def noise_of(num, channels=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num, 8, 8, channels)).astype(np.float32)


def send(workdir, out, **changes):
    export.run(export.Request(workdir=str(workdir), out=str(out), **changes))
    return out


def assert_same(theirs, ours):
    assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.abs(ours).max())


def draw_each(sampler, cond, noise):
    """Our samples of each of `WEIGHTS`, all on the same noise: `[weights, n, H, W, C]`."""
    many, n = len(WEIGHTS), len(noise)
    tiled = {name: np.tile(value, (many, *[1] * (value.ndim - 1))) for name, value in cond.items()}
    w = np.repeat(WEIGHTS, n)
    x = sampler.draw(tiled, w=w, noise=np.tile(noise, (many, 1, 1, 1)))
    return x.reshape(many, n, *x.shape[1:])


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    """A folder `source` of Stable Diffusion, `run` with its students, and what they became."""
    root = tmp_path_factory.mktemp("sd")
    teacher = bring_teacher(make_sd(root / "source"), root / "teacher")
    for num_steps in STEPS:
        finish_student(root / "run", teacher, num_steps)
        send(root / "run", root / f"sd-{num_steps}", num_steps=num_steps)
    return root


STOCK = """
import json, sys
sys.modules["guided_distill"] = None  # As where it is not installed.
try:
    import torchvision
except Exception:
    sys.modules["torchvision"] = None
import numpy as np, torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)  # Small tensors: more threads wait for each other.
arrays, found = np.load("given.npz"), {}
for num_steps in json.loads(sys.argv[1]):
    pipe = DiffusionPipeline.from_pretrained(f"sd-{num_steps}", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    calls = []
    pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    for w in json.loads(sys.argv[2]):
        latents = torch.from_numpy(arrays["noise"])
        found[f"{num_steps} {w}"] = pipe(
            prompt_embeds=torch.from_numpy(arrays["cond"]), latents=latents,
            num_inference_steps=num_steps, guidance_scale=1 + w, output_type="latent",
        ).images.numpy()
    found[f"{num_steps} calls"] = calls
    print(type(pipe).__name__, type(pipe.scheduler).__name__)
np.savez("found.npz", **found)
"""


def test_the_stock_pipeline_samples_as_we_do(sd):
    noise, cond = noise_of(2), np.random.default_rng(1).standard_normal((2, 9, 12))
    cond = cond.astype(np.float32)
    np.savez(sd / "given.npz", noise=to_torch(noise).numpy(), cond=cond)
    command = [sys.executable, "-I", "-c", STOCK, json.dumps(STEPS), json.dumps(WEIGHTS)]
    import time
    t0 = time.time()
    done = subprocess.run(command, cwd=sd, env=environment(), capture_output=True, text=True)
    print("sub", time.time() - t0, file=sys.stderr)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"StableDiffusionPipeline", "DDIMScheduler"}
    assert "were not used" not in done.stderr and "were not init" not in done.stderr
    found = np.load(sd / "found.npz")
    for num_steps in STEPS:
        sampler = Sampler.load(sd / "run", num_steps)
        t0 = time.time()
        samples = draw_each(sampler, {"encoder_hidden_states": cond}, noise)
        print("draw", time.time() - t0, file=sys.stderr)
        for w, ours in zip(WEIGHTS, samples, strict=True):
            assert_same(np.moveaxis(found[f"{num_steps} {w}"], 1, -1), ours)
        assert np.abs(samples[0] - samples[-1]).max() > 0.02 * np.abs(samples[0]).max()
        assert found[f"{num_steps} calls"].tolist() == [2] * num_steps * len(WEIGHTS)
