"""CIFAR-10 as in the paper: U-Net of 61 million parameters, 1024 steps down to 1.

Type the first once, and the second again after whatever stopped it:

    python -m guided_distill.main --config=configs/cifar10.py --mode=prepare_data --download
    python -m guided_distill.main --config=configs/cifar10.py --workdir=/shared/cifar10

Variants: `:stochastic`, `:encoder`, `:two_student`, `:single_w`; `:paper` is all of them.

Data: CIFAR-10 of TensorFlow Datasets, in `--config.data.path` (its own folder by default).
Preparing needs TensorFlow (`pip install -e '.[tf]'`); training does not, and the prepared folder
can be copied.

Needs: one accelerator upwards. Of eight A100 `--mode=plan --devices=a100-8 --image_shape=32,32,3
--num_classes=10` says, at 40% of what they do in float32 (TF32): the teacher 5.8 hours, step one
1.2, the ten rounds 7.3; and the evaluation 33, more than twice as much as all training
(`--config.evaluation.num_samples=5000` takes a tenth of it). `--config.model.dtype=bfloat16` takes
half of each. Of each device 2.5 GiB, most of it activations (an estimate); 21 GB of disk.

Comes out: students of 512 steps down to 1, their comparison (`report/index.html`) and the paper's
tables and figures with its numbers beside the run's (`report/paper.html`); `--mode=report` writes
the latter again, from several workdirs if there are some.

Expect, from the paper's Table 2, FID / IS at w = 0 of 8.34 / 8.63 with 1 step, 4.48 / 9.23 with
2, 3.18 / 9.50 with 4, 2.86 / 9.68 with 8 and 2.78 / 9.67 with 16, against 2.73 / 9.66 of the
teacher (DDIM 1024 steps); `report/paper_results.csv` has all of them.

Sources of the values: [P] the paper, [R] the public reference of progressive distillation
(Salimans & Ho 2022), whose U-Net and training setting the paper follows; [O] our choice.
"""

import os
import runpy

base = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "base.py"))


def get_config(variant=""):
    """The CIFAR-10 run, or one of its variants."""
    base["check_variant"](variant, base["DISTILLATIONS"], "configs/cifar10.py")
    config = base["get_config"]()
    config.distillations = base["DISTILLATIONS"][variant]

    config.data.name = "cifar10"
    config.data.augmentations = ("flip",)  # [R]

    config.model.prediction = "v"  # [P] C.1
    config.model.width = 256  # [R]
    config.model.channel_mults = (1, 1, 1)  # [R]
    config.model.num_res_blocks = 3  # [R]
    config.model.attention_resolutions = (16, 8)  # [R]
    config.model.head_dim = 0  # [R] one head

    config.w_range = (0.0, 4.0)  # [P] section 4

    config.optimizer.clip_norm = 1.0  # [R]

    config.teacher.num_updates = 800_000  # [O] neither source says
    config.teacher.batch_size = 128  # [R]
    config.teacher.learning_rate = 2e-4  # [R]
    config.teacher.warmup_updates = 1_000  # [R]
    config.teacher.ema_decay = 0.9999  # [R]
    config.teacher.weight_decay = 0.001  # [R] of the teacher alone
    config.teacher.loss = "snr_trunc"  # [R]
    config.teacher.dropout = 0.2  # [R]
    config.teacher.label_dropout = 0.1  # [P] as Ho & Salimans 2022

    config.step_one.num_updates = 100_000  # [O] the paper does not say
    config.step_one.batch_size = 128  # [R]
    config.step_one.learning_rate = 1e-3  # [P] C.2
    config.step_one.warmup_updates = 1_000  # [O] Adam begins afresh on the teacher's parameters
    config.step_one.ema_decay = 0.9999  # [P] C.2
    config.step_one.loss = "snr"  # [P] C.2

    config.step_two.start_steps = 1024  # [P] C.3
    config.step_two.batch_size = 128  # [R]
    config.step_two.learning_rate_decay = "linear"  # [P] C.3
    config.step_two.loss = "snr_trunc"  # [P] C.3
    config.step_two.rounds = base["rounds_down"](  # [P] C.3; the other algorithms use the same
        1024, num_updates=50_000, last_updates=100_000, learning_rate=1e-4
    )
    config.single_w.w = (0.0, 0.3, 1.0, 2.0, 4.0)  # [P] Table 2

    config.evaluation.w = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 4.0)  # [P] Figure 11
    config.evaluation.num_steps = (1, 2, 4, 8, 16, 256)  # [P] Table 2, Figures 14 to 29
    config.evaluation.baselines = ("ddim", "ancestral")  # [P] Figure 10
    config.evaluation.baseline_num_steps = (1, 2, 4, 8, 16, 32, 64)  # [P] Table 2, Figure 10
    config.evaluation.num_samples = 50_000  # [P]
    config.evaluation.paper_report = True
    if variant == "two_student":
        config.evaluation.num_steps = (1, 16, 64, 128, 256)  # [P] Table 3
    if variant == "paper":
        config.evaluation.num_steps = (1, 2, 4, 8, 16, 64, 128, 256)  # [P] Tables 2 and 3
    return config
