r"""A model that was trained elsewhere, distilled: any PyTorch module, with its own schedule.

Import it once, with the extra `torch`; nothing after that needs PyTorch. `teacher.py` defines
`get_teacher()`, which gives the arguments of `guided_distill.import_torch`:

    python -m guided_distill.main --mode=import --from=teacher.py --out=teachers/mine
    python -m guided_distill.main --config=configs/imported.py --workdir=runs/mine \
        --config.teacher.path=teachers/mine --config.data.name=folder --config.data.path=pictures

Needs: what the model needs for its own training, less its optimizer's share of one network, plus
one forward network; `--mode=compile_check` with the same config says how much of a device.

Comes out: step one, which knows w, and students of 200 steps down to 1, with the comparison to the
teacher in `runs/mine/report/index.html`. Models of 1000 times are asked at those alone, so rounds
divide 1000: 1000 -> 200 -> 40 -> 8 -> 4 -> 2 -> 1.

Variants:

  :digits  a teacher of 8x8 digits, such as tests/torch_digits.py trains, on two CPU cores
  :smoke   every stage, small, on digits: it works, and shows nothing else
"""

import os
import runpy

CONFIGS = os.path.dirname(os.path.abspath(__file__))
base = runpy.run_path(os.path.join(CONFIGS, "base.py"))

VARIANTS = ("digits", "smoke")
STEPS = (200, 40, 8, 4, 2, 1)


def get_config(variant=""):
    """Rounds for a teacher of 1000 times, or one of the variants."""
    if variant:
        base["check_variant"](variant, VARIANTS, "configs/imported.py")
    config = base["get_config"]()
    config.teacher.path = "teachers/mine"

    config.step_one.num_updates = 50_000
    config.step_one.learning_rate = 1e-4
    config.step_one.warmup_updates = 500
    config.step_two.start_steps = 1000
    config.step_two.rounds = base["rounds_to"](
        *STEPS, num_updates=20_000, last_updates=40_000, learning_rate=5e-5
    )
    config.evaluation.num_steps = (1, 2, 4, 8, 40)
    config.evaluation.baseline_num_steps = (1, 2, 4, 8, 40)
    if variant:
        make_digits(config)
    if variant == "smoke":
        base["make_smoke"](config)
        config.step_one.prediction = ""  # Of whatever teacher.
        config.evaluation.num_steps = config.evaluation.baseline_num_steps = (1, 4)
    return config


def make_digits(config):
    """The recipe of configs/digits.py for a teacher of 1000 times that predicts ε.

    200 steps show all that 1000 do, for a fifth of the evaluation. The last three rounds clip the
    teacher's predictions, as its sampler does.
    """
    config.data.name = "digits"
    config.step_one.num_updates = 8_000
    config.step_one.batch_size = 64
    config.step_one.learning_rate = 2e-3
    config.step_one.learning_rate_decay = "linear"
    config.step_one.warmup_updates = 100
    config.step_one.ema_decay = 0.999
    config.step_one.loss = "v"
    config.step_one.prediction = "v"
    config.step_two.start_steps = 200
    config.step_two.batch_size = 64
    config.step_two.rounds = base["rounds_to"](
        40, 8, 4, 2, 1, num_updates=3_000, last_updates=3_000, learning_rate=5e-4
    )
    for one_round in config.step_two.rounds:
        one_round.clip_teacher = one_round.num_steps <= 4
    config.log_every = 50
    config.checkpoint_every = 500
    config.evaluation.w = (0.0, 1.0, 2.0, 4.0)
    config.evaluation.num_samples = 500
    config.evaluation.batch_size = 100
