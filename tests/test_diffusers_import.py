"""Diffusers folders, imported: each part is the stock pipeline's, and what is wrong is refused."""

import functools
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import diffusers_folders  # noqa: E402
from conftest import environment  # noqa: E402
from diffusers_folders import stock  # noqa: E402

import guided_distill  # noqa: E402
from guided_distill.diffusion.samplers import sample_ddim  # noqa: E402
from guided_distill.errors import UserError  # noqa: E402
from guided_distill.models.diffusers_folder import read_source  # noqa: E402
from guided_distill.models.graph import Graph  # noqa: E402
from guided_distill.system.tensors import read_tensors  # noqa: E402

for package in ("diffusers", "transformers"):
    pytest.importorskip(package, reason=f"{package} is not installed")
slow = pytest.mark.slow
TEXT = ["sd", *(pytest.param(kind, marks=slow) for kind in ("sdxl", "pixart", "sd3"))]
LATENT = [*TEXT, pytest.param("dit", marks=slow)]
ALL = [*LATENT, pytest.param("unet2d", marks=slow)]
PROMPTS = ["a dog", "", "a much longer prompt than nine tokens"]
MAX_ERROR = 1e-5  # of the largest value


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """kind -> its diffusers folder."""
    root = tmp_path_factory.mktemp("diffusers")
    return functools.cache(lambda kind: getattr(diffusers_folders, f"make_{kind}")(root / kind))


@pytest.fixture(scope="module")
def brought(made, tmp_path_factory):
    """kind -> (stock pipeline, folder that it was imported to)."""
    root = tmp_path_factory.mktemp("imported")

    @functools.cache
    def bring(kind):
        return stock(made(kind)), guided_distill.import_diffusers(made(kind), out=root / kind)

    return bring


def close(ours, theirs, most=MAX_ERROR):
    theirs = theirs.detach().numpy()
    assert_allclose(ours, theirs, atol=most * np.abs(theirs).max(), rtol=0.0)


def channels_first(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def noise(shape, batch=3):
    return np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)


def denoiser_of(pipe):
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def nested(flat):
    """Dotted names as dicts in a dict."""
    tree = {}
    for name, value in flat.items():
        first, *rest = name.split(".")
        if rest:
            tree.setdefault(first, {})[rest[0]] = value
        else:
            tree[first] = value
    return tree


def conditioning(kind, pipe, pipeline):
    """(ours by name, keyword arguments of the stock network) of three examples."""
    if kind in ("dit", "unet2d"):
        labels = np.asarray([1, 7, 3])
        return {"class_labels": labels}, {"class_labels": torch.from_numpy(labels)}
    ours = pipeline.embed(PROMPTS)
    theirs = nested({name: torch.from_numpy(value) for name, value in ours.items()})
    if kind == "pixart":
        theirs["added_cond_kwargs"] = dict(resolution=None, aspect_ratio=None)
    return ours, theirs


@pytest.mark.parametrize("kind", ALL)
def test_a_denoiser_asked_at_a_time_is_the_component(kind, brought):
    pipe, folder = brought(kind)
    model, params = guided_distill.Model.load(folder)
    pipeline = guided_distill.Pipeline.load(folder)
    assert pipeline.latent_shape == model.sample_shape
    cond, theirs = conditioning(kind, pipe, pipeline)
    z, t = noise(model.sample_shape), np.asarray([0.001, 0.5, 1.0], np.float32)
    told = 3000 * t / (1 + 2 * t) if kind == "sd3" else np.round(1000 * t) - 1
    with torch.no_grad():
        out = denoiser_of(pipe)(channels_first(z), timestep=torch.from_numpy(told), **theirs)
    logsnr = model.schedule.logsnr(t)
    ours = model.apply(params, jnp.asarray(z), logsnr, cond, None, None)
    close(channels_first(ours), out.sample[:, : z.shape[-1]])
    assert set(params) == {name for name, _ in denoiser_of(pipe).named_parameters()}


STOCK_SETTINGS = {
    "pixart": lambda num_steps: dict(use_resolution_binning=False, clean_caption=False),
    "sd3": lambda num_steps: dict(sigmas=np.arange(num_steps, 0, -1) / num_steps),
}


@pytest.mark.parametrize("kind", LATENT)
def test_samples_are_the_stock_pipelines(kind, brought):
    """The guided pair in our DDIM, and the stock pipeline with guidance_scale = 1 + w."""
    pipe, folder = brought(kind)
    model, params = guided_distill.Model.load(folder)
    cond, _ = conditioning(kind, pipe, guided_distill.Pipeline.load(folder))
    guided = model.guided(params, jax.tree.map(jnp.asarray, cond))
    z_1, w = noise(model.sample_shape), 1.5

    @jax.jit
    def sample(num_steps):
        logsnr_fn, weights = model.schedule.logsnr, jnp.full(len(z_1), w)
        return sample_ddim(
            guided, z_1, weights, num_steps=num_steps, logsnr_fn=logsnr_fn, bound=None
        )

    for num_steps in (1, 2, 4):
        settings = dict(num_inference_steps=num_steps, guidance_scale=1 + w)
        settings |= STOCK_SETTINGS.get(kind, lambda num_steps: {})(num_steps)
        if kind == "dit":
            labels = cond["class_labels"].tolist()
            theirs = dit_latents(pipe, channels_first(z_1), labels, **settings)
        else:
            settings |= dict(latents=channels_first(z_1), output_type="latent")
            theirs = pipe(PROMPTS, **settings).images
        close(channels_first(sample(num_steps)), theirs)


class Seen(Exception):
    """What was to be decoded."""


def dit_latents(pipe, z, labels, **settings):
    """The latents of the stock DiT pipeline, which gives pictures alone, of noise `z`."""

    def see(latents):
        raise Seen(latents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[type(pipe).__module__], "randn_tensor", lambda *_, **__: z)
        patch.setattr(pipe.vae, "decode", see)
        with pytest.raises(Seen) as seen:
            pipe(labels, **settings)
    return seen.value.args[0] * pipe.vae.config.scaling_factor


# Of each pipeline, which of `encode_prompt`'s results are which conditioning, and its null.
ENCODED = {
    "sd": {"encoder_hidden_states": (0, 1)},
    "sdxl": {"encoder_hidden_states": (0, 1), "added_cond_kwargs.text_embeds": (2, 3)},
    "pixart": {"encoder_hidden_states": (0, 2), "encoder_attention_mask": (1, 3)},
    "sd3": {"encoder_hidden_states": (0, 1), "pooled_projections": (2, 3)},
}


def stock_embeddings(kind, pipe, prompts):
    """`{conditioning: (of the prompts, of none)}` of the stock pipeline."""
    same = dict(prompt_2=None, prompt_3=None) if kind == "sd3" else {}
    found = pipe.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, **same
    )
    return {name: [found[at] for at in places] for name, places in ENCODED[kind].items()}


@pytest.mark.parametrize("kind", TEXT)
def test_prompts_are_embedded_as_the_stock_pipeline_does(kind, brought):
    pipe, folder = brought(kind)
    pipeline = guided_distill.Pipeline.load(folder)
    ours, null = pipeline.embed(PROMPTS), pipeline.null
    for name, (of_prompts, of_none) in stock_embeddings(kind, pipe, PROMPTS).items():
        close(ours[name], of_prompts.float())
        assert_allclose(null[name], of_none[0].detach().numpy(), atol=MAX_ERROR)
    assert set(ours) == set(null)
    assert pipeline.num_cut == (kind != "pixart")  # Of a limit of nine tokens, and of 120.
    assert pipeline.embed(["a"]) and pipeline.num_cut == (kind != "pixart")


@slow
def test_sdxl_is_told_the_full_size_and_no_crop(brought):
    pipeline = guided_distill.Pipeline.load(brought("sdxl")[1])
    sizes, name = [16, 16, 0, 0, 16, 16], "added_cond_kwargs.time_ids"
    assert_array_equal(pipeline.embed(PROMPTS)[name], [sizes] * 3)
    assert_array_equal(pipeline.null[name], sizes)
    assert not pipeline.null["encoder_hidden_states"].any()


@slow
def test_sd3_goes_without_t5(tmp_path):
    made = diffusers_folders.make_sd3(tmp_path / "made", with_t5=False)
    pipe = stock(made, text_encoder_3=None, tokenizer_3=None)
    out = guided_distill.import_diffusers(made, out=tmp_path / "out")
    ours = guided_distill.Pipeline.load(out).embed(PROMPTS)
    for name, (of_prompts, _) in stock_embeddings("sd3", pipe, PROMPTS).items():
        close(ours[name], of_prompts)


@slow
def test_an_empty_prompt_is_zeros_only_where_the_folder_says_so(tmp_path):
    made = diffusers_folders.make_sdxl(tmp_path / "made", force_zeros=False)
    pipe, out = stock(made), guided_distill.import_diffusers(made, out=tmp_path / "out")
    _, hidden, _, pooled = pipe.encode_prompt(["a"], device="cpu")
    null = guided_distill.Pipeline.load(out).null
    close(null["encoder_hidden_states"], hidden[0])
    close(null["added_cond_kwargs.text_embeds"], pooled[0])


def test_pictures_are_encoded_and_decoded_as_the_stock_vae_does(brought):
    pipe, folder = brought("sd")
    pipeline = guided_distill.Pipeline.load(folder)
    images = np.random.default_rng(0).integers(0, 256, (3, *pipeline.image_shape), np.uint8)
    scale = pipe.vae.config.scaling_factor
    with torch.no_grad():
        latent = pipe.vae.encode(channels_first(images.astype(np.float32) / 127.5 - 1)).latent_dist
        z = channels_first(noise(pipeline.latent_shape))
        decoded = pipe.vae.decode(z / scale).sample
    close(channels_first(pipeline.encode(images)), latent.mean * scale)
    theirs = pipe.image_processor.postprocess(decoded, output_type="np")
    ours = pipeline.decode(noise(pipeline.latent_shape))
    assert ours.dtype == np.uint8 and ours.shape == (3, 16, 16, 3)
    assert_allclose(ours, theirs * 255, atol=0.51)
    encoder = guided_distill.Function.load(folder / "encoder")
    found = encoder(image=np.moveaxis(images.astype(np.float32) / 127.5 - 1, -1, 1))
    close(found["std"], latent.std * scale)


@pytest.mark.parametrize("kind", TEXT[:2])
def test_w_enters_where_diffusers_has_its_slot(kind, made, brought):
    """Found by the time alone, it is that layer and no other: SDXL's size ids are no time."""
    _, folder = brought(kind)
    description = json.loads((folder / "model.json").read_text())["model"]
    graph = Graph.read(folder / "graph.json")
    assert set(description["sites"]) == set(graph.find_sites("timestep"))
    assert set(description["sites"].values()) == {"time_embedding.linear_1"}
    home = description["diffusers"]
    assert home["source"] == str(made(kind).resolve()) and home["component"] == "unet"
    assert home["pipeline"] == type(brought(kind)[0]).__name__
    assert home["class"] == home["config"]["_class_name"] == "UNet2DConditionModel"
    assert home["scheduler"]["beta_schedule"] == "scaled_linear"


def test_the_command_line_imports_a_folder_of_pixels(made, tmp_path):
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "guided_distill.main", "--mode=import"]
    command += [f"--from={made('unet2d')}", f"--out={folder}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "conditioning: class_labels" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 4, done.stderr
    model, _ = guided_distill.Model.load(folder)
    pipeline = guided_distill.Pipeline.load(folder)
    classes = json.loads((made("unet2d") / "unet/config.json").read_text())["num_class_embeds"]
    assert model.bound == 1.0 and pipeline.null == {"class_labels": classes - 1}
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    assert_array_equal(pipeline.decode(pipeline.encode(images)), images)
    with pytest.raises(UserError, match="takes no prompts: its conditioning is class_labels"):
        pipeline.embed(["a"])
    with pytest.raises(UserError, match=r"images must be \['n', 8, 8, 3\]"):
        pipeline.encode(images[:, :4])
    with pytest.raises(UserError, match="images must be uint8"):
        pipeline.encode(images / 255.0)


@slow
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_a_network_without_classes_is_not_guided(prediction, tmp_path):
    made = diffusers_folders.make_unet2d(
        tmp_path / "made", labels=False, prediction_type=prediction, rescale_betas_zero_snr=True
    )
    guided_distill.import_diffusers(made, out=tmp_path / "out")
    model, _ = guided_distill.Model.load(tmp_path / "out")
    assert model.conditioning.null is None
    assert model.prediction == {"sample": "x", "v_prediction": "v"}[prediction]
    assert guided_distill.Pipeline.load(tmp_path / "out").null == {}


@slow
@pytest.mark.parametrize(
    "saving", [dict(variant="fp16"), dict(max_shard_size="40KB")], ids=["fp16", "shards"]
)
def test_weights_come_in_other_files_too(saving, brought, tmp_path):
    made = diffusers_folders.make_sd(tmp_path / "made", saving=saving)
    names = {path.name for path in (made / "unet").iterdir()}
    assert "diffusion_pytorch_model.safetensors" not in names
    out = guided_distill.import_diffusers(made, out=tmp_path / "out")
    assert_array_equal(*(read_tensors(f / "params.safetensors")["conv_in.weight"]
                         for f in (out, brought("sd")[1])))  # fmt: skip


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
sys.modules["diffusers"] = None
import jax.numpy as jnp, numpy as np, guided_distill
folder, out = sys.argv[1:]
pipeline = guided_distill.Pipeline.load(folder)
cond = pipeline.embed(["a dog", "a"])
model, params = guided_distill.Model.load(folder)
z = jnp.ones((2, *model.sample_shape))
x = model.guided(params, cond)(z, jnp.zeros(2), jnp.ones(2))
np.savez(out, x=x, images=pipeline.decode(x), **cond)
"""


def test_a_folder_is_used_where_pytorch_is_not(brought, tmp_path):
    _, folder = brought("sd")
    command = [sys.executable, "-c", WITHOUT_TORCH, folder, tmp_path / "x.npz"]
    subprocess.run(command, env=environment(), check=True)
    found = np.load(tmp_path / "x.npz")
    pipeline = guided_distill.Pipeline.load(folder)
    cond = pipeline.embed(["a dog", "a"])
    assert_allclose(found["encoder_hidden_states"], cond["encoder_hidden_states"], atol=1e-6)
    assert found["images"].shape == (2, 16, 16, 3) and np.isfinite(found["x"]).all()


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil(path):
    path.write_bytes(path.read_bytes()[:-100])


def to_bin(folder):
    """Names weights as if they were a pickle, which nothing opens."""
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")


SCHEDULER = "scheduler/scheduler_config.json"
WRONG = {
    "no folder": (shutil.rmtree, "is no diffusers folder: it has no model_index.json"),
    "pipeline": (
        lambda f: edit(f / "model_index.json", _class_name="StableDiffusionImg2ImgPipeline"),
        "is a StableDiffusionImg2ImgPipeline, none of StableDiffusionPipeline.*import_torch",
    ),
    "index": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is damaged"),
    "vae": (
        lambda f: edit(f / "model_index.json", vae=["diffusers", "AutoencoderTiny"]),
        "vae of .* is AutoencoderTiny, not AutoencoderKL",
    ),
    "no encoder": (
        lambda f: edit(f / "model_index.json", text_encoder=[None, None]),
        "text_encoder of .* is absent, not CLIPTextModel",
    ),
    "component": (lambda f: shutil.rmtree(f / "vae"), "has no folder vae"),
    "tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "has no folder tokenizer"),
    "config": (lambda f: (f / "unet/config.json").unlink(), "unet/config.json is missing"),
    "weights": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(),
        "unet has no weights diffusion_pytorch_model.safetensors",
    ),
    "pickle": (lambda f: to_bin(f / "unet"), r"pickle \(.bin\).*safe_serialization=True\)"),
    "cut": (
        lambda f: spoil(f / "vae/diffusion_pytorch_model.safetensors"),
        "vae/diffusion_pytorch_model.safetensors is no safetensors file, or damaged",
    ),
    "scheduler": (lambda f: (f / SCHEDULER).unlink(), "scheduler_config.json is missing"),
    "betas": (
        lambda f: edit(f / SCHEDULER, beta_schedule="sigmoid"),
        "DDIMScheduler of .*: the scheduler's beta_schedule 'sigmoid' is none of",
    ),
    "prediction": (
        lambda f: edit(f / SCHEDULER, prediction_type="trigflow"),
        "DDIMScheduler has the prediction_type 'trigflow'",
    ),
    "noise alone": (
        lambda f: edit(f / SCHEDULER, rescale_betas_zero_snr=True),
        "DDIMScheduler of .*zero terminal SNR.*predicts v",
    ),
    "inpainting": (
        lambda f: edit(f / "unet/config.json", in_channels=9),
        "takes 9 channels where latents have 4, as for inpainting",
    ),
    "distilled": (
        lambda f: edit(f / "unet/config.json", time_cond_proj_dim=256),
        "has time_cond_proj_dim 256, not None",
    ),
    "sizeless": (lambda f: edit(f / "unet/config.json", sample_size=None), "has no sample_size"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_before_weights_are_read(wrong, made, tmp_path):
    harm, match = WRONG[wrong]
    shutil.copytree(made("sd"), tmp_path / "sd")
    harm(tmp_path / "sd")
    with pytest.raises(UserError, match=match) as error:
        read_source(tmp_path / "sd")
    assert "\n" not in str(error.value)


def test_nothing_stays_of_an_import_that_fails(made, tmp_path):
    shutil.copytree(made("unet2d"), tmp_path / "made")
    path = tmp_path / "made/unet/diffusion_pytorch_model.safetensors"
    whole = read_tensors(path)
    import safetensors.numpy

    whole.pop("conv_in.weight")
    safetensors.numpy.save_file(whole, path)
    with pytest.raises(UserError, match="unet lacks 1 weights of UNet2DModel, conv_in.weight"):
        guided_distill.import_diffusers(tmp_path / "made", out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        guided_distill.import_diffusers(tmp_path / "made", out=tmp_path / "out")
    assert (tmp_path / "out/mine.txt").exists()


def test_packages_that_are_not_installed_are_named(made, brought, monkeypatch):
    pipeline = guided_distill.Pipeline.load(brought("sd")[1])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="prompts need transformers"):
        pipeline.embed(["a"])
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="importing this folder needs diffusers"):
        read_source(made("sd"))


def test_packages_that_cannot_be_imported_are_said_in_one_line(made, monkeypatch):
    """As diffusers does, where a package beside it was built for another PyTorch."""

    class Broken:
        def __getattr__(self, name):
            raise RuntimeError("Failed to import unet_2d\nbecause of a package beside it")

    monkeypatch.setitem(sys.modules, "diffusers", Broken())
    with pytest.raises(UserError, match=r"needs diffusers \(Failed to import unet_2d\)"):
        read_source(made("sd"))


@pytest.mark.parametrize("name", ["decoder/params.safetensors", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("harm", ["cut", "removed"])
def test_a_damaged_part_is_named(name, harm, brought, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(brought("sd")[1], folder)
    (folder / name).unlink() if harm == "removed" else spoil(folder / name)
    pipeline = guided_distill.Pipeline.load(folder)
    with pytest.raises(UserError, match=name.split("/")[0]):
        pipeline.embed(["a"])
        pipeline.decode(noise(pipeline.latent_shape))


def test_newer_and_other_folders_are_refused(brought, tmp_path):
    with pytest.raises(UserError, match="holds no pipeline: it has no pipeline.json"):
        guided_distill.Pipeline.load(tmp_path)
    record = json.loads((brought("sd")[1] / "pipeline.json").read_text())
    record.pop("digest")
    (tmp_path / "pipeline.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(UserError, match="format 99, newer than"):
        guided_distill.Pipeline.load(tmp_path)
