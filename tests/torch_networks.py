"""Small PyTorch networks with random weights, each with an example of its forward's arguments.

`network(name)` gives (module in eval mode, example of a batch of 2), or skips the test where the
package that has the network is missing.
"""

import importlib

import pytest
import torch
from torch import nn

from guided_distill.system.torchvision import hide_broken_torchvision

hide_broken_torchvision()

TIMES = torch.tensor([10.0, 500.0])


def class_of(package, name):
    pytest.importorskip(package, reason=f"{package} is not installed")
    return getattr(importlib.import_module(package), name)


def draw(*shape):
    return torch.randn(2, *shape)


def unet2d():
    module = class_of("diffusers", "UNet2DModel")(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=11, norm_num_groups=4,
    )  # fmt: skip
    return module, dict(sample=draw(3, 8, 8), timestep=TIMES, class_labels=torch.tensor([3, 10]))


def unet2d_fourier():
    module = class_of("diffusers", "UNet2DModel")(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift", time_embedding_type="fourier",
    )  # fmt: skip
    return module, dict(sample=draw(3, 8, 8), timestep=torch.tensor([0.2, 0.9]))


def unet_text(**settings):
    module = class_of("diffusers", "UNet2DConditionModel")(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=2,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=4, **settings,
    )  # fmt: skip
    return module, dict(sample=draw(4, 8, 8), timestep=TIMES, encoder_hidden_states=draw(5, 12))


def unet_text_w():
    module, example = unet_text(time_cond_proj_dim=6)
    return module, example | dict(timestep_cond=draw(6), return_dict=False)


def unet_sdxl():
    module = class_of("diffusers", "UNet2DConditionModel")(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=(2, 4),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=4,
        use_linear_projection=True, transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=34,
    )  # fmt: skip
    added = dict(text_embeds=draw(10), time_ids=512 * torch.rand(2, 6))
    example = dict(sample=draw(4, 8, 8), timestep=TIMES, encoder_hidden_states=draw(5, 12))
    return module, example | dict(added_cond_kwargs=added)


def dit():
    module = class_of("diffusers", "DiTTransformer2DModel")(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    labels = torch.tensor([3, 10])
    return module, dict(hidden_states=draw(4, 8, 8), timestep=TIMES, class_labels=labels)


def dit_deep():
    """Not so tiny: 4 blocks of width 128 over 64 patches."""
    module = class_of("diffusers", "DiTTransformer2DModel")(
        num_attention_heads=4, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=4,
        sample_size=16, patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    labels = torch.tensor([3, 10])
    return module, dict(hidden_states=draw(4, 16, 16), timestep=TIMES, class_labels=labels)


def sd3():
    module = class_of("diffusers", "SD3Transformer2DModel")(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16,
        pooled_projection_dim=10, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    text = dict(encoder_hidden_states=draw(5, 12), pooled_projections=draw(10))
    return module, dict(hidden_states=draw(4, 8, 8), timestep=TIMES) | text


def flux():
    module = class_of("diffusers", "FluxTransformer2DModel")(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=10,
        axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    rows = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
    return module, dict(
        hidden_states=draw(16, 4), encoder_hidden_states=draw(5, 12), pooled_projections=draw(10),
        timestep=TIMES / 1000, guidance=torch.tensor([3.5, 1.0]), img_ids=rows,
        txt_ids=torch.zeros(5, 3),
    )  # fmt: skip


def pixart():
    module = class_of("diffusers", "PixArtTransformer2DModel")(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2, cross_attention_dim=16, caption_channels=12,
        use_additional_conditions=False,
    )  # fmt: skip
    mask = torch.tensor([[1.0] * 5, [1, 1, 1, 0, 0]])
    return module, dict(
        hidden_states=draw(4, 8, 8), encoder_hidden_states=draw(5, 12), timestep=TIMES,
        encoder_attention_mask=mask, added_cond_kwargs=dict(resolution=None, aspect_ratio=None),
    )  # fmt: skip


def autoencoder():
    return class_of("diffusers", "AutoencoderKL")(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


class Encode(nn.Module):
    """Mean and log variance of a picture's latents."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, x):
        return self.vae.encode(x).latent_dist.parameters


class Decode(Encode):
    """The picture of latents."""

    def forward(self, x):
        return self.vae.decode(x).sample


def vae_encode():
    return Encode(autoencoder()), dict(x=draw(3, 8, 8))


def vae_decode():
    return Decode(autoencoder()), dict(x=draw(4, 4, 4))


def clip_text():
    config = class_of("transformers", "CLIPTextConfig")(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=9, bos_token_id=48, eos_token_id=49,
    )  # fmt: skip
    tokens = torch.tensor([[48, 3, 4, 5, 49, 49, 49], [48, 7, 8, 9, 10, 11, 49]])
    return class_of("transformers", "CLIPTextModel")(config), dict(input_ids=tokens)


def t5_encoder():
    config = class_of("transformers", "T5Config")(
        vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    mask = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0]])
    tokens = torch.randint(0, 50, (2, 7))
    module = class_of("transformers", "T5EncoderModel")(config)
    return module, dict(input_ids=tokens, attention_mask=mask)


class FilmNet(nn.Module):
    """Convolutions of many kinds, told the time by learned frequencies and features shifted."""

    def __init__(self, width=8):
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(6))
        self.film = nn.Sequential(nn.Linear(12, 16), nn.Mish(), nn.Linear(16, 2 * width))
        self.fold = nn.Conv2d(12, width, 3, padding="same", padding_mode="circular")
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.InstanceNorm2d(width, affine=True)])
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.5))
        self.up = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
        self.down = nn.utils.parametrizations.weight_norm(nn.Conv2d(width, 12, 3, 2, 1))
        self.activation = nn.LeakyReLU(0.2, inplace=True)
        self.drop = nn.Dropout2d(0.5)

    def forward(self, x, time):
        angles = 6.0 * time[:, None] * self.frequencies
        shift, scale = self.film(torch.cat([angles.sin(), angles.cos()], -1)).chunk(2, -1)
        h = self.activation(self.norms[0](self.fold(nn.functional.pixel_unshuffle(x, 2))))
        h = self.norms[1](h + self.scale * self.depthwise(h))
        h.mul_(1 + scale[..., None, None]).add_(shift[..., None, None])
        h = self.drop(nn.functional.adaptive_avg_pool2d(self.up(h), (6, 5)))
        h = nn.functional.interpolate(h, size=(8, 8), mode="bilinear", antialias=False)
        return nn.functional.pixel_shuffle(self.down(h), 2)


class TokenNet(nn.Module):
    """Attention by einsum, turned positions as complex numbers, tied tables, writes in place."""

    def __init__(self, width=8):
        super().__init__()
        self.table = nn.Embedding(7, width)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.table.weight
        self.mix = nn.Conv1d(width, 2 * width, 3, padding=1, padding_mode="replicate")
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.qk = nn.Linear(width, 2 * width)
        self.register_buffer("turns", torch.polar(torch.ones(5, 4), torch.rand(5, 4)))
        self.register_buffer("unused", torch.zeros(3))

    def forward(self, tokens, told, share=0.25):
        x = self.table(tokens) + told["time"][:, None, None] * share
        x[:, 0] = told["extra"][0]
        x = nn.functional.glu(self.mix(x.transpose(1, 2)), 1).transpose(1, 2)
        turned = torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous()) * self.turns
        q, k = self.qk(torch.view_as_real(turned).flatten(-2)).chunk(2, -1)
        scores = torch.einsum("bic,bjc->bij", q, k).masked_fill(told["mask"][:, None], -torch.inf)
        x = x + scores.softmax(-1) @ x
        x = x + self.attend(x, x, x, need_weights=False)[0]
        order = torch.cumsum(~told["mask"], 1).clamp(max=4)
        x = torch.gather(x, 1, order[..., None].expand_as(x))
        with torch.no_grad():
            bias = torch.arange(x.shape[1]).to(x) / x.shape[1]
        logits = self.head(x * x.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt())
        return {"logits": logits + bias[:, None], "pooled": x.std(1)}


def film_net():
    return FilmNet(), dict(x=draw(3, 8, 8), time=torch.tensor([0.2, 0.9]))


def token_net():
    mask = torch.tensor([[False] * 5, [False, False, True, False, True]])
    told = dict(time=TIMES / 1000, extra=[draw(8), None], mask=mask)
    return TokenNet(), dict(tokens=torch.randint(0, 7, (2, 5)), told=told)


def randomise(module):
    """Gives what starts as zeros or ones other numbers, in place."""
    tensors = [*module.parameters(), *(b for n, b in module.named_buffers() if "running" in n)]
    with torch.no_grad():
        for tensor in tensors:
            if tensor.numel() and float(tensor.min()) == float(tensor.max()):
                tensor.add_(0.2 * torch.rand_like(tensor))


def network(name):
    """(module in eval mode, example) of a function of this module."""
    torch.manual_seed(0)
    module, example = globals()[name]()
    randomise(module)
    return module.eval(), example
