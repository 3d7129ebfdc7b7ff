"""The README's way from a diffusers folder to a diffusers folder, as it is typed."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, environment

pytest.importorskip("torch", reason="PyTorch is not installed")

from diffusers_folders import make_sd  # noqa: E402
from PIL import Image  # noqa: E402
from torch_networks import class_of  # noqa: E402


def commands():
    """Those of the README's block, but for the installation; the config's smallest variant."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- diffusers -->\n```bash\n(.*?)```", text, re.DOTALL)[1]
    install, *lines = block.splitlines()
    assert install.endswith("'.[torch]'")
    return [shlex.split(line.replace("diffusers.py:sd15", "diffusers.py:smoke")) for line in lines]


def write_pictures(folder, count=48):
    """Pictures with a caption beside each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("abc"[index % 3])


@pytest.mark.slow
def test_the_readmes_commands_lead_there_and_back(tmp_path):
    make_sd(tmp_path / "sd15")
    write_pictures(tmp_path / "pictures")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    assert len(commands()) <= 15
    for program, *command in commands():
        assert program == "python"
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment(), capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert "Traceback" not in done.stderr
    pipe = class_of("diffusers", "DiffusionPipeline").from_pretrained(tmp_path / "sd15-4")
    pipe.set_progress_bar_config(disable=True)
    batches = []
    pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(args[0])), with_kwargs=True
    )
    images = pipe(["a", "b"], num_inference_steps=4, guidance_scale=2.5, output_type="np").images
    assert images.shape == (2, 16, 16, 3) and np.isfinite(images).all()
    assert batches == [2] * 4
