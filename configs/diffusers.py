r"""A diffusers folder distilled: Stable Diffusion, SDXL, DiT, whose students keep a dial for w.

Import the folder once, turn pictures with captions into latents once; training needs neither the
autoencoder nor the text encoders:

    python -m guided_distill.main --mode=import --from=sd15 --out=teachers/sd15
    python -m guided_distill.main --mode=encode_data --teacher=teachers/sd15 --from=pictures \
        --out=latents/sd15
    python -m guided_distill.main --config=configs/diffusers.py:sd15 --workdir=runs/sd15 \
        --config.teacher.path=teachers/sd15 --config.data.path=latents/sd15
    python -m guided_distill.main --mode=export --format=diffusers --workdir=runs/sd15 \
        --num_steps=4 --out=sd15-4

Comes out: students of 200 calls down to 1, and of the one that is exported a folder that the stock
pipeline loads: `pipe(prompt, num_inference_steps=4, guidance_scale=1 + w)`, 4 calls.

The guidance weights are those that text models use, guidance_scale 1 to 14, w 0 to 13. Schedules
of 1000 times are asked at those alone, so rounds divide 1000: 200 -> 40 -> 8 -> 4 -> 2 -> 1. The
last two rounds are the longest: most is lost there.

Needs, for the parameters, average, Adam's moments and frozen teacher in float32, GiB of each device
with mesh.fsdp of 1, 8 and 64; and for all updates of the recipe, and for its evaluation, hours at
40% of the peak in bfloat16, as `--mode=plan --devices=h100-8` says them, remat included:

           params    fsdp 1     8    64   operations   1 H100      8 H100      v5e-64
  :sd15    0.86 G      16.0   2.0   0.3       6.9e19   48 + 35    6 + 4.4    3.8 + 2.8
  :sdxl    2.57 G      47.8   6.0   0.7       2.9e20        -     26 + 38     16 + 24

Activations come on top, and decide memory.gradient_accumulation. Of :sd15 with 4 examples a device
and whole parameters the TPU's compiler takes 17.7 GiB of temporaries, more than a v5e has: there
take mesh.fsdp=8 and memory.gradient_accumulation=2. One H100 takes gradient_accumulation=4 or more
(`--mode=plan` estimates 226 GiB without).

Variants:

  :sd15      Stable Diffusion 1.x and 2.x, whatever they predict
  :sdxl      SDXL: half the batch; --config.mesh.fsdp=8 on 8 devices
  :dit       DiT of class labels: w 0 to 4
  :captions  the tiny pipeline of tests/torch_captions.py, on two CPU cores
  :smoke     every stage, small, of such a pipeline: it works, and shows nothing else

Students predict what their teacher does, or v with `--config.step_one.prediction=v`: ahead at w = 0
in one call, else as good (docs/export.md has both, of equal updates, on captioned digits).

Rates, batches and updates are ours, as no recipe for such models is public; they are small changes
of a trained network, hence small rates.
"""

import os
import runpy

base = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "base.py"))

VARIANTS = ("sd15", "sdxl", "dit", "captions", "smoke")
STEPS = (200, 40, 8, 4, 2, 1)


def get_config(variant=""):
    """The recipe of one kind of pipeline; "" is that of :sd15."""
    variant = variant or "sd15"
    base["check_variant"](variant, VARIANTS, "configs/diffusers.py")
    config = base["get_config"]()
    config.data.name = "arrays"
    config.data.path = "latents"
    config.teacher.path = "teachers/mine"
    config.w_range = (0.0, 13.0)

    config.step_one.num_updates = 10_000
    config.step_one.batch_size = 256
    config.step_one.learning_rate = 1e-5
    config.step_one.warmup_updates = 500
    config.step_one.ema_decay = 0.999
    config.step_two.start_steps = 1000
    config.step_two.batch_size = 256
    config.step_two.rounds = base["rounds_to"](
        *STEPS, num_updates=5_000, last_updates=10_000, learning_rate=1e-5
    )

    config.model.dtype = "bfloat16"
    config.memory.remat = "full"

    config.evaluation.w = (0.0, 2.0, 6.5, 13.0)
    config.evaluation.num_steps = (1, 2, 4, 8)
    config.evaluation.baseline_num_steps = (4, 8, 25, 50)
    config.evaluation.num_samples = 5_000
    config.evaluation.batch_size = 64
    if variant == "sdxl":
        config.step_one.batch_size = config.step_two.batch_size = 128
    if variant == "dit":
        config.w_range = (0.0, 4.0)
        config.evaluation.w = (0.0, 0.3, 1.0, 4.0)
    if variant in ("captions", "smoke"):
        make_captions(config)
    if variant == "smoke":
        make_smoke(config)
    return config


def make_captions(config):
    """For a UNet of some 0.4 million parameters and 1,500 latents, on CPU cores.

    The teacher's 200 steps show all that 1000 do.
    """
    config.w_range = (0.0, 6.0)
    config.step_one.num_updates = 12_000
    config.step_one.batch_size = 64
    config.step_one.learning_rate = 2e-3
    config.step_one.learning_rate_decay = "linear"
    config.step_one.warmup_updates = 100
    config.step_one.loss = "v"
    config.step_one.prediction = "v"
    config.step_two.start_steps = 200
    config.step_two.batch_size = 32
    config.step_two.rounds = base["rounds_to"](
        40, 8, 4, 2, 1, num_updates=2_000, last_updates=3_000, learning_rate=5e-4
    )
    config.step_two.rounds[2].num_updates = 4_000  # To N = 4: large w take longest.
    config.model.dtype = "float32"
    config.memory.remat = "none"
    config.log_every = 50
    config.checkpoint_every = 500
    config.evaluation.w = (0.0, 1.0, 2.0, 6.0)
    config.evaluation.num_steps = (1, 2, 4, 8)
    config.evaluation.baseline_num_steps = (1, 2, 4, 8, 25)
    config.evaluation.num_samples = 500
    config.evaluation.batch_size = 100


def make_smoke(config):
    """A few updates of each stage, from 8 steps."""
    base["make_smoke"](config)
    config.step_one.prediction = ""  # Of whatever teacher.
    config.w_range = (0.0, 2.0)
    config.step_one.warmup_updates = 5
