"""Every key of a run, with its unit, in the order in which data flows.

Each data set has a file of its own that changes what it needs:

    base = runpy.run_path(os.path.join(os.path.dirname(__file__), "base.py"))
    config = base["get_config"]()

What is written after a colon, as in `digits.py:stochastic`, names a variant. Any key is changed on
the command line, rounds included; a mistyped one is named with the nearest:

    --config.step_one.learning_rate=1e-4
    --config.step_two.rounds[7].num_updates=5000
    --config.distillations="('deterministic','encoder')"

Any interval `w_range`, any number of `step_two.start_steps` and any whole factor between rounds
will do: the factors follow from the list of `num_steps`. What a device must hold (`mesh`,
`memory`) and what is shown, saved and measured changes nothing that is learned.
"""

from ml_collections import ConfigDict

DISTILLATIONS = {  # what each variant distils; they may share a workdir
    "": ("deterministic",),
    "stochastic": ("stochastic",),
    "encoder": ("deterministic", "encoder"),  # a decoder is needed to translate
    "two_student": ("two_student",),
    "single_w": ("single_w",),
    "paper": ("deterministic", "stochastic", "encoder", "two_student", "single_w"),
}


def check_variant(variant, known, path):
    """Refuses a variant that a config file does not have."""
    if variant not in known:
        names = ", ".join(name for name in known if name)
        raise ValueError(f"{path} has the variants {names}, not {variant!r}")


def get_config():
    """The paper's settings where the paper has one; model and updates are the data set's."""
    config = ConfigDict()
    config.seed = 0  # of everything drawn while training

    # Data
    config.data = ConfigDict()
    config.data.name = "digits"  # digits | folder | idx | npz | arrays | any of TFDS, as cifar10
    config.data.path = ""  # what to read; of TFDS its data_dir, "" = TFDS's own
    config.data.labels = ""  # folder: CSV or JSONL of file and label; "" = one subfolder a class
    config.data.image_size = 0  # pixels; 0 = the data's own
    config.data.channels = 0  # 1 = grey, 3 = colours, 0 = the data's own (folder: 3)
    config.data.fit = "crop"  # to image_size: crop (centre square, area resize) | pad (with black)
    config.data.max_value = 0  # white in 16-bit pictures: 4095 of 12 bits, …; 0 = 65535, if it fits
    config.data.augmentations = ()  # drawn anew at every update: flip | shift (by up to 1/16)
    config.data.test_share = 0.1  # of each class, held out where there is no test split
    config.data.skip_broken = False  # leave out pictures that cannot be read, and count them
    config.data.cache = "~/.cache/guided_distill/data"  # of decoded pictures, of arrays' hashes
    config.data.memory_gb = 4.0  # decoded; larger sets are streamed from the cache, or mapped
    config.data.num_workers = 0  # processes that decode and stream; 0 = threads

    # Noise schedule: cosine, λ(0) = logsnr_max, λ(1) = logsnr_min
    config.schedule = ConfigDict()
    config.schedule.logsnr_min = -20.0
    config.schedule.logsnr_max = 20.0

    # U-Net, the same for teacher and students but for the students' w branch
    config.model = ConfigDict()
    config.model.prediction = "v"  # what the network predicts: x | eps | v | flow
    config.model.width = 64  # channels at full resolution
    config.model.channel_mults = (1, 2)  # × width, one per resolution; each halves the size
    config.model.num_res_blocks = 2  # per resolution
    config.model.attention_resolutions = ()  # picture sizes with self-attention, pixels
    config.model.head_dim = 0  # channels per attention head; 0 = one head
    config.model.dtype = "float32"  # of all layers but the first and last: float32 | bfloat16

    # The guidance weights that the distilled models learn, w_min to w_max; 0 is unguided
    config.w_range = (0.0, 4.0)

    # Adam, after a clip of the averaged gradient
    config.optimizer = ConfigDict()
    config.optimizer.clip_norm = 1.0  # global norm
    config.optimizer.adam_b1 = 0.9
    config.optimizer.adam_b2 = 0.999
    config.optimizer.adam_eps = 1e-8

    # Teacher: the classifier-free-guided diffusion model (Eq. 1)
    config.teacher = ConfigDict()
    # Folder of a model that is there, imported or a finished stage: then none is trained here, and
    # of an imported one the sections model (but dtype) and schedule are not read; "" trains one
    config.teacher.path = ""
    # Folder of a second model in the place of the null of the one at path: an unconditional
    # network, or a weaker one (autoguidance); "" = the null
    config.teacher.guide = ""
    config.teacher.num_updates = 100_000
    config.teacher.batch_size = 128  # examples per update, over all devices
    config.teacher.learning_rate = 2e-4  # peak
    config.teacher.learning_rate_decay = "constant"  # constant | linear (to 0)
    config.teacher.warmup_updates = 1_000
    config.teacher.ema_decay = 0.9999
    config.teacher.weight_decay = 0.0  # AdamW's: share of a parameter, times the learning rate
    config.teacher.loss = "snr_trunc"  # weight of the squared error in x: snr | snr_trunc | v | x
    config.teacher.dropout = 0.0  # rate in the residual blocks; 0 while distilling
    config.teacher.label_dropout = 0.1  # share of examples trained without a label

    # Step one: one w-conditioned model that matches the guided pair (Algorithm 1)
    config.step_one = ConfigDict()
    config.step_one.num_updates = 100_000
    config.step_one.batch_size = 128
    config.step_one.learning_rate = 3e-4
    config.step_one.learning_rate_decay = "constant"
    config.step_one.warmup_updates = 0
    config.step_one.ema_decay = 0.9999
    config.step_one.loss = "snr"
    # What the students predict where it is not what their teacher does: x | eps | v; "" = the same.
    # At t = 1 of scaled-linear betas ε has 1/α = 14.6 times its error in x, which v has not
    config.step_one.prediction = ""

    # What is distilled, in this order, from step one or (two_student, single_w) from the teacher:
    #   deterministic  Algorithm 2, for the DDIM sampler         step_two/deterministic/<N>
    #   stochastic     Algorithm 3, for the stochastic sampler   step_two/stochastic/<N>
    #   encoder        Algorithm 4, from pictures to noise       step_two/encoder/<N>
    #   two_student    Algorithm 5, the naive baseline           step_two/two_student/<N>
    #   single_w       Algorithms 1 and 2 at one fixed w         single_w/<w>/…
    config.distillations = ("deterministic",)

    # Step two: rounds from start_steps down, each dividing N by a whole factor (2 in the paper)
    config.step_two = ConfigDict()
    config.step_two.start_steps = 1024  # DDIM steps of the model that round 0 distils
    config.step_two.batch_size = 128
    config.step_two.learning_rate_decay = "linear"
    config.step_two.warmup_updates = 0  # of every round
    config.step_two.loss = "snr_trunc"
    config.step_two.rounds = rounds_down(
        1024, num_updates=50_000, last_updates=100_000, learning_rate=1e-4
    )

    # What differs in the other distillations; () stands for the rounds of step_two
    config.stochastic = ConfigDict(dict(rounds=()))
    config.encoder = ConfigDict(dict(rounds=()))
    config.two_student = ConfigDict(dict(rounds=()))
    config.single_w = ConfigDict(dict(rounds=(), w=(1.0,)))  # w: one baseline for each

    # Devices: data · fsdp = their number; -1 = all that are left
    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1

    # What a device must hold at once; neither changes what is learned
    config.memory = ConfigDict()
    config.memory.gradient_accumulation = 1  # parts of a batch, worked through one by one
    config.memory.remat = "none"  # computed again backwards: none | elementwise | full (all)

    # What a run shows and saves
    config.log_every = 100  # updates between looks at loss and gradient
    config.checkpoint_every = 1_000  # updates between resumable checkpoints

    # Evaluation
    config.evaluation = ConfigDict()
    config.evaluation.w = (0.0, 0.3, 1.0, 2.0, 4.0)
    config.evaluation.num_steps = (1, 2, 4, 8, 16)  # N of the students
    config.evaluation.baselines = ("ddim",)  # samplers of the guided teacher: ddim | ancestral
    config.evaluation.baseline_num_steps = (1, 2, 4, 8, 16)  # N of those
    config.evaluation.ancestral_mix = 0.3  # log-variance: 0 = posterior's, 1 = forward step's
    config.evaluation.translations = ()  # (source label, target label) pairs, for an encoder
    config.evaluation.translation_num_steps = 16  # N of encoder and decoder
    config.evaluation.paper_report = False  # end a run with the paper's tables and figures
    config.evaluation.num_samples = 50_000  # per row of the table
    config.evaluation.num_draws = 1  # of so many samples each; 3 give error bars
    config.evaluation.batch_size = 256  # samples per call
    config.evaluation.seed = 1_000  # of the noise that every model starts from
    # Folders of functions that --mode=import wrote
    config.evaluation.decoder = (
        ""  # makes pictures of latents; "" = teacher.path's decoder/, if any
    )
    config.evaluation.features = ""  # for distances; "" = inception, or the classifier
    config.evaluation.clip = ""  # scores samples with their captions; "" = no such score
    config.evaluation.inception = ""  # weights of --mode=convert_inception; "" = the classifier
    config.evaluation.reference_stats = ""  # .npz with mu and sigma; "" = of the training pictures
    config.evaluation.classifier_updates = 1_000  # of the data set's own classifier
    return config


def rounds_down(start_steps, *, num_updates, last_updates, learning_rate, factor=2, last=1):
    """One ConfigDict per round: start_steps/factor, …, last; rounds to 2 or 1 steps are longer."""
    steps = [start_steps // factor]
    while steps[-1] // factor >= last:
        steps.append(steps[-1] // factor)
    return rounds_to(
        *steps, num_updates=num_updates, last_updates=last_updates, learning_rate=learning_rate
    )


def rounds_to(*steps, num_updates, last_updates, learning_rate):
    """One ConfigDict per round, to each N of `steps` in turn; those to 2 or 1 are longer.

    `clip_teacher`: samplers clip predictions to [-1, 1], the paper's target does not. True clips
    the teacher's predictions in a round's target too, so that its sampler as used is distilled.
    """
    return tuple(
        ConfigDict(
            dict(
                num_steps=num_steps,
                num_updates=last_updates if num_steps <= 2 else num_updates,
                learning_rate=learning_rate,
                clip_teacher=False,
            )
        )
        for num_steps in steps
    )


def make_smoke(config):
    """Shrinks a run to every stage with a few updates each: it works, and shows nothing else."""
    config.model.width = 8
    for section in (config.teacher, config.step_one, config.step_two):
        section.batch_size = 32
    config.teacher.num_updates = 100
    config.teacher.warmup_updates = 10
    config.step_one.num_updates = 40
    config.step_two.start_steps = 8
    config.step_two.rounds = rounds_down(8, num_updates=20, last_updates=20, learning_rate=5e-4)
    config.log_every = 10
    config.checkpoint_every = 20
    config.evaluation.w = (0.0, 2.0)
    config.evaluation.num_steps = config.evaluation.baseline_num_steps = (1, 4)
    config.evaluation.num_samples = 100
    config.evaluation.batch_size = 100
    config.evaluation.classifier_updates = 100
