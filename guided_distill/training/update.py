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
):
    """`update_teacher(state, stage_key, learning_rate, images, labels)`: Eq. 1.

    The returned function, like those of the other makers, is jitted, donates `state` and
    returns `(state, {"loss", "grad_norm"})`. `images` is `[B, H, W, C]` uint8, `labels` `[B]`;
    `augmentations` are names of `data.augment`.
    """

    def update_teacher(state, stage_key, learning_rate, images, labels):
        x = prepare(images, stage_key, state.update, augmentations)
        keys = example_keys(stage_key, state.update, images.shape[0])
        label_keys, dropout_keys, loss_keys = split_keys(keys, 3)
        null_label = network.num_classes
        labels = drop_labels(labels, label_keys, null_label=null_label, rate=label_dropout)

        def losses(params):
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

        return apply_gradient(state, losses, optimizer, learning_rate, ema_decay)

    return compile_update(update_teacher)


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
):
    """`update_step_one(state, teacher_params, w_range, stage_key, learning_rate, images, labels)`:
    Algorithm 1; `w_range` is float32 `[2]`."""

    def update_step_one(state, teacher_params, w_range, stage_key, learning_rate, images, labels):
        x = prepare(images, stage_key, state.update, augmentations)
        keys = example_keys(stage_key, state.update, images.shape[0])
        null_labels = jnp.full_like(labels, teacher_network.num_classes)
        teacher = bind_guided(
            teacher_network, teacher_params, labels, null_labels, prediction=prediction
        )

        def losses(params):
            return step_one_loss(
                bind(network, params, labels, prediction=prediction),
                teacher,
                x,
                keys,
                w_range=w_range,
                logsnr_fn=logsnr_fn,
                loss_weight=loss_weight,
            )

        return apply_gradient(state, losses, optimizer, learning_rate, ema_decay)

    return compile_update(update_step_one)


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
        null_labels = jnp.full_like(labels, network.num_classes)

        def model(params):
            cond, uncond = (
                bind(network, params, some, prediction=prediction) for some in (labels, null_labels)
            )
            return (cond, uncond) if in_pairs else cond

        def losses(params):
            return round_loss(
                model(params),
                jax.tree.map(lambda d: clip_prediction(d, teacher_bound), model(teacher_params)),
                x,
                keys,
                num_steps=num_steps,
                w_range=w_range,
                logsnr_fn=logsnr_fn,
                loss_weight=loss_weight,
                factor=factor,
            )

        return apply_gradient(state, losses, optimizer, learning_rate, ema_decay=None)

    update_step_two.__name__ = f"update_{algorithm}"
    return compile_update(update_step_two)


def compile_update(update):
    """Jits an update over the mesh its arguments lie on; its state keeps its layout."""
    compiled = None

    def call(state, *args):
        nonlocal compiled
        if compiled is None:
            state_layout = jax.tree.map(lambda leaf: leaf.sharding, state)
            compiled = jax.jit(update, donate_argnums=0, out_shardings=(state_layout, None))
        return compiled(state, *args)

    return call


def apply_gradient(state, losses, optimizer, learning_rate, ema_decay):
    """One optimizer update on the mean of `losses(params)` `[B]`."""
    loss, grads = jax.value_and_grad(lambda params: jnp.mean(losses(params)))(state.params)
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
