"""A CLIP model as a folder of data: embeddings of pictures and of captions, to compare.

    clip.json       what is made of pictures, how captions are read, and the digests of the rest
    image_encoder/  `Function` of prepared pictures `[B, 3, S, S]` to unit embeddings `[B, D]`
    text_encoder/   `Function` of token numbers `[B, L]` to unit embeddings `[B, D]`
    tokenizer/      the tokenizer's own files

PyTorch is not needed. Captions need `transformers`, for the tokenizer alone.
"""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.errors import UserError
from guided_distill.models.function import Function
from guided_distill.models.pipeline import check_component, component_sha256, load_tokenizer
from guided_distill.system.files import (
    check_format,
    file_sha256,
    local_path,
    read_json,
    write_json,
)

FORMAT = 1  # of the folder
RECORD = "clip.json"  # written last: it makes the folder whole
IMAGE, TEXT, TOKENIZER = "image_encoder", "text_encoder", "tokenizer"
IMAGE_INPUT, TEXT_INPUT, RESULT = "image", "input_ids", "embedding"
RESAMPLINGS = {"bilinear": "linear", "bicubic": "cubic"}  # those of jax.image


@dataclasses.dataclass(frozen=True)
class Clip:
    """A CLIP model; `embed_images` and `embed_tokens` are pure, to be jitted.

    Attributes:
      record: what `clip.json` says.
      image, text: `Function`s.
      tokenizer: folder of it.
      sha256: digest of all.
    """

    record: dict
    image: Function
    text: Function
    tokenizer: pathlib.Path
    sha256: str

    @classmethod
    def load(cls, folder, key="`folder`"):
        """The model of a folder that `key` names.

        Raises:
          UserError: where the folder holds none, is of a newer format, or is damaged.
        """
        folder = local_path(folder, key)
        record = read_json(folder / RECORD) if folder.is_dir() else None
        if record is None:
            raise UserError(
                f"{key} {folder} holds no CLIP model: it has no {RECORD}, which --mode=import "
                "writes of a folder of transformers' CLIPModel"
            )
        check_format(folder, record["format"], FORMAT)
        for name, digest in record["components"].items():
            check_component(folder / name, digest, RECORD)
        image, text = (Function.load(folder / name) for name in (IMAGE, TEXT))
        return cls(record, image, text, folder / TOKENIZER, file_sha256(folder / RECORD))

    @property
    def name(self):
        """With the start of its digest."""
        return f"clip-{self.record['name']}-{self.sha256[:12]}"

    @property
    def resize(self):
        """What is done to pictures of another size, in words."""
        height, width = self.image.inputs[IMAGE_INPUT].shape[1:]
        return f"{self.record['pictures']['resample']}, without aliasing, to {height}x{width}"

    def prepare(self, images: jax.Array) -> jax.Array:
        """Pictures `[B, 3, H, W]` in [-1, 1] as the network was trained on, `[B, 3, S, S]`."""
        rule = self.record["pictures"]
        resized = resize(images, rule["size"], rule["resample"])
        cropped = crop(resized, rule["crop"])
        mean, std = (jnp.asarray(rule[name])[None, :, None, None] for name in ("mean", "std"))
        return ((cropped + 1.0) / 2.0 - mean) / std

    def embed_images(self, params, images: jax.Array) -> jax.Array:
        """Unit embeddings `[B, D]` of pictures `[B, 3, H, W]` in [-1, 1]."""
        return self.image.apply(params, {IMAGE_INPUT: self.prepare(images)})[RESULT]

    def embed_tokens(self, params, tokens: jax.Array) -> jax.Array:
        """Unit embeddings `[B, D]` of token numbers `[B, L]`."""
        return self.text.apply(params, {TEXT_INPUT: tokens})[RESULT]

    def tokens(self, captions) -> np.ndarray:
        """Token numbers `[n, L]` int32 of captions; long ones are cut.

        Raises:
          UserError: where `transformers` is not installed.
        """
        asked = dict(padding="max_length", truncation=True, max_length=self.record["max_length"])
        return np.asarray(self._read(list(captions), **asked)["input_ids"], np.int32)

    def num_cut(self, captions) -> int:
        """How many captions are longer than the network reads."""
        whole = self._read(list(captions), verbose=False)["input_ids"]
        return sum(len(ids) > self.record["max_length"] for ids in whole)

    @functools.cached_property
    def _read(self):
        return load_tokenizer(self.tokenizer, self.record["tokenizer"])


def resize(images, size, resample):
    """Pictures `[B, C, H, W]` in [-1, 1] of another size, as PIL does it but for its rounding.

    Args:
      images: float.
      size: pixels of the shorter side, the shape kept; or (height, width).
      resample: one of `RESAMPLINGS`; larger pictures are smoothed first.
    """
    batch, channels, height, width = images.shape
    if isinstance(size, int):
        short = min(height, width)
        size = (size * height // short, size * width // short)
    shape = (batch, channels, *size)
    resized = jax.image.resize(images, shape, RESAMPLINGS[resample], antialias=True)
    return jnp.clip(resized, -1.0, 1.0)


def crop(images, size):
    """The middle (height, width) of pictures `[B, C, H, W]`; None for all of them."""
    if size is None:
        return images
    top, left = ((whole - part) // 2 for whole, part in zip(images.shape[2:], size, strict=True))
    return images[:, :, top : top + size[0], left : left + size[1]]


def write_clip(folder, *, name, pictures, tokenizer, max_length):
    """Writes `clip.json` of a folder that holds the components already.

    Args:
      folder: where they lie.
      name: for people.
      pictures: `{"size", "crop", "resample"}` as `resize` and `crop` have them, and `"mean"` and
        `"std"` of the three colours in [0, 1].
      tokenizer: its class in transformers.
      max_length: tokens of a caption.
    """
    record = {
        "format": FORMAT,
        "name": name,
        "pictures": pictures,
        "tokenizer": tokenizer,
        "max_length": max_length,
        "components": {n: component_sha256(folder / n) for n in (IMAGE, TEXT, TOKENIZER)},
    }
    write_json(folder / RECORD, record)
