r"""Guided teachers trained in PyTorch on the digits, to be imported and distilled.

A class-conditional UNet2DModel of diffusers, and a small DiT, both with label dropout, ε-prediction
and the scaled-linear schedule of 1000 times. Needs the extra `torch`. By hand:

    python tests/torch_digits.py --net=unet --weights=runs/unet.pt       # some ten minutes
    NET=unet WEIGHTS=runs/unet.pt python -m guided_distill.main --mode=import \
        --from=tests/torch_digits.py --out=runs/unet
    python -m guided_distill.main --config=configs/imported.py:digits \
        --config.teacher.path=runs/unet --workdir=runs/unet-distilled
"""

import argparse
import os
import pathlib

import numpy as np
from torch_training import fit_denoiser

from guided_distill.system.torchvision import hide_broken_torchvision

CLASSES = NULL = 10
LABEL_DROPOUT, LEARNING_RATE = 0.25, 2e-3
UPDATES = {"unet": 6_000, "dit": 8_000}


def make_unet():
    """UNet2DModel of 8x8x1, 0.19 million parameters."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        num_class_embeds=CLASSES + 1,
    )


def make_dit():
    """DiTTransformer2DModel of 8x8x1 in patches of 2, which drops labels itself while training."""
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=1,
        out_channels=1,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    )


NETS = {"unet": make_unet, "dit": make_dit}


def call(kind, net, z, index, labels):
    """ε̂ of either network."""
    if kind == "unet":
        return net(z, index, class_labels=labels, return_dict=False)[0]
    return net(z, timestep=index, class_labels=labels, return_dict=False)[0]


def load_digits():
    """(x `[N, 1, 8, 8]` in [-1, 1], labels `[N]`) of the training split."""
    from guided_distill import load_config
    from guided_distill.data.registry import open_dataset

    configs = pathlib.Path(__file__).parents[1] / "configs"
    source = open_dataset(load_config(configs / "digits.py").data).train
    x = source.images.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1.0
    return x, source.labels.astype(np.int64)


def train(kind, updates, weights):
    """Trains a network and writes the average of its weights."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)  # As fast as several for networks of this size.
    x, labels = (torch.from_numpy(array) for array in load_digits())
    net = NETS[kind]().train()

    def eps_of(rows, z, index):
        told = labels[rows]
        if kind == "unet":
            told = torch.where(torch.rand(len(told)) < LABEL_DROPOUT, NULL, told)
        return call(kind, net, z, index, told)

    average = fit_denoiser(kind, net, x, eps_of, updates, LEARNING_RATE)
    pathlib.Path(weights).parent.mkdir(parents=True, exist_ok=True)
    torch.save(average.state_dict(), weights)


def get_teacher():
    """The arguments of `guided_distill.import_torch` for the weights named by NET and WEIGHTS."""
    hide_broken_torchvision()
    import torch

    kind = os.environ.get("NET", "unet")
    net = NETS[kind]()
    if weights := os.environ.get("WEIGHTS"):
        net.load_state_dict(torch.load(weights, weights_only=True))
    z = {"unet": "sample", "dit": "hidden_states"}[kind]
    return {
        "module": net.eval(),
        "example": {
            z: torch.zeros(2, 1, 8, 8),
            "timestep": torch.tensor([10, 500]),
            "class_labels": torch.tensor([0, 1]),
            "return_dict": False,
        },
        "z": z,
        "time": "timestep",
        "prediction": "eps",
        "schedule": "scaled_linear",
        "null": {"class_labels": NULL},
        "bound": 1.0,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=NETS, default="unet")
    parser.add_argument("--updates", type=int)
    parser.add_argument("--weights", required=True)
    given = parser.parse_args()
    hide_broken_torchvision()
    train(given.net, given.updates or UPDATES[given.net], given.weights)
