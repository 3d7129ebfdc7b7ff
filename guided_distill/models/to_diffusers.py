"""A student in the terms of diffusers: its component's config and weights, and its scheduler's.

A stock pipeline gives a UNet2DConditionModel with `time_cond_proj_dim` the sinusoids of
1000 (guidance_scale − 1), which are `guidance_features` of our w, and adds a matrix of them to what
`time_embedding.linear_1` is fed: the student's w branch. Elsewhere one w is folded into the bias of
the layers that w enters, which is exact.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from guided_distill.diffusion.known_schedules import PREDICTIONS, read_schedule
from guided_distill.errors import UserError
from guided_distill.models.imported import W_BRANCH, W_FEATURES, slow_features, slow_rows

SLOT_CLASS = "UNet2DConditionModel"  # has a slot for w, in the layer
SLOT_LAYER = "time_embedding.linear_1"
SLOT_WEIGHT = "time_embedding.cond_proj.weight"
SLOT, OWN, FOLDED = "slot", "own", "folded"  # where w is: see `Student.dial`
BETAS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "rescale_betas_zero_snr",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Student:
    """What a finished stage's record says of a student that goes home to diffusers.

    Attributes:
      description: `model` of the record.
      prediction: what it predicts, which its teacher need not.
      params: its parameters.
      num_steps: N.
    """

    description: dict
    prediction: str
    params: dict
    num_steps: int

    @property
    def diffusers(self):
        """Of its teacher's folder: pipeline, component, class, source, scheduler, config."""
        return self.description["diffusers"]

    @property
    def dial(self):
        """Where its pipeline's guidance_scale goes: in the slot, an input of its own, or nowhere.

        Nowhere is `FOLDED`: w must be fixed.
        """
        if self.description["inputs"]["w"] is not None:
            return OWN
        layers = set(self.description["sites"].values())
        return SLOT if (self.diffusers["class"], layers) == (SLOT_CLASS, {SLOT_LAYER}) else FOLDED

    @property
    def schedule(self):
        """`Schedule` that it was trained on."""
        return read_schedule(self.description["schedule"])

    @property
    def is_flow(self):
        """Whether it predicts ε − x of rectified flow."""
        return self.prediction == "flow"


def component_config(student, config, w=None):
    """The component's config, given its teacher's; `w` is None where the dial is kept."""
    if w is None and student.dial == SLOT:
        return config | {"time_cond_proj_dim": W_FEATURES}
    return config


def component_weights(student, w=None):
    """`{name in the state dict: array}` of what the student has, with its dial or folded at w."""
    weights = {name: np.asarray(v) for name, v in student.params.items() if name != W_BRANCH}
    branch = student.params.get(W_BRANCH, {})
    if w is not None:
        return weights | _folded(weights, branch, w)
    if student.dial == SLOT:
        matrix = np.where(slow_rows()[:, None], branch[SLOT_LAYER], 0.0)
        weights[SLOT_WEIGHT] = np.ascontiguousarray(matrix.T, np.float32)
    return weights


def _folded(weights, branch, w):
    """`{bias: array}` of the layers that w enters: W (h + m) + b = W h + (b + W m)."""
    features = np.asarray(slow_features(jnp.full((1,), w, jnp.float32)), np.float64)[0]
    biases = {}
    for layer, matrix in branch.items():
        bias, weight = f"{layer}.bias", np.asarray(weights[f"{layer}.weight"], np.float64)
        if bias not in weights:
            raise UserError(f"{layer}, which w enters, has no bias to fold a weight into")
        moved = weights[bias] + features @ np.asarray(matrix, np.float64) @ weight.T
        biases[bias] = moved.astype(np.float32)
    return biases


def scheduler_config(student):
    """The config of the stock scheduler that takes the student's N steps, and what it is called.

    Raises:
      UserError: where no stock scheduler steps as the student does, with what would do.
    """
    if student.is_flow:
        return _flow_config(student)
    steps = student.num_steps
    num_times = student.schedule.num_times
    if num_times is None:
        raise UserError("the student's times are continuous, which no stock scheduler steps on")
    if num_times % steps:
        close = " or ".join(map(str, close_divisors(steps, num_times)))
        raise UserError(
            f"`num_steps` {steps}: DDIMScheduler steps by {num_times} // {steps} times and so "
            f"leaves the student's grid; it steps exactly at {close}"
        )
    return _ddim_config(student)


def close_divisors(n, total, many=2):
    """The `many` divisors of `total` that are nearest to n, rising."""
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    return sorted(sorted(divisors, key=lambda d: abs(d - n))[:many])


def _ddim_config(student):
    """Of DDIM at t = N/N, …, 1/N, whose last step is x̂ itself.

    The stock scheduler clips where x has a bound, as ours does.
    """
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    scheduler, bound = student.diffusers["scheduler"], student.description["bound"]
    betas = {key: scheduler[key] for key in BETAS if key in scheduler}
    times = np.arange(1, student.schedule.num_times + 1) / student.schedule.num_times
    if not np.array_equal(
        read_schedule(betas).logsnr(np.float32(times)), student.schedule.logsnr(np.float32(times))
    ):
        raise UserError(
            "the student was trained on another schedule than its teacher's scheduler has, so its "
            "betas would be wrong: import the teacher with its own scheduler"
        )
    return betas | {
        "_class_name": "DDIMScheduler",
        "prediction_type": names[student.prediction],
        "timestep_spacing": "trailing",
        "steps_offset": 1,  # Of no effect here; stock pipelines warn of any other.
        "set_alpha_to_one": True,
        "clip_sample": bound is not None,
        "clip_sample_range": 1.0 if bound is None else bound,
        "thresholding": False,
    }


def _flow_config(student):
    """Of Euler's steps; see `needs_sigmas` for when they are the student's by themselves.

    The scheduler spaces its times from 1 to 1/T; `shift_terminal` draws the last one to 1/N.
    """
    shift, steps = student.description["schedule"]["shift"], student.num_steps
    last = shift / (steps + shift - 1.0)  # σ at t = 1/N
    stretched = steps > 1 and not needs_sigmas(student)
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": student.diffusers["scheduler"].get("num_train_timesteps", 1000),
        "shift": shift,
        "shift_terminal": last if stretched else None,
        "use_dynamic_shifting": False,
    }


def needs_sigmas(student):
    """Whether a pipeline must be given `sigmas` i/N: FlowMatchEuler's own leave the grid.

    Two points are stretched to where they must be, and any number is where nothing is shifted.
    """
    return (
        student.is_flow
        and student.num_steps > 2
        and student.description["schedule"]["shift"] != 1.0
    )
