"""Small diffusers folders with random weights, as `save_pretrained` of the stock pipelines makes.

`make_sd(folder)` and the like write one and return `folder`. Networks are those of
`torch_networks`; pictures are 16x16, latents 8x8x4.
"""

import json
import pathlib
import tempfile

import torch
from torch_networks import autoencoder, class_of, network, randomise

SCALED_LINEAR = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
    set_alpha_to_one=True, timestep_spacing="trailing", steps_offset=1,
)  # fmt: skip
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
MAX_LENGTH = 9  # tokens of a prompt


def ddim(**settings):
    """A DDIM scheduler on Stable Diffusion's betas that steps exactly where N divides 1000."""
    return class_of("diffusers", "DDIMScheduler")(**SCALED_LINEAR | settings)


def vae(**settings):
    """An autoencoder of 16x16 pictures."""
    torch.manual_seed(1)
    module = autoencoder()
    module.register_to_config(**dict(scaling_factor=0.4, sample_size=16) | settings)
    randomise(module)
    return module.eval()


def tokenizer():
    """A `CLIPTokenizer` of single letters."""
    tokens = [
        *LETTERS,
        *(f"{letter}</w>" for letter in LETTERS),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    with tempfile.TemporaryDirectory() as name:
        files = [pathlib.Path(name, "vocab.json"), pathlib.Path(name, "merges.txt")]
        files[0].write_text(json.dumps(vocabulary))
        files[1].write_text("#version: 0.2\n")
        return class_of("transformers", "CLIPTokenizer")(
            *map(str, files), model_max_length=MAX_LENGTH
        )


def text_encoder(width, *, projection=None, seed=2):
    """A CLIP text encoder for `tokenizer`, with pooled embeddings of the width `projection`."""
    torch.manual_seed(seed)
    config = class_of("transformers", "CLIPTextConfig")(
        vocab_size=54, hidden_size=width, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=MAX_LENGTH, bos_token_id=52,
        eos_token_id=53, pad_token_id=53, projection_dim=projection or width,
    )  # fmt: skip
    name = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    return class_of("transformers", name)(config).eval()


def make_sd(folder, *, saving=None, **schedule):
    """A Stable Diffusion folder; `schedule` changes its scheduler, `saving` how it is saved."""
    pipe = class_of("diffusers", "StableDiffusionPipeline")(
        vae=vae(), text_encoder=text_encoder(12), tokenizer=tokenizer(),
        unet=network("unet_text")[0], scheduler=ddim(**schedule), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return save(pipe, folder, saving)


def make_sdxl(folder, *, force_zeros=True, saving=None, **schedule):
    """An SDXL folder of two text encoders, of widths 4 and 8."""
    letters = tokenizer()
    pipe = class_of("diffusers", "StableDiffusionXLPipeline")(
        vae=vae(), text_encoder=text_encoder(4), tokenizer=letters,
        text_encoder_2=text_encoder(8, projection=10, seed=3), tokenizer_2=letters,
        unet=network("unet_sdxl")[0], scheduler=ddim(**schedule),
        force_zeros_for_empty_prompt=force_zeros, add_watermarker=False,
    )  # fmt: skip
    return save(pipe, folder, saving)


def make_dit(folder, *, saving=None, **schedule):
    """A DiT folder of 1000 classes, as the stock pipeline has the null's number in its code."""
    torch.manual_seed(0)
    transformer = class_of("diffusers", "DiTTransformer2DModel")(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    randomise(transformer)
    pipe = class_of("diffusers", "DiTPipeline")(
        transformer=transformer.eval(), vae=vae(), scheduler=ddim(**schedule)
    )
    return save(pipe, folder, saving)


def t5(width):
    """(a T5 encoder, its tokenizer of single letters)."""
    torch.manual_seed(4)
    vocabulary = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    vocabulary += [(letter, -2.0) for letter in ("▁", *LETTERS)]
    config = class_of("transformers", "T5Config")(
        vocab_size=len(vocabulary), d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    letters = class_of("transformers", "T5Tokenizer")(vocab=vocabulary, extra_ids=0)
    return class_of("transformers", "T5EncoderModel")(config).eval(), letters


def make_pixart(folder, *, saving=None, **schedule):
    """A PixArt folder."""
    encoder, letters = t5(12)
    pipe = class_of("diffusers", "PixArtAlphaPipeline")(
        tokenizer=letters, text_encoder=encoder, vae=vae(), transformer=network("pixart")[0],
        scheduler=ddim(**schedule),
    )  # fmt: skip
    return save(pipe, folder, saving)


def make_sd3(folder, *, with_t5=True, saving=None):
    """A Stable Diffusion 3 folder of two CLIP encoders, and T5 where asked for."""
    letters, (encoder, pieces) = tokenizer(), t5(12) if with_t5 else (None, None)
    pipe = class_of("diffusers", "StableDiffusion3Pipeline")(
        transformer=network("sd3")[0], vae=vae(shift_factor=0.1),
        scheduler=class_of("diffusers", "FlowMatchEulerDiscreteScheduler")(shift=3.0),
        text_encoder=text_encoder(4, projection=4), tokenizer=letters,
        text_encoder_2=text_encoder(4, projection=6, seed=3), tokenizer_2=letters,
        text_encoder_3=encoder, tokenizer_3=pieces,
    )  # fmt: skip
    return save(pipe, folder, saving)


def make_unet2d(folder, *, labels=True, saving=None, **schedule):
    """A folder of pixels, 8x8x3, with 10 classes and a null beside them, or without classes."""
    unet = network("unet2d")[0]
    if not labels:
        config = dict(unet.config) | {"num_class_embeds": None}
        unet = class_of("diffusers", "UNet2DModel").from_config(config).eval()
    pipe = class_of("diffusers", "DDIMPipeline")(unet=unet, scheduler=ddim(**schedule))
    return save(pipe, folder, saving)


def save(pipe, folder, saving=None):
    """Writes a pipeline, `saving` as of its `save_pretrained`; returns the folder."""
    pipe.save_pretrained(folder, **saving or {})
    return folder


def stock(folder, **parts):
    """The stock pipeline of a folder, without its bars; `parts` are given and not read."""
    pipeline = class_of("diffusers", "DiffusionPipeline")
    pipe = pipeline.from_pretrained(folder, local_files_only=True, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe
