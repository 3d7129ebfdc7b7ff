"""Students that go home: diffusers folders that stock pipelines load and sample as we do."""

import json
import re
import shutil
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from conftest import environment  # noqa: E402
from diffusers_folders import (  # noqa: E402
    class_of,
    make_dit,
    make_sd,
    make_sdxl,
    make_unet2d,
    save,
    stock,
    vae,
)
from students import bring_teacher, finish_student  # noqa: E402
from torch_networks import network  # noqa: E402

import guided_distill  # noqa: E402
from guided_distill.diffusion.ddim import ddim_step  # noqa: E402
from guided_distill.errors import UserError  # noqa: E402
from guided_distill.export import diffusers_folder  # noqa: E402
from guided_distill.jobs import export  # noqa: E402
from guided_distill.models.imported import slow_rows  # noqa: E402
from guided_distill.models.model import Model  # noqa: E402
from guided_distill.sampling.sampler import Sampler  # noqa: E402
from guided_distill.system.files import read_json, write_json  # noqa: E402
from guided_distill.system.tensors import read_tensors  # noqa: E402
from guided_distill.system.workdir import StageFolder  # noqa: E402

STEPS = (1, 2, 4, 5, 8, 10)
WEIGHTS = (0.0, 0.5, 1.0, 2.5, 4.0)
PROMPTS = ["a cat", "two dogs"]


def to_torch(x):
    """`[n, H, W, C]` as diffusers has it."""
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def to_numpy(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def noise_of(num, channels=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num, 8, 8, channels)).astype(np.float32)


def send(workdir, out, **changes):
    export.run(export.Request(workdir=str(workdir), out=str(out), **changes))
    return out


def assert_same(theirs, ours):
    assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.abs(ours).max())


def draw_each(sampler, cond, noise):
    """Our samples of each of `WEIGHTS`, all on the same noise: `[weights, n, H, W, C]`."""
    many, n = len(WEIGHTS), len(noise)
    tiled = {name: np.tile(value, (many, *[1] * (value.ndim - 1))) for name, value in cond.items()}
    w = np.repeat(WEIGHTS, n)
    x = sampler.draw(tiled, w=w, noise=np.tile(noise, (many, 1, 1, 1)))
    return x.reshape(many, n, *x.shape[1:])


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    """A folder `source` of Stable Diffusion, `run` with its students, and what they became."""
    root = tmp_path_factory.mktemp("sd")
    teacher = bring_teacher(make_sd(root / "source"), root / "teacher")
    for num_steps in STEPS:
        finish_student(root / "run", teacher, num_steps)
        send(root / "run", root / f"sd-{num_steps}", num_steps=num_steps)
    return root


STOCK = """
import json, sys
sys.modules["guided_distill"] = None  # As where it is not installed.
try:
    import torchvision
except Exception:
    sys.modules["torchvision"] = None
import numpy as np, torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)  # Small tensors: more threads wait for each other.
arrays, found = np.load("given.npz"), {}
for num_steps in json.loads(sys.argv[1]):
    pipe = DiffusionPipeline.from_pretrained(f"sd-{num_steps}", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    calls = []
    pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    for w in json.loads(sys.argv[2]):
        latents = torch.from_numpy(arrays["noise"])
        found[f"{num_steps} {w}"] = pipe(
            prompt_embeds=torch.from_numpy(arrays["cond"]), latents=latents,
            num_inference_steps=num_steps, guidance_scale=1 + w, output_type="latent",
        ).images.numpy()
    found[f"{num_steps} calls"] = calls
    print(type(pipe).__name__, type(pipe.scheduler).__name__)
np.savez("found.npz", **found)
"""


def test_the_stock_pipeline_samples_as_we_do(sd):
    noise, cond = noise_of(2), np.random.default_rng(1).standard_normal((2, 9, 12))
    cond = cond.astype(np.float32)
    np.savez(sd / "given.npz", noise=to_torch(noise).numpy(), cond=cond)
    command = [sys.executable, "-I", "-c", STOCK, json.dumps(STEPS), json.dumps(WEIGHTS)]
    done = subprocess.run(command, cwd=sd, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"StableDiffusionPipeline", "DDIMScheduler"}
    assert "were not used" not in done.stderr and "were not init" not in done.stderr
    found = np.load(sd / "found.npz")
    for num_steps in STEPS:
        sampler = Sampler.load(sd / "run", num_steps)
        samples = draw_each(sampler, {"encoder_hidden_states": cond}, noise)
        for w, ours in zip(WEIGHTS, samples, strict=True):
            assert_same(np.moveaxis(found[f"{num_steps} {w}"], 1, -1), ours)
        assert np.abs(samples[0] - samples[-1]).max() > 0.02 * np.abs(samples[0]).max()
        assert found[f"{num_steps} calls"].tolist() == [2] * num_steps * len(WEIGHTS)


def cond_of(sampler):
    """Random numbers for what the model is conditioned on, of two samples."""
    rng = np.random.default_rng(1)
    takes = sampler._takes.items()
    return {name: rng.standard_normal((2, *one.shape)).astype(np.float32) for name, one in takes}


@pytest.fixture(scope="module")
def four(sd):
    """(stock pipeline of the student of 4, our sampler of it)."""
    torch.set_num_threads(1)
    return stock(sd / "sd-4"), Sampler.load(sd / "run", 4)


def counted(pipe, **arguments):
    """(what the pipeline draws, batch size of each network call)."""
    calls = []
    hook = pipe.components.get("unet", pipe.components.get("transformer"))
    hook = hook.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(
            len(args[0] if args else kwargs["hidden_states"])
        ),
        with_kwargs=True,
    )
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        found = pipe(**arguments).images
    hook.remove()
    return found, calls


def test_the_folder_is_whole(sd):
    """What the student does not change is the teacher's, and w's fast sinusoids say nothing."""
    for path in sorted((sd / "source").rglob("*")):
        name = path.relative_to(sd / "source")
        if path.is_file() and name.parts[0] not in ("unet", "scheduler", "model_index.json"):
            assert (sd / "sd-4" / name).read_bytes() == path.read_bytes(), name
    index, before = (read_json(sd / name / "model_index.json") for name in ("sd-4", "source"))
    assert index == before | {"scheduler": ["diffusers", "DDIMScheduler"]}
    config, before = (read_json(sd / name / "unet/config.json") for name in ("sd-4", "source"))
    assert config == before | {"time_cond_proj_dim": 256}
    weight = read_tensors(sd / "sd-4/unet/diffusion_pytorch_model.safetensors")
    weight = weight["time_embedding.cond_proj.weight"]
    assert not weight[:, ~slow_rows()].any() and weight[:, slow_rows()].all()


def test_prompts_go_through_the_card_s_own_lines(sd, monkeypatch):
    card = (sd / "sd-4" / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "num_inference_steps=4" in code and "guidance_scale=1 + w" in code
    monkeypatch.chdir(sd)
    found = {}
    exec(code.replace("red bicycle", "cat"), found)  # The small tokenizer has no spaces to spare.
    assert found["image"].size == (16, 16) and found["w"] == 2.0
    assert "5eed5eed" in card and 'base_model: "source"' in card and "license" in card.lower()
    assert str(sd) not in card


@pytest.mark.parametrize("prediction", ["v", "x"])
def test_a_student_that_predicts_something_else_than_its_teacher_says_so(sd, prediction, tmp_path):
    name = "run/step_two/deterministic/0004"
    shutil.copytree(sd / name, tmp_path / name)
    path = tmp_path / name / "stage.json"
    write_json(path, read_json(path) | {"parameterization": prediction})
    sampler = Sampler.load(tmp_path / "run", 4)
    pipe = stock(send(tmp_path / "run", tmp_path / "out"))
    cond = cond_of(sampler)
    found, _ = counted(
        pipe, prompt_embeds=torch.from_numpy(cond["encoder_hidden_states"]), guidance_scale=3.0,
        num_inference_steps=4, latents=to_torch(noise_of(2)), output_type="latent",
    )  # fmt: skip
    assert_same(to_numpy(found), sampler.draw(cond, w=2.0, noise=noise_of(2)))


@pytest.mark.parametrize("calls", [2, 3, 4])
def test_pictures_are_changed_on_the_students_own_times(four, calls):
    """img2img of strength k/N: our steps from t = k/N, of the noised latents of the picture."""
    pipe, sampler = four
    to_picture = class_of("diffusers", "StableDiffusionImg2ImgPipeline")(
        **pipe.components, requires_safety_checker=False
    )
    cond = cond_of(sampler)["encoder_hidden_states"]
    x, seed = to_torch(noise_of(2, seed=3)), torch.Generator().manual_seed(0)
    eps = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs, made = counted(
        to_picture, image=x, prompt_embeds=torch.from_numpy(cond), strength=calls / 4,
        num_inference_steps=4, guidance_scale=3.0, output_type="latent", generator=seed,
    )  # fmt: skip
    assert made == [2] * calls
    z = to_numpy(pipe.scheduler.add_noise(x, eps, torch.tensor([250 * calls - 1])))
    if calls == 4:
        ours = sampler.draw({"encoder_hidden_states": cond}, w=2.0, noise=z)
    else:
        model, params = Model.load(sampler.stage.path)
        denoise, on = model.denoiser(params, jnp.asarray(cond)), model.schedule.logsnr
        for i in range(calls, 0, -1):
            logsnr_t, logsnr_s = (on(np.full(2, k / 4, np.float32)) for k in (i, i - 1))
            x_hat = denoise(jnp.asarray(z), logsnr_t, jnp.full(2, 2.0))
            z = ddim_step(x_hat, z, logsnr_t=logsnr_t, logsnr_s=logsnr_s)
        ours = z
    assert_same(to_numpy(theirs), np.asarray(ours))


@pytest.mark.parametrize("calls", [2, 4])
def test_what_the_mask_leaves_is_the_pictures(four, calls):
    pipe, sampler = four
    fill = class_of("diffusers", "StableDiffusionInpaintPipeline")(
        **pipe.components, requires_safety_checker=False
    )
    cond = cond_of(sampler)["encoder_hidden_states"]
    picture, noise = torch.rand(2, 3, 16, 16), to_torch(noise_of(2, seed=4))
    x = fill._encode_vae_image(2.0 * picture - 1.0, torch.Generator().manual_seed(0)).detach()
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1.0
    arguments = dict(
        image=picture, prompt_embeds=torch.from_numpy(cond), strength=calls / 4,
        num_inference_steps=4, guidance_scale=3.0, output_type="latent", height=16, width=16,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    found, made = counted(fill, mask_image=mask, latents=noise.clone(), **arguments)
    assert made == [2] * calls
    assert_array_equal(found[..., 4:], x[..., 4:])
    assert (found[..., :4] - x[..., :4]).abs().min() > 0.0
    if calls == 4:  # Everything painted anew is a sample of its own.
        found, _ = counted(
            fill, mask_image=torch.ones_like(mask), latents=noise.clone(), **arguments
        )
        ours = sampler.draw({"encoder_hidden_states": cond}, w=2.0, noise=to_numpy(noise))
        assert_same(to_numpy(found), ours)


def test_one_weight_is_folded_exactly_where_a_pipeline_has_no_dial(tmp_path):
    teacher = bring_teacher(make_dit(tmp_path / "source"), tmp_path / "teacher")
    finish_student(tmp_path / "run", teacher, 4, num_classes=1000)
    with pytest.raises(UserError, match=r"DiTPipeline has no dial.*`w`.*0 to 4, such as --w=4"):
        send(tmp_path / "run", tmp_path / "out")
    send(tmp_path / "run", tmp_path / "out", w=(0.5, 4.0))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"w0.5", "w4"}
    sampler, labels = Sampler.load(tmp_path / "run", 4), [1, 7, 999]
    drawn = []
    for w in (0.5, 4.0):
        pipe = stock(tmp_path / "out" / f"w{w:g}")
        pipe.vae.decode = lambda z: types.SimpleNamespace(sample=z)
        scale = pipe.vae.config.scaling_factor
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                sys.modules[type(pipe).__module__],
                "randn_tensor",
                lambda *a, **k: to_torch(noise_of(3)),
            )
            clamp = lambda x, low, high: x  # noqa: E731  The pipeline gives pictures alone.
            patch.setattr(torch.Tensor, "clamp", clamp)
            found, calls = counted(
                pipe,
                class_labels=labels,
                num_inference_steps=4,
                guidance_scale=1.0,
                output_type="pt",
            )
        assert calls == [3] * 4
        drawn.append(sampler.draw(labels, w=w, noise=noise_of(3)))
        assert_same(to_numpy((2.0 * found - 1.0) * scale), drawn[-1])
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-2 * np.abs(drawn[0]).max()
    config = read_json(tmp_path / "out/w4/transformer/config.json")
    assert config == read_json(tmp_path / "source/transformer/config.json")


@pytest.mark.slow
def test_a_network_of_pixels_and_classes_is_folded_and_clipped_alike(tmp_path):
    """No pipeline gives it a class: the lines of the card do, with the stock scheduler."""
    teacher = bring_teacher(make_unet2d(tmp_path / "source"), tmp_path / "teacher")
    finish_student(tmp_path / "run", teacher, 4, num_classes=10)
    send(tmp_path / "run", tmp_path / "out", w=(1.5,))
    (code,) = re.findall(
        r"```python\n(.*?)```", (tmp_path / "out/README.md").read_text(), re.DOTALL
    )
    noise, found = noise_of(1, channels=3), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(torch, "randn", lambda *shape: to_torch(noise))
        exec(code, found)
    ours = Sampler.load(tmp_path / "run", 4).draw([0], w=1.5, noise=noise)
    assert_same(to_numpy(found["z"]), ours)
    assert np.abs(ours).max() == 1.0


@pytest.mark.slow
def test_sdxl_samples_in_n_calls_of_b(tmp_path):
    teacher = bring_teacher(make_sdxl(tmp_path / "source"), tmp_path / "teacher")
    finish_student(tmp_path / "run", teacher, 2)
    pipe = stock(send(tmp_path / "run", tmp_path / "out", num_steps=2))
    sampler, noise = Sampler.load(tmp_path / "run", 2), noise_of(2)
    cond = cond_of(sampler)
    cond["added_cond_kwargs.time_ids"][:] = [16, 16, 0, 0, 16, 16]
    theirs, calls = counted(
        pipe, prompt_embeds=torch.from_numpy(cond["encoder_hidden_states"]),
        pooled_prompt_embeds=torch.from_numpy(cond["added_cond_kwargs.text_embeds"]),
        latents=to_torch(noise), num_inference_steps=2, guidance_scale=4.0, output_type="latent",
    )  # fmt: skip
    assert calls == [2] * 2
    assert_same(to_numpy(theirs), sampler.draw(cond, w=3.0, noise=noise))


NO_TEXT = {f"{name}{n}": None for name in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}


def make_sd3(folder, shift):
    scheduler = class_of("diffusers", "FlowMatchEulerDiscreteScheduler")(shift=shift)
    pipe = class_of("diffusers", "StableDiffusion3Pipeline")(
        transformer=network("sd3")[0], vae=vae(shift_factor=0.1), scheduler=scheduler,
        **NO_TEXT,
    )  # fmt: skip
    return save(pipe, folder)


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "steps"), [(1.0, (1, 4)), (3.0, (2, 4))])
def test_rectified_flow_steps_on_the_students_grid(shift, steps, tmp_path):
    teacher = bring_teacher(make_sd3(tmp_path / "source", shift), tmp_path / "teacher")
    for num_steps in steps:
        finish_student(tmp_path / "run", teacher, num_steps)
        out = tmp_path / f"out-{num_steps}"
        send(tmp_path / "run", out, num_steps=num_steps, w=(3.0,))
        pipe = class_of("diffusers", "DiffusionPipeline").from_pretrained(out, **NO_TEXT)
        sampler, noise = Sampler.load(tmp_path / "run", num_steps), noise_of(2)
        cond = cond_of(sampler)
        given = re.findall(r"sigmas=(\[.*\])", (out / "README.md").read_text("utf-8"))
        assert bool(given) == (shift != 1.0 and num_steps > 2)
        theirs, calls = counted(
            pipe, prompt_embeds=torch.from_numpy(cond["encoder_hidden_states"]),
            pooled_prompt_embeds=torch.from_numpy(cond["pooled_projections"]),
            latents=to_torch(noise), num_inference_steps=num_steps, guidance_scale=1.0,
            output_type="latent", height=16, width=16,
            **({"sigmas": json.loads(given[0])} if given else {}),
        )  # fmt: skip
        assert calls == [2] * num_steps
        assert_same(to_numpy(theirs), sampler.draw(cond, w=3.0, noise=noise))


REFUSED = [
    (dict(out=""), "`out` is missing"),
    (dict(out="source"), "`out` .*source is not empty"),
    (dict(num_steps=3), r"`num_steps` 3 was never distilled; distilled to: 1, 2, 4, 5, 8, 10"),
    (dict(w=(4.5,)), r"`w` must lie in the trained range \[0, 4\], got 4.5"),
    (dict(stage="step_two/stochastic"), "the stochastic sampler, which no stock scheduler has"),
    (dict(stage="step_two/encoder"), "is an encoder"),
    (dict(stage="step_two/two_student"), "takes two network calls a step"),
    (dict(stage="step_one", num_steps=16), "by 1000 // 16 times.*it steps exactly at .*20"),
    (dict(from_="gone"), "gone holds no model_index.json: name in `from`"),
    (dict(from_="other"), "unet has layers_per_block 2, but the teacher was imported with 1"),
    (dict(from_="lacking"), "lacking lacks the component vae, which model_index.json names"),
    (dict(from_="pickled"), "text_encoder has its weights as a pickle alone"),
    (dict(from_="empty"), "unet has no diffusion_pytorch_model.safetensors"),
]


@pytest.fixture(scope="module")
def wrong(sd, tmp_path_factory):
    """A folder of workdirs and sources that something is amiss with."""
    root = tmp_path_factory.mktemp("wrong")
    for name in ("source", "other", "lacking", "pickled", "empty"):
        shutil.copytree(sd / "source", root / name)
    config = json.loads((root / "other/unet/config.json").read_text())
    (root / "other/unet/config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    shutil.rmtree(root / "lacking" / "vae")
    weights = root / "pickled" / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    (root / "empty/unet/diffusion_pytorch_model.safetensors").unlink()
    shutil.copytree(sd / "run", root / "run")
    for name in ("stochastic", "encoder", "two_student"):
        changes = {"algorithm": name, "name": f"step_two/{name}/0004"}
        finish_student(root / "run", sd / "teacher", 4, **changes)
    changes = {"stage": "step_one", "algorithm": None, "factor": None}
    one = finish_student(root / "run", sd / "teacher", 16, name="step_one", **changes)
    write_json(one.path / "stage.json", one.record | {"num_steps": None})
    return root


@pytest.mark.parametrize(("changes", "match"), REFUSED)
def test_what_cannot_go_home_is_refused_before_anything_is_written(
    changes, match, wrong, monkeypatch
):
    monkeypatch.chdir(wrong)
    changes = {"num_steps": 4, "out": "out"} | changes
    with pytest.raises(UserError, match=match):
        send(wrong / "run", **changes)
    assert not list(wrong.glob("out*"))


def test_a_teacher_of_no_diffusers_folder_has_none_to_go_home_to(sd, tmp_path):
    shutil.copytree(sd / "teacher", tmp_path / "teacher")
    record = read_json(tmp_path / "teacher/model.json")
    del record["model"]["diffusers"]
    write_json(tmp_path / "teacher/model.json", record)
    finish_student(tmp_path / "run", tmp_path / "teacher", 4)
    with pytest.raises(UserError, match=r"came from no diffusers folder.*--mode=import"):
        send(tmp_path / "run", tmp_path / "out")


def test_a_killed_export_leaves_nothing_that_looks_whole(sd, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(diffusers_folder, "write_tensors", fail)
        send(sd / "run", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out.partial").mkdir()  # As a kill leaves it.
    (tmp_path / "out.partial" / "half.json").touch()
    send(sd / "run", tmp_path / "out")
    assert not (tmp_path / "out" / "half.json").exists() and len(list(tmp_path.iterdir())) == 1


def test_what_is_not_changed_can_be_linked_and_a_moved_source_named(sd, tmp_path):
    shutil.copytree(sd / "source", tmp_path / "moved")
    variant = tmp_path / "moved/vae/diffusion_pytorch_model.safetensors"
    variant.rename(variant.with_name("diffusion_pytorch_model.fp16.safetensors"))
    index = read_json(tmp_path / "moved/model_index.json")
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (tmp_path / "moved/model_index.json").write_text(json.dumps(index))
    (tmp_path / "moved/text_encoder/pytorch_model.bin").touch()
    send(sd / "run", tmp_path / "out", from_=str(tmp_path / "moved"), link=True, w=(2.0,))
    vae = tmp_path / "out/vae/diffusion_pytorch_model.safetensors"
    assert vae.stat().st_nlink == 2 and not list((tmp_path / "out").rglob("*.bin"))
    index = read_json(tmp_path / "out/model_index.json")
    assert index["safety_checker"] == [None, None] and not index["requires_safety_checker"]
    # A dial that is folded is the dial at that weight, for tools that know of no dial.
    sampler, noise = Sampler.load(sd / "run", 4), noise_of(2)
    cond = cond_of(sampler)
    theirs, calls = counted(
        stock(tmp_path / "out"), prompt_embeds=torch.from_numpy(cond["encoder_hidden_states"]),
        latents=to_torch(noise), num_inference_steps=4, guidance_scale=1.0, output_type="latent",
    )  # fmt: skip
    assert calls == [2] * 4
    assert_same(to_numpy(theirs), sampler.draw(cond, w=2.0, noise=noise))


def test_the_card_has_the_runs_own_results(sd, tmp_path):
    shutil.copytree(sd / "run", tmp_path / "run")
    record = StageFolder(tmp_path / "run/step_two/deterministic/0004").finished().record
    rows = [
        {"model": "student", "num_steps": n, "w": w, "fid": 10.0 * n + w, "network_calls": n}
        for n in (2, 4)
        for w in (0.0, 1.0)
    ]
    provenance = {"params_sha256": {record["name"]: record["params_sha256"]}, "distance": "To 9."}
    results = tmp_path / "run/report/results.json"
    results.parent.mkdir()
    write_json(results, {"rows": rows, "provenance": provenance})
    card = (send(tmp_path / "run", tmp_path / "a") / "README.md").read_text("utf-8")
    assert "| **40.00** | **41.00** |" in card and "20.00" not in card
    provenance["params_sha256"] = {record["name"]: "another"}
    write_json(results, {"rows": rows, "provenance": provenance})
    card = (send(tmp_path / "run", tmp_path / "b") / "README.md").read_text("utf-8")
    assert "40.00" not in card


@pytest.mark.slow
def test_a_folder_in_and_a_folder_out_by_command(tmp_path):
    def command(**flags):
        command = [sys.executable, "-m", "guided_distill.main"]
        command += [f"--{name}={value}" for name, value in flags.items()]
        return subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True
        )

    guided_distill.import_diffusers(make_sd(tmp_path / "source"), out=tmp_path / "teacher")
    finish_student(tmp_path / "run", tmp_path / "teacher", 2)
    done = command(mode="export", format="diffusers", workdir="run", num_steps=2, out="sd-2/")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("sd-2: StableDiffusionPipeline, sample with")
    pipe = stock(tmp_path / "sd-2")
    assert pipe("a", num_inference_steps=2, guidance_scale=3.0).images[0].size == (16, 16)
    for flags, message in (
        (dict(out="sd-2"), "--out sd-2 is not empty"),
        (dict(out="b", num_steps=4), "--num_steps 4 was never distilled"),
        (dict(out="b", images="x"), "--images means nothing to --mode=export"),
    ):
        refused = command(mode="export", workdir="run", **{"num_steps": 2} | flags)
        assert refused.returncode == 1 and message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


ALONE = """
import sys
sys.modules["guided_distill"] = None  # As where it is not installed.
from load import sample
import numpy as np
given = np.load(sys.argv[1])
np.save(sys.argv[2], sample({"encoder_hidden_states": given["cond"]}, w=given["w"], seed=4))
"""


def test_an_imported_student_leaves_with_its_program(sd, tmp_path):
    out = send(sd / "run", tmp_path / "out", num_steps=4, format="jax")
    cond = np.random.default_rng(1).standard_normal((5, 9, 12)).astype(np.float32)
    w = np.array(WEIGHTS, np.float32)
    np.savez(tmp_path / "given.npz", cond=cond, w=w)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path / "given.npz", tmp_path / "x.npy"],
        cwd=out, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    ours = Sampler.load(sd / "run", 4).draw({"encoder_hidden_states": cond}, w=w, seed=4)
    assert_same(np.load(tmp_path / "x.npy"), ours)  # Bit for bit on as many devices.
    again = Sampler.load(out, 4).draw({"encoder_hidden_states": cond}, w=w, seed=4)
    assert_array_equal(again, ours)
