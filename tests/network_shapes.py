"""Networks of well-known sizes by their shapes alone, to see what distilling them takes.

    python tests/network_shapes.py sdxl runs/sdxl-shapes
    python -m guided_distill.main --mode=compile_check --config=configs/diffusers.py:sdxl \\
        --config.teacher.path=runs/sdxl-shapes --config.mesh.fsdp=64 --topology=v5e:8x8

Needs the extra `torch`, and neither weights nor the memory that they would take.
"""

import sys

import numpy as np
import torch

from guided_distill.models.importing import import_shapes
from guided_distill.system.torchvision import hide_broken_torchvision

TEXT_LENGTH = 77
UNETS = {
    "sd15": dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
    "sdxl": dict(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
}


def make_unet(kind):
    """UNet2DConditionModel of one of `UNETS`, whose parameters have shapes and nothing else."""
    hide_broken_torchvision()
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**UNETS[kind]).eval()


def conditioning(kind):
    """`{name: shape of one}`."""
    text = {"encoder_hidden_states": (TEXT_LENGTH, UNETS[kind]["cross_attention_dim"])}
    return text | ({"text_embeds": (1280,), "time_ids": (6,)} if kind == "sdxl" else {})


def write(kind, out):
    """The folder that `--mode=compile_check` takes as a teacher."""
    shapes, size = conditioning(kind), UNETS[kind]["sample_size"]
    with torch.device("meta"):
        given = {name: torch.zeros(2, *shape) for name, shape in shapes.items()}
        example = {
            "sample": torch.zeros(2, 4, size, size),
            "timestep": torch.zeros(2, dtype=torch.int64),
            "encoder_hidden_states": given.pop("encoder_hidden_states"),
            "added_cond_kwargs": given,
            "return_dict": False,
        }
    nested = {name: f"added_cond_kwargs.{name}" for name in given}
    return import_shapes(
        make_unet(kind),
        example,
        out=out,
        z="sample",
        time="timestep",
        prediction="eps",
        schedule="scaled_linear",
        null={nested.get(n, n): np.zeros(shape, np.float32) for n, shape in shapes.items()},
        w_sites="time_embedding.linear_1",
    )


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2])
