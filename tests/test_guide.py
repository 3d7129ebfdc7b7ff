"""A second model in the place of the null: an unconditional network, or a weaker one."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import params_hashes
from imported_programs import SMALL
from numpy.testing import assert_allclose, assert_array_equal
from test_any_model import (
    BATCH,
    LATENT,
    LOGSNRS,
    OPTIMIZER,
    STUDENT,
    TEACHER,
    apply,
    batch,  # noqa: F401
    init,
)
from test_distill import MODEL as TOLD
from test_distill import config as distill_config
from test_distill import data, distill  # noqa: F401
from test_resume import run, run_until
from text_to_latents import get_config, write_latents, write_teacher

import guided_distill
from guided_distill.diffusion.parameterization import X_FROM_PREDICTION
from guided_distill.diffusion.samplers import sample_ddim
from guided_distill.diffusion.schedule import cosine_schedule, table_schedule
from guided_distill.distill.distillations import ALGORITHMS
from guided_distill.distill.losses import LOSS_WEIGHTS
from guided_distill.errors import UserError
from guided_distill.jobs import compile_check
from guided_distill.jobs.evaluate import evaluate
from guided_distill.models.model import Conditioning, Model, guided_by
from guided_distill.run.programs import StagePrograms, make_models
from guided_distill.run.sanity import check_reading
from guided_distill.run.settings import load_config, read_config
from guided_distill.run.stages import first_teacher, plan_stages
from guided_distill.sampling.generator import Generator
from guided_distill.system.sharding import make_mesh
from guided_distill.system.workdir import StageFolder, find_stages
from guided_distill.training.state import init_state
from guided_distill.training.update import Given, make_update, round_losses, step_one_losses

CONFIG = __file__.replace("test_guide", "text_to_latents")
WEIGHT = LOSS_WEIGHTS["snr_trunc"]
W = jnp.linspace(0.0, 4.0, BATCH)


def null_apply(params, z, logsnr, cond, w, dropout_keys):
    assert cond == {}  # It takes nothing of the data's conditioning.
    nulls = TEACHER.conditioning.some(len(z))
    return apply(params, z, logsnr, nulls, w, dropout_keys)


# The teacher itself, which forgets its conditioning: as a guide it is the null.
NULL_GUIDE = dataclasses.replace(
    TEACHER, apply=null_apply, conditioning=Conditioning(null=None, example={})
)
PAIR = guided_by(TEACHER, NULL_GUIDE)


def params_of(seed=1):
    params = init(jax.random.key(seed))
    return params, {"model": params, "guide": params}


def latents(seed=0):
    z = jax.random.normal(jax.random.key(seed), (BATCH, *LATENT))
    return z, TEACHER.schedule.logsnr(jnp.linspace(0.1, 1.0, BATCH))


def given(teacher_params):
    return Given(
        jax.random.key(2), np.float32(1e-2), teacher_params, np.float32([0.0, 4.0]), np.int32(125),
        np.float32(np.inf),
    )  # fmt: skip


def test_the_null_as_a_guide_teaches_what_the_null_does(batch):  # noqa: F811
    params, both = params_of()
    ended = []
    for teacher, teacher_params in ((TEACHER, params), (PAIR, both)):
        losses = step_one_losses(teacher, STUDENT, loss_weight=WEIGHT)
        update = make_update(losses, OPTIMIZER, name="step_one")
        state = init_state(init(jax.random.key(3)), OPTIMIZER, keep_ema=False)
        state = jax.device_put(state, jax.devices()[0])
        for _ in range(3):
            state, metrics = update(state, given(teacher_params), batch)
        ended.append((state.params, metrics))
    jax.tree.map(assert_array_equal, *ended)


def test_the_null_as_a_guide_is_a_half_of_algorithm_5(batch):  # noqa: F811
    """Of two networks that start alike; apart, each learns its own half."""
    params, both = params_of()
    student, pair = init(jax.random.key(3)), params_of(seed=3)[1]
    keys, row = jax.random.split(jax.random.key(4), BATCH), ALGORITHMS["two_student"]
    widened = guided_by(STUDENT, dataclasses.replace(NULL_GUIDE, knows_w=True))
    one = round_losses(STUDENT, row, factor=2, loss_weight=WEIGHT)
    two = round_losses(widened, row, factor=2, loss_weight=WEIGHT)
    of_one, grad = jax.value_and_grad(lambda p: one(p, given(params), *batch, keys).sum())(student)
    of_two, grads = jax.value_and_grad(lambda p: two(p, given(both), *batch, keys).sum())(pair)
    assert_array_equal(of_one, of_two)
    added = jax.tree.map(jnp.add, grads["model"], grads["guide"])
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-5), added, grad)


@pytest.mark.parametrize("sampler", ["ddim", "stochastic", "ancestral"])
def test_the_null_as_a_guide_samples_as_the_null(batch, sampler):  # noqa: F811
    """To rounding: one batch of 2B there, two of B here."""
    drawn = []
    for model, params in zip((TEACHER, PAIR), params_of(), strict=True):
        generator = Generator(model, sampler, guided=True, mesh=make_mesh(), batch_size=BATCH)
        on = dict(cond=batch[1], w=W, indices=np.arange(BATCH), num_steps=8, seed=0)
        drawn.append(generator(params, **on))
    assert_allclose(*drawn, rtol=1e-4, atol=1e-5 * np.abs(drawn[0]).max())


def test_a_guide_moves_away_from_itself(batch):  # noqa: F811
    """At w = 0 it says nothing; from there x̂^w is straight in w, away from the guide's x̂."""
    params = {"model": init(jax.random.key(1)), "guide": init(jax.random.key(5))}
    (z, logsnr), cond = latents(), batch[1]
    pair = guided_by(TEACHER, dataclasses.replace(TEACHER, conditioning=TEACHER.conditioning))
    guided, conditional = pair.guided(params, cond), TEACHER.denoiser(params["model"], cond)
    weaker = TEACHER.denoiser(params["guide"], cond)
    at = {w: guided(z, logsnr, jnp.full(BATCH, w)) for w in (-1.0, 0.0, 1.0, 3.0)}
    assert_array_equal(at[0.0], conditional(z, logsnr, W))
    assert_allclose(at[-1.0], weaker(z, logsnr, W), rtol=1e-4, atol=1e-4)
    assert_allclose(at[3.0] - at[0.0], 3.0 * (at[1.0] - at[0.0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction", ["x", "v", "flow"])
def test_a_guide_may_predict_something_else(batch, prediction):  # noqa: F811
    """The same x̂ said in another way guides in the same way."""
    (z, logsnr), cond = latents(), batch[1]

    def said_otherwise(params, told, logsnr, cond, w, dropout_keys):
        """What the prediction must be that x̂ is read from it: linear, so found at 0 and 1."""
        x_hat = TEACHER.denoiser(params, cond)(z, logsnr, w)
        read = X_FROM_PREDICTION[prediction]
        zero, one = (read(jnp.full_like(z, value), z, logsnr) for value in (0.0, 1.0))
        return (x_hat - zero) / (one - zero)

    other = dataclasses.replace(TEACHER, apply=said_otherwise, prediction=prediction)
    params = {"model": init(jax.random.key(1)), "guide": init(jax.random.key(5))}
    expected = guided_by(TEACHER, TEACHER).guided(params, cond)(z, logsnr, W)
    found = guided_by(TEACHER, other).guided(params, cond)(z, logsnr, W)
    assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_guide_takes_its_conditioning_by_name(batch):  # noqa: F811
    _, cond = batch
    only = Conditioning(null=None, example={"pooled": jax.ShapeDtypeStruct((6,), jnp.float32)})
    assert set(only.select(cond)) == {"pooled"}
    labels = jnp.arange(3)
    assert_array_equal(Conditioning(null=10).select(labels), labels)
    assert Conditioning(null=None, example={}).select(labels) == {}


def test_a_guide_is_tried_on_the_data():
    """On what it takes of them; one that is read wrongly is named."""

    class Source:
        def read(self, indices):
            x = np.random.default_rng(0).standard_normal((len(indices), *LATENT))
            return x.astype(np.float32), {"text": np.zeros((len(indices), 3, 5), np.float32)}

        def __len__(self):
            return 64

    def knows_x(params, z, logsnr, cond, w, dropout_keys):
        assert cond == {}
        return jnp.asarray(Source().read(np.arange(64))[0])

    model = dataclasses.replace(NULL_GUIDE, apply=knows_x, prediction="x")
    assert check_reading(model, {}, Source(), path="guide") == 0.0
    with pytest.raises(UserError, match="guide: on these data.*prediction 'x'"):
        check_reading(dataclasses.replace(model, prediction="v"), {}, Source(), path="guide")


def guide_of(**changes):
    return dataclasses.replace(NULL_GUIDE, **changes), init(jax.random.key(9))


def test_schedules_agree_where_they_are_asked():
    moved = table_schedule(LOGSNRS + 0.01)
    first = np.concatenate([[np.inf], LOGSNRS[1:]])
    assert TEACHER.schedule.agrees_with(table_schedule(first))
    assert not TEACHER.schedule.agrees_with(moved)
    assert not TEACHER.schedule.agrees_with(table_schedule(LOGSNRS[::2]))
    assert not TEACHER.schedule.agrees_with(cosine_schedule())
    assert cosine_schedule().agrees_with(cosine_schedule())
    assert not cosine_schedule().agrees_with(cosine_schedule(-15.0, 15.0))


def named(**shapes):
    example = {n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in shapes.items()}
    return Conditioning(null=None, example=example)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(sample_shape=(8, 8, 2)), r"has samples of \[8, 8, 2\], but .* of \[4, 4, 2\]"),
        (dict(bound=1.0), "has a bound of 1.0, but .* of None"),
        (dict(schedule=cosine_schedule()), "has another schedule than"),
        (dict(conditioning=named(style=(3,))), "conditioning 'style' of .*guide is missing in"),
        (dict(conditioning=named(pooled=(7,))), r"'pooled': .*guide takes float32 \[7\]"),
        (dict(conditioning=Conditioning(null=3)), "guide is conditioned on class labels, but"),
        (dict(knows_w=True), "`guide` knows w already"),
    ],
)
def test_guides_that_do_not_fit_are_refused(data, changes, match, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match=match) as error:
        distill(data, tmp_path / "run", guide=guide_of(**changes))
    assert "\n" not in str(error.value)


def test_a_function_of_no_w_is_no_half_of_two_students(data, tmp_path):  # noqa: F811
    config = distill_config()
    config.distillations = ("two_student",)
    with pytest.raises(UserError, match="has two_student, which distils the guide too"):
        distill(data, tmp_path / "run", guide=guide_of(), config=config)


def test_a_function_is_distilled_with_a_guide_and_no_null(data, tmp_path):  # noqa: F811
    takes = named(text=(3, 5), pooled=(6,))
    model = dataclasses.replace(TOLD, conditioning=takes)
    branch = lambda key: init(key) | {"w_branch": jnp.zeros(2)}  # noqa: E731
    student = dataclasses.replace(model, knows_w=True, init=branch)
    arguments = dict(config=distill_config(), steps=(4, 1), num_updates=4, batch_size=8)

    def distill_it(guide):
        params = init(jax.random.key(0))
        return guided_distill.distill(
            model, params, data, workdir=tmp_path / "run", student=student, guide=guide, **arguments
        )

    students = distill_it(guide_of())
    cond = jax.tree.map(lambda array: array[:3], data[1])
    assert np.isfinite(students[4](cond, w=1.0)).all()
    assert find_stages(tmp_path / "run")["teacher"].guide.path == tmp_path / "run/teacher/guide"
    with pytest.raises(UserError, match="holds another guide: take another `workdir`"):
        distill_it((guide_of()[0], init(jax.random.key(10))))
    with pytest.raises(UserError, match="is not guided: name another model with teacher.guide"):
        distill_it(None)


def get_guided():
    config = get_config()
    config.distillations = ("deterministic", "two_student", "single_w")
    with config.ignore_type():
        config.single_w.w = (2.0,)
    return config


STAGES = [
    "step_one",
    *(f"step_two/{name}/{n:04d}" for name in ("deterministic", "two_student") for n in (2, 1)),
    "single_w/2/step_one",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run of a teacher without null, guided by an unconditional network that predicts v."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    root = tmp_path_factory.mktemp("guide")
    write_latents(root / "latents")
    write_teacher(root / "teacher", guided=False)
    write_teacher(root / "guide", takes=(), guided=False, seed=1, prediction="v")
    os.environ["TEXT_TO_LATENTS"] = str(root)
    guided_distill.train(get_guided(), root / "run")
    return root


@pytest.mark.slow
def test_a_run_with_a_guide_says_so(root):
    results = json.loads((root / "run/report/results.json").read_text())
    assert {row["model"] for row in results["rows"]} == {
        "teacher", "step_one", "student", "ddim", "two_student", "single_w",
    }  # fmt: skip
    calls = {(r["model"], r["num_steps"]): r["network_calls"] for r in results["rows"]}
    assert calls["teacher", 8] == 16 and calls["two_student", 2] == 4 and calls["student", 2] == 2
    sha256 = StageFolder(root / "guide").finished().record["params_sha256"]
    assert f"guidance | by {root / 'guide'}, sha256 {sha256[:16]}" in " ".join(
        (root / "run/report/report.md").read_text().split()
    )
    for name in STAGES:
        record = StageFolder(root / "run" / name).finished().record
        learns_pair = "two_student" in name
        assert ("guide" in record) == learns_pair
        has_guide = learns_pair or name.endswith("step_one")
        assert record.get("guide_sha256") == (sha256 if has_guide else None)
    assert not guided_distill.train(get_guided(), root / "run")


@pytest.mark.slow
def test_its_teacher_is_the_pair_of_both(root):
    """The rows of the teacher and `sample --stage=teacher`: by the definition of x̂^w."""
    (teacher, params), (guide, guide_params) = (
        Model.load(root / name) for name in ("teacher", "guide")
    )
    rng = np.random.default_rng(0)
    cond = {
        "text": rng.standard_normal((3, 3, 5)).astype(np.float32),
        "pooled": rng.standard_normal((3, 6)).astype(np.float32),
    }
    noise = rng.standard_normal((3, 4, 4, 2)).astype(np.float32)

    def x_hat_w(z, logsnr, w):
        x_cond = teacher.denoiser(params, cond)(z, logsnr, w)
        x_guide = guide.denoiser(guide_params, {})(z, logsnr, w)
        return (1.0 + w[0]) * x_cond - w[0] * x_guide

    expected = sample_ddim(
        x_hat_w, noise, np.full(3, 2.0, np.float32), num_steps=4,
        logsnr_fn=teacher.schedule.logsnr, bound=None,
    )  # fmt: skip
    sampler = guided_distill.Sampler.load(root / "run", 4, stage="teacher")
    found = sampler.draw(cond, w=2.0, noise=noise)
    assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    two = guided_distill.Sampler.load(root / "run", 2, stage="step_two/two_student")
    assert np.isfinite(two(cond, w=2.0)).all()


@pytest.mark.slow
def test_fresh_students_are_the_conditional_half(root):
    config = get_guided()
    teacher = first_teacher(config)
    models = make_models(config, (4, 4, 2), None, teacher)
    example = jax.ShapeDtypeStruct((4, 4, 2), jnp.float32), models[0].conditioning.takes
    programs = StagePrograms(config, make_mesh(), models, example)
    stages = {stage.name: stage for stage in plan_stages(config, teacher)}
    z, cond = latents()[0], models[0].conditioning.some(BATCH)
    logsnr = models[0].schedule.logsnr(np.full(BATCH, 0.5, np.float32))
    halves = models[0].pair(teacher.params, cond)
    state = programs.fresh_state(stages["step_one"], teacher.params)
    student = programs.student.denoiser(state.params, cond)
    assert_array_equal(student(z, logsnr, W), halves[0](z, logsnr, W))
    stage = stages["step_two/two_student/0002"]
    pair = programs.student_of(stage).pair(programs.with_w_branch(stage, teacher.params), cond)
    for found, expected in zip(pair, halves, strict=True):
        assert_array_equal(found(z, logsnr, W), expected(z, logsnr, W))


@pytest.mark.slow
def test_another_guide_is_another_run(root, tmp_path):
    shutil.copytree(root / "run", tmp_path / "run")
    write_teacher(tmp_path / "weaker", guided=False, seed=2)
    config = get_guided()
    for guide, here in ((tmp_path / "weaker", r"\w{12}"), ("", "none")):
        config.teacher.guide = str(guide)
        if not guide:
            config.teacher.path = str(root / "with_null")
            write_teacher(root / "with_null")
        with pytest.raises(UserError, match=rf"with another guide \(\w{{12}} there, {here} here\)"):
            guided_distill.train(config, tmp_path / "run")


@pytest.mark.slow
def test_a_guide_that_was_replaced_is_named(root, tmp_path):
    for name in ("latents", "teacher", "guide", "run"):
        shutil.copytree(root / name, tmp_path / name)
    shutil.rmtree(tmp_path / "guide")
    write_teacher(tmp_path / "guide", takes=(), guided=False, seed=7)
    with pytest.raises(UserError, match="holds another guide than the one that .* trained with"):
        evaluate(read_config(tmp_path / "run"), tmp_path / "run")


@pytest.mark.slow
def test_keys_of_a_guide_that_mean_nothing_are_refused(root, tmp_path):
    for changes, match in (
        ({"guide": str(root / "none")}, "none holds no finished stage"),
        ({"path": ""}, "teacher.guide is .*, but a teacher that is trained here"),
        ({"guide": str(root / "run/step_one")}, "step_one holds step_one, which knows w already"),
        ({"path": str(root / "run/step_one")}, "step_one holds step_one, which knows w already"),
    ):
        config = get_guided()
        config.teacher.update(changes)
        with pytest.raises(UserError, match=match):
            guided_distill.train(config, tmp_path / "run")


@pytest.mark.slow
def test_compile_check_counts_the_guide(root, capsys):
    taken = {}
    for guide in (root / "guide", ""):
        config = get_config()
        config.teacher.guide = str(guide)
        out = root / "checked.json"
        assert compile_check.run(compile_check.Request(config, stage="step_one", out=str(out))) == 0
        taken[bool(guide)] = json.loads(out.read_text())["updates"][0]
    assert taken[True]["peak_bytes"] > taken[False]["peak_bytes"]
    assert taken[True]["flops"] > taken[False]["flops"]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_params(root, tmp_path):
    for name in ("latents", "teacher", "guide"):
        shutil.copytree(root / name, tmp_path / name, copy_function=shutil.copy2)
    how = dict(config=CONFIG, env={"TEXT_TO_LATENTS": str(tmp_path)})
    whole = run(tmp_path / "whole", **how)
    assert whole.returncode == 0, whole.stderr
    code, log = run_until("one: update", tmp_path / "run", signal.SIGTERM, **how)
    assert code == 128 + signal.SIGTERM, log
    rest = run(tmp_path / "run", **how)
    assert rest.returncode == 0, rest.stderr
    hashes = params_hashes(tmp_path / "run", STAGES[:3])
    assert None not in hashes.values() and hashes == params_hashes(tmp_path / "whole", STAGES[:3])


@pytest.mark.slow
def test_a_weaker_unet_guides_every_use_of_the_pair(tmp_path):
    """Autoguidance by a teacher that was trained less: students, baselines, style transfer."""
    for name, num_updates in (("teacher", 12), ("weaker", 4)):
        config = load_config(str(SMALL))
        config.teacher.num_updates, config.teacher.warmup_updates = num_updates, 0
        config.teacher.learning_rate, config.teacher.ema_decay = 1e-2, 0.0
        guided_distill.train(config, tmp_path / name, stage="teacher")
    config = load_config(f"{SMALL}:encoder")
    config.distillations = ("deterministic", "encoder", "two_student")
    with config.ignore_type():
        config.step_two.rounds = config.step_two.rounds[:1]
        config.evaluation.num_steps = config.evaluation.baseline_num_steps = (4,)
    config.teacher.path = str(tmp_path / "teacher/teacher")
    config.teacher.guide = str(tmp_path / "weaker/teacher")
    guided_distill.train(config, tmp_path / "run")
    results = json.loads((tmp_path / "run/report/results.json").read_text())
    assert {row["model"] for row in results["rows"]} == {
        "teacher", "step_one", "student", "ddim", "two_student",
    }  # fmt: skip
    assert {row["system"] for row in results["translations"]} == {"distilled", "ddim"}
    digests = results["provenance"]["params_sha256"]
    alone = StageFolder(config.teacher.path).finished().record["params_sha256"]
    assert digests["teacher"] not in (alone, digests["step_one"])
    again = guided_distill.Sampler.load(tmp_path / "run", 4, stage="teacher")
    alone = guided_distill.Sampler.load(tmp_path / "teacher", 4, stage="teacher")
    labels = list(range(10))
    assert_allclose(again.draw(labels, w=0.0), alone.draw(labels, w=0.0), atol=1e-4)
    assert np.abs(again.draw(labels, w=2.0) - alone.draw(labels, w=2.0)).max() > 1e-2
