"""From a folder of transformers' CLIPModel to the folder of a `Clip`.

Weights are read from safetensors alone. Nothing is downloaded, and no pickle is opened.
"""

import math
import pathlib
import shutil

import torch
from torch import nn

from guided_distill.errors import UserError
from guided_distill.models.clip import (
    IMAGE,
    IMAGE_INPUT,
    RESULT,
    TEXT,
    TEXT_INPUT,
    TOKENIZER,
    write_clip,
)
from guided_distill.models.diffusers_folder import (
    CONFIG,
    find_weights,
    load_network,
    quiet_packages,
    whole_folder,
)
from guided_distill.models.importing import import_function
from guided_distill.models.pipeline import load_tokenizer
from guided_distill.system.files import local_path, read_own_json

PREPROCESSORS = {"preprocessor_config.json": None, "processor_config.json": "image_processor"}
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    TOKENIZER_CONFIG, "tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
CONVERT = "CLIPModel.from_pretrained(…).save_pretrained(…)"
CAPTIONS = ["", "a photo of a cat"]  # of the example that the network is traced with


class ImageTower(nn.Module):
    """Unit embeddings of prepared pictures."""

    def __init__(self, clip):
        super().__init__()
        self.network, self.projection = clip.vision_model, clip.visual_projection

    def forward(self, image):
        return _unit(self.projection(self.network(pixel_values=image).pooler_output))


class TextTower(nn.Module):
    """Unit embeddings of captions; what pads them comes after all that is looked at."""

    def __init__(self, clip):
        super().__init__()
        self.network, self.projection = clip.text_model, clip.text_projection

    def forward(self, input_ids):
        return _unit(self.projection(self.network(input_ids=input_ids).pooler_output))


def _unit(x):
    return x / (x * x).sum(-1, keepdim=True).sqrt()


def is_clip(folder):
    """Whether a folder is one of a CLIP model of transformers."""
    return (read_own_json(pathlib.Path(folder) / CONFIG) or {}).get("model_type") == "clip"


def import_clip(folder: str | pathlib.Path, *, out: str | pathlib.Path) -> pathlib.Path:
    """Writes a folder of transformers' CLIPModel as one that `evaluation.clip` takes.

    Args:
      folder: as `save_pretrained` of model and processor write it, weights in safetensors.
      out: folder to write, new or empty.

    Returns:
      `out`.

    Raises:
      UserError: where something is missing, damaged, a pickle, or not what is known here; nothing
        stays in `out` then.
    """
    folder = local_path(folder, "`from`")
    with quiet_packages(), whole_folder(out) as out:
        pictures = read_preprocessor(folder)
        class_name = _tokenizer_class(folder)
        variant = find_weights(folder, "transformers", CONVERT)
        clip = load_network(folder, "transformers", "CLIPModel", variant)
        _write_image_tower(folder, clip, pictures, out)
        max_length = _write_text_tower(folder, clip, class_name, out)
        write_clip(
            out,
            name=folder.resolve().name,
            pictures=pictures,
            tokenizer=class_name,
            max_length=max_length,
        )
    return out


def read_preprocessor(folder):
    """What is made of pictures, as `write_clip` takes it.

    Raises:
      UserError: where it is missing, or something that is not known here.
    """
    for name, part in PREPROCESSORS.items():
        config = read_own_json(folder / name)
        if config is not None:
            return _pictures(config[part] if part else config, folder / name)
    raise UserError(f"{folder} has no {next(iter(PREPROCESSORS))}: put back a copy of it")


def _pictures(config, path):
    resample = config.get("resample", 3)
    if resample not in RESAMPLE:
        known = ", ".join(f"{number} ({name})" for number, name in RESAMPLE.items())
        raise UserError(f"{path} has resample {resample!r}, none of {known}")
    factor = config.get("rescale_factor", 1 / 255)
    if not config.get("do_rescale", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise UserError(f"{path} does not rescale pictures by 1/255, as networks of CLIP take them")
    if not config.get("do_resize", True):
        raise UserError(f"{path} has do_resize false, and pictures come in any size: mend it")
    normalizes = config.get("do_normalize", True)
    return {
        "size": _size(config.get("size", {"shortest_edge": 224}), path),
        "crop": _crop(config, path) if config.get("do_center_crop", True) else None,
        "resample": RESAMPLE[resample],
        "mean": list(config["image_mean"]) if normalizes else [0.0] * 3,
        "std": list(config["image_std"]) if normalizes else [1.0] * 3,
    }


def _size(size, path):
    """Pixels of the shorter side, or [height, width]."""
    if isinstance(size, int):
        return size
    if set(size) == {"shortest_edge"}:
        return size["shortest_edge"]
    if set(size) == {"height", "width"}:
        return [size["height"], size["width"]]
    raise UserError(f"{path} has size {size!r}: it must be shortest_edge, or height and width")


def _crop(config, path):
    size = _size(config.get("crop_size", 224), path)
    return [size, size] if isinstance(size, int) else size


def _tokenizer_class(folder):
    config = read_own_json(folder / TOKENIZER_CONFIG)
    if config is None:
        raise UserError(f"{folder} has no {TOKENIZER_CONFIG}: put back a copy of it")
    return str(config.get("tokenizer_class", "CLIPTokenizer"))


def _write_image_tower(folder, clip, pictures, out):
    side = clip.config.vision_config.image_size
    size, cropped = pictures["size"], pictures["crop"]
    whole = [size, size] if isinstance(size, int) else size
    if (cropped or whole) != [side, side] or min(whole) < side:
        raise UserError(
            f"{folder} makes pictures of {whole} and crops {cropped or 'nothing'}, but its network "
            f"takes {[side, side]}: mend its {next(iter(PREPROCESSORS))}"
        )
    generator = torch.Generator().manual_seed(0)
    example = {IMAGE_INPUT: torch.randn(2, 3, side, side, generator=generator)}
    import_function(ImageTower(clip).eval(), example, out=out / IMAGE, results={RESULT: ""})


def _write_text_tower(folder, clip, class_name, out):
    """Writes network and tokenizer; returns how many tokens a caption may have."""
    (out / TOKENIZER).mkdir()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / TOKENIZER / name)
    read = load_tokenizer(out / TOKENIZER, class_name)
    positions = clip.config.text_config.max_position_embeddings
    max_length = min(read.model_max_length, positions)
    tokens = read(CAPTIONS, padding="max_length", max_length=max_length, truncation=True)
    example = {TEXT_INPUT: torch.tensor(tokens["input_ids"])}
    import_function(TextTower(clip).eval(), example, out=out / TEXT, results={RESULT: ""})
    return max_length
