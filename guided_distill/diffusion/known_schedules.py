"""Schedules of models that others trained: by name, as a table of α̅, of a diffusers config.

A table's times are t = n/T for n = 1, …, T; λ(0) is infinite, x itself, as samplers with
`set_alpha_to_one` have it.
"""

import math

import numpy as np

from guided_distill.diffusion.schedule import (
    Schedule,
    cosine_schedule,
    flow_schedule,
    table_schedule,
)
from guided_distill.errors import UserError, nearest

MAX_BETA = 0.999  # of the squared cosine
COSINE_OFFSET = 0.008
PREDICTIONS = {  # `prediction_type` of diffusers
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "x",
    "flow_prediction": "flow",
}


def linear_betas(num_times=1000, beta_start=1e-4, beta_end=0.02):
    """β of Ho et al. 2020, of DiT and ADM, `[T]`."""
    return np.linspace(beta_start, beta_end, num_times)


def scaled_linear_betas(num_times=1000, beta_start=0.00085, beta_end=0.012):
    """β linear in its root, of latent diffusion, `[T]`; the ends are Stable Diffusion's."""
    return np.linspace(beta_start**0.5, beta_end**0.5, num_times) ** 2


def squared_cosine_betas(num_times=1000, **_):
    """β of Nichol & Dhariwal 2021, at most `MAX_BETA`, `[T]`; it has no ends to set."""
    angle = (np.arange(num_times + 1) / num_times + COSINE_OFFSET) / (1.0 + COSINE_OFFSET)
    alphas_bar = np.cos(0.5 * math.pi * angle) ** 2
    return np.minimum(1.0 - alphas_bar[1:] / alphas_bar[:-1], MAX_BETA)


def zero_terminal_snr(alphas_bar):
    """α̅ shifted and scaled in its root, so that it ends at 0 (Lin et al. 2024), `[T]`."""
    roots = np.sqrt(alphas_bar)
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


BETAS = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "squared_cosine": squared_cosine_betas,
    "squaredcos_cap_v2": squared_cosine_betas,  # as diffusers calls it
}
CONTINUOUS = {"cosine": cosine_schedule, "flow": flow_schedule}
DISCRETE = ("linear", "scaled_linear", "squared_cosine", "zero_terminal_snr")
NAMES = (*CONTINUOUS, *DISCRETE)


def read_schedule(schedule):
    """The `Schedule` that is meant.

    Args:
      schedule: a `Schedule`; one of `NAMES` (`zero_terminal_snr` is scaled-linear, rescaled);
        α̅ at t = 1/T, …, 1, `[T]`, falling; a `spec`; or the dict of a diffusers scheduler's config.

    Raises:
      UserError: where it is none of these, does not fall, or is not known here.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, str):
        return _named(schedule)
    if hasattr(schedule, "items"):
        return _of_dict(dict(schedule))
    return alphas_bar_schedule(schedule)


def alphas_bar_schedule(alphas_bar):
    """The `Schedule` of a table of α̅ at t = 1/T, …, 1, `[T]`.

    Raises:
      UserError: where it is no table, leaves [0, 1], or does not fall from one time to the next.
    """
    table = np.asarray(alphas_bar, np.float64)
    if table.ndim != 1 or len(table) < 1:
        raise UserError(f"a schedule's table of α̅ must be [T], got {list(table.shape)}")
    if not (np.isfinite(table).all() and table.min() >= 0.0 and table.max() < 1.0):
        raise UserError("a schedule's α̅ must lie in [0, 1), and be finite")
    rises = np.diff(table) >= 0.0
    if rises.any():
        at = int(np.argmax(rises))
        raise UserError(
            f"a schedule's α̅ must fall: it is {table[at]:g} at time {at + 1} and "
            f"{table[at + 1]:g} at the next"
        )
    with np.errstate(divide="ignore"):
        logsnrs = np.log(table) - np.log1p(-table)
    spec = {"name": "table", "alphas_bar": table.tolist()}
    return table_schedule(np.concatenate([[np.inf], logsnrs]), spec)


def prediction_of(config):
    """What a model of a diffusers scheduler's config predicts, None where it does not say."""
    if config.get("use_flow_sigmas") or ("shift" in config and "beta_schedule" not in config):
        return "flow"
    return PREDICTIONS.get(config.get("prediction_type"))


def ends_in_noise(schedule):
    """Whether λ(1) is −∞: what is predicted as ε then says nothing of x."""
    return bool(np.isneginf(np.asarray(schedule.logsnr(np.float32(1.0)))))


def _named(name):
    if name not in NAMES:
        raise UserError(f"schedule {name!r} is none of {', '.join(NAMES)}{nearest(name, NAMES)}")
    if name in CONTINUOUS:
        return CONTINUOUS[name]()
    if name == "zero_terminal_snr":
        return _of_betas(scaled_linear_betas(), rescale=True)
    return _of_betas(BETAS[name]())


def _of_dict(config):
    """The schedule of a spec, or of a diffusers scheduler's config."""
    name = config.get("name")
    if name == "table":
        return alphas_bar_schedule(config["alphas_bar"])
    if name in CONTINUOUS:
        settings = {key: value for key, value in config.items() if key != "name"}
        return CONTINUOUS[name](**settings)
    if name is not None:
        raise UserError(f"schedule {name!r} is none of table, cosine, flow{nearest(name, NAMES)}")
    if prediction_of(config) == "flow":
        return _of_flow_config(config)
    return _of_beta_config(config)


def _of_flow_config(config):
    """Of a flow-matching scheduler's config, whose `shift` is the only setting taken."""
    if config.get("use_dynamic_shifting"):
        raise UserError(
            "the scheduler's use_dynamic_shifting makes the schedule depend on the image's size: "
            "give the schedule of your size, {'name': 'flow', 'shift': …}"
        )
    for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
        if config.get(key):
            raise UserError(f"the scheduler's {key} is not supported: give an α̅ table or a spec")
    return flow_schedule(config.get("shift", 1.0) or 1.0)


def _of_beta_config(config):
    """Of a scheduler of discrete times, such as DDIMScheduler's config."""
    num_times = config.get("num_train_timesteps", 1000)
    betas, name = config.get("trained_betas"), config.get("beta_schedule")
    if betas is None:
        if name not in BETAS:
            raise UserError(
                f"the scheduler's beta_schedule {name!r} is none of {', '.join(BETAS)}: give its "
                "α̅ table instead"
            )
        betas = BETAS[name](num_times, **_beta_ends(config, name))
    return _of_betas(betas, rescale=bool(config.get("rescale_betas_zero_snr")))


def _beta_ends(config, name):
    """`{"beta_start", "beta_end"}` of those that are there."""
    ends = {key: config[key] for key in ("beta_start", "beta_end") if key in config}
    missing = sorted({"beta_start", "beta_end"} - set(ends))
    if missing and name == "scaled_linear":
        raise UserError(
            f"the scheduler's config has beta_schedule {name!r} and no {' and no '.join(missing)}: "
            "write them in, as schedulers disagree on what it is then"
        )
    return ends


def _of_betas(betas, rescale=False):
    alphas_bar = np.cumprod(1.0 - np.asarray(betas, np.float64))
    return alphas_bar_schedule(zero_terminal_snr(alphas_bar) if rescale else alphas_bar)
