"""Students that predict something else than their teacher."""

import dataclasses

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from small import data_settings, get_config

from guided_distill import Sampler
from guided_distill.data.registry import open_dataset
from guided_distill.diffusion.known_schedules import read_schedule
from guided_distill.errors import UserError
from guided_distill.jobs.train import train
from guided_distill.models.build import model_of
from guided_distill.models.model import Conditioning, Model
from guided_distill.run.checks import check_models
from guided_distill.run.settings import check_config
from guided_distill.system.workdir import StageFolder

STAGES = ("step_one", "step_two/deterministic/0004", "step_two/deterministic/0001")


def converting(kind, **changes):
    config = get_config()
    config.step_one.prediction = kind
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Workdir of a v-teacher's students that predict x."""
    workdir = tmp_path_factory.mktemp("run")
    train(converting("x"), workdir)
    return workdir


def test_students_say_what_they_predict_and_the_teacher_what_it_does(run):
    kinds = [StageFolder(run / name).finished().record["parameterization"] for name in STAGES]
    assert kinds == ["x"] * len(STAGES)
    teacher = StageFolder(run / "teacher").finished()
    assert teacher.record["parameterization"] == model_of(teacher).prediction == "v"


def test_a_student_is_sampled_as_what_it_was_trained_to_predict(run):
    """One call of a student that predicts x gives what its network does, clipped."""
    stage = StageFolder(run / STAGES[-1]).finished()
    labels, w = np.arange(4), np.full(4, 2.0, np.float32)
    noise = np.asarray(jax.random.normal(jax.random.key(0), (4, 8, 8, 1)))
    drawn = Sampler.load(run, 1).draw(labels, w=2.0, noise=noise)
    model = model_of(stage)
    logsnr = model.schedule.logsnr(np.ones(4, np.float32))
    raw = model.apply(stage.params, noise, logsnr, labels, w, None)
    assert_allclose(drawn, np.clip(raw, -1.0, 1.0), atol=1e-5)


def test_a_run_that_begins_with_such_a_student_goes_on_with_its_prediction(run, tmp_path):
    config = converting("")
    config.teacher.path = str(run / "step_one")
    train(config, tmp_path, stage="step_two/0004")
    record = StageFolder(tmp_path / STAGES[1]).finished().record
    assert record["parameterization"] == "x"
    config.step_one.prediction = "eps"
    with pytest.raises(UserError, match="predicts x, and the run has no step one to change that"):
        train(config, tmp_path / "other")


def test_a_workdir_of_another_prediction_is_not_gone_on_with(run):
    with pytest.raises(UserError, match="step_one.prediction: 'x' there, 'eps' here"):
        train(converting("eps"), run)


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        ("epsilon", {}, "step_one.prediction must be one of .*mean eps"),
        ("flow", {}, "step_one.prediction must be one of"),
        ("x", {"distillations": ("two_student",)}, "two_student, which learns from the teacher"),
    ],
)
def test_configs_that_cannot_convert_are_refused(kind, changes, match):
    with pytest.raises(UserError, match=match):
        check_config(converting(kind, **changes))


@pytest.mark.parametrize(
    ("kind", "teacher", "schedule", "match"),
    [
        ("v", "flow", "flow", "needs a teacher of x, eps, v, and teachers/mine predicts flow"),
        ("eps", "v", "zero_terminal_snr", "eps says nothing of x where the schedule ends in noise"),
    ],
)
def test_teachers_that_cannot_be_converted_are_refused(kind, teacher, schedule, match):
    model = Model(
        apply=None,
        init=None,
        prediction=teacher,
        schedule=read_schedule(schedule),
        conditioning=Conditioning(null=10),
        sample_shape=(8, 8, 1),
    )
    config = converting(kind)
    config.teacher.path = "teachers/mine"
    dataset = open_dataset(data_settings("digits"))
    with pytest.raises(UserError, match=match):
        check_models(config, model, dataset)
    check = dataclasses.replace(model, prediction="v", schedule=read_schedule("cosine"))
    check_models(config, check, dataset)
