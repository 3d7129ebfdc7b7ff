r"""A tiny text-to-image pipeline trained in PyTorch on captioned digits, for the whole way there and back.

Of the shape of Stable Diffusion: an autoencoder, a frozen text encoder, a UNet2DConditionModel that
predicts ε on scaled-linear betas of 1000 times, captions dropped at times. Needs the extra `torch`.
By hand; on one core half an hour of training, and an hour of distilling:

    python tests/torch_captions.py train --out=runs/captions
    python -m guided_distill.main --mode=import --from=runs/captions/pipeline --out=runs/captions/teacher
    python -m guided_distill.main --mode=encode_data --teacher=runs/captions/teacher \
        --from=runs/captions/pictures --out=runs/captions/latents
    python -m guided_distill.main --config=configs/diffusers.py:captions \
        --config.teacher.path=runs/captions/teacher --config.data.path=runs/captions/latents \
        --workdir=runs/captions/run
    python -m guided_distill.main --mode=export --format=diffusers --workdir=runs/captions/run \
        --num_steps=4 --out=runs/captions/student-4
    python tests/torch_captions.py table --of=runs/captions --steps=4,2,1
"""  # noqa: E501

import argparse
import json
import os
import pathlib

import numpy as np
from torch_training import BATCH_SIZE, TIMES, fit, fit_denoiser

from guided_distill.system.torchvision import hide_broken_torchvision

os.environ.setdefault("HF_HUB_OFFLINE", "1")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a handwritten {}", "the digit {}", "{}")
IMAGE_SIZE, LATENT_SIZE, LATENT_CHANNELS = 16, 8, 4
TEXT_LENGTH, TEXT_WIDTH = 24, 32
CAPTION_DROPOUT, LEARNING_RATE = 0.15, 2e-3
UPDATES = {"vae": 1_200, "unet": 15_000, "classifier": 1_500}
KL_WEIGHT = 1e-4


def load_pictures(split="train"):
    """(uint8 `[N, 16, 16, 3]`, labels `[N]`) of the digits, twice as large."""
    from PIL import Image

    from guided_distill import load_config
    from guided_distill.data.registry import open_dataset

    configs = pathlib.Path(__file__).parents[1] / "configs"
    source = getattr(open_dataset(load_config(configs / "digits.py").data), split)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    large = [Image.fromarray(image[..., 0]).resize(size, Image.BILINEAR) for image in source.images]
    return np.stack([np.asarray(image.convert("RGB")) for image in large]), source.labels


def caption_of(index, label):
    """Of a picture: its class in one of the templates."""
    return TEMPLATES[index % len(TEMPLATES)].format(WORDS[label])


def write_pictures(folder):
    """The training pictures with their captions, as people have them."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    images, labels = load_pictures()
    lines = []
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = f"{index:05d}.png"
        Image.fromarray(image).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": caption_of(index, label)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def make_vae():
    """AutoencoderKL of 16x16x3 to 8x8x4."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
    )


def make_text_encoder(folder):
    """(tokenizer of letters, frozen CLIPTextModel) with weights at random."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TEXT_LENGTH
    )
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
        pad_token_id=len(tokens) - 1,
    )
    return tokenizer, CLIPTextModel(config).eval().requires_grad_(False)


def make_unet():
    """UNet2DConditionModel of 8x8x4."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(24, 40),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def make_classifier():
    """A small convolutional network of the pictures; its last hidden layer gives the features."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU(),
        nn.Flatten(), nn.Linear(32 * 16, 64), nn.SiLU(), nn.Linear(64, len(WORDS)),
    )  # fmt: skip


def train_vae(vae, x):
    """Fits the autoencoder, and sets the factor that gives its latents unit variance."""
    import torch

    def loss_of():
        batch = x[torch.randint(len(x), (BATCH_SIZE,))]
        posterior = vae.encode(batch).latent_dist
        error = (vae.decode(posterior.sample()).sample - batch).square().mean()
        return error + KL_WEIGHT * posterior.kl().mean()

    fit("vae", vae.parameters(), loss_of, UPDATES["vae"], LEARNING_RATE)
    with torch.no_grad():
        latents = vae.eval().encode(x).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1.0 / latents.std()))
    return latents / latents.std()


def train_unet(unet, latents, embedded, null):
    """Fits the denoiser of dropped captions; returns the average of its weights."""
    import torch

    def eps_of(rows, z, index):
        dropped = (torch.rand(len(z)) < CAPTION_DROPOUT)[:, None, None]
        told = torch.where(dropped, null, embedded[rows])
        return unet(z, index, told, return_dict=False)[0]

    return fit_denoiser("unet", unet, latents, eps_of, UPDATES["unet"], LEARNING_RATE)


def train_classifier(classifier, x, labels):
    """Fits the classifier, on pictures with a little noise."""
    import torch

    def loss_of():
        rows = torch.randint(len(x), (BATCH_SIZE,))
        noisy = x[rows] + 0.1 * torch.randn_like(x[rows])
        return torch.nn.functional.cross_entropy(classifier(noisy), labels[rows])

    fit("classifier", classifier.parameters(), loss_of, UPDATES["classifier"], LEARNING_RATE)


def as_tensor(images):
    """`[N, H, W, 3]` uint8 as `[N, 3, H, W]` in [-1, 1]."""
    import torch

    return torch.from_numpy(images.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1.0)


def train(out):
    """Writes `pictures/`, `pipeline/` and `classifier.pt` below `out`."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(0)
    torch.set_num_threads(1)  # As fast as several for networks of this size.
    write_pictures(out / "pictures")
    images, labels = load_pictures()
    x, targets = as_tensor(images), torch.from_numpy(labels.astype(np.int64))
    classifier = make_classifier()
    train_classifier(classifier, x, targets)
    held_out, truth = load_pictures("test")
    with torch.no_grad():
        right = (classifier(as_tensor(held_out)).argmax(1).numpy() == truth).mean()
    print(f"classifier: {right:.3f} right on held-out pictures")
    torch.save(classifier.state_dict(), out / "classifier.pt")
    vae = make_vae()
    latents = train_vae(vae, x)
    tokenizer, text_encoder = make_text_encoder(out / "vocabulary")

    def embed(prompts):
        told = dict(padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt")
        with torch.no_grad():
            return text_encoder(tokenizer(prompts, **told).input_ids)[0]

    captions = [caption_of(index, label) for index, label in enumerate(labels)]
    unet = train_unet(make_unet(), latents, embed(captions), embed([""]))
    scheduler = DDIMScheduler(
        num_train_timesteps=TIMES,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(out / "pipeline")  # fmt: skip


class Judge:
    """Fréchet distance on the classifier's features, and how many pictures it takes for theirs."""

    def __init__(self, weights):
        import torch

        self.classifier = make_classifier()
        self.classifier.load_state_dict(torch.load(weights, weights_only=True))
        self.reference = self._look(load_pictures()[0])[0]

    def __call__(self, images, labels):
        """(distance to the training pictures, share that is of its caption's class)."""
        from guided_distill.evaluation.metrics import frechet_distance, moments

        features, classes = self._look(images)
        distance = frechet_distance(*moments(features), *moments(self.reference))
        return float(distance), float((classes == labels).mean())

    def _look(self, images):
        import torch

        with torch.no_grad():
            features = self.classifier[:-1](as_tensor(images))
            return features.double().numpy(), self.classifier[-1](features).argmax(1).numpy()


def open_pipeline(folder, *, trailing):
    """The stock pipeline of a folder; `trailing` has its scheduler step the grid i/N, to t = 0."""
    from diffusers import DDIMScheduler, DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if trailing:
        pipe.scheduler = DDIMScheduler.from_config(
            pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
        )
    return pipe


def draw_stock(pipe, prompts, noise, w, num_steps):
    """uint8 pictures of the stock pipeline, from the noise given."""
    import torch

    pictures = []
    for start in range(0, len(prompts), 100):
        rows = slice(start, start + 100)
        drawn = pipe(
            prompt=prompts[rows],
            latents=torch.from_numpy(noise[rows].transpose(0, 3, 1, 2).copy()),
            guidance_scale=1.0 + w,
            num_inference_steps=num_steps,
            output_type="np",
        )
        pictures.append(np.round(255.0 * drawn.images).astype(np.uint8))
    return np.concatenate(pictures)


def table(of, steps, weights, count):
    """Prints distance and accuracy by w and N: teacher, stock DDIM, student in both samplers."""
    import torch

    from guided_distill import Sampler
    from guided_distill.models.pipeline import Pipeline

    torch.set_num_threads(1)  # As fast as several for networks of this size.
    judge, rng = Judge(of / "classifier.pt"), np.random.default_rng(0)
    labels = load_pictures()[1][:count]
    prompts = [caption_of(index, label) for index, label in enumerate(labels)]
    noise = rng.standard_normal((count, LATENT_SIZE, LATENT_SIZE, LATENT_CHANNELS), np.float32)
    pipeline = Pipeline.load(of / "teacher")
    cond = pipeline.embed(prompts)
    teacher = open_pipeline(of / "pipeline", trailing=True)

    def tell(name, num_steps, calls, images_of):
        cells = ["{:.2f} ({:.0%})".format(*judge(images_of(w), labels)) for w in weights]
        print(f"| {name} | {num_steps} | {calls} | {' | '.join(cells)} |", flush=True)

    print(f"| model | N | calls | {' | '.join(f'w = {w:g}' for w in weights)} |")
    print(f"| --- | --: | --: | {' | '.join('--:' for w in weights)} |")
    for n in (25, 8, *steps):
        tell("guided DDIM", n, 2 * n, lambda w, n=n: draw_stock(teacher, prompts, noise, w, n))
    for n in steps:
        sampler, student = Sampler.load(of / "run", n), of / f"student-{n}"
        tell(
            "student, our sampler", n, n,
            lambda w, s=sampler: pipeline.decode(s.draw(cond, w=w, noise=noise)),
        )  # fmt: skip
        pipe = open_pipeline(student, trailing=False)
        tell(
            "student, stock pipeline", n, n,
            lambda w, pipe=pipe, n=n: draw_stock(pipe, prompts, noise, w, n),
        )  # fmt: skip


def numbers(text):
    """ "0,1,2" as a list."""
    return [float(part) if "." in part else int(part) for part in text.split(",")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    of_train, of_table = commands.add_parser("train"), commands.add_parser("table")
    of_train.add_argument("--out", type=pathlib.Path, required=True)
    of_table.add_argument("--of", type=pathlib.Path, required=True, help="what train wrote")
    of_table.add_argument("--steps", type=numbers, default=[4, 2, 1])
    of_table.add_argument("--w", type=numbers, default=[0, 1, 2, 6])
    of_table.add_argument("--n", type=int, default=500)
    given = parser.parse_args()
    hide_broken_torchvision()
    if given.what == "train":
        train(given.out)
    else:
        table(given.of, given.steps, given.w, given.n)
