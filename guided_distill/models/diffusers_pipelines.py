"""The table of diffusers' pipelines: what each class says of its folder. No PyTorch here."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
T5 = ("T5EncoderModel",)
LAST = {"hidden": "last_hidden_state"}
PENULTIMATE = {"hidden": "hidden_states.-2"}
POOLED = PENULTIMATE | {"pooled": "text_embeds"}


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """How a pipeline reads a prompt with one of its text encoders.

    Attributes:
      classes: of transformers that it may be.
      results: `{name: key of what its forward returns}`; "hidden_states.-2" is the layer before
        the last.
      takes: of what its tokenizer gives.
      max_length: tokens of a prompt; None takes the tokenizer's limit.
      lower: whether prompts are stripped and put in small letters.
      optional: whether the pipeline goes without.
    """

    classes: tuple[str, ...]
    results: Mapping[str, str]
    takes: tuple[str, ...] = ("input_ids",)
    max_length: int | None = None
    lower: bool = False
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Facts:
    """What conditioning may depend on.

    Attributes:
      config: of the denoiser.
      image_shape: (H, W, C).
      encoders: names of the text encoders that are there.
    """

    config: Mapping[str, Any]
    image_shape: tuple[int, ...]
    encoders: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One pipeline.

    Attributes:
      component: folder of the denoiser.
      network: its class in diffusers.
      z: its input that is the noisy latent.
      has_vae: whether it is of latents, and not of pixels.
      encoders: `{folder: TextEncoder}`, in the pipeline's order.
      prompt: `Facts -> {conditioning: a term of models.pipeline.evaluate}`; None without prompts.
      zero_null: whether no prompt is zeros, where the folder does not say.
      null_class: key of the denoiser's config, and what is added to it for the number of the class
        that means none; None without classes.
      needs: `{key of the denoiser's config: the value that is known here}`.
      constants: arguments of the denoiser that are the same always, names dotted where nested.
      w_sites: as of `import_torch`.
    """

    component: str
    network: str
    z: str
    has_vae: bool = True
    encoders: Mapping[str, TextEncoder] = dataclasses.field(default_factory=dict)
    prompt: Callable[[Facts], dict] | None = None
    zero_null: bool = False
    null_class: tuple[str, int] | None = None
    needs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    w_sites: tuple[str, ...] | None = None


def _sd_prompt(facts):
    return {"encoder_hidden_states": "text_encoder.hidden"}


def _sdxl_prompt(facts):
    """Both encoders' tokens side by side, the second's summary, and the size at no crop."""
    height, width = facts.image_shape[:2]
    return {
        "encoder_hidden_states": {"join": [f"{name}.hidden" for name in SDXL], "axis": -1},
        "added_cond_kwargs.text_embeds": "text_encoder_2.pooled",
        "added_cond_kwargs.time_ids": {"value": [height, width, 0, 0, height, width]},
    }


def _pixart_prompt(facts):
    """Tokens and their mask; the largest are told the size too."""
    height, width = facts.image_shape[:2]
    sizes = {
        "added_cond_kwargs.resolution": {"value": [height, width]},
        "added_cond_kwargs.aspect_ratio": {"value": [height / width]},
    }
    tokens = {
        "encoder_hidden_states": "text_encoder.hidden",
        "encoder_attention_mask": "text_encoder.attention_mask",
    }
    return tokens | (sizes if facts.config["sample_size"] == SIZE_OF_TOLD_PIXART else {})


def _sd3_prompt(facts):
    """CLIP's tokens, widened, then T5's, which are zeros where it is absent."""
    width, (first, second, third) = facts.config["joint_attention_dim"], SD3
    clip = {"join": [f"{first}.hidden", f"{second}.hidden"], "axis": -1}
    zeros = {"zeros": [SD3[third].max_length, width]}
    t5 = f"{third}.hidden" if third in facts.encoders else zeros
    return {
        "encoder_hidden_states": {"join": [{"pad": clip, "width": width}, t5], "axis": -2},
        "pooled_projections": {"join": [f"{first}.pooled", f"{second}.pooled"], "axis": -1},
    }


SDXL = {
    "text_encoder": TextEncoder(CLIP, PENULTIMATE),
    "text_encoder_2": TextEncoder(CLIP[1:], POOLED),
}
SD3 = {
    "text_encoder": TextEncoder(CLIP[1:], POOLED),
    "text_encoder_2": TextEncoder(CLIP[1:], POOLED),
    "text_encoder_3": TextEncoder(T5, LAST, max_length=256, optional=True),
}
PIXART = TextEncoder(T5, LAST, takes=("input_ids", "attention_mask"), max_length=120, lower=True)
SIZE_OF_TOLD_PIXART = 128
UNET = {"component": "unet", "z": "sample", "w_sites": ("time_embedding.linear_1",)}
TEXT_UNET = UNET | {"network": "UNet2DConditionModel"}
PLAIN = {"time_cond_proj_dim": None, "class_embed_type": None, "encoder_hid_dim_type": None}
TRANSFORMER = {"component": "transformer", "z": "hidden_states"}
PIXART_ALPHA = Row(
    **TRANSFORMER,
    network="PixArtTransformer2DModel",
    encoders={"text_encoder": PIXART},
    prompt=_pixart_prompt,
    constants={"added_cond_kwargs.resolution": None, "added_cond_kwargs.aspect_ratio": None},
)
PIXELS = Row(
    **UNET,
    network="UNet2DModel",
    has_vae=False,
    null_class=("num_class_embeds", -1),
    needs={"class_embed_type": None},
)
PIPELINES = {
    "StableDiffusionPipeline": Row(
        **TEXT_UNET,
        encoders={"text_encoder": TextEncoder(CLIP, LAST)},
        prompt=_sd_prompt,
        needs=PLAIN | {"addition_embed_type": None},
    ),
    "StableDiffusionXLPipeline": Row(
        **TEXT_UNET,
        encoders=SDXL,
        prompt=_sdxl_prompt,
        zero_null=True,
        needs=PLAIN | {"addition_embed_type": "text_time"},
    ),
    "StableDiffusion3Pipeline": Row(
        **TRANSFORMER, network="SD3Transformer2DModel", encoders=SD3, prompt=_sd3_prompt
    ),
    "PixArtAlphaPipeline": PIXART_ALPHA,
    "PixArtSigmaPipeline": dataclasses.replace(
        PIXART_ALPHA, encoders={"text_encoder": dataclasses.replace(PIXART, max_length=300)}
    ),
    "DiTPipeline": Row(
        **TRANSFORMER, network="DiTTransformer2DModel", null_class=("num_embeds_ada_norm", 0)
    ),
    "DDPMPipeline": PIXELS,
    "DDIMPipeline": PIXELS,
}
