r"""Real handwritten digits, 8x8, on two CPU cores: everything in the paper, small.

Type, and type again after whatever stopped it:

    python -m guided_distill.main --config=configs/digits.py --workdir=runs/digits

Needs: no accelerator, and no data to fetch: the digits ship inside scikit-learn (1,500 to learn
from, 297 held out). Training takes about 15 minutes on two CPU cores; on those of an older machine
it took 40.

Comes out: a guided teacher, step one, students of 128 steps down to 1 and their comparison, in
`runs/digits/report/index.html`. Then draw, and turn the dial:

    python -m guided_distill.main --workdir=runs/digits --mode=sample --num_steps=1 --w=0,1,2,4 \
        --n=40 --out=dial.png

Expect, as Fréchet distance on features of a classifier that is 97.3% right on held-out digits
(n = 500), 4.73, 7.13, 10.86 and 15.06 at w = 0, 1, 2 and 4 with one call, against 3.11, 7.33, 11.29
and 15.23 of the teacher with 512. docs/report.md has the tables, those of `:paper` among them. The
last three rounds clip the teacher's predictions, as its sampler does;
`step_two.rounds[k].clip_teacher=False` everywhere is the paper's target.

Variants; all but the first three may share a workdir, and what they share is trained once:

  :smoke        every stage, small, in under 100 s
  :full         from 1024 DDIM steps, every N evaluated, as the paper does
  :factor4      rounds that divide N by 4: 256 -> 64 -> 16 -> 4 -> 1
  :stochastic   Algorithm 3 and the stochastic sampler
  :encoder      Algorithm 4 beside the default students, and style transfer
  :two_student  Algorithm 5, the naive baseline
  :single_w     the baseline that learns w = 1 alone
  :paper        all of these distillations and baselines, with the paper's tables and figures

All of the paper took 51 minutes on two CPU cores, other small jobs beside it; the rounds by 4 then
start from its step one:

    python -m guided_distill.main --config=configs/digits.py:paper --workdir=runs/paper
    python -m guided_distill.main --config=configs/digits.py:factor4 --workdir=runs/factor4 \
        --teacher=runs/paper/step_one
    python -m guided_distill.main --workdir=runs/paper,runs/factor4 --mode=report
"""

import os
import runpy

base = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "base.py"))

VARIANTS = ("smoke", "full", "factor4", *base["DISTILLATIONS"])


def get_config(variant=""):
    """The digits run, or one of its variants."""
    base["check_variant"](variant, VARIANTS, "configs/digits.py")
    config = base["get_config"]()
    config.distillations = base["DISTILLATIONS"].get(variant, ("deterministic",))

    config.data.name = "digits"
    config.model.width = 16
    config.model.channel_mults = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (4,)

    config.teacher.num_updates = 6_000
    config.teacher.batch_size = 64
    config.teacher.learning_rate = 1e-3
    config.teacher.learning_rate_decay = "linear"
    config.teacher.warmup_updates = 100
    config.teacher.ema_decay = 0.999
    config.teacher.loss = "v"
    # With 1,500 pictures the unconditional half needs its share: more label dropout makes the
    # guided model smoother, and what every later round loses smaller.
    config.teacher.label_dropout = 0.25

    config.step_one.num_updates = 8_000
    config.step_one.batch_size = 64
    config.step_one.learning_rate = 4e-3
    config.step_one.learning_rate_decay = "linear"
    config.step_one.warmup_updates = 100
    config.step_one.ema_decay = 0.999
    config.step_one.loss = "v"

    config.step_two.start_steps = 256
    config.step_two.batch_size = 64
    config.step_two.rounds = rounds(256)

    config.encoder.rounds = base["rounds_down"](
        256, num_updates=600, last_updates=600, learning_rate=3e-4, last=16
    )

    # The naive baseline has the same setting but for the clip: its halves are not guided.
    config.two_student.rounds = rounds(256, clip_teacher=False)

    config.log_every = 50
    config.checkpoint_every = 500

    config.evaluation.w = (0.0, 1.0, 2.0, 4.0)
    config.evaluation.num_samples = 500
    config.evaluation.batch_size = 100
    config.evaluation.translations = tuple((label, (label + 1) % 10) for label in range(10))

    if variant == "paper":
        config.evaluation.baselines = ("ddim", "ancestral")
        config.evaluation.baseline_num_steps = (1, 2, 4, 8, 16, 32, 64)
        config.evaluation.paper_report = True
    if variant == "factor4":
        config.step_two.rounds = base["rounds_down"](
            256, num_updates=600, last_updates=2_200, learning_rate=1e-3, factor=4
        )
        for one_round in config.step_two.rounds:
            one_round.clip_teacher = one_round.num_steps <= 4
        config.evaluation.num_steps = (1, 4, 16)
    if variant == "full":
        config.step_two.start_steps = 1024
        config.step_two.rounds = rounds(1024)
        config.evaluation.num_steps = tuple(2**k for k in range(10))
    if variant == "smoke":
        make_smoke(config)
    return config


def rounds(start_steps, *, clip_teacher=True):
    """Halving rounds from start_steps/2 to 1: short and gentle first, long and bold last.

    Early rounds have little to learn, and what they disturb every later round inherits.

    With `clip_teacher` the last three clip the teacher. Digits are black and white, so the guided
    model overshoots [-1, 1] at large w, and its sampler without the clip is far worse than with it.
    """
    few_steps = {16: (600, 3e-4), 8: (3_000, 5e-4), 4: (4_000, 1e-3), 2: (1_800, 1e-3)}
    few_steps[1] = (2_200, 1e-3)
    halved = base["rounds_down"](start_steps, num_updates=200, last_updates=200, learning_rate=2e-4)
    for one_round in halved:
        if one_round.num_steps in few_steps:
            one_round.num_updates, one_round.learning_rate = few_steps[one_round.num_steps]
        one_round.clip_teacher = clip_teacher and one_round.num_steps <= 4
    return halved


def make_smoke(config):
    """Shrinks the run: every stage, five rounds, real data, a few updates each."""
    config.model.width = 8
    config.teacher.num_updates = 150
    config.step_one.num_updates = 60
    config.step_two.start_steps = 32
    config.encoder.rounds = config.two_student.rounds = ()
    config.step_two.rounds = base["rounds_down"](
        32, num_updates=20, last_updates=20, learning_rate=1e-3
    )
    config.log_every = 10
    config.checkpoint_every = 20
    config.evaluation.w = (0.0, 2.0)
    config.evaluation.num_steps = (1, 4)
    config.evaluation.num_samples = 100
    config.evaluation.classifier_updates = 300
