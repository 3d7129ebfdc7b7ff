r"""Your own pictures: a folder with one subfolder a class, or with a table of labels.

Type, and type again after whatever stopped it; then draw by the names of the subfolders:

    python -m guided_distill.main --config=configs/folder.py --workdir=runs/mine \
        --config.data.path=pictures
    python -m guided_distill.main --workdir=runs/mine --mode=sample --num_steps=4 --w=2 \
        --labels=cat,dog --out=grid.png

Data: PNG, JPEG or WebP of any size, cropped to their centre square and resized to 32x32, or to the
size that the variant names: `:64`, `:128`. A tenth of every class is held out. Labels from a CSV or
JSONL file with columns `file` and `label`: `--config.data.labels=labels.csv`. Pictures that look
right in a mirror: `--config.data.augmentations="('flip',)"`. Pictures without classes:
`--config.w_range="(0.0,0.0)" --config.evaluation.w="(0.0,)"`, for there is nothing to guide to.
Pictures that cannot be read are named, or left out and counted: `--config.data.skip_broken=True`.
docs/data.md says more.

Variants are sizes; `:smoke` does every stage, small, in minutes on two CPU cores. What is distilled
is named by its key: `--config.distillations="('deterministic','encoder')"`.

Needs: one accelerator for some hours with thousands of pictures. With hundreds of them a model
repeats what it saw.

Comes out: students of 128 steps down to 1 and their comparison; the report shows the training
pictures nearest to the samples.
"""

import os
import runpy

base = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "base.py"))

# Size: (channel_mults, attention_resolutions), the U-Net growing down to 8 pixels.
NETWORKS = {
    "": (32, (1, 2, 2), (16, 8)),
    "64": (64, (1, 2, 2, 4), (16, 8)),
    "128": (128, (1, 1, 2, 2, 4), (16, 8)),
    "smoke": (16, (1, 2), (8,)),
}


def get_config(variant=""):
    """The run on a folder, for one size of pictures."""
    base["check_variant"](variant, tuple(NETWORKS), "configs/folder.py")
    config = base["get_config"]()

    config.data.name = "folder"
    size, channel_mults, attention_resolutions = NETWORKS[variant]
    config.data.image_size = size

    config.model.width = 64
    config.model.channel_mults = channel_mults
    config.model.attention_resolutions = attention_resolutions

    config.teacher.num_updates = 50_000
    config.teacher.batch_size = 64
    config.teacher.learning_rate = 3e-4
    config.teacher.learning_rate_decay = "linear"
    config.teacher.ema_decay = 0.999
    config.teacher.loss = "v"
    config.teacher.dropout = 0.1

    config.step_one.num_updates = 20_000
    config.step_one.batch_size = 64
    config.step_one.learning_rate_decay = "linear"
    config.step_one.ema_decay = 0.999
    config.step_one.loss = "v"

    config.step_two.start_steps = 256
    config.step_two.batch_size = 64
    config.step_two.rounds = base["rounds_down"](
        256, num_updates=3_000, last_updates=8_000, learning_rate=2e-4
    )

    config.evaluation.w = (0.0, 1.0, 2.0, 4.0)
    config.evaluation.num_samples = 2_000
    config.evaluation.batch_size = 200
    if variant == "smoke":
        config.model.num_res_blocks = 1
        base["make_smoke"](config)
    return config
