"""A model that is a JAX function, distilled from Python, and sampled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from numpy.testing import assert_array_equal
from test_any_model import NULL, TEACHER, apply, init

import guided_distill
from guided_distill.errors import UserError
from guided_distill.jobs.distill import check_fresh_student
from guided_distill.models import build

STEPS = (4, 1)


def told_apply(params, z, logsnr, cond, w, dropout_keys):
    """`apply`, to which w is added by a branch of its own."""
    shift = (
        0.0
        if w is None
        else jnp.tanh(w[:, None, None, None] * params["w_branch"][None, None, None])
    )
    return apply(params, z, logsnr, cond, None, dropout_keys) + shift


MODEL = dataclasses.replace(TEACHER, apply=told_apply)
STUDENT = dataclasses.replace(
    MODEL, knows_w=True, init=lambda key: init(key) | {"w_branch": jnp.zeros(2)}
)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal((60, *shape)).astype(np.float32)  # noqa: E731
    return draw(4, 4, 2), {"text": draw(3, 5), "pooled": draw(6)}


def config():
    config = guided_distill.load_config(ROOT / "configs" / "imported.py:smoke")
    config.evaluation.num_samples, config.evaluation.batch_size = 20, 20
    return config


def distill(data, workdir, **changes):
    params = init(jax.random.key(0))
    arguments = dict(student=STUDENT, config=config(), steps=STEPS, num_updates=4, batch_size=8)
    return guided_distill.distill(MODEL, params, data, workdir=workdir, **(arguments | changes))


def test_a_function_is_distilled_and_sampled(data, tmp_path):
    students = distill(data, tmp_path / "run", w_range=(0.0, 3.0))
    assert set(students) == set(STEPS)
    cond = jax.tree.map(lambda array: array[:3], data[1])
    drawn = students[4](cond, w=[0.0, 1.0, 3.0], seed=1)
    assert drawn.shape == (3, 4, 4, 2) and np.isfinite(drawn).all()
    again = distill(data, tmp_path / "run", w_range=(0.0, 3.0))  # It is finished.
    assert_array_equal(again[4](cond, w=[0.0, 1.0, 3.0], seed=1), drawn)
    loaded = guided_distill.Sampler.load(tmp_path / "run", num_steps=4)
    assert_array_equal(loaded(cond, w=[0.0, 1.0, 3.0], seed=1), drawn)
    with pytest.raises(UserError, match="w must lie in"):
        students[4](cond, w=4.0)
    with pytest.raises(UserError, match="holds other data"):
        distill((data[0] + 1.0, data[1]), tmp_path / "run")


def test_a_process_that_was_not_given_the_function_is_told_so(data, tmp_path, monkeypatch):
    distill(data, tmp_path / "run", steps=(4,))
    monkeypatch.setattr(build, "HELD", {})
    known = config()
    known.data.name, known.data.path = "arrays", str(tmp_path / "run" / "data")
    known.teacher.path = str(tmp_path / "run" / "teacher")
    with pytest.raises(UserError, match="is a function: call guided_distill.distill"):
        guided_distill.train(known, tmp_path / "other")
    with pytest.raises(UserError, match="is a function: call guided_distill.distill"):
        guided_distill.Sampler.load(tmp_path / "run", num_steps=4)(data[1])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(student=None), "no parameters beside its teacher's|must be the teacher plus a w"),
        (dict(student=dataclasses.replace(STUDENT, init=init)), "cannot learn w"),
        (dict(steps=(3, 1)), "must divide the teacher's 8"),
        (dict(w_range=(3.0, 1.0)), "w_min <= w_max"),
    ],
)
def test_what_does_not_fit_is_refused(data, changes, match, tmp_path):
    with pytest.raises(UserError, match=match):
        distill(data, tmp_path / "run", **changes)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (3, r"must be \(x, conditioning\)"),
        ((np.zeros((5, 4, 4, 2), np.float32), {"text": np.zeros((4, 3, 5))}), "5 x, but text"),
    ],
)
def test_data_that_do_not_fit_are_refused(given, match, tmp_path):
    with pytest.raises(UserError, match=match):
        distill(given, tmp_path / "run")


def test_a_student_that_starts_elsewhere_is_refused():
    moved = dataclasses.replace(
        STUDENT, init=lambda key: init(key) | {"w_branch": jnp.full(2, 0.3)}
    )
    assert set(NULL) == {"text", "pooled"}
    with pytest.raises(UserError, match="differs from its teacher at w = 4"):
        check_fresh_student(MODEL, moved, init(jax.random.key(0)))
