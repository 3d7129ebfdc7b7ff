"""What a config's stages compute: networks, first states and compiled updates."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.diffusion.schedule import cosine_logsnr
from guided_distill.distill.losses import LOSS_WEIGHTS
from guided_distill.models.build import build_unet, init_params
from guided_distill.models.denoiser import init_student
from guided_distill.training import sharding
from guided_distill.training.gradient import accumulated_gradient, batch_gradient
from guided_distill.training.memory import compile_to_fit
from guided_distill.training.optimizer import make_optimizer
from guided_distill.training.program import describe_program
from guided_distill.training.state import init_state
from guided_distill.training.update import (
    make_update_step_one,
    make_update_step_two,
    make_update_teacher,
)


class Updates:
    """Makes what a config's stages train; compiles each kind of update once.

    Args:
      config: a checked ConfigDict.
      mesh: the devices.
      image_shape: (H, W, C) of the data.
      num_classes: of the data.
    """

    def __init__(self, config, mesh, image_shape, num_classes):
        self.config, self.mesh = config, mesh
        self.image_shape, self.num_classes = tuple(image_shape), num_classes
        self.logsnr_fn = functools.partial(
            cosine_logsnr,
            logsnr_min=config.schedule.logsnr_min,
            logsnr_max=config.schedule.logsnr_max,
        )
        self.optimizer = make_optimizer(**config.optimizer)
        self._updates = {}

    def stage_key(self, stage):
        """PRNG key of everything a stage draws."""
        return jax.random.fold_in(jax.random.key(self.config.seed), zlib.crc32(stage.name.encode()))

    def fresh_state(self, stage, teacher_params):
        """The stage's first state, on the devices: random, or the teacher's params."""
        init = functools.partial(self._init, stage)
        shapes = jax.eval_shape(init, self.stage_key(stage), teacher_params)
        layout = sharding.state_shardings(shapes, self.mesh)
        return jax.jit(init, out_shardings=layout)(self.stage_key(stage), teacher_params)

    def with_w_branch(self, stage, teacher_params):
        """The teacher's params in the students' network: the same model, for every w.

        Algorithm 5 distils the guided pair itself, so its first teacher knows no w yet.
        """

        def widen(key, teacher_params):
            fresh = init_params(self.student_network, key, self.image_shape)
            return init_student(fresh, teacher_params)

        return sharding.to_host(jax.jit(widen)(self.stage_key(stage), teacher_params))

    def bind(self, stage, teacher_params):
        """`(state, learning_rate, images, labels) -> (state, metrics)`: the stage's update."""
        compiled = self.of(stage)
        if teacher_params is not None:
            teacher_params = sharding.place(teacher_params, self.mesh)
        key = sharding.put_key(self.stage_key(stage), self.mesh)
        fixed = fixed_arguments(stage, teacher_params, key)

        def update(state, learning_rate, images, labels):
            return compiled(state, *fixed, learning_rate, images, labels)

        return update

    def lower(self, stage):
        """The stage's update as a program for shapes and layouts alone, on any kind of mesh."""
        state, teacher_params, key = self.shapes(stage)
        batch = sharding.batch_sharding(self.mesh)
        batch_size = stage.optimization["batch_size"]
        return self.of(stage).lower(
            state,
            *fixed_arguments(stage, teacher_params, key),
            np.float32(0.0),
            jax.ShapeDtypeStruct((batch_size, *self.image_shape), jnp.uint8, sharding=batch),
            jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=batch),
        )

    def program(self, stage):
        """What the stage's update takes of a device, a `Program`: compiled, not run."""
        lowered = self.lower(stage)
        return describe_program(lowered, compile_to_fit(lowered, stage.name))

    def shapes(self, stage):
        """(state, teacher params, key) of a stage's updates as shapes with their layouts."""
        key = jax.eval_shape(lambda: self.stage_key(stage))
        teacher_params = None
        if stage.kind != "teacher":
            network = self.teacher_network if stage.kind == "step_one" else self.student_network
            init = functools.partial(init_params, network, image_shape=self.image_shape)
            teacher_params = jax.eval_shape(init, key)
        state = jax.eval_shape(functools.partial(self._init, stage), key, teacher_params)
        return self._shapes(state), self._shapes(teacher_params), self._shapes(key)

    def kinds(self, stages):
        """One stage of each kind that is compiled on its own, in order."""
        return list({kind_of(stage): stage for stage in reversed(stages)}.values())[::-1]

    def _init(self, stage, key, teacher_params):
        params = teacher_params
        if stage.kind == "teacher":
            params = init_params(self.teacher_network, key, self.image_shape)
        if stage.kind == "step_one":
            fresh = init_params(self.student_network, key, self.image_shape)
            params = init_student(fresh, teacher_params)
        return init_state(params, self.optimizer, keep_ema=stage.kind != "step_two")

    def _shapes(self, tree):
        """Shapes with the layout that the tree has on the mesh."""
        return jax.tree.map(
            lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
            tree,
            sharding.state_shardings(tree, self.mesh),
        )

    @functools.cached_property
    def teacher_network(self):
        """The unconditioned-by-w U-Net, with the teacher's dropout."""
        return self._network(w_conditioned=False, dropout=self.config.teacher.dropout)

    @functools.cached_property
    def student_network(self):
        """The w-conditioned U-Net of every distilled stage."""
        return self._network(w_conditioned=True, dropout=0.0)

    def _network(self, **kwargs):
        return build_unet(
            self.config.model,
            num_classes=self.num_classes,
            remat=self.config.memory.remat,
            **kwargs,
        )

    def of(self, stage):
        """The compiled update of a stage's kind, algorithm and factor, made once."""
        key = kind_of(stage)
        if key not in self._updates:
            make = {
                "teacher": self._make_update_teacher,
                "step_one": self._make_update_step_one,
                "step_two": self._make_update_step_two,
            }[stage.kind]
            self._updates[key] = make(stage)
        return self._updates[key]

    def _make_update_teacher(self, stage):
        section = self.config.teacher
        return make_update_teacher(
            self.teacher_network,
            self.optimizer,
            label_dropout=section.label_dropout,
            ema_decay=section.ema_decay,
            **self._loss_settings(section),
        )

    def _make_update_step_one(self, stage):
        section = self.config.step_one
        return make_update_step_one(
            self.teacher_network,
            self.student_network,
            self.optimizer,
            ema_decay=section.ema_decay,
            **self._loss_settings(section),
        )

    def _make_update_step_two(self, stage):
        return make_update_step_two(
            self.student_network,
            self.optimizer,
            algorithm=stage.algorithm,
            factor=stage.factor,
            **self._loss_settings(self.config.step_two),
        )

    def _loss_settings(self, section):
        return dict(
            prediction=self.config.model.prediction,
            logsnr_fn=self.logsnr_fn,
            loss_weight=LOSS_WEIGHTS[section.loss],
            augmentations=tuple(self.config.data.augmentations),
            take_gradient=self._take_gradient(),
        )

    def _take_gradient(self):
        parts = self.config.memory.gradient_accumulation
        if parts == 1:
            return batch_gradient
        return functools.partial(accumulated_gradient, parts=parts, mesh=self.mesh)


def kind_of(stage):
    """What tells a stage's compiled update from those of others."""
    return stage.kind, stage.algorithm, stage.factor


def fixed_arguments(stage, teacher_params, key):
    """An update's arguments that stay over the stage, between its state and the learning rate."""
    fixed = [key]
    if stage.kind == "step_two":
        bound = np.float32(1.0 if stage.optimization["clip_teacher"] else np.inf)
        fixed = [np.int32(stage.num_steps), bound, *fixed]
    if stage.kind != "teacher":
        fixed = [teacher_params, np.asarray(stage.w_range, np.float32), *fixed]
    return fixed
