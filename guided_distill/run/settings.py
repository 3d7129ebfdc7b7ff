"""What a config may say. Everything is checked here, before any compute is spent."""

import json
import os
import pathlib
import re
import runpy

from ml_collections import ConfigDict

from guided_distill.data.augment import AUGMENTATIONS
from guided_distill.data.images import MAX_SIXTEEN_BITS
from guided_distill.data.pixels import FITS
from guided_distill.diffusion.parameterization import CONVERTIBLE, X_FROM_PREDICTION
from guided_distill.distill.distillations import DETERMINISTIC, DISTILLATIONS, ENCODER
from guided_distill.distill.losses import LOSS_WEIGHTS
from guided_distill.distill.ranges import check_distilled, check_w
from guided_distill.distill.rounds import step_factors
from guided_distill.errors import UserError, nearest
from guided_distill.models.clip import RECORD as CLIP_FILE
from guided_distill.models.function import RECORD as FUNCTION_FILE
from guided_distill.models.unet import REMAT_POLICIES
from guided_distill.run.rules import (
    BOOLEAN,
    COUNT,
    FINITE,
    FOLDER,
    LEARNING_RATE,
    PATH,
    RATE,
    Rule,
    choice,
    integer,
    is_integer,
    number,
    sequence,
)
from guided_distill.system.files import file_sha256, local_path, read_json
from guided_distill.system.processes import from_first
from guided_distill.training.optimizer import LEARNING_RATE_DECAYS

BASELINES = ("ddim", "ancestral")
DTYPES = ("float32", "bfloat16")
SEED = integer(0, 2**32 - 1)  # A PRNG key would cut the rest.


OPTIMIZATION_RULES = {
    "batch_size": COUNT,
    "learning_rate_decay": choice(LEARNING_RATE_DECAYS),
    "warmup_updates": integer(0),
    "loss": choice(LOSS_WEIGHTS),
}
LONG_STAGE_RULES = {
    "num_updates": COUNT,
    "learning_rate": LEARNING_RATE,
    "ema_decay": RATE,
    **OPTIMIZATION_RULES,
}
RULES = {
    "seed": SEED,
    "data.name": Rule(
        lambda v: isinstance(v, str) and bool(re.fullmatch(r"[\w./:+-]+", v)),
        "digits, folder, idx, npz, arrays, or a data set of TensorFlow Datasets",
    ),
    "data.path": PATH,
    "data.labels": PATH,
    "data.image_size": integer(0),
    "data.channels": Rule(
        lambda v: is_integer(v) and v in (0, 1, 3), "1 (grey), 3 (colours) or 0 (the data's own)"
    ),
    "data.fit": choice(FITS),
    "data.max_value": integer(0, MAX_SIXTEEN_BITS),
    "data.augmentations": sequence(choice(AUGMENTATIONS), min_length=0),
    "data.test_share": number(0.0, 1.0, open_low=True, open_high=True),
    "data.skip_broken": BOOLEAN,
    "data.cache": FOLDER,
    "data.memory_gb": number(0.0),
    "data.num_workers": integer(0),
    "schedule.logsnr_min": FINITE,
    "schedule.logsnr_max": FINITE,
    "model.prediction": choice(X_FROM_PREDICTION),
    "model.width": Rule(lambda v: is_integer(v) and v > 0 and v % 4 == 0, "a multiple of 4"),
    "model.channel_mults": sequence(COUNT),
    "model.num_res_blocks": COUNT,
    "model.attention_resolutions": sequence(COUNT, min_length=0),
    "model.head_dim": integer(0),
    "model.dtype": choice(DTYPES),
    "w_range": Rule(
        lambda v: sequence(FINITE).test(v) and len(v) == 2, "two numbers (w_min, w_max)"
    ),
    "distillations": sequence(choice(DISTILLATIONS)),
    "optimizer.clip_norm": number(0.0, open_low=True),
    "optimizer.adam_b1": RATE,
    "optimizer.adam_b2": RATE,
    "optimizer.adam_eps": number(0.0, open_low=True),
    **{f"teacher.{key}": rule for key, rule in LONG_STAGE_RULES.items()},
    "teacher.path": PATH,
    "teacher.guide": PATH,
    "teacher.dropout": RATE,
    "teacher.weight_decay": number(0.0),
    "teacher.label_dropout": number(0.0, 1.0, open_low=True, open_high=True),
    **{f"step_one.{key}": rule for key, rule in LONG_STAGE_RULES.items()},
    "step_one.prediction": choice(("", *CONVERTIBLE)),
    "step_two.start_steps": integer(2),
    **{f"step_two.{key}": rule for key, rule in OPTIMIZATION_RULES.items()},
    **{f"{name}.w": sequence(FINITE) for name, row in DISTILLATIONS.items() if row.knows_one_w},
    "mesh.data": Rule(
        lambda v: is_integer(v) and (v == -1 or v > 0), "a number of devices, or -1 for the rest"
    ),
    "mesh.fsdp": COUNT,
    "memory.gradient_accumulation": COUNT,
    "memory.remat": choice(REMAT_POLICIES),
    "log_every": COUNT,
    "checkpoint_every": COUNT,
    "evaluation.w": sequence(FINITE),
    "evaluation.num_steps": sequence(COUNT),
    "evaluation.baselines": sequence(choice(BASELINES)),
    "evaluation.baseline_num_steps": sequence(COUNT),
    "evaluation.ancestral_mix": number(0.0, 1.0),
    "evaluation.translations": sequence(
        Rule(
            lambda v: sequence(integer(0), min_length=2).test(v) and len(v) == 2,
            "a pair (source label, target label)",
        ),
        min_length=0,
    ),
    "evaluation.translation_num_steps": COUNT,
    "evaluation.paper_report": BOOLEAN,
    "evaluation.num_samples": integer(2),
    "evaluation.num_draws": COUNT,
    "evaluation.batch_size": COUNT,
    "evaluation.seed": SEED,
    "evaluation.decoder": PATH,
    "evaluation.features": PATH,
    "evaluation.clip": PATH,
    "evaluation.inception": PATH,
    "evaluation.reference_stats": PATH,
    "evaluation.classifier_updates": COUNT,
}
ROUND_RULES = {
    "num_steps": COUNT,
    "num_updates": COUNT,
    "learning_rate": LEARNING_RATE,
    "clip_teacher": BOOLEAN,
}
ROUND_SECTIONS = ("step_two", *(name for name in DISTILLATIONS if name != DETERMINISTIC.name))


ADDED_SINCE = {  # earlier workdirs lack them
    "teacher": {"path": "", "guide": "", "weight_decay": 0.0},
    "data": {"max_value": 0},
    "step_one": {"prediction": ""},
    "evaluation": {"decoder": "", "features": "", "clip": ""},
}


def load_config(path: str | pathlib.Path) -> ConfigDict:
    """The ConfigDict of a config file, such as "configs/digits.py" or "configs/digits.py:smoke".

    Raises:
      UserError: where there is no such file.
      ValueError: where it has no such variant.
    """
    path, _, variant = str(local_path(path, "config")).partition(":")
    if not os.path.isfile(path):
        raise UserError(f"no config file {path}: name one, such as configs/digits.py")
    get_config = runpy.run_path(path)["get_config"]
    return get_config(variant) if variant else get_config()


def read_config(workdir):
    """The config that a workdir was last trained with."""
    plain = read_json(local_path(workdir, "`workdir`") / "config.json")
    if plain is None:
        raise UserError(f"{workdir} holds no run: train one first, or check `workdir`")
    if not all(section in plain for section in ROUND_SECTIONS):
        raise UserError(f"{workdir}/config.json was written by an earlier version: name `config`")
    return from_plain(plain)


def prepare_config(config):
    """Checks a config, and makes its paths such as hold wherever a later command is run."""
    check_config(config)
    for section, key in (name.split(".") for name, rule in RULES.items() if rule in (PATH, FOLDER)):
        path = config[section][key]
        beside_data = key == "labels" and (pathlib.Path(config.data.path) / path).is_file()
        if path and not beside_data:
            config[section][key] = os.path.abspath(local_path(path, f"{section}.{key}"))


def decoder_path(config):
    """Folder of a run's decoder: `evaluation.decoder`, else its teacher's own; "" for none."""
    return config.evaluation.decoder or decoder_beside(config.teacher.path)


def decoder_beside(teacher):
    """Folder of the decoder that an imported teacher brought along; "" for none, or no teacher."""
    beside = local_path(teacher, "`teacher`") / "decoder"
    return str(beside) if teacher and (beside / FUNCTION_FILE).is_file() else ""


def file_digests(config):
    """`{key: sha256}` of the files that an evaluation's keys name: their contents may change."""

    def read():
        named = {key: config.evaluation[key] for key in ("inception", "reference_stats")}
        folders = {"decoder": decoder_path(config), "features": config.evaluation.features}
        named |= {key: f"{path}/{FUNCTION_FILE}" for key, path in folders.items() if path}
        named |= {"clip": config.evaluation.clip and f"{config.evaluation.clip}/{CLIP_FILE}"}
        files = {key: pathlib.Path(path) for key, path in named.items() if path}
        return {key: file_sha256(path) for key, path in files.items() if path.is_file()}

    return from_first(read)


def check_config(config):
    """Checks every key and value of a config, and how they fit together.

    Args:
      config: ConfigDict as `configs/base.py` makes it.

    Raises:
      UserError: naming the first key that is wrong, its value, the rule and the way out.
    """
    values = flatten(config)
    rounds = {name: values.pop(f"{name}.rounds", None) for name in ROUND_SECTIONS}
    check_rules(values, RULES, prefix="")
    for name, section_rounds in rounds.items():
        check_rounds(name, section_rounds)
    check_together(config)


def check_rules(values, rules, prefix):
    """Checks a flat `{key: value}` against `{key: Rule}`; messages name prefix + key."""
    for key in values:
        if key not in rules:
            raise UserError(f"unknown config key {prefix}{key}{nearest(key, rules)}")
    for key, rule in rules.items():
        if key not in values:
            raise UserError(f"config key {prefix}{key} is missing: it must be {rule.words}")
        if not rule.test(values[key]):
            hint = nearest(values[key], rule.choices)
            raise UserError(f"{prefix}{key} must be {rule.words}, got {values[key]!r}{hint}")


def check_override_names(argv):
    """Checks the keys of all `--config.<key>=…` arguments before they are applied.

    Raises:
      UserError: naming the argument and the nearest known key.
    """
    for argument in argv:
        if not argument.startswith("--config."):
            continue
        key = argument.removeprefix("--config.").split("=")[0]
        of_round = re.fullmatch(rf"((?:{'|'.join(ROUND_SECTIONS)})\.rounds\[\d+\]\.)(.*)", key)
        prefix, name = of_round.groups() if of_round else ("", key)
        rules = ROUND_RULES if of_round else RULES
        if name not in rules and name.removesuffix(".rounds") not in ROUND_SECTIONS:
            close = nearest(name, rules).replace("mean ", f"mean {prefix}")
            raise UserError(f"unknown config key {key}{close}")


def check_rounds(name, rounds):
    """Checks one section's rounds, inner keys included; () stands for step two's."""
    if not isinstance(rounds, (tuple, list)) or not (rounds or name != "step_two"):
        or_empty = "" if name == "step_two" else ", or () for those of step_two"
        raise UserError(f"{name}.rounds must be a tuple with one ConfigDict per round{or_empty}")
    for k, one_round in enumerate(rounds):
        check_rules(dict(one_round), ROUND_RULES, prefix=f"{name}.rounds[{k}].")


def rounds_of(config, distillation):
    """(section, rounds) of a distillation: its own where it has some, else step two's."""
    section = "step_two" if distillation == DETERMINISTIC.name else distillation
    if not config[section]["rounds"]:
        section = "step_two"
    return section, config[section]["rounds"]


def distilled_steps(config, distillation):
    """Every N that a distillation reaches."""
    return [one_round["num_steps"] for one_round in rounds_of(config, distillation)[1]]


def check_together(config):
    """Checks what no key decides alone."""
    w_min, w_max = config.w_range
    if w_max < w_min:
        raise UserError(f"w_range must have w_min <= w_max, got ({w_min}, {w_max})")
    if config.schedule.logsnr_max <= config.schedule.logsnr_min:
        raise UserError(
            "schedule.logsnr_max must be above schedule.logsnr_min, got "
            f"{config.schedule.logsnr_max} and {config.schedule.logsnr_min}"
        )
    if config.evaluation.inception and config.evaluation.features:
        raise UserError("evaluation.inception and evaluation.features both give features: name one")
    if config.teacher.guide and not config.teacher.path:
        raise UserError(
            f"teacher.guide is {config.teacher.guide}, but a teacher that is trained here is "
            "guided by its own null: name a finished one with teacher.path"
        )
    for w in config.evaluation.w:
        check_w(w, config.w_range, what="evaluation.w")
    for name in config.distillations:
        if config.step_one.prediction and DISTILLATIONS[name].learns_pair:
            raise UserError(
                f"distillations has {name}, which learns from the teacher itself and has no step "
                "one to predict something else after: leave step_one.prediction ''"
            )
        for w in config[name].w if DISTILLATIONS[name].knows_one_w else ():
            check_w(w, config.w_range, what=f"{name}.w")
    check_distillations(config)


def check_data(config, dataset):
    """Checks a config against the shapes and classes of its data set, before any is decoded."""
    check_what_is_learnt(config, dataset)
    if not config.teacher.path:
        check_model(config.model, dataset.image_shape)
    for label in sum(map(tuple, config.evaluation.translations), ()):
        if label >= dataset.num_classes:
            raise UserError(
                f"evaluation.translations must hold labels of 0 to {dataset.num_classes - 1}, "
                f"got {label}"
            )
    has_guidance = dataset.num_classes != 1 or config.teacher.guide
    if not has_guidance and tuple(config.w_range) != (0.0, 0.0):
        raise UserError(
            f"{dataset.name} has one class, so guidance has nothing to tell apart: w_range and "
            f"evaluation.w must be (0.0, 0.0) and (0.0,), got w_range {tuple(config.w_range)}"
        )


def check_what_is_learnt(config, dataset):
    """Refuses keys that mean nothing to data without classes, or to latents or pictures."""
    has_classes = dataset.num_classes is not None
    what = "latents" if not dataset.pictures else "pictures without classes"
    if not (dataset.pictures and has_classes) and not config.teacher.path:
        raise UserError(
            f"{dataset.name} holds {what}: the U-Net of the section model learns labelled "
            "pictures; name an imported model with teacher.path"
        )
    seen = dataset.pictures or decoder_path(config)
    for key in ("translations", "paper_report") if not (seen and has_classes) else ():
        if config.evaluation[key]:
            raise UserError(
                f"evaluation.{key} needs labelled pictures, and {dataset.name} holds {what}: "
                f"leave it {'()' if key == 'translations' else 'False'}"
            )
    if not dataset.pictures and config.data.augmentations:
        raise UserError(
            f"data.augmentations turn and move pictures, and {dataset.name} holds latents: "
            "leave it ()"
        )
    for key in ("inception", "features", "clip") if not seen else ():
        if config.evaluation[key]:
            raise UserError(
                f"evaluation.{key} looks at pictures, and {dataset.name} holds latents: leave it "
                "'', or name their decoder with evaluation.decoder"
            )
    if dataset.pictures and config.evaluation.decoder:
        raise UserError(
            f"evaluation.decoder makes pictures of latents, and {dataset.name} holds pictures: "
            "leave it ''"
        )


def check_distillations(config):
    """Checks that rounds divide, that what is evaluated is distilled, and what never clips."""
    for name in config.distillations:
        section, _ = rounds_of(config, name)
        step_factors(config.step_two.start_steps, distilled_steps(config, name), name=section)
    sampling = [name for name in config.distillations if DISTILLATIONS[name].samplers]
    reached = set().union(*(distilled_steps(config, name) for name in sampling))
    for num_steps in config.evaluation.num_steps if sampling else ():
        check_distilled(num_steps, reached, what="evaluation.num_steps")
    if ENCODER.name in config.distillations and config.evaluation.translations:
        encoders = distilled_steps(config, ENCODER.name)
        what = "evaluation.translation_num_steps"
        check_distilled(config.evaluation.translation_num_steps, encoders, what=what)
    for name in config.distillations:
        section, rounds = rounds_of(config, name)
        clipped = [k for k, one_round in enumerate(rounds) if one_round["clip_teacher"]]
        why = DISTILLATIONS[name].never_clips
        if why and clipped:
            own = "" if section == name else f", so {name} needs rounds of its own"
            raise UserError(f"{section}.rounds[{clipped[0]}].clip_teacher is True: {why}{own}")


def check_model(model, image_shape):
    """Checks that the U-Net fits the pictures."""
    height, width, _ = image_shape
    factor = 2 ** (len(model.channel_mults) - 1)
    if height != width:
        raise UserError(f"pictures must be square, got {height}x{width}")
    if height % factor:
        raise UserError(
            f"model.channel_mults halves the picture {len(model.channel_mults) - 1} times, which "
            f"needs a size divisible by {factor}, got {height}: use fewer channel_mults"
        )
    sizes = [height // 2**level for level in range(len(model.channel_mults))]
    for size in model.attention_resolutions:
        if size not in sizes:
            raise UserError(
                f"model.attention_resolutions has {size}, but the U-Net's sizes are {sizes}"
            )
    if model.head_dim:
        for level, mult in enumerate(model.channel_mults):
            attends = sizes[level] in model.attention_resolutions or level == len(sizes) - 1
            if attends and model.width * mult % model.head_dim:
                raise UserError(
                    f"model.head_dim {model.head_dim} must divide the {model.width * mult} "
                    f"channels at size {sizes[level]}"
                )


def check_devices(config, num_devices):
    """Checks the mesh and the batches against the devices that are there."""
    data, fsdp = config.mesh.data, config.mesh.fsdp
    covered = fsdp * (max(1, num_devices // fsdp) if data == -1 else data)
    if covered != num_devices:
        raise UserError(
            f"mesh.data x mesh.fsdp must be the {num_devices} devices, got {data} x {fsdp}; "
            "mesh.data=-1 takes what is left"
        )
    for section in ("teacher", "step_one", "step_two"):
        if section == "teacher" and config.teacher.path:
            continue  # Trained elsewhere.
        batch_size = config[section].batch_size
        if batch_size % num_devices:
            raise UserError(
                f"{section}.batch_size must divide over {num_devices} devices, got {batch_size}"
            )
        parts = config.memory.gradient_accumulation
        if batch_size // num_devices % parts:
            raise UserError(
                f"{section}.batch_size {batch_size} gives each of {num_devices} devices "
                f"{batch_size // num_devices} examples, which memory.gradient_accumulation {parts} "
                "does not divide"
            )


def flatten(config):
    """`{dotted key: value}` of nested ConfigDicts; tuples of ConfigDicts stay whole."""
    flat = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat.update({f"{key}.{inner}": v for inner, v in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def to_plain(config):
    """The config as JSON holds it: dicts, lists, numbers, strings."""
    return json.loads(config.to_json_best_effort())


def from_plain(plain):
    """The ConfigDict that `to_plain` made plain."""
    sections = {
        name: plain[name] | {"rounds": tuple(ConfigDict(r) for r in plain[name]["rounds"])}
        for name in ROUND_SECTIONS
    }
    for section, added in ADDED_SINCE.items():
        sections[section] = added | sections.get(section, plain[section])
    return ConfigDict(plain | sections)


def differing_keys(there, here):
    """Lines 'key: X there, Y here' for every dotted key in which two plain configs differ."""
    there, here = flatten(there), flatten(here)
    return [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} here"
        for key in sorted(set(there) | set(here))
        if there.get(key) != here.get(key)
    ]
