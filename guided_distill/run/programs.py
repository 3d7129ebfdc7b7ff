"""What a config's stages compute: models, first states and compiled updates."""

import dataclasses
import functools
import zlib

import jax
import numpy as np

from guided_distill.distill.distillations import ALGORITHMS
from guided_distill.distill.losses import LOSS_WEIGHTS
from guided_distill.errors import UserError
from guided_distill.models.build import held_models, network_of, unet_model
from guided_distill.models.imported import imported_model
from guided_distill.models.model import guided_by
from guided_distill.models.student import init_pair, init_student
from guided_distill.run.checks import check_guide
from guided_distill.system import sharding
from guided_distill.system.compilation import jit_once
from guided_distill.training.gradient import accumulated_gradient, batch_gradient
from guided_distill.training.memory import compile_to_fit
from guided_distill.training.optimizer import make_optimizer
from guided_distill.training.program import describe_program
from guided_distill.training.state import init_state
from guided_distill.training.update import (
    Given,
    make_update,
    round_losses,
    step_one_losses,
    teacher_losses,
)


class StagePrograms:
    """Makes what a config's stages train; compiles each kind of update once.

    Args:
      config: a checked ConfigDict.
      mesh: the devices.
      models: (teacher, student), `Model`s as of `make_models`.
      example: one (x, conditioning) of the data, as shapes: `Dataset.example`.
    """

    def __init__(self, config, mesh, models, example):
        self.config, self.mesh = config, mesh
        self.teacher, self.student = models
        self.guide = self.teacher.guide
        self.example = example
        self.optimizer = make_optimizer(**config.optimizer)
        self._inits, self._updates = {}, {}

    def model_of(self, stage):
        """The `Model` whose parameters a stage makes."""
        return self.teacher if stage.kind == "teacher" else self.student_of(stage)

    def stage_key(self, stage):
        """PRNG key of everything a stage draws."""
        return jax.random.fold_in(jax.random.key(self.config.seed), zlib.crc32(stage.name.encode()))

    def fresh_state(self, stage, teacher_params):
        """The stage's first state, on the devices: random, or the teacher's params."""
        kind = stage.kind, self.student_of(stage) is self.student
        if kind not in self._inits:
            init = functools.partial(self._init, stage)
            shapes = jax.eval_shape(init, self.stage_key(stage), teacher_params)
            layout = sharding.state_shardings(shapes, self.mesh)
            self._inits[kind] = jit_once(init, out_shardings=layout)
        return self._inits[kind](self.stage_key(stage), teacher_params)

    def with_w_branch(self, stage, teacher_params):
        """The teacher's params in the students' network: the same model, for every w.

        Algorithm 5 distils the guided pair itself, so its first teacher knows no w yet.
        """
        init = init_student if self.guide is None else init_pair

        def widen(key, teacher_params):
            return init(self.student_of(stage).init(key), teacher_params)

        return sharding.to_host(jit_once(widen)(self.stage_key(stage), teacher_params))

    def student_of(self, stage):
        """The `Model` that a distilled stage trains: with a guide, Algorithm 5's are two."""
        row = ALGORITHMS.get(stage.algorithm)
        return self._pair_student if row and row.learns_pair else self.student

    @functools.cached_property
    def _pair_student(self):
        if self.guide is None:
            return self.student
        return guided_by(self.student, self.guide.with_w())

    def bind(self, stage, teacher_params):
        """`(state, learning_rate, batch) -> (state, metrics)`: the stage's update."""
        compiled = self.update_of(stage)
        if teacher_params is not None:
            teacher_params = sharding.place(teacher_params, self.mesh)
        key = sharding.put_key(self.stage_key(stage), self.mesh)
        given = given_of(stage, key, teacher_params)

        def update(state, learning_rate, batch):
            return compiled(state, given.replace(learning_rate=learning_rate), batch)

        return update

    def lower(self, stage):
        """The stage's update as a program for shapes and layouts alone, on any kind of mesh."""
        return self.update_of(stage).lower(*self.arguments(stage))

    def arguments(self, stage):
        """(state, `Given`, batch) of a stage's updates as shapes with their layouts."""
        state, teacher_params, key = self.shapes(stage)
        layout = sharding.batch_sharding(self.mesh)
        size = stage.optimization["batch_size"]
        batch = jax.tree.map(
            lambda one: jax.ShapeDtypeStruct((size, *one.shape), one.dtype, sharding=layout),
            self.example,
        )
        return state, given_of(stage, key, teacher_params), batch

    def program(self, stage):
        """What the stage's update takes of a device, a `Program`: compiled, not run."""
        lowered = self.lower(stage)
        return describe_program(lowered, compile_to_fit(lowered, stage.name))

    def shapes(self, stage):
        """(state, teacher params, key) of a stage's updates as shapes with their layouts."""
        key = jax.eval_shape(lambda: self.stage_key(stage))
        teacher_params = None
        if stage.kind != "teacher":
            teacher = self.teacher if stage.kind == "step_one" else self.student_of(stage)
            teacher_params = jax.eval_shape(teacher.init, key)
        state = jax.eval_shape(functools.partial(self._init, stage), key, teacher_params)
        return self._shapes(state), self._shapes(teacher_params), self._shapes(key)

    def kinds(self, stages):
        """One stage of each kind that is compiled on its own, in order."""
        return list({kind_of(stage): stage for stage in reversed(stages)}.values())[::-1]

    def update_of(self, stage):
        """The compiled update of a stage's kind, algorithm and factor, made once."""
        key = kind_of(stage)
        if key not in self._updates:
            self._updates[key] = make_update(
                self.losses_of(stage),
                self.optimizer,
                name=stage.algorithm or stage.kind,
                ema_decay=stage.optimization.get("ema_decay"),
                weight_decay=stage.optimization.get("weight_decay", 0.0),
                augmentations=tuple(self.config.data.augmentations),
                take_gradient=self._take_gradient(),
            )
        return self._updates[key]

    def losses_of(self, stage):
        """`(params, given, x, cond, keys) -> [B]`: what the stage's update descends."""
        loss_weight = LOSS_WEIGHTS[stage.optimization["loss"]]
        if stage.kind == "teacher":
            label_dropout = stage.optimization["label_dropout"]
            return teacher_losses(
                self.teacher, label_dropout=label_dropout, loss_weight=loss_weight
            )
        if stage.kind == "step_one":
            return step_one_losses(self.teacher, self.student, loss_weight=loss_weight)
        row = ALGORITHMS[stage.algorithm]
        student = self.student_of(stage)
        return round_losses(student, row, factor=stage.factor, loss_weight=loss_weight)

    def _take_gradient(self):
        parts = self.config.memory.gradient_accumulation
        if parts == 1:
            return batch_gradient
        return functools.partial(accumulated_gradient, parts=parts, mesh=self.mesh)

    def _init(self, stage, key, teacher_params):
        params = teacher_params
        if stage.kind == "teacher":
            params = self.teacher.init(key)
        if stage.kind == "step_one":
            start = teacher_params if self.guide is None else teacher_params["model"]
            params = init_student(self.student.init(key), start)
        return init_state(params, self.optimizer, keep_ema="ema_decay" in stage.optimization)

    def _shapes(self, tree):
        """Shapes with the layout that the tree has on the mesh."""
        return jax.tree.map(
            lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
            tree,
            sharding.state_shardings(tree, self.mesh),
        )


def make_models(config, image_shape, num_classes, teacher=None):
    """(teacher, student), `Model`s of a run: of its U-Net, or of the model that it begins with.

    Students predict what `config.step_one.prediction` says, or what they begin with does.

    Args:
      config: ConfigDict.
      image_shape: (H, W, C) of the data.
      num_classes: of the data.
      teacher: `FinishedStage` that the run begins with; None where it trains its own.

    Raises:
      UserError: where the teacher's guide is none for it.
    """
    model, student = _own_models(config, image_shape, num_classes, teacher)
    student = dataclasses.replace(student, prediction=_prediction_of(config, student, teacher))
    if teacher is None or teacher.guide is None:
        return model, student
    options = {"dtype": config.model.dtype, "remat": config.memory.remat}
    guide = network_of(teacher.guide, knows_w=False, **options)
    check_guide(config, model, guide)
    return guided_by(model, guide), student


def _prediction_of(config, student, teacher):
    """What students predict: what step one was told, or what the run begins with does."""
    kind = config.step_one.prediction
    if teacher is None or teacher.record["stage"] == "teacher":
        return kind or student.prediction
    there = teacher.record["parameterization"]
    if kind not in ("", there):
        raise UserError(
            f"{teacher.path} predicts {there}, and the run has no step one to change that in: "
            "leave step_one.prediction ''"
        )
    return there


def _own_models(config, image_shape, num_classes, teacher):
    """As `make_models`, of a teacher without its guide; both predict the same."""
    if teacher is not None and "held" in teacher.record:
        return held_models(teacher)
    if teacher is not None and "model" in teacher.record:
        make_model = functools.partial(
            imported_model,
            teacher.record["model"],
            teacher.path,
            dtype=config.model.dtype,
            remat=config.memory.remat,
        )
        return make_model(knows_w=False), make_model(knows_w=True)
    make_model = functools.partial(
        unet_model,
        config.model,
        config.schedule,
        image_shape=tuple(image_shape),
        num_classes=num_classes,
        remat=config.memory.remat,
    )
    return make_model(knows_w=False, dropout=config.teacher.dropout), make_model(knows_w=True)


def kind_of(stage):
    """What tells a stage's compiled update from those of others."""
    return stage.kind, stage.algorithm, stage.factor


def given_of(stage, key, teacher_params):
    """The `Given` of a stage's updates, before the learning rate is known."""
    rate = np.float32(0.0)
    if stage.kind == "teacher":
        return Given(key, rate)
    w_range = np.asarray(stage.w_range, np.float32)
    if stage.kind == "step_one":
        return Given(key, rate, teacher_params, w_range)
    bound = np.float32(1.0 if stage.optimization["clip_teacher"] else np.inf)
    return Given(key, rate, teacher_params, w_range, np.int32(stage.num_steps), bound)
