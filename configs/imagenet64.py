r"""ImageNet 64x64 as in the paper: U-Net of 297 million parameters, 1024 steps down to 1.

Type the first once, and the second on every process of a slice, again after whatever stopped it
(a launcher does that, such as launch/tpu_pod.sh; docs/machines.md):

    python -m guided_distill.main --config=configs/imagenet64.py --mode=prepare_data
    python -m guided_distill.main --config=configs/imagenet64.py --workdir=/shared/imagenet64 \
        --distributed --config.mesh.fsdp=8 --config.model.dtype=bfloat16

Variants: `:stochastic`, `:encoder`, `:two_student`, `:single_w`; `:paper` is all of them.

Data: `imagenet2012` of TensorFlow Datasets, whose archives come only by hand, into
`<data.path>/downloads/manual`; cropped and area-resized to 64x64 as the field does.
`--config.data.name=imagenet_resized/64x64` is easier to get, but was squashed instead of cropped:
distances on it cannot be compared with the paper's. Preparing needs TensorFlow (`pip install -e
'.[tf]'`); training does not, and the prepared folder can be copied.

Needs: a pod slice. Of 64 TPU v4 `--mode=plan --devices=v4-64 --image_shape=64,64,3
--num_classes=1000` says, at 40% of their peak: the teacher 28 hours, step one 8.5, the ten rounds
2.1 days, the evaluation 8 hours; with mesh.fsdp=8 and bfloat16 19.4 GiB of each chip's 32 (an
estimate, nearly all of it activations; where they do not fit,
`--config.memory.gradient_accumulation=2` or `--config.memory.remat=full` helps); 104 GB of disk.

Comes out: students of 512 steps down to 1, their comparison (`report/index.html`) and the paper's
tables and figures with its numbers beside the run's (`report/paper.html`); `--mode=report` writes
the latter again, from several workdirs if there are some.

Expect, from the paper's Tables 1 and 2, FID / IS at w = 0.3 of 14.85 / 37.09 with 1 step, 5.05 /
54.44 with 2, 2.17 / 69.64 with 4, 2.05 / 76.01 with 8 and 2.20 / 79.47 with 16, against 2.36 /
74.83 of the teacher (DDIM 1024 steps); `report/paper_results.csv` has all of them.

Sources of the values: [P] the paper, [R] the public reference of progressive distillation
(Salimans & Ho 2022), whose U-Net and training setting the paper follows; [O] our choice.
"""

import os
import runpy

base = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "base.py"))

ORANGE, BELL_PEPPER, ACORN_SQUASH = 950, 945, 941


def get_config(variant=""):
    """The ImageNet 64x64 run, or one of its variants."""
    base["check_variant"](variant, base["DISTILLATIONS"], "configs/imagenet64.py")
    config = base["get_config"]()
    config.distillations = base["DISTILLATIONS"][variant]

    config.data.name = "imagenet2012"
    config.data.image_size = 64  # [R] centre square crop, area resize
    config.data.augmentations = ("flip",)  # [R]

    config.model.prediction = "v"  # [P] C.1
    config.model.width = 192  # [R]
    config.model.channel_mults = (1, 2, 3, 4)  # [R]
    config.model.num_res_blocks = 3  # [R]
    config.model.attention_resolutions = (32, 16, 8)  # [R]
    config.model.head_dim = 64  # [R]

    config.w_range = (0.0, 4.0)  # [P] section 4

    config.optimizer.clip_norm = 1.0  # [R]

    config.teacher.num_updates = 550_000  # [O] neither source says
    config.teacher.batch_size = 2048  # [R]
    config.teacher.learning_rate = 3e-4  # [R]
    config.teacher.warmup_updates = 1_000  # [R]
    config.teacher.ema_decay = 0.9999  # [R]
    config.teacher.loss = "snr_trunc"  # [R]
    config.teacher.dropout = 0.1  # [R]
    config.teacher.label_dropout = 0.1  # [P] as Ho & Salimans 2022

    config.step_one.num_updates = 100_000  # [O] the paper does not say
    config.step_one.batch_size = 2048  # [R]
    config.step_one.learning_rate = 3e-4  # [P] C.2
    config.step_one.ema_decay = 0.9999  # [P] C.2
    config.step_one.loss = "snr"  # [P] C.2

    config.step_two.start_steps = 1024  # [P] C.3
    config.step_two.batch_size = 2048  # [R]
    config.step_two.learning_rate_decay = "linear"  # [P] C.3
    config.step_two.loss = "snr_trunc"  # [P] C.3
    config.step_two.rounds = base["rounds_down"](  # [P] C.3; the other algorithms use the same
        1024, num_updates=50_000, last_updates=100_000, learning_rate=1e-4
    )
    config.single_w.w = (0.0, 0.3, 1.0, 2.0, 4.0)  # [P] Table 2

    config.evaluation.w = (0.0, 0.3, 1.0, 2.0, 4.0)  # [P] Table 2, Figure 9
    config.evaluation.num_steps = (1, 2, 4, 8, 16, 256)  # [P] Table 2, Figures 30 to 45
    config.evaluation.baselines = ("ddim", "ancestral")  # [P] Figure 8
    config.evaluation.baseline_num_steps = (1, 2, 4, 8, 16, 32, 64)  # [P] Table 2, Figure 8
    config.evaluation.translations = ((ORANGE, BELL_PEPPER), (ORANGE, ACORN_SQUASH))  # [P] 4, 12
    config.evaluation.num_samples = 50_000  # [P]
    config.evaluation.paper_report = True
    return config
