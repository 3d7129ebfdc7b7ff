"""Fashion-MNIST, 60,000 real pictures of clothes: padded to 32x32, on one GPU.

Type, and type again after whatever stopped it:

    python -m guided_distill.main --config=configs/fashion_mnist.py --workdir=runs/fashion
    python -m guided_distill.main --config=configs/fashion_mnist.py:cpu --workdir=runs/fashion_cpu

Data: a folder with the four idx files (`train-images-idx3-ubyte.gz`, …), named by
`--config.data.path`; the default is where Debian's package `dataset-fashion-mnist` puts them. Data
prepared by TensorFlow Datasets will do as well: `--config.data.name=fashion_mnist
--config.data.path=` (read as 28x28, padded alike).

Variants; all but the first two may share a workdir, and what they share is trained once:

  :smoke        every stage, small: minutes on two CPU cores
  :cpu          a reduced recipe for two CPU cores, about an hour: 16x16 pixels, a network of
                a twentieth of the size (345,713 parameters), 64 steps down to 1
  :stochastic :encoder :two_student :single_w :paper   as in configs/digits.py

Needs: one accelerator. A forward pass takes 3.5 GFLOPs a picture (XLA's count), so at 40 % of the
bfloat16 peak of one A100 the teacher takes 7 minutes, step one 6 and the eight rounds 10. It has
been checked but not yet been run whole on one.

Comes out: students of 128 steps down to 1 and their comparison. Distances are on features of a
classifier that is 93.3 % right on the 10,000 held-out pictures. Of `:cpu` (91.3% right at its size,
n = 1,000), after 68 minutes with other jobs beside it: 10.40, 10.16, 21.47 and 38.46 at w = 0, 1, 2
and 4 with one call, against 5.32, 9.80, 23.83 and 45.98 of the teacher with 128; docs/report.md has
all of them.
"""

import os
import runpy

base = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "base.py"))

VARIANTS = ("smoke", "cpu", *base["DISTILLATIONS"])


def get_config(variant=""):
    """The Fashion-MNIST run, or one of its variants."""
    base["check_variant"](variant, VARIANTS, "configs/fashion_mnist.py")
    config = base["get_config"]()
    config.distillations = base["DISTILLATIONS"].get(variant, ("deterministic",))

    config.data.name = "idx"
    config.data.path = "/usr/share/datasets/fashion-mnist"
    config.data.image_size = 32
    config.data.fit = "pad"
    # No flip: shoes point to the left in this data set, and so should samples.

    config.model.width = 64
    config.model.channel_mults = (1, 2, 2)
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (16, 8)
    config.model.dtype = "bfloat16"

    config.teacher.num_updates = 40_000
    config.teacher.batch_size = 128
    config.teacher.learning_rate = 5e-4
    config.teacher.learning_rate_decay = "linear"
    config.teacher.warmup_updates = 500
    config.teacher.ema_decay = 0.999
    config.teacher.loss = "v"
    config.teacher.dropout = 0.1

    config.step_one.num_updates = 20_000
    config.step_one.batch_size = 128
    config.step_one.learning_rate = 5e-4
    config.step_one.learning_rate_decay = "linear"
    config.step_one.warmup_updates = 500
    config.step_one.ema_decay = 0.999
    config.step_one.loss = "v"

    config.step_two.start_steps = 256
    config.step_two.batch_size = 128
    config.step_two.rounds = clip_last(
        base["rounds_down"](256, num_updates=3_000, last_updates=8_000, learning_rate=2e-4)
    )
    config.encoder.rounds = base["rounds_down"](
        256, num_updates=3_000, last_updates=3_000, learning_rate=2e-4, last=16
    )
    config.two_student.rounds = base["rounds_down"](
        256, num_updates=3_000, last_updates=8_000, learning_rate=2e-4
    )

    config.evaluation.w = (0.0, 1.0, 2.0, 4.0)
    config.evaluation.num_samples = 10_000
    config.evaluation.batch_size = 500
    config.evaluation.classifier_updates = 10_000
    config.evaluation.translations = ((7, 9), (9, 7), (2, 6), (6, 2), (0, 3))

    if variant == "paper":
        config.evaluation.baselines = ("ddim", "ancestral")
        config.evaluation.baseline_num_steps = (1, 2, 4, 8, 16, 32, 64)
        config.evaluation.paper_report = True
    if variant in ("cpu", "smoke"):
        make_small(config)
    if variant == "smoke":
        base["make_smoke"](config)
    return config


def clip_last(rounds):
    """Clips the teacher's predictions in the rounds to four steps and fewer.

    Most pixels are black, so the guided model overshoots [-1, 1] at large w, and its sampler
    without the clip is far worse than with it.
    """
    for one_round in rounds:
        one_round.clip_teacher = one_round.num_steps <= 4
    return rounds


def make_small(config):
    """The reduced recipe of two CPU cores."""
    config.data.image_size = 16
    config.data.fit = "crop"
    config.model.width = 16
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (8,)
    config.model.dtype = "float32"
    for section in (config.teacher, config.step_one):
        section.batch_size = 64
        section.warmup_updates = 100
    config.teacher.num_updates = 5_000
    config.teacher.learning_rate = 2e-3
    config.teacher.dropout = 0.0
    config.step_one.num_updates = 4_000
    config.step_one.learning_rate = 2e-3
    config.step_two.start_steps = 64
    config.step_two.batch_size = 64
    config.step_two.rounds = clip_last(
        base["rounds_down"](64, num_updates=300, last_updates=900, learning_rate=5e-4)
    )
    for one_round in config.step_two.rounds:
        if one_round.num_steps in (4, 8):
            one_round.num_updates = 800
    config.log_every = 50
    config.checkpoint_every = 500
    config.evaluation.num_samples = 1_000
    config.evaluation.batch_size = 200
    config.evaluation.classifier_updates = 8_000
    config.evaluation.translations = ()
