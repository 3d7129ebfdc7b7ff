"""From a diffusers folder to the folder of a model, with its `Pipeline` beside it.

Weights are read from safetensors alone, by diffusers' and transformers' own classes. Nothing is
downloaded, and no pickle is opened.
"""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import pathlib
import re
import shutil
import warnings

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from guided_distill.diffusion.known_schedules import prediction_of
from guided_distill.errors import UserError, nearest
from guided_distill.models.diffusers_pipelines import PIPELINES, Facts, Row
from guided_distill.models.importing import import_function, new_folder, write_denoiser
from guided_distill.models.pipeline import (
    DECODER,
    ENCODER,
    Pipeline,
    is_fixed,
    load_tokenizer,
    write_pipeline,
)
from guided_distill.models.roles import schedule_of
from guided_distill.system.files import local_path, read_own_json, reason_of
from guided_distill.system.progress import to_stderr
from guided_distill.system.torchvision import hide_broken_torchvision

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler/scheduler_config.json"
ZERO_NULL = "force_zeros_for_empty_prompt"  # key of the index
VAE, VAE_CLASS = "vae", "AutoencoderKL"
FORMER_CLASS = "Transformer2DModel"  # of networks that have a class of their own by now
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}  # of files of weights
VARIANTS = ("fp16", "bf16")  # taken where the full weights are absent
PROMPTS, TIMES = ["", "a"], (10.0, 500.0)  # of the examples that networks are traced with
BY_HAND = "import its denoiser from Python with guided_distill.import_torch (docs/import.md)"


def import_diffusers(folder: str | pathlib.Path, *, out: str | pathlib.Path) -> pathlib.Path:
    """Writes a diffusers folder as one that `config.teacher.path` and `Pipeline.load` take.

        guided_distill.import_diffusers("sd15", out="teachers/sd15")

    Args:
      folder: as `save_pretrained` of a pipeline writes it, weights in safetensors.
      out: folder to write, new or empty.

    Returns:
      `out`.

    Raises:
      UserError: where the pipeline is not supported, something of it is missing, damaged or a
        pickle, or its schedule is not known; nothing stays in `out` then.
    """
    with quiet_packages(), whole_folder(out) as out:
        source = read_source(folder)
        if source.row.has_vae:
            _write_vae(source, out)
        readers = {name: _write_text_encoder(source, name, out) for name in source.facts.encoders}
        terms = source.row.prompt(source.facts) if source.row.prompt else None
        write_pipeline(
            out,
            pipeline=source.pipeline,
            latent_shape=source.latent_shape,
            image_shape=source.facts.image_shape,
            prompt=terms and {"encoders": readers, "conditioning": terms},
        )
        _write_denoiser(source, out, terms)
        if source.ignored:
            to_stderr(f"  ignored, as no part of sampling: {', '.join(source.ignored)}")
    return out


@dataclasses.dataclass(frozen=True)
class Source:
    """A diffusers folder that was found to be whole and supported.

    Attributes:
      folder: its path.
      index: its `model_index.json`.
      row: of its pipeline.
      scheduler: its scheduler's config.
      facts: `Facts`.
      latent_shape: (h, w, C).
      variants: `{component: variant of its weights, None for the full ones}`.
    """

    folder: pathlib.Path
    index: dict
    row: Row
    scheduler: dict
    facts: Facts
    latent_shape: tuple[int, ...]
    variants: dict[str, str | None]

    @property
    def pipeline(self):
        """Name of its class."""
        return self.index["_class_name"]

    @property
    def prediction(self):
        """What the denoiser predicts; configs of before there was a choice say nothing of ε."""
        return prediction_of({"prediction_type": "epsilon"} | self.scheduler)

    @property
    def ignored(self):
        """Components that are there and not taken."""
        taken = {"scheduler", *self.variants, *map(_tokenizer_of, self.facts.encoders)}
        return [n for n in self.index if n not in taken and _class_of(self.index, n)]

    def load(self, name):
        """A component's network, in float32 and eval mode."""
        package, class_name = self.index[name]
        if name == self.row.component:
            class_name = self.row.network
        return load_network(self.folder / name, package, class_name, self.variants[name])


def read_source(folder):
    """The `Source` of a diffusers folder, checked as far as can be before weights are read.

    Raises:
      UserError: as of `import_diffusers`.
    """
    folder = local_path(folder, "`from`")
    index = read_own_json(folder / INDEX)
    if index is None:
        raise UserError(f"`from` {folder} is no diffusers folder: it has no {INDEX}")
    name = str(index.get("_class_name"))
    if name not in PIPELINES:
        raise UserError(
            f"{folder} is a {name}, none of {', '.join(PIPELINES)}{nearest(name, PIPELINES)}: "
            f"{BY_HAND}"
        )
    row = PIPELINES[name]
    networks = _check_components(folder, index, row)
    scheduler = _read_scheduler(folder)
    config = _check_denoiser(folder, row)
    latent_shape, image_shape = _shapes(folder, row, config)
    encoders = tuple(encoder for encoder in row.encoders if encoder in networks)
    facts = Facts(config, image_shape, encoders)
    variants = {n: find_weights(folder / n, index[n][0]) for n in networks}
    source = Source(folder, index, row, scheduler, facts, latent_shape, variants)
    _check_schedule(source)
    return source


def _check_components(folder, index, row):
    """Names of the networks that are there, each of a class that is supported."""
    accepted = {row.component: (row.network, FORMER_CLASS)}
    accepted |= {VAE: (VAE_CLASS,)} if row.has_vae else {}
    accepted |= {name: encoder.classes for name, encoder in row.encoders.items()}
    optional = {name for name, encoder in row.encoders.items() if encoder.optional}
    found = [name for name in accepted if name not in optional or _class_of(index, name)]
    for name in found:
        class_name = _class_of(index, name)
        if class_name not in accepted[name]:
            raise UserError(
                f"{name} of {folder} is {class_name or 'absent'}, not {accepted[name][0]}: "
                f"{BY_HAND}"
            )
    tokenizers = [_tokenizer_of(name) for name in found if name in row.encoders]
    for name in (*found, *tokenizers):
        if not (folder / name).is_dir():
            raise UserError(f"{folder} has no folder {name}, which its pipeline needs")
    return found


def _class_of(index, name):
    """Class of a component, None where the pipeline goes without."""
    entry = index.get(name)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _tokenizer_of(encoder):
    """tokenizer_2 of text_encoder_2."""
    return encoder.replace("text_encoder", "tokenizer")


def _read_config(path):
    config = read_own_json(path)
    if config is None:
        raise UserError(f"{path} is missing: put back a copy of it")
    return config


def _full_config(folder, class_name):
    """A network's config with the defaults of its class, which configs of before leave out."""
    parameters = inspect.signature(_class("diffusers", class_name).__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return defaults | _read_config(folder / CONFIG)


def _check_denoiser(folder, row):
    """Its config, of which the table knows all that matters."""
    config = _full_config(folder / row.component, row.network)
    for key, known in row.needs.items():
        if config[key] != known:
            raise UserError(
                f"{folder / row.component / CONFIG} has {key} {config[key]!r}, not {known!r}: "
                f"{BY_HAND}"
            )
    if config["sample_size"] is None:
        raise UserError(f"{folder / row.component / CONFIG} has no sample_size: write it there")
    return config


def _shapes(folder, row, config):
    """(shape of x, shape of a picture), channels last."""
    size, channels = config["sample_size"], config["in_channels"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if not row.has_vae:
        return (height, width, channels), (height, width, channels)
    vae = _full_config(folder / VAE, VAE_CLASS)
    if channels != vae["latent_channels"]:
        raise UserError(
            f"{row.component} of {folder} takes {channels} channels where latents have "
            f"{vae['latent_channels']}, as for inpainting or editing: {BY_HAND}"
        )
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return (height, width, channels), (height * factor, width * factor, vae["out_channels"])


def _read_scheduler(folder):
    return _read_config(folder / SCHEDULER)


def _check_schedule(source):
    """Refuses a scheduler whose noise is not that of a schedule known here."""
    name = source.scheduler.get("_class_name", "the scheduler")
    if source.prediction is None:
        found = source.scheduler["prediction_type"]
        raise UserError(f"{name} has the prediction_type {found!r}, which is unknown: {BY_HAND}")
    try:
        schedule_of(source.scheduler, source.prediction)
    except UserError as error:
        raise UserError(f"{name} of {source.folder}: {error}") from error


def find_weights(folder, package, convert=""):
    """The variant of the weights to take, None for the full ones; each file is opened.

    `convert` is what makes safetensors of a pickle; "" is that of a diffusers folder.

    Raises:
      UserError: where there are none in safetensors, or one is missing or damaged.
    """
    stem = STEMS[package]
    for variant in (None, *VARIANTS):
        dotted = f".{variant}" if variant else ""
        whole = folder / f"{stem}{dotted}.safetensors"
        shards = folder / f"{stem}.safetensors.index{dotted}.json"
        if whole.exists() or shards.exists():
            _check_weights([whole] if whole.exists() else _shards(shards))
            return variant
    if any(folder.glob("*.bin")):
        source = str(folder.parent)
        convert = convert or (
            f"from diffusers import DiffusionPipeline as P; P.from_pretrained({source!r})"
            f".save_pretrained({source + '-safe'!r}, safe_serialization=True)"
        )
        raise UserError(
            f"{folder} holds its weights as a pickle (.bin), which is never opened here: convert "
            f"it where you trust it, {convert}"
        )
    raise UserError(f"{folder} has no weights {stem}.safetensors: put back a copy of them")


def _shards(index):
    names = sorted(set(_read_config(index).get("weight_map", {}).values()))
    if not names:
        raise UserError(f"{index} names no file of weights: put back a copy of it")
    return [index.parent / name for name in names]


def _check_weights(paths):
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} is missing: put back a copy of it")
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path} is no safetensors file, or damaged ({reason_of(error)}): put back a copy"
            ) from error


def _class(package, name):
    """A class of diffusers or transformers.

    Raises:
      UserError: where the package is not installed, or does not fit what is.
    """
    hide_broken_torchvision()
    try:
        return getattr(importlib.import_module(package), name)
    except (ImportError, RuntimeError) as error:  # The second, of what they import in their turn.
        raise UserError(
            f"importing this folder needs {package} ({reason_of(error)}): pip install -e '.[torch]'"
        ) from error


def load_network(folder, package, class_name, variant):
    """A network of safetensors, every weight of which was there."""
    try:
        network, found = _class(package, class_name).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            variant=variant,
            output_loading_info=True,
        )
    except UserError:
        raise
    except Exception as error:  # The packages raise any kind for what does not fit.
        raise UserError(f"{folder} is no {class_name} ({reason_of(error)})") from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} weights of {class_name}, {missing[0]} first: put back "
            "a copy of it"
        )
    return network.float().eval()


class Decode(nn.Module):
    """The picture of latents as the denoiser has them."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae
        shift, scale = _latent_scaling(vae.config)
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, latent):
        return {"image": self.vae.decode(latent / self.scale + self.shift).sample}


class Encode(Decode):
    """Mean and spread of a picture's latents as the denoiser has them."""

    def forward(self, image):
        latent = self.vae.encode(image).latent_dist
        return {"mean": (latent.mean - self.shift) * self.scale, "std": latent.std * self.scale}


def _latent_scaling(config):
    """(shift, scale), `[1, C or 1, 1, 1]`: the denoiser has (latent − shift) · scale."""
    shift, scale = config.get("shift_factor") or 0.0, config["scaling_factor"]
    if config.get("latents_mean") and config.get("latents_std"):
        shift = torch.tensor(config["latents_mean"])
        scale = scale / torch.tensor(config["latents_std"])
    return tuple(torch.as_tensor(value).float().reshape(1, -1, 1, 1) for value in (shift, scale))


def _write_vae(source, out):
    vae = source.load(VAE)
    for name, module, given, shape in (
        (DECODER, Decode(vae), "latent", source.latent_shape),
        (ENCODER, Encode(vae), "image", source.facts.image_shape),
    ):
        results = {"image": "image"} if name == DECODER else {"mean": "mean", "std": "std"}
        example = {given: _noise(shape)}
        import_function(module.eval(), example, out=out / name, results=results)


def _noise(shape):
    """Two examples of a shape with the channels last, in PyTorch's layout."""
    height, width, channels = shape
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, height, width, generator=generator)


def _write_text_encoder(source, name, out):
    """Writes an encoder and its tokenizer; returns how a prompt is read with them."""
    rule, tokenizer = source.row.encoders[name], _tokenizer_of(name)
    encoder = source.load(name)
    if getattr(encoder.config, "use_attention_mask", False):
        raise UserError(f"{source.folder / name} has use_attention_mask: {BY_HAND}")
    shutil.copytree(source.folder / tokenizer, out / tokenizer)
    class_name = _class_of(source.index, tokenizer)
    read = load_tokenizer(out / tokenizer, class_name)
    positions = getattr(encoder.config, "max_position_embeddings", read.model_max_length)
    limit = rule.max_length or min(read.model_max_length, positions)
    tokens = read(PROMPTS, padding="max_length", max_length=limit, truncation=True)
    example = {given: torch.tensor(tokens[given]) for given in rule.takes}
    results = {
        result: re.sub(r"-2$", str(encoder.config.num_hidden_layers - 1), key)
        for result, key in rule.results.items()
    }
    if results != rule.results:
        example["output_hidden_states"] = True
    import_function(encoder, example, out=out / name, results=results)
    return {
        "tokenizer": tokenizer,
        "class": class_name,
        "max_length": limit,
        "lower": rule.lower,
    }


def _write_denoiser(source, out, terms):
    row, config = source.row, source.facts.config
    cond, null = _conditioning(source, Pipeline.load(out), terms)
    example = row.constants | {name: torch.from_numpy(array) for name, array in cond.items()}
    example |= {row.z: _noise(source.latent_shape), "timestep": torch.tensor(TIMES)}
    channels = config["in_channels"]
    learns_sigma = config.get("out_channels") == 2 * channels
    write_denoiser(
        out,
        source.load(row.component),
        _nested(example),
        z=row.z,
        time="timestep",
        prediction=source.prediction,
        schedule=source.scheduler,
        null=null,
        output=channels if learns_sigma else None,
        w_sites=row.w_sites,
        bound=None if row.has_vae else 1.0,
        diffusers={
            "pipeline": source.pipeline,
            "component": row.component,
            "class": row.network,
            "source": str(source.folder.resolve()),
            "scheduler": source.scheduler,
            "config": _read_config(source.folder / row.component / CONFIG),
        },
    )


def _conditioning(source, pipeline, terms):
    """(`{name: [2, …]}` of two examples, the null by name or None of a model without)."""
    if terms:
        zero_null = source.index.get(ZERO_NULL, source.row.zero_null)
        cond = pipeline.embed(PROMPTS)
        zeros = {name for name, term in terms.items() if zero_null and not is_fixed(term)}
        null = {name: array[0] * (name not in zeros) for name, array in cond.items()}
        return cond, null
    key, more = source.row.null_class
    if source.facts.config[key] is None:
        return {}, None
    number = source.facts.config[key] + more
    return {"class_labels": np.asarray([0, number])}, {"class_labels": number}


def _nested(example):
    """`{"a.b": value}` as `{"a": {"b": value}}`."""
    nested = {}
    for name, value in example.items():
        *path, last = name.split(".")
        functools.reduce(lambda tree, key: tree.setdefault(key, {}), path, nested)[last] = value
    return nested


@contextlib.contextmanager
def whole_folder(out):
    """A new folder that is emptied where what fills it fails."""
    out = new_folder(out)
    try:
        yield out
    except BaseException:
        for path in out.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


@contextlib.contextmanager
def quiet_packages():
    """Keeps the packages' own hints and bars from the terminal."""
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for package in STEMS:
            with contextlib.suppress(ImportError):
                log = importlib.import_module(f"{package}.utils.logging")
                stack.callback(log.set_verbosity, log.get_verbosity())
                if log.is_progress_bar_enabled():
                    stack.callback(log.enable_progress_bar)
                log.set_verbosity_error()
                log.disable_progress_bar()
        yield
