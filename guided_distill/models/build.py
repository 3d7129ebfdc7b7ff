"""The U-Net of a config, or of a finished stage, as a `Model`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from guided_distill.diffusion.schedule import cosine_schedule
from guided_distill.errors import UserError
from guided_distill.models.imported import imported_model
from guided_distill.models.model import Conditioning, Model, guided_by
from guided_distill.models.unet import UNet


def unet_model(settings, schedule, *, image_shape, num_classes, knows_w, dropout=0.0, remat="none"):
    """The `Model` of a U-Net that learns labelled images.

    Args:
      settings: mapping of `config.model`'s keys.
      schedule: mapping of `config.schedule`'s keys.
      image_shape: (H, W, C).
      num_classes: labels are 0, …, num_classes − 1; num_classes itself means none.
      knows_w: whether it has the branch that embeds w.
      dropout: rate while it is given dropout keys.
      remat: as in `UNet`.
    """
    network = UNet(
        num_classes=num_classes,
        width=settings["width"],
        channel_mults=tuple(settings["channel_mults"]),
        num_res_blocks=settings["num_res_blocks"],
        attention_resolutions=tuple(settings["attention_resolutions"]),
        head_dim=settings["head_dim"],
        dropout=dropout,
        dtype=jnp.dtype(settings["dtype"]),
        w_conditioned=knows_w,
        remat=remat,
    )
    model = wrap_network(
        network,
        image_shape=image_shape,
        prediction=settings["prediction"],
        schedule=cosine_schedule(schedule["logsnr_min"], schedule["logsnr_max"]),
    )
    with_w = functools.partial(
        unet_model,
        settings,
        schedule,
        image_shape=image_shape,
        num_classes=num_classes,
        knows_w=True,
        remat=remat,
    )
    return dataclasses.replace(model, with_w=with_w)


def wrap_network(network, *, image_shape, prediction, schedule):
    """The `Model` of a `UNet`; jit its `init`, it is slow otherwise."""

    def apply(params, z, logsnr, labels, w, dropout_keys):
        return network.apply({"params": params}, z, logsnr, labels, w, dropout_keys)

    def init(key):
        one = jnp.zeros((1,))
        w = one if network.w_conditioned else None
        z, label = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
        return network.init(key, z, one, label, w)["params"]

    return Model(
        apply=apply,
        init=init,
        prediction=prediction,
        schedule=schedule,
        conditioning=Conditioning(null=network.num_classes),
        sample_shape=tuple(image_shape),
        knows_w=network.w_conditioned,
    )


HELD = {}  # (teacher, student) of models that are functions of this process, by their record's name


def hold_models(name, models):
    """Keeps the (teacher, student) that records of the name stand for: no file can."""
    HELD[name] = models


def held_models(stage):
    """(teacher, student) of a `FinishedStage` whose model is a function.

    Raises:
      UserError: where this process was not given it.
    """
    if stage.record["held"] not in HELD:
        raise UserError(
            f"the model of {stage.path} is a function: call guided_distill.distill with it first, "
            "in the same program"
        )
    return HELD[stage.record["held"]]


def model_of(stage):
    """The `Model` of a `FinishedStage`, with its guide where it has one.

    Raises:
      UserError: where it is a function, and this process was not given it.
    """
    knows_w = stage.record["stage"] != "teacher"
    model = network_of(stage, knows_w=knows_w)
    if stage.guide is None:
        return model
    dtype = stage.record["config"]["model"].get("dtype", "")
    return guided_by(model, network_of(stage.guide, knows_w=knows_w, dtype=dtype))


def network_of(stage, *, knows_w, dtype="", remat="none"):
    """A `FinishedStage`'s own network: our U-Net's, an imported graph's or a function's.

    Args:
      stage: `FinishedStage`.
      knows_w: whether it is conditioned on w.
      dtype: compute dtype of what is no function; '' takes what its record says.
      remat: as of `UNet`.

    Raises:
      UserError: as of `model_of`.
    """
    model = _network_of(stage, knows_w=knows_w, dtype=dtype, remat=remat)
    return dataclasses.replace(model, prediction=stage.record["parameterization"])


def _network_of(stage, *, knows_w, dtype, remat):
    """As `network_of`, which predicts what its teacher does."""
    record = stage.record
    if "held" in record:
        return held_models(stage)[knows_w]
    settings = {"dtype": "float32"} | record["config"]["model"]
    settings |= {"dtype": dtype} if dtype else {}
    if "model" in record:
        return imported_model(
            record["model"], stage.path, knows_w=knows_w, dtype=settings["dtype"], remat=remat
        )
    return unet_model(
        settings,
        record["config"]["schedule"],
        image_shape=record["image_shape"],
        num_classes=record["num_classes"],
        knows_w=knows_w,
        remat=remat,
    )


def count_params(params):
    """Number of scalars in a tree of parameters or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
