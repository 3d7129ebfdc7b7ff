"""The compiled updates: one maker, and what each kind of stage learns.

Each is ONE program over the whole mesh: noise, the teacher's target, x̃ inversion, loss,
gradient, all-reduce, clip, Adam and average. What changes between stages and rounds is one pytree,
`Given`, so all rounds of one algorithm (and factor) share one executable.
"""

import zlib
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from guided_distill.data.augment import augment
from guided_distill.data.pixels import as_learnt, widen
from guided_distill.distill.algorithms import split_keys, step_one_loss, teacher_loss
from guided_distill.models.model import clip_prediction
from guided_distill.training.gradient import batch_gradient
from guided_distill.training.optimizer import descend


@flax.struct.dataclass
class Given:
    """What an update is given beside state and batch: none of it compiles again.

    Attributes:
      key: of the stage.
      learning_rate: float32.
      teacher_params: of the frozen teacher; None where there is none, as below.
      w_range: (w_min, w_max), float32 `[2]`.
      num_steps: N of the student, int32.
      teacher_bound: the teacher's x̂ is clipped to ± it; infinity for the paper's target.
    """

    key: jax.Array
    learning_rate: Any
    teacher_params: Any = None
    w_range: Any = None
    num_steps: Any = None
    teacher_bound: Any = None


def make_update(
    losses, optimizer, *, name, ema_decay=None, weight_decay=0.0, augmentations=(),
    take_gradient=batch_gradient,
):  # fmt: skip
    """`update_<name>(state, given, batch) -> (state, {"loss", "grad_norm"})`, compiled.

    Args:
      losses: `(params, given, x, cond, keys) -> [B]`, as the functions below make them.
      optimizer: of `make_optimizer`.
      name: for the compile log.
      ema_decay: of the average of the parameters; None keeps none.
      weight_decay: as of `descend`.
      augmentations: names of `data.augment`.
      take_gradient: `batch_gradient` or an `accumulated_gradient`.

    Returns:
      A `CompiledUpdate`; `state` is donated, `given` a `Given`, `batch` (x, cond): `[B, H, W, C]`
      uint8 images or latents of any float, and conditioning with leading axis B.
    """

    def update(state, given, batch):
        x, cond = batch[0], widen(batch[1])
        x = prepare(x, given.key, state.update, augmentations)
        keys = example_keys(given.key, state.update, x.shape[0])

        def losses_of(params, *examples):
            return losses(params, given, *examples)

        loss, grads = take_gradient(losses_of, state.params, (x, cond, keys))
        return apply_gradient(
            state, loss, grads, optimizer, given.learning_rate, ema_decay, weight_decay
        )

    update.__name__ = f"update_{name}"
    return CompiledUpdate(update)


def teacher_losses(model, *, label_dropout, loss_weight):
    """Losses of the guided teacher (Eq. 1), whose conditioning is dropped at the given rate."""

    def losses(params, given, x, cond, keys):
        drop_keys, dropout_keys, loss_keys = split_keys(keys, 3)
        cond = model.conditioning.drop(cond, drop_keys, label_dropout)
        denoise = model.denoiser(params, cond, dropout_keys)
        return teacher_loss(denoise, x, loss_keys, schedule=model.schedule, loss_weight=loss_weight)

    return losses


def step_one_losses(teacher, student, *, loss_weight):
    """Losses of a w-conditioned student of the guided pair `teacher` (Algorithm 1)."""

    def losses(params, given, x, cond, keys):
        return step_one_loss(
            student.denoiser(params, cond),
            teacher.guided(given.teacher_params, cond),
            x,
            keys,
            w_range=given.w_range,
            schedule=student.schedule,
            loss_weight=loss_weight,
        )

    return losses


def round_losses(model, distillation, *, factor, loss_weight):
    """Losses of one round of a `Distillation` (Algorithms 2 to 5), teacher and student alike."""
    bind = model.pair if distillation.learns_pair else model.denoiser

    def losses(params, given, x, cond, keys):
        teacher = bind(given.teacher_params, cond)
        return distillation.loss(
            bind(params, cond),
            jax.tree.map(lambda half: clip_prediction(half, given.teacher_bound), teacher),
            x,
            keys,
            num_steps=given.num_steps,
            w_range=given.w_range,
            schedule=model.schedule,
            loss_weight=loss_weight,
            factor=factor,
        )

    return losses


class CompiledUpdate:
    """Jits an update over the mesh its arguments lie on; its state keeps its layout."""

    def __init__(self, update):
        self._update = update
        self._jitted = None

    def __call__(self, state, *args):
        return self._jit(state)(state, *args)

    @property
    def function(self):
        """What is compiled, as it is traced."""
        return self._update

    def lower(self, state, *args):
        """The program of arguments of which only shapes and layouts are known, not compiled yet."""
        return self._jit(state).lower(state, *args)

    def _jit(self, state):
        if self._jitted is None:
            layout = jax.tree.map(lambda leaf: leaf.sharding, state)
            self._jitted = jax.jit(self._update, donate_argnums=0, out_shardings=(layout, None))
        return self._jitted


def apply_gradient(state, loss, grads, optimizer, learning_rate, ema_decay, weight_decay=0.0):
    """One optimizer update with the gradient of the mean loss."""
    direction, opt_state = optimizer.update(grads, state.opt_state)
    params = descend(state.params, direction, learning_rate, weight_decay)
    ema = state.ema
    if ema is not None:
        ema = jax.tree.map(lambda a, p: a + (1.0 - ema_decay) * (p - a), ema, params)
    state = state.replace(update=state.update + 1, params=params, ema=ema, opt_state=opt_state)
    return state, {"loss": loss, "grad_norm": optax.tree.norm(grads)}


def prepare(x, stage_key, update, augmentations):
    """What an update learns from: uint8 images become float32 in [-1, 1]; both are augmented."""
    x = as_learnt(x)
    own_key = jax.random.fold_in(stage_key, zlib.crc32(b"augmentations"))
    return augment(x, example_keys(own_key, update, x.shape[0]), augmentations)


def example_keys(stage_key, update, batch_size):
    """One key per example, a function of (stage, update, global index of the example): `[B]`."""
    update_key = jax.random.fold_in(stage_key, update)
    return jax.vmap(jax.random.fold_in, (None, 0))(update_key, jnp.arange(batch_size))
