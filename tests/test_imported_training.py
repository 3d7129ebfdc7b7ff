"""Training of imported networks: precision, memory, devices and cost."""

import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_array_equal

pytest.importorskip("torch", reason="PyTorch is not installed")

from conftest import ROOT  # noqa: E402
from flax_dit import flax_dit_models  # noqa: E402
from imported_programs import KINDS, NUM_CLASSES, SMALL, programs_of, updated  # noqa: E402
from network_shapes import UNETS, make_unet  # noqa: E402
from test_importing import ROLES, bring, bring_anew, draw  # noqa: E402
from test_training import mesh_of  # noqa: E402
from torch_networks import network  # noqa: E402

from guided_distill.errors import UserError  # noqa: E402
from guided_distill.jobs import compile_check  # noqa: E402
from guided_distill.models.build import count_params  # noqa: E402
from guided_distill.models.imported import imported_model  # noqa: E402
from guided_distill.run.settings import load_config  # noqa: E402
from guided_distill.system.sharding import make_mesh, state_shardings  # noqa: E402
from guided_distill.system.workdir import StageFolder  # noqa: E402
from guided_distill.training.memory import GIB  # noqa: E402
from guided_distill.training.optimizer import make_optimizer  # noqa: E402
from guided_distill.training.program import shard_bytes  # noqa: E402
from guided_distill.training.state import init_state  # noqa: E402

CONFIG = ROOT / "configs" / "diffusers.py"
STATE = re.compile(r"^  :(\w+) .*G +([\d.]+) +([\d.]+) +([\d.]+)", re.MULTILINE)
PRODUCTS = ("dot_general", "conv_general_dilated")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`name -> folder` of an imported network, made once."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "out"
            roles = ROLES[name.removesuffix("_deep")] | {"null": {"class_labels": NUM_CLASSES}}
            bring_anew(*network(name), made[name], **roles)
        return made[name]

    return folder


def model_of(folder, **settings):
    stage = StageFolder(folder).finished()
    return imported_model(stage.record["model"], folder, knows_w=False, **settings), stage.params


def predict(model, batch=4):
    """`params -> prediction` of a fixed batch."""
    z, logsnr, _ = draw(model, batch)
    labels = jnp.arange(batch)
    return lambda params: model.apply(params, z, logsnr, labels, None, None)


def products_of(jaxpr):
    """(floating-point operations, dtypes of the operands) of every product and convolution."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            left, right = (v.aval for v in equation.invars)
            yield flops_of(equation, left, right), {left.dtype.name, right.dtype.name}
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from products_of(getattr(inner, "jaxpr", inner))


def is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def flops_of(equation, left, right):
    size = equation.outvars[0].aval.size
    if equation.primitive.name == "dot_general":
        axes = equation.params["dimension_numbers"][0][0]
        return 2 * size * math.prod(left.shape[axis] for axis in axes)
    outputs = right.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * size * right.size // outputs


def distance(there, here):
    """Norm of the difference of two trees over the norm of the second."""
    difference = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), there, here)
    return float(optax.tree.norm(difference) / optax.tree.norm(here))


def assert_same_update(one, other, tolerance):
    """That both moved, and to the same place."""
    before, params, metrics = one
    assert distance(before, params) > 1e-5
    np.testing.assert_allclose(other[2]["loss"], metrics["loss"], rtol=1e-5)
    assert distance(other[1], params) <= tolerance


@pytest.mark.parametrize("name", ["unet2d", "dit"])
def test_bfloat16_is_float32_to_its_precision(folders, name):
    model, params = model_of(folders(name))
    low, _ = model_of(folders(name), dtype="bfloat16")
    exact, rounded = (jax.jit(predict(m))(params) for m in (model, low))
    assert rounded.dtype == jnp.float32
    error = float(jnp.abs(exact - rounded).max() / jnp.abs(exact).max())
    assert 1e-4 < error < 3e-2
    grads = jax.jit(jax.grad(lambda p: jnp.mean(predict(low)(p) ** 2)))(params)
    for grad in jax.tree.leaves(grads):
        assert grad.dtype == jnp.float32 and bool(jnp.isfinite(grad).all())


@pytest.mark.parametrize("name", ["unet2d", "dit"])
def test_most_products_are_bfloat16_but_the_first_and_last(folders, name):
    model, params = model_of(folders(name), dtype="bfloat16")
    found = list(products_of(jax.make_jaxpr(predict(model))(params).jaxpr))
    low = sum(flops for flops, dtypes in found if dtypes == {"bfloat16"})
    assert low >= 0.8 * sum(flops for flops, _ in found)
    assert found[-1][1] == {"float32"}
    assert all(len(dtypes) == 1 for _, dtypes in found)
    model, params = model_of(folders(name))
    found = products_of(jax.make_jaxpr(predict(model))(params).jaxpr)
    assert all(dtypes == {"float32"} for _, dtypes in found)


def test_float32_is_the_graph_itself(folders):
    model, params = model_of(folders("unet2d"))
    told, _ = model_of(folders("unet2d"), dtype="float32")
    assert_array_equal(jax.jit(predict(told))(params), jax.jit(predict(model))(params))


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_in_bfloat16_keeps_float32_masters(folders, kind):
    _, exact, _ = updated(folders("dit"), kind, mesh_of(1))
    _, params, metrics = updated(folders("dit"), kind, mesh_of(1), model__dtype="bfloat16")
    assert np.isfinite(metrics["loss"]) and distance(params, exact) < 1e-2
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["unet2d", "dit"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {"memory__remat": "elementwise"},
        {"memory__remat": "full"},
        {"memory__gradient_accumulation": 4},
    ],
    ids=str,
)
def test_what_saves_memory_changes_no_number(folders, name, kind, settings):
    plain = updated(folders(name), kind, mesh_of(1))
    assert_same_update(plain, updated(folders(name), kind, mesh_of(1), **settings), 1e-6)


def test_remat_keeps_less_for_the_backward_pass(folders):
    kept = {}
    for remat in ("none", "elementwise", "full"):
        model, params = model_of(folders("dit_deep"), remat=remat)
        pullback = jax.eval_shape(lambda p, m=model: jax.vjp(predict(m), p)[1], params)
        leaves = jax.tree.leaves(pullback)
        kept[remat] = sum(leaf.size for leaf in leaves) - count_params(params)
    assert kept["full"] < 0.5 * kept["elementwise"] < 0.5 * kept["none"], kept


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_remat_takes_less_temporary_memory(folders):
    """By the TPU's compiler: that of the CPU makes one of what is computed twice."""
    mesh = make_mesh(1, 1, compile_check.find_devices("v5e:2x4")[:1])
    taken = {}
    for remat in ("none", "full"):
        settings = dict(memory__remat=remat, step_two__batch_size=64)
        programs, stages, _ = programs_of(folders("dit_deep"), mesh, **settings)
        compiled = programs.lower(stages["step_two"]).compile()
        taken[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert taken["full"] < 0.5 * taken["none"], taken


@pytest.mark.parametrize("name", ["unet2d", "dit"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_does_not_depend_on_the_devices(folders, name, kind):
    one = updated(folders(name), kind, mesh_of(1))
    assert_same_update(one, updated(folders(name), kind, mesh_of(2, 2)), 1e-5)


def test_the_state_is_split_over_fsdp(folders):
    held = {}
    for fsdp in (1, 4):
        programs, stages, _ = programs_of(folders("dit_deep"), mesh_of(1, fsdp))
        state, _, _ = programs.shapes(stages["step_two"])
        leaves = jax.tree.leaves(state)
        held[fsdp] = sum(shard_bytes(leaf, leaf.sharding) for leaf in leaves)
    assert held[4] <= 0.3 * held[1]


@pytest.mark.parametrize("kind", UNETS)
def test_the_state_of_known_networks_by_shape_is_what_their_config_says(kind):
    """Parameters, average, Adam's moments and the frozen teacher, of one device, in GiB."""
    optimizer = make_optimizer(**load_config(f"{CONFIG}:{kind}").optimizer)
    params = {
        name: jax.ShapeDtypeStruct(tuple(param.shape), jnp.float32)
        for name, param in make_unet(kind).named_parameters()
    }
    state = jax.eval_shape(lambda p: init_state(p, optimizer, keep_ema=True), params)
    held = {}
    for fsdp in (1, 8, 64):
        mesh = jax.sharding.AbstractMesh((1, fsdp), ("data", "fsdp"))
        layout = state_shardings((state, params), mesh)
        parts = jax.tree.map(shard_bytes, (state, params), layout)
        held[fsdp] = sum(jax.tree.leaves(parts)) / GIB
        assert held[fsdp] <= 1.01 * held[1] / fsdp
    said = {kind: list(numbers) for kind, *numbers in STATE.findall(CONFIG.read_text())}
    assert said[kind] == [f"{held[fsdp]:.1f}" for fsdp in (1, 8, 64)]


def test_an_imported_update_costs_what_a_handwritten_one_does(folders):
    programs, stages, _ = programs_of(folders("dit_deep"), mesh_of(1))
    models = flax_dit_models(programs.student)
    handwritten, _, _ = programs_of(folders("dit_deep"), mesh_of(1), models=models)
    count = [count_params(p.shapes(stages["step_two"])[0].params) for p in (programs, handwritten)]
    assert count[0] == count[1]
    flops = [p.program(stages["step_two"]).flops for p in (programs, handwritten)]
    assert flops[0] <= 1.02 * flops[1], flops


def test_compile_check_says_what_each_update_of_an_imported_model_takes(folders, capsys):
    config = load_config(str(SMALL))
    config.teacher.path = str(folders("dit"))
    config.model.dtype = "bfloat16"
    config.memory.remat = "full"
    config.mesh.fsdp = 2
    assert compile_check.run(compile_check.Request(config)) == 0
    said = capsys.readouterr().out.splitlines()
    assert "mesh data 4 x fsdp 2" in said[0] and said[-1] == "all compile and fit"
    updates = [line.split("|")[1].strip() for line in said[3:-1]]
    assert updates == ["step_one", "step_two/deterministic/0004"]


def test_compile_check_takes_prompts_and_latents_as_the_model_says(tmp_path, capsys):
    bring("unet_text", tmp_path / "out")
    config = load_config(str(SMALL))
    config.teacher.path = str(tmp_path / "out")
    config.step_one.batch_size = config.step_two.batch_size = 8
    assert compile_check.run(compile_check.Request(config, stage="step_one")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all compile and fit"
    with pytest.raises(UserError, match=r"`image_shape` is \[4, 4, 4\], but .* takes \[8, 8, 4\]"):
        compile_check.run(compile_check.Request(config, image_shape=(4, 4, 4)))
