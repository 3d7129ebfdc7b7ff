"""Models that others trained, imported: what they are told, where w enters, what is refused."""

import functools
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from conftest import environment  # noqa: E402
from torch import nn  # noqa: E402
from torch_networks import network  # noqa: E402

import guided_distill  # noqa: E402
from guided_distill.diffusion.known_schedules import read_schedule  # noqa: E402
from guided_distill.diffusion.samplers import sample_ddim  # noqa: E402
from guided_distill.distill.distillations import ALGORITHMS  # noqa: E402
from guided_distill.distill.losses import LOSS_WEIGHTS  # noqa: E402
from guided_distill.errors import UserError  # noqa: E402
from guided_distill.models import importing  # noqa: E402
from guided_distill.models.from_torch import export_graph  # noqa: E402
from guided_distill.models.imported import W_BRANCH, imported_model  # noqa: E402
from guided_distill.models.student import init_student  # noqa: E402
from guided_distill.system.tensors import read_tensors, write_tensors  # noqa: E402
from guided_distill.system.workdir import StageFolder  # noqa: E402

ROLES = {
    "unet2d": dict(z="sample", time="timestep", null={"class_labels": 10}),
    "dit": dict(z="hidden_states", time="timestep", null={"class_labels": 7}, output=4),
    "unet_text": dict(
        z="sample", time="timestep", null={"encoder_hidden_states": np.zeros((5, 12))}
    ),
    "film_net": dict(z="x", time="time", schedule="cosine", prediction="v"),
    "flux": dict(z="hidden_states", time="timestep", schedule="flow", prediction="flow"),
}


@functools.cache
def traced(name):
    return *(pair := network(name)), export_graph(*pair)


def bring(name, out, **changes):
    """(module, example, model, params) of a network that was imported; it is traced once."""
    module, example, graph_and_params = traced(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importing, "export_graph", lambda *args, output: graph_and_params)
        return module, example, *bring_anew(module, example, out, **ROLES[name] | changes)


def bring_anew(module, example, out, **changes):
    arguments = dict(prediction="eps", schedule="scaled_linear") | changes
    guided_distill.import_torch(module, example, out=out, **arguments)
    return guided_distill.Model.load(out)


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    return bring("unet2d", tmp_path_factory.mktemp("unet") / "out")


def student_of(folder, params):
    """(model, parameters) of a fresh student of an imported folder."""
    stage = StageFolder(folder).finished()
    student = imported_model(stage.record["model"], folder, knows_w=True)
    return student, init_student(student.init(jax.random.key(0)), params)


def draw(model, batch, seed=0):
    rng = np.random.default_rng(seed)
    z = jnp.asarray(rng.standard_normal((batch, *model.sample_shape)), jnp.float32)
    times = np.round(rng.uniform(0.1, 1.0, batch) * 1000) / 1000
    return z, model.schedule.logsnr(times.astype(np.float32)), jnp.linspace(0.0, 4.0, batch)


def test_a_model_is_its_module(unet):
    module, example, model, params = unet
    z, logsnr, _ = draw(model, 5)
    index = jnp.asarray([3, 150, 500, 998, 999])
    logsnr = model.schedule.logsnr((index + 1) / 1000.0)
    labels = jnp.asarray([0, 3, 9, 10, 1])
    images = torch.from_numpy(np.asarray(z).transpose(0, 3, 1, 2))
    with torch.no_grad():
        theirs = module(
            images, torch.from_numpy(np.asarray(index)), torch.from_numpy(np.asarray(labels))
        ).sample.numpy()
    raw = model.raw(params, dict(sample=images.numpy(), timestep=index, class_labels=labels))
    assert_allclose(raw, theirs, atol=1e-5 * np.abs(theirs).max())
    for cond in (labels, {"class_labels": labels}):
        ours = model.apply(params, z, logsnr, cond, None, None)
        assert_allclose(ours.transpose(0, 3, 1, 2), theirs, atol=1e-5 * np.abs(theirs).max())
    assert_array_equal(model.conditioning.nulls(labels), np.full(5, 10))
    assert_array_equal(model.conditioning.nulls({"class_labels": labels})["class_labels"], [10] * 5)


@pytest.mark.parametrize("name", ["unet2d", "dit", "unet_text"])
def test_a_fresh_student_is_the_conditional_teacher_at_every_w(name, tmp_path):
    _, example, model, params = bring(name, tmp_path / "out")
    student, student_params = student_of(tmp_path / "out", params)
    (cond,) = (example[key] for key in ROLES[name]["null"])
    cond = jnp.asarray(np.resize(np.asarray(cond), (4, *cond.shape[1:])))
    z, logsnr, w = draw(model, 4)
    teacher_says = model.denoiser(params, cond)(z, logsnr, w)
    assert_array_equal(student.denoiser(student_params, cond)(z, logsnr, w), teacher_says)
    # What it learns there matters, to every w in its own way but to w = 0 as to no other.
    student_params[W_BRANCH] = jax.tree.map(lambda a: a + 0.05, student_params[W_BRANCH])
    moved = student.denoiser(student_params, cond)(
        jnp.tile(z[:1], (4, 1, 1, 1)), jnp.full(4, logsnr[0]), w
    )
    assert len({float(np.asarray(one).sum()) for one in moved}) == 4


def test_where_the_embedder_repeats_w_enters_every_block(tmp_path):
    bring("dit", tmp_path / "out")
    description = json.loads((tmp_path / "out" / "model.json").read_text())["model"]
    # The first block's embedder drives the output as well: three calls of two layers.
    assert len(description["sites"]) == 3 and len(set(description["sites"].values())) == 2
    assert description["channels"] == [0, 1, 2, 3]


def test_layers_that_w_enters_can_be_named(tmp_path):
    _, _, _, params = bring("unet2d", tmp_path / "out", w_sites="time_embedding.linear_2")
    _, student_params = student_of(tmp_path / "out", params)
    (matrix,) = student_params[W_BRANCH].values()
    assert matrix.shape == (256, params["time_embedding.linear_2.weight"].shape[1])


class Plane(nn.Module):
    """Points of the plane in one of two classes, the time beside them: no embedding at all."""

    def __init__(self):
        super().__init__()
        layers = nn.Linear(2 + 1 + 3, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 2)
        self.layers = nn.Sequential(*layers)

    def forward(self, x, time, label):
        told = nn.functional.one_hot(label, 3).float()
        return self.layers(torch.cat([x, time[:, None], told], 1))


def test_w_enters_a_network_that_is_told_the_bare_time(tmp_path, capfd):
    torch.manual_seed(0)
    example = dict(x=torch.randn(2, 2), time=torch.rand(2), label=torch.tensor([0, 1]))
    roles = dict(z="x", time="time", null={"label": 2}, schedule="flow", prediction="flow")
    model, params = bring_anew(Plane().eval(), example, tmp_path / "out", **roles)
    assert "w enters at: layers.0\n" in capfd.readouterr().err
    student, student_params = student_of(tmp_path / "out", params)
    assert student_params[W_BRANCH]["layers.0"].shape == (256, 16)
    z, logsnr, w = draw(model, 4)
    cond = jnp.asarray([0, 1, 1, 0])
    says = model.denoiser(params, cond)(z, logsnr, w)
    assert_array_equal(student.denoiser(student_params, cond)(z, logsnr, w), says)
    student_params[W_BRANCH] = jax.tree.map(lambda a: a + 0.05, student_params[W_BRANCH])
    moved = student.denoiser(student_params, cond)(z, logsnr, w)
    assert np.abs(moved - says).max(axis=1).min() > 1e-3


def test_a_module_with_a_guidance_embedding_is_a_model_of_w(tmp_path):
    """Flux's guidance is 1 + w; it teaches rounds at once, without step one."""
    module, example, model, params = bring("flux", tmp_path / "out")
    record = StageFolder(tmp_path / "out").finished().record
    assert model.knows_w and record["stage"] == "step_one" and record["model"]["sites"] == {}
    z, logsnr, w = draw(model, 2)
    cond = {
        key: jnp.asarray(example[key]) for key in ("encoder_hidden_states", "pooled_projections")
    }
    sigma = np.asarray(jax.nn.sigmoid(-0.5 * logsnr))
    with torch.no_grad():
        theirs = module(
            **example
            | dict(
                hidden_states=torch.from_numpy(np.asarray(z)),
                timestep=torch.from_numpy(sigma),
                guidance=torch.from_numpy(1.0 + np.asarray(w)),
            )
        ).sample.numpy()
    ours = model.apply(params, z, logsnr, cond, w, None)
    assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.slow
def test_a_guidance_input_of_a_guided_module_must_have_no_effect_yet(tmp_path):
    arguments = dict(
        z="sample", time="timestep", prediction="eps", schedule="scaled_linear",
        null={"encoder_hidden_states": np.zeros((5, 12))},
    )  # fmt: skip
    module, example = network("unet_text_w")
    with pytest.raises(UserError, match="knows a guidance weight by timestep_cond, and `null`"):
        guided_distill.import_torch(module, example, out=tmp_path / "a", **arguments)
    as_conditioning = arguments["null"] | {"timestep_cond": np.zeros(6)}
    named = arguments | {"null": as_conditioning}
    guided_distill.import_torch(module, example, out=tmp_path / "c", **named)
    assert "timestep_cond" in guided_distill.Model.load(tmp_path / "c")[0].conditioning.takes
    nn.init.zeros_(module.time_embedding.cond_proj.weight)
    guided_distill.import_torch(module, example, out=tmp_path / "b", **arguments)
    model, params = guided_distill.Model.load(tmp_path / "b")
    student, student_params = student_of(tmp_path / "b", params)
    assert set(student_params) == set(params) and not model.knows_w and student.knows_w
    z, logsnr, w = draw(model, 2)
    cond = jnp.asarray(example["encoder_hidden_states"])
    assert_array_equal(
        student.denoiser(student_params, cond)(z, logsnr, w),
        model.denoiser(params, cond)(z, logsnr, w),
    )


@pytest.mark.parametrize("num_steps", [1, 2, 4, 10])
def test_sampling_is_the_stock_schedulers(unet, num_steps):
    """A guided module through diffusers' DDIM scheduler, and its model through ours."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    module, _, model, params = unet
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        set_alpha_to_one=True, timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(num_steps)
    rng, w = np.random.default_rng(0), 1.5
    z_1 = rng.standard_normal((3, *model.sample_shape)).astype(np.float32)
    labels = torch.tensor([1, 5, 9])
    z = torch.from_numpy(z_1.transpose(0, 3, 1, 2))
    with torch.no_grad():
        for time in scheduler.timesteps:
            eps, null = (module(z, time, c).sample for c in (labels, torch.full_like(labels, 10)))
            z = scheduler.step(null + (1 + w) * (eps - null), time, z).prev_sample
    guided = model.guided(params, jnp.asarray(labels.numpy()))
    ours = sample_ddim(
        guided, jnp.asarray(z_1), jnp.full(3, w), num_steps=num_steps,
        logsnr_fn=model.schedule.logsnr, bound=None,
    )  # fmt: skip
    theirs = z.numpy().transpose(0, 2, 3, 1)
    assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import jax.numpy as jnp, numpy as np, guided_distill
model, params = guided_distill.Model.load(sys.argv[1])
z = jnp.ones((3, *model.sample_shape))
x = model.guided(params, jnp.asarray([1, 2, 3]))(z, jnp.zeros(3), jnp.ones(3))
np.save(sys.argv[2], x)
"""


def test_a_model_is_loaded_where_pytorch_is_not(unet, tmp_path):
    _, _, model, params = unet
    bring("unet2d", tmp_path / "out")
    command = [sys.executable, "-c", WITHOUT_TORCH, tmp_path / "out", tmp_path / "x.npy"]
    subprocess.run(command, env=environment(), check=True)
    z = jnp.ones((3, *model.sample_shape))
    here = model.guided(params, jnp.asarray([1, 2, 3]))(z, jnp.zeros(3), jnp.ones(3))
    assert_allclose(np.load(tmp_path / "x.npy"), here, atol=1e-6 * float(np.abs(here).max()))


@pytest.mark.slow
def test_an_encoder_of_prompts_and_latents_learns(tmp_path):
    """Algorithm 4 on a table whose λ(0) is infinite: gradients are finite, and reach w's branch."""
    _, example, model, params = bring("unet_text", tmp_path / "out")
    student, student_params = student_of(tmp_path / "out", params)
    cond = jnp.asarray(example["encoder_hidden_states"])
    x = jax.random.normal(jax.random.key(1), (2, *model.sample_shape))

    def loss(params, teacher_params):
        losses = ALGORITHMS["encoder"].loss(
            student.denoiser(params, cond), student.denoiser(teacher_params, cond), x,
            jax.random.split(jax.random.key(2), 2), schedule=model.schedule, num_steps=4,
            w_range=(0.0, 4.0), loss_weight=LOSS_WEIGHTS["snr_trunc"],
        )  # fmt: skip
        return losses.mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(student_params, student_params)
    assert np.isfinite(value) and value > 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert all(np.abs(leaf).max() > 0.0 for leaf in jax.tree.leaves(grads[W_BRANCH]))


def noisy_terminal():
    table = np.asarray(read_schedule("zero_terminal_snr").spec["alphas_bar"])
    return table


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(z="sampel"), "`z` 'sampel' is no input of the module, which takes sample.*mean samp"),
        (dict(time="class_label"), "`time` 'class_label' is no input.*mean class_labels"),
        (dict(time="sample", z="timestep"), "`time` sample must be one number an example"),
        (dict(z="timestep"), "`z` and `time` are both 'timestep'"),
        (dict(prediction="epsilon"), "`prediction` must be one of x, eps, v, flow, got 'epsilon'"),
        (dict(schedule="scaled"), "schedule 'scaled' is none of"),
        (dict(schedule=[0.5, 0.9]), "must fall"),
        (dict(schedule="zero_terminal_snr"), "zero terminal SNR.*predicts v or flow"),
        (dict(schedule=noisy_terminal()), "zero terminal SNR"),
        (
            dict(schedule={"beta_schedule": "linear", "prediction_type": "v_prediction"}),
            "`prediction` is eps, but the scheduler's config says v",
        ),
        (dict(null={}), "`null` lacks class_labels"),
        (dict(null={"labels": 10}), "`null` names 'labels', but.*mean class_labels"),
        (dict(null={"class_labels": [10]}), r"`null` of class_labels must have the shape.*\[\]"),
        (dict(null={"class_labels": 10.5}), "`null` of class_labels must be int32, got 10.5"),
        (dict(null={"class_labels": float("nan")}), "not finite"),
        (dict(layout="NHCW"), "`layout` must be one of NCHW, NHWC"),
        (dict(output=2), "name the prediction's|of which `output` takes"),
        (dict(output=[0, 1, 7]), "`output` must lie in 0 to 2"),
        (dict(w_sites=["time_embedding.linear_3"]), "is no layer.*linear_[12]"),
        (dict(w="guidance"), "`w` 'guidance' is no input"),
        (dict(told="sigmas"), "`told` must be index"),
        (dict(told="t"), "`told` must be index"),
    ],
)
def test_roles_that_do_not_fit_are_refused(changes, match, tmp_path):
    with pytest.raises(UserError, match=match):
        bring("unet2d", tmp_path / "out", **changes)
    assert not (tmp_path / "out" / "model.json").exists()


def test_a_learned_sigma_must_be_cut(tmp_path):
    with pytest.raises(UserError, match="name the prediction's channels, such as `output`=4"):
        bring("dit", tmp_path / "out", output=None)


def test_a_module_in_training_mode_or_with_nan_is_refused(tmp_path):
    module, example = network("unet2d")
    arguments = dict(prediction="eps", schedule="linear", **ROLES["unet2d"])
    with pytest.raises(UserError, match=r"training mode.*\.eval\(\)"):
        guided_distill.import_torch(module.train(), example, out=tmp_path / "a", **arguments)
    with torch.no_grad():
        module.eval().conv_in.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="conv_in.weight"):
        guided_distill.import_torch(module, example, out=tmp_path / "b", **arguments)


def test_a_folder_that_holds_something_is_not_written_over(unet, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty: name a new folder"):
        bring("unet2d", tmp_path)


@pytest.mark.parametrize("name", ["graph.json", "constants.safetensors", "params.safetensors"])
@pytest.mark.parametrize("harm", ["cut", "emptied", "removed"])
def test_a_damaged_folder_is_named(name, harm, tmp_path):
    bring("film_net", tmp_path / "out")
    path = tmp_path / "out" / name
    content = path.read_bytes()
    path.unlink() if harm == "removed" else path.write_bytes(
        content[: len(content) // 2] if harm == "cut" else b""
    )
    with pytest.raises(UserError, match=name):
        guided_distill.Model.load(tmp_path / "out")


def test_weights_of_another_import_do_not_fit(tmp_path):
    bring("film_net", tmp_path / "a")
    other = read_tensors(tmp_path / "a" / "params.safetensors")
    name = sorted(other)[0]
    write_tensors(tmp_path / "a" / "params.safetensors", other | {name: other[name] + 1.0})
    with pytest.raises(UserError, match="params.safetensors.*not those of its record"):
        guided_distill.Model.load(tmp_path / "a")


def test_a_newer_folder_is_refused(tmp_path):
    bring("film_net", tmp_path / "out")
    for name in ("graph.json", "model.json"):
        shutil.copytree(tmp_path / "out", tmp_path / name)
        path = tmp_path / name / name
        record = json.loads(path.read_text())
        record.pop("digest")
        record.get("model", record)["format"] = 99
        path.write_text(json.dumps(record))
        with pytest.raises(UserError, match="format 99, newer than"):
            guided_distill.Model.load(tmp_path / name)


def test_the_command_line_imports(tmp_path):
    script = tmp_path / "teacher.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from torch_networks import network\n"
        "def get_teacher():\n"
        "    module, example = network('film_net')\n"
        "    return dict(module=module, example=example, z='x', time='time',\n"
        "                prediction='v', schedule='cosine')\n"
    )

    def run(**flags):
        command = [sys.executable, "-m", "guided_distill.main", "--mode=import"]
        command += [f"--{name}={value}" for name, value in flags.items()]
        return subprocess.run(command, env=environment(), capture_output=True, text=True)

    done = run(out=tmp_path / "out", **{"from": script})
    assert done.returncode == 0 and "w enters at: film.0" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 4
    for flags, message in (
        ({"out": tmp_path / "b"}, "--from is missing"),
        ({"from": script}, "--out is missing"),
        (
            {"from": tmp_path / "none.py", "out": tmp_path / "b"},
            "must be a diffusers folder, or one of transformers' CLIPModel, or a Python file",
        ),
    ):
        refused = run(**flags)
        assert refused.returncode == 1 and message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
