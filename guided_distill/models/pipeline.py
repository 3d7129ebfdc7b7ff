"""What lies beside a denoiser: latents of pictures and back, and embeddings of prompts.

    pipeline.json         shapes, how prompts become conditioning, and the digests of the rest
    encoder/, decoder/    `Function` folders, of a model of latents
    text_encoder/, …      `Function` folders
    tokenizer/, …         the tokenizers' own files

PyTorch is not needed. Prompts need `transformers`, for the tokenizers alone.
"""

import dataclasses
import functools
import importlib
import pathlib

import jax
import numpy as np

from guided_distill.diffusion.pixels import to_float, to_uint8
from guided_distill.errors import UserError
from guided_distill.models.function import RECORD as FUNCTION_RECORD
from guided_distill.models.function import Function
from guided_distill.models.imported import NULL
from guided_distill.system.files import (
    Damaged,
    check_format,
    file_sha256,
    json_sha256,
    local_path,
    read_json,
    reason_of,
    write_json,
)
from guided_distill.system.tensors import read_tensors
from guided_distill.system.torchvision import hide_broken_torchvision
from guided_distill.system.workdir import CONSTANTS_FILE, StageFolder

FORMAT = 1  # of the folder
RECORD = "pipeline.json"
DECODER, ENCODER = "decoder", "encoder"


@dataclasses.dataclass
class Pipeline:
    """The networks beside an imported denoiser, each read when it is first needed.

        pipeline = guided_distill.Pipeline.load("teachers/sd15")
        latents = pipeline.encode(images)
        cond = pipeline.embed(["a cat", "a dog"])

    Attributes:
      folder: that it was loaded from.
      record: what `pipeline.json` says.
      sha256: digest of all but the denoiser.
      num_cut: prompts that were longer than a tokenizer's limit, of all that were embedded.
    """

    folder: pathlib.Path
    record: dict
    sha256: str
    num_cut: int = 0
    _loaded: dict = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> "Pipeline":
        """The pipeline of a folder that a diffusers folder was imported to.

        Raises:
          UserError: where the folder holds none, is of a newer format, or is damaged.
        """
        folder = local_path(folder, "`folder`")
        record = read_json(folder / RECORD)
        if record is None:
            raise UserError(
                f"{folder} holds no pipeline: it has no {RECORD}, which --mode=import writes of a "
                "diffusers folder"
            )
        check_format(folder, record["format"], FORMAT)
        return cls(folder, record, file_sha256(folder / RECORD))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C) of a picture."""
        return tuple(self.record["image_shape"])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(h, w, C) of what the denoiser is given: of a model of pixels, `image_shape`."""
        return tuple(self.record["latent_shape"])

    @functools.cached_property
    def null(self) -> dict[str, np.ndarray]:
        """`{conditioning: one example that means none}`; empty of a model that is not guided."""
        description = StageFolder(self.folder).finished().record["model"]
        constants = read_tensors(self.folder / CONSTANTS_FILE, description["constants_sha256"])
        return {n.removeprefix(NULL): a for n, a in constants.items() if n.startswith(NULL)}

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[n, H, W, C]` -> float32 latents `[n, h, w, C]`, the mean of each picture's."""
        images = np.asarray(images)
        _check_rows("images", images, self.image_shape)
        if images.dtype != np.uint8:
            raise UserError(f"images must be uint8 in [0, 255], got {images.dtype}")
        x = to_float(images)
        if ENCODER not in self.record["components"]:
            return x
        mean = self._function(ENCODER)(image=np.moveaxis(x, -1, 1))["mean"]
        return np.moveaxis(np.asarray(mean), 1, -1)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents `[n, h, w, C]` -> uint8 pictures `[n, H, W, C]`."""
        x = np.asarray(latents, np.float32)
        _check_rows("latents", x, self.latent_shape)
        if DECODER in self.record["components"]:
            image = self._function(DECODER)(latent=np.moveaxis(x, -1, 1))["image"]
            x = np.moveaxis(np.asarray(image), 1, -1)
        return to_uint8(x)

    def embed(self, prompts: list[str]) -> dict[str, np.ndarray]:
        """`{conditioning: [n, …]}` of prompts, as the pipeline's own; long ones are cut.

        Raises:
          UserError: where the model takes no prompts, or `transformers` is not installed.
        """
        rule, name = self.record["prompt"], self.record["pipeline"]
        if rule is None:
            takes = ", ".join(self.null) or "nothing"
            raise UserError(f"{name} takes no prompts: its conditioning is {takes}")
        if isinstance(prompts, str) or not all(isinstance(p, str) for p in prompts) or not prompts:
            raise UserError(f"prompts must be a list of texts, got {prompts!r}"[:200])
        found, is_cut = {}, np.zeros(len(prompts), bool)
        for encoder, reading in rule["encoders"].items():
            tokens, too_long = self._tokens(reading, prompts)
            is_cut |= too_long
            function = self._function(encoder)
            results = function(**{name: tokens[name] for name in function.inputs})
            found |= {f"{encoder}.{name}": value for name, value in (tokens | results).items()}
        self.num_cut += int(is_cut.sum())
        terms = rule["conditioning"].items()
        return {name: evaluate(term, found, len(prompts)) for name, term in terms}

    def _function(self, name):
        """The `Function` of a component, its parameters on the device and not beside it."""

        def load(folder):
            function = Function.load(folder)
            return dataclasses.replace(function, params=jax.device_put(function.params))

        return self._component(name, load)

    def _component(self, name, load):
        """What `load(folder)` makes of a component, which is read and checked once."""
        if name not in self._loaded:
            folder = self.folder / name
            check_component(folder, self.record["components"][name], RECORD)
            self._loaded[name] = load(folder)
        return self._loaded[name]

    def _tokens(self, reading, prompts):
        """(`{"input_ids", "attention_mask": [n, L]}`, which prompts were cut `[n]`)."""
        read = functools.partial(load_tokenizer, class_name=reading["class"])
        tokenizer = self._component(reading["tokenizer"], read)
        limit = reading["max_length"]
        if reading["lower"]:
            prompts = [prompt.lower().strip() for prompt in prompts]
        whole = tokenizer(prompts, verbose=False)["input_ids"]
        tokens = tokenizer(prompts, padding="max_length", max_length=limit, truncation=True)
        arrays = {name: np.asarray(tokens[name], np.int32) for name in tokens}
        return arrays, np.asarray([len(ids) > limit for ids in whole])


def holds_pipeline(folder):
    """Whether a teacher's folder has one."""
    return pathlib.Path(folder, RECORD).is_file()


def write_pipeline(folder, *, pipeline, latent_shape, image_shape, prompt):
    """Writes `pipeline.json` of a folder that holds the components already.

    Args:
      folder: where they lie.
      pipeline: name of diffusers' class.
      latent_shape, image_shape: channels last.
      prompt: None of a model that takes none, else
        `{"encoders": {name: {"tokenizer", "class", "max_length", "lower"}}, "conditioning":
        {name: a term of `evaluate`}}`.
    """
    found = sorted(path for path in pathlib.Path(folder).iterdir() if path.is_dir())
    record = {
        "format": FORMAT,
        "pipeline": pipeline,
        "latent_shape": list(latent_shape),
        "image_shape": list(image_shape),
        "prompt": prompt,
        "components": {path.name: component_sha256(path) for path in found},
    }
    write_json(pathlib.Path(folder) / RECORD, record)


def check_component(folder, sha256, record):
    """Refuses a component's folder that is missing, or not the one that a record names."""
    if not folder.is_dir():
        raise Damaged(f"{folder} is missing, which {record} names: import it again")
    if component_sha256(folder) != sha256:
        raise Damaged(f"{folder} is not that of {record}: import it again")


def component_sha256(folder):
    """Digest of a component's folder: a `Function`'s, or of all its files."""
    if (folder / FUNCTION_RECORD).exists():
        return file_sha256(folder / FUNCTION_RECORD)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return json_sha256({path.name: file_sha256(path) for path in files})


def load_tokenizer(folder, class_name):
    """A tokenizer of `transformers`, from its own files.

    Raises:
      UserError: where `transformers` is not installed, or does not know the files.
    """
    hide_broken_torchvision()
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            "prompts need transformers, for its tokenizers: pip install transformers"
        ) from error
    try:
        return getattr(transformers, class_name).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # Each tokenizer fails in its own way.
        raise UserError(
            f"{folder} cannot be read as {class_name} ({reason_of(error)}): put back a copy of it"
        ) from error


def evaluate(term, found, num):
    """The array `[n, …]` of a term of a prompt's rule.

    Args:
      term: "ENCODER.RESULT"; `{"join": [terms], "axis": int}`; `{"pad": term, "width": int}`, the
        last axis with zeros after it; `{"zeros": shape}` or `{"value": list}` of one example.
      found: `{"ENCODER.RESULT": [n, …]}`.
      num: n.
    """
    if isinstance(term, str):
        return np.asarray(found[term])
    if "join" in term:
        parts = [evaluate(part, found, num) for part in term["join"]]
        return np.concatenate(parts, axis=term["axis"])
    if "pad" in term:
        array = evaluate(term["pad"], found, num)
        borders = [(0, 0)] * (array.ndim - 1) + [(0, term["width"] - array.shape[-1])]
        return np.pad(array, borders)
    one = np.zeros(term["zeros"]) if "zeros" in term else np.asarray(term["value"])
    return np.tile(one.astype(np.float32), (num, *[1] * one.ndim))


def is_fixed(term):
    """Whether a term is the same of every prompt."""
    return isinstance(term, dict) and not {"join", "pad"} & set(term)


def _check_rows(what, array, shape):
    if array.shape[1:] != shape:
        raise UserError(f"{what} must be {['n', *shape]}, got {list(array.shape)}")
