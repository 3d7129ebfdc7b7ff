"""From Python: a guided model that is a function, distilled on arrays that are at hand."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from guided_distill.distill.distillations import DISTILLATIONS, students_of
from guided_distill.errors import UserError
from guided_distill.jobs.train import train
from guided_distill.models.build import hold_models
from guided_distill.models.model import Model, Params
from guided_distill.models.student import W_BRANCH, init_student
from guided_distill.run.settings import load_config
from guided_distill.sampling.sampler import Sampler
from guided_distill.system.files import json_sha256, local_path, replacing, tree_sha256
from guided_distill.system.processes import first_only
from guided_distill.system.sharding import to_host
from guided_distill.system.workdir import StageFolder, find_own_stages, imported_record

DEFAULT_CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "imported.py"
TRIED = 4  # examples, on which a fresh student must be its teacher
TRIED_W = (0.0, 4.0)


def distill(
    model: Model,
    params: Params,
    data: Any,
    *,
    workdir: str | os.PathLike,
    student: Model | None = None,
    guide: tuple[Model, Params] | None = None,
    config: ConfigDict | None = None,
    steps: Sequence[int] | None = None,
    num_updates: int | None = None,
    batch_size: int | None = None,
    w_range: tuple[float, float] | None = None,
) -> dict[int, Sampler]:
    """Distills a guided model; an interrupted call goes on.

        model, params = guided_distill.Model.load("teachers/mine")
        students = guided_distill.distill(model, params, (latents, {"text": text}), workdir="run")
        latents = students[4]({"text": text[:8]}, w=3.0)

    Args:
      model: the teacher, a `Model` of `Model.load` or of any JAX function.
      params: its parameters.
      data: (x `[N, …]`, conditioning), uint8 images or float latents, with labels `[N]` or arrays
        by name `{name: [N, …]}`; or the path of a folder of such arrays.
      workdir: the run's folder.
      student: the same model conditioned on w. Its `init` gives the teacher's parameters and,
        under `w_branch`, what it learns of w, which must add nothing yet. None takes the model
        itself with `knows_w`, for an `apply` and `init` that take care of both.
      guide: (model, params) that takes the place of the null of `model`, which needs none then:
        x̂^w = (1 + w) x̂_model − w x̂_guide. It is given what it takes, by name, of the conditioning.
      config: as of `load_config`; None takes configs/imported.py.
      steps: N of the students, in order, each a divisor of the one before; the first divides the
        teacher's steps, `config.step_two.start_steps`.
      num_updates: of step one and of every round.
      batch_size: of step one and of every round.
      w_range: guidance weights that the students learn.

    Returns:
      `{N: Sampler}` of the finished students.

    Raises:
      UserError: where model, data and config do not fit, before any compute.
    """
    workdir = local_path(workdir, "`workdir`")
    config = make_config(config, steps, num_updates, batch_size, w_range)
    config.data.name, config.data.path = "arrays", str(place_data(data, workdir / "data"))
    config.teacher.path = str(place_teacher(model, params, student, workdir, config))
    if guide is not None:
        config.teacher.guide = str(place_guide(*guide, workdir))
    train(config, workdir)
    stages = find_own_stages(workdir)
    for name in config.distillations:
        students = students_of(stages, DISTILLATIONS[name])
        if students and DISTILLATIONS[name].samplers:
            return {n: Sampler(stage, n) for n, stage in students.items()}
    return {}


def make_config(config, steps, num_updates, batch_size, w_range):
    """A copy of the config with what was asked for by name."""
    if config is None and not DEFAULT_CONFIG.is_file():
        raise UserError("`config` is missing: name one, as load_config('configs/imported.py')")
    config = config.copy_and_resolve_references() if config else load_config(DEFAULT_CONFIG)
    if w_range is not None:
        config.w_range = tuple(float(w) for w in w_range)
        config.evaluation.w = tuple(w for w in config.evaluation.w if w_range[0] <= w <= w_range[1])
        config.evaluation.w = config.evaluation.w or (config.w_range[0],)
    rounds = [dict(one_round) for one_round in config.step_two.rounds]
    if steps is not None:
        rounds = [rounds[-1] | {"num_steps": int(num_steps)} for num_steps in steps]
        known = [n for n in config.evaluation.num_steps if n in steps]
        with config.ignore_type():
            config.evaluation.num_steps = tuple(known or [int(steps[-1])])
    for section in (config.step_one, config.step_two) if batch_size else ():
        section.batch_size = batch_size
    if num_updates:
        config.step_one.num_updates = num_updates
        rounds = [one_round | {"num_updates": num_updates} for one_round in rounds]
    with config.ignore_type():
        config.step_two.rounds = tuple(ConfigDict(one_round) for one_round in rounds)
    return config


def place_data(data, folder):
    """The folder of arrays that is meant: the path given, or `folder` with the arrays given.

    Raises:
      UserError: where the folder holds other arrays, of a run that was begun with them.
    """
    if isinstance(data, str | os.PathLike):
        return local_path(data, "`data`")
    try:
        x, cond = data
    except (TypeError, ValueError):
        raise UserError("`data` must be (x, conditioning), or the path of a folder") from None
    cond = cond if isinstance(cond, Mapping) else {"labels": cond}
    arrays = {name: np.asarray(array) for name, array in {"x": x, **cond}.items()}
    for name, array in arrays.items():
        if array.shape[:1] != arrays["x"].shape[:1] or not array.shape:
            raise UserError(
                f"`data` has {len(np.atleast_1d(arrays['x']))} x, but {name} of the shape "
                f"{list(array.shape)}: one each is needed"
            )
    write_arrays(folder, arrays)
    return folder


@first_only
def write_arrays(folder, arrays):
    """Writes `{name: [N, …]}` as `.npy` files, or checks that those are there."""
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        if path.is_file():
            there = np.load(path, mmap_mode="r", allow_pickle=False)
            if there.dtype != array.dtype or not np.array_equal(there, array):
                raise UserError(f"{path} holds other data than are given: take another `workdir`")
            continue
        with replacing(path, ".npy") as partial:
            np.save(partial, array)


def place_teacher(model, params, student, workdir, config):
    """The folder of the teacher: the one that it was loaded from, or `workdir`'s own."""
    params = to_host(params)
    if student is None and was_loaded(model, params):
        return model.folder
    student = student or with_w(model)
    if config.model.dtype != "float32":
        raise UserError("model.dtype is the function's own: leave it at float32, and cast inside")
    check_fresh_student(model, student, params)
    return hold((model, student), params, workdir / "teacher", "teacher")


def place_guide(model, params, workdir):
    """The folder of a guide, as of `place_teacher`."""
    params = to_host(params)
    if model.knows_w:
        raise UserError("`guide` knows w already, and neither of a guided pair does")
    if was_loaded(model, params):
        return model.folder
    models = model, model.with_w and model.with_w()
    return hold(models, params, workdir / "teacher" / "guide", "guide")


def was_loaded(model, params):
    """Whether a model's folder holds these parameters of it."""
    if model.folder is None:
        return False
    return StageFolder(model.folder).finished().record["params_sha256"] == tree_sha256(params)


def hold(models, params, path, role):
    """Keeps functions for this process, and their parameters in a folder; returns it.

    Args:
      models: (teacher, student).
      params: of the teacher.
      path: of the folder.
      role: "teacher" or "guide", which may be alike but for what they compute.
    """
    model = models[0]
    shapes = jax.tree.map(lambda leaf: [str(leaf.dtype), *np.shape(leaf)], params)
    facts = [model.prediction, model.sample_shape, str(shapes)]
    held = json_sha256(facts if role == "teacher" else [role, *facts])
    hold_models(held, models)
    folder = StageFolder(path)
    finished = folder.find()
    if finished is None:
        folder.finish(params, teacher_record(model, held))
    elif finished.record["params_sha256"] != tree_sha256(params):
        raise UserError(f"{folder.path} holds another {role}: take another `workdir`")
    return folder.path


def teacher_record(model, held):
    """What `stage.json` says of a teacher that is a function of this process."""
    schedule = model.schedule.spec or {"name": "own", "num_times": model.schedule.num_times}
    return imported_record(
        "a JAX function",
        schedule=schedule,
        prediction=model.prediction,
        sample_shape=list(model.sample_shape),
        model={"held": held},
    ) | {"held": held}


def with_w(model):
    """The model itself, told w; where it was imported, its graph with a w branch."""
    return model.with_w() if model.with_w else dataclasses.replace(model, knows_w=True)


def check_fresh_student(teacher, student, params):
    """Refuses a student that is not its teacher at every w before it has learnt anything."""
    try:
        fresh = init_student(student.init(jax.random.key(0)), params)
    except ValueError as error:
        raise UserError(
            f"{error}: `student`'s init must give the teacher's parameters and, under "
            f"{' or '.join(W_BRANCH)}, what it learns of w"
        ) from error
    if jax.tree.structure(fresh) == jax.tree.structure(params) and teacher.raw is None:
        raise UserError(
            "`student` has no parameters beside its teacher's, so it cannot learn w: let its init "
            "give a `w_branch` that its apply uses where w is not None"
        )
    z = jax.random.normal(jax.random.key(1), (TRIED, *teacher.sample_shape))
    logsnr = teacher.schedule.logsnr(jnp.full(TRIED, 0.5))
    cond = teacher.conditioning.some(TRIED)
    expected = teacher.denoiser(params, cond)(z, logsnr, jnp.zeros(TRIED))
    for w in TRIED_W:
        found = student.denoiser(fresh, cond)(z, logsnr, jnp.full(TRIED, w))
        if not np.allclose(found, expected, rtol=1e-4, atol=1e-5):
            raise UserError(
                f"a fresh `student` differs from its teacher at w = {w:g}: what it adds for w must "
                "end in zeros"
            )
