"""The compiled updates, one per kind of stage.

Each is ONE program over the whole mesh: noise, the teacher's target, x̃ inversion, loss,
gradient, all-reduce, clip, Adam and average. What changes between stages and rounds (teacher
parameters, `num_steps`, the interval of w, learning rate, the stage's key) comes in as an
argument, so all rounds of one algorithm (and factor) share one executable.
"""

import zlib

import jax
import jax.numpy as jnp
import optax

from guided_distill.data.augment import augment
from guided_distill.data.pixels import to_float
from guided_distill.distill.algorithms import (
    ROUND_LOSSES,
    split_keys,
    step_one_loss,
    teacher_loss,
)
from guided_distill.models.denoiser import bind, bind_guided, clip_prediction, drop_labels
from guided_distill.training.gradient import batch_gradient
from guided_distill.training.optimizer import descend


def make_update_teacher(
    network,
    optimizer,
    *,
    prediction,
    label_dropout,
    ema_decay,
    logsnr_fn,
    loss_weight,
    augmentations=(),
    take_gradient=batch_gradient,
):
    """`update_teacher(state, stage_key, learning_rate, images, labels)`: Eq. 1.

    The returned function, like those of the other makers, is jitted, donates `state` and
    returns `(state, {"loss", "grad_norm"})`. `images` is `[B, H, W, C]` uint8, `labels` `[B]`;
    `augmentations` are names of `data.augment`. `take_gradient` is `batch_gradient` or an
    `accumulated_gradient`.
    """

    def update_teacher(state, stage_key, learning_rate, images, labels):
        x = prepare(images, stage_key, state.update, augmentations)
        keys = example_keys(stage_key, state.update, images.shape[0])
        label_keys, dropout_keys, loss_keys = split_keys(keys, 3)
        null_label = network.num_classes
        labels = drop_labels(labels, label_keys, null_label=null_label, rate=label_dropout)

        def losses(params, x, labels, dropout_keys, loss_keys):
            denoise = bind(
                network, params, labels, prediction=prediction, dropout_keys=dropout_keys
            )
            return teacher_loss(
                denoise,
                x,
                loss_keys,
                logsnr_fn=logsnr_fn,
                loss_weight=loss_weight,
            )

        examples = (x, labels, dropout_keys, loss_keys)
        gradient = take_gradient(losses, state.params, examples)
        return apply_gradient(state, *gradient, optimizer, learning_rate, ema_decay)

    return CompiledUpdate(update_teacher)


def make_update_step_one(
    teacher_network,
    network,
    optimizer,
    *,
    prediction,
    ema_decay,
    logsnr_fn,
    loss_weight,
    augmentations=(),
    take_gradient=batch_gradient,
):
    """`update_step_one(state, teacher_params, w_range, stage_key, learning_rate, images, labels)`:
    Algorithm 1; `w_range` is float32 `[2]`."""

    def update_step_one(state, teacher_params, w_range, stage_key, learning_rate, images, labels):
        x = prepare(images, stage_key, state.update, augmentations)
        keys = example_keys(stage_key, state.update, images.shape[0])

        def losses(params, x, labels, keys):
            null_labels = jnp.full_like(labels, teacher_network.num_classes)
            teacher = bind_guided(
                teacher_network, teacher_params, labels, null_labels, prediction=prediction
            )
            return step_one_loss(
                bind(network, params, labels, prediction=prediction),
                teacher,
                x,
                keys,
                w_range=w_range,
                logsnr_fn=logsnr_fn,
                loss_weight=loss_weight,
            )

        gradient = take_gradient(losses, state.params, (x, labels, keys))
        return apply_gradient(state, *gradient, optimizer, learning_rate, ema_decay)

    return CompiledUpdate(update_step_one)


def make_update_step_two(
    network,
    optimizer,
    *,
    algorithm,
    factor,
    prediction,
    logsnr_fn,
    loss_weight,
    augmentations=(),
    take_gradient=batch_gradient,
):
    """`update_<algorithm>(state, teacher_params, w_range, num_steps, teacher_bound, stage_key,
    learning_rate, images, labels)`: Algorithms 2 to 5 for a student of `num_steps` steps.

    The teacher's predictions are clipped to ±`teacher_bound` (infinity: the paper's target). The
    models of Algorithm 5 are pairs: the network with the label and with the null label.
    """
    round_loss = ROUND_LOSSES[algorithm]
    in_pairs = algorithm == "two_student"

    def update_step_two(
        state,
        teacher_params,
        w_range,
        num_steps,
        teacher_bound,
        stage_key,
        learning_rate,
        images,
        labels,
    ):
        x = prepare(images, stage_key, state.update, augmentations)
        keys = example_keys(stage_key, state.update, images.shape[0])

        def model(params, labels):
            null_labels = jnp.full_like(labels, network.num_classes)
            cond, uncond = (
                bind(network, params, some, prediction=prediction) for some in (labels, null_labels)
            )
            return (cond, uncond) if in_pairs else cond

        def losses(params, x, labels, keys):
            teacher = model(teacher_params, labels)
            return round_loss(
                model(params, labels),
                jax.tree.map(lambda d: clip_prediction(d, teacher_bound), teacher),
                x,
                keys,
                num_steps=num_steps,
                w_range=w_range,
                logsnr_fn=logsnr_fn,
                loss_weight=loss_weight,
                factor=factor,
            )

        gradient = take_gradient(losses, state.params, (x, labels, keys))
        return apply_gradient(state, *gradient, optimizer, learning_rate, ema_decay=None)

    update_step_two.__name__ = f"update_{algorithm}"
    return CompiledUpdate(update_step_two)


class CompiledUpdate:
    """Jits an update over the mesh its arguments lie on; its state keeps its layout."""

    def __init__(self, update):
        self._update = update
        self._jitted = None

    def __call__(self, state, *args):
        return self._jit(state)(state, *args)

    def lower(self, state, *args):
        """The program of arguments of which only shapes and layouts are known, not compiled yet."""
        return self._jit(state).lower(state, *args)

    def _jit(self, state):
        if self._jitted is None:
            layout = jax.tree.map(lambda leaf: leaf.sharding, state)
            self._jitted = jax.jit(self._update, donate_argnums=0, out_shardings=(layout, None))
        return self._jitted


def apply_gradient(state, loss, grads, optimizer, learning_rate, ema_decay):
    """One optimizer update with the gradient of the mean loss."""
    direction, opt_state = optimizer.update(grads, state.opt_state)
    params = descend(state.params, direction, learning_rate)
    ema = state.ema
    if ema is not None:
        ema = jax.tree.map(lambda a, p: a + (1.0 - ema_decay) * (p - a), ema, params)
    state = state.replace(update=state.update + 1, params=params, ema=ema, opt_state=opt_state)
    return state, {"loss": loss, "grad_norm": optax.tree.norm(grads)}


def prepare(images, stage_key, update, augmentations):
    """What an update learns from: `[B, H, W, C]` uint8 -> float32 in [-1, 1], augmented."""
    own_key = jax.random.fold_in(stage_key, zlib.crc32(b"augmentations"))
    return augment(to_float(images), example_keys(own_key, update, images.shape[0]), augmentations)


def example_keys(stage_key, update, batch_size):
    """One key per example, a function of (stage, update, global index of the example): `[B]`."""
    update_key = jax.random.fold_in(stage_key, update)
    return jax.vmap(jax.random.fold_in, (None, 0))(update_key, jnp.arange(batch_size))
