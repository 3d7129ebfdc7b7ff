"""Samples from a finished run, for programs, notebooks and the command line alike."""

import functools
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from guided_distill.data.names import composed
from guided_distill.data.pixels import to_uint8
from guided_distill.distill.distillations import DISTILLATIONS, choose_sampler
from guided_distill.distill.ranges import check_distilled, check_w
from guided_distill.errors import UserError, nearest
from guided_distill.models.build import model_of
from guided_distill.sampling.generator import Generators
from guided_distill.system import sharding
from guided_distill.system.workdir import (
    FinishedStage,
    StageFolder,
    family_of,
    find_own_stages,
    find_stages,
    folder_to_sample,
)

MAX_SEED = 2**32 - 1
DEFAULT_STEPS = 4
CONTINUOUS = ("teacher", "step_one")  # models of any number of steps


class Sampler:
    """A finished model with its sampler: `sampler(labels, w=2.0, seed=0)` -> images.

    Of a model that is conditioned on something else, `sampler({"text": …, "pooled": …}, w=2.0)`.

        sampler = guided_distill.Sampler.load("runs/digits", num_steps=4)
        images = sampler([3, 5, 8], w=2.0, seed=0)

    A sample depends on its label, w, seed and index alone, not on what it is drawn with. Calls are
    compiled once for every power of two of samples; N, w, labels and seed change nothing.

    Attributes:
      record: what the stage's `stage.json` says.
      num_steps: N.
      name: `ddim`, `stochastic` or `ancestral`.
      stage: `FinishedStage` that it draws from.
    """

    record: dict[str, Any]
    num_steps: int
    name: str
    stage: FinishedStage

    def __init__(
        self,
        stage: FinishedStage,
        num_steps: int,
        *,
        sampler: str = "",
        force: bool = False,
        max_batch_size: int = 256,
    ) -> None:
        """As `load`, of a finished stage that is at hand."""
        self.record, self.num_steps, self.stage = stage.record, num_steps, stage
        self.name = choose_sampler(self.record, sampler, force=force)
        self._params = sharding.place(stage.params, sharding.make_mesh())
        self._max_batch_size = max_batch_size
        self._generators = {}

    @classmethod
    def load(
        cls,
        workdir: str | pathlib.Path,
        num_steps: int | None = None,
        *,
        stage: str = "",
        **options: Any,
    ) -> "Sampler":
        """The sampler of a finished stage.

        Args:
          workdir: of the run; or a folder of exported students, or `package:digits` of those that
            come with the package.
          num_steps: N; None takes 4, or that of a student which is the only one.
          stage: `teacher`, `step_one`, a distillation such as `step_two/stochastic` or
            `single_w/1` (its student of `num_steps`), or '' for the deterministic students.
          options: `sampler`: `ddim`, `stochastic` or `ancestral`, '' for what the model was made
            for; `force`: sample with it though the model was not made for it; `max_batch_size`:
            samples per compiled call, 256 unless given.

        Raises:
          UserError: where there is no such model, or the sampler does not fit it.
        """
        chosen = choose_stage(workdir, stage, num_steps)
        return cls(chosen, steps_of(chosen, num_steps), **options)

    def __repr__(self) -> str:
        parts = [self.record["name"], f"N = {self.num_steps}", self.name]
        if self.record["w_range"]:
            parts.append("w in [{:g}, {:g}]".format(*self.record["w_range"]))
        if self.record["num_classes"]:
            names = ", ".join(self.record["class_names"]) or "by number"
            parts.append(f"{self.record['num_classes']} classes ({names})")
        return f"Sampler({'; '.join(parts)})"

    def __call__(
        self,
        cond: Any,
        w: float | Sequence[float] = 1.0,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Images, `[n, H, W, C]` uint8, or latents, `[n, …]` float32, as the model was taught.

        Arguments and errors as in `draw`.
        """
        x = self.draw(cond, w, seed, indices, noise)
        return to_uint8(x) if self.draws_pictures else x

    def draw(
        self,
        cond: Any,
        w: float | Sequence[float] = 1.0,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples, `[n, …]` float32: pictures in [-1, 1], or latents.

        Args:
          cond: classes, `[n]`, as numbers or names; of a model that is conditioned on something
            else, arrays by name, `{name: [n, …]}`, or the bare array where there is one name.
          w: guidance weight, or one each, `[n]`; 0 is unguided.
          seed: of the noise.
          indices: `[n]`, of the noise: equal indices see equal noise; None takes 0, …, n - 1.
          noise: z_1 itself, `[n, …]`, in place of what seed and indices give; samplers that draw
            noise on the way go on doing so by seed and indices.

        Raises:
          UserError: where a label, a weight or a shape is none that the model knows.
        """
        if self.record["num_classes"] is not None:
            return self.draw_classes(read_labels(cond, self.record), w, seed, indices, noise)
        several = [values for values in (indices, noise) if values is not None]
        n, cond = read_arrays(cond, self._takes, n=len(several[0]) if several else None)
        return self._draw(cond, n, w, seed, indices, noise)

    def draw_classes(self, labels, w=1.0, seed=0, indices=None, noise=None):
        """As `draw`, of classes by their place alone, 0 to num_classes − 1, a list."""
        check_labels(self.record, labels)
        return self._draw(np.asarray(labels, np.int32), len(labels), w, seed, indices, noise)

    def _draw(self, cond, n, w, seed, indices, noise):
        """As `draw`, of n samples whose conditioning is checked."""
        check_seed(seed)
        w = one_each(w, n, "w")  # Not float32 yet: 0.3 would lie above a range to 0.3.
        check_weights(self.record, np.unique(w).tolist())
        indices = one_each(np.arange(n) if indices is None else indices, n, "indices")
        shape = (n, *self.record["image_shape"])
        if noise is not None and np.shape(noise) != shape:
            raise UserError(f"`noise` must be {list(shape)}, got {list(np.shape(noise))}")
        if not n:
            return np.zeros(shape, np.float32)
        return self._generator(n)(
            self._params,
            cond=cond,
            w=w,
            indices=indices,
            num_steps=self.num_steps,
            seed=seed,
            start=noise,
        )

    @property
    def draws_pictures(self) -> bool:
        """Whether samples are pictures, and not latents."""
        return self.stage.draws_pictures

    @functools.cached_property
    def _takes(self):
        """`{name: jax.ShapeDtypeStruct}` of one example of what the model is conditioned on."""
        return model_of(self.stage).conditioning.takes or {}

    def _generator(self, n):
        """The generator of the smallest power of two that holds n samples."""
        bucket = 2 ** math.ceil(math.log2(min(n, self._max_batch_size)))
        if bucket not in self._generators:
            generators = Generators(sharding.make_mesh(), bucket)
            self._generators[bucket] = generators.of(self.stage, self.name)
        return self._generators[bucket]


def choose_stage(workdir, stage, num_steps) -> FinishedStage:
    """The stage that is sampled; arguments as in `Sampler.load`."""
    workdir = folder_to_sample(workdir)
    # Whether a teacher has a guide, what it taught says.
    own = find_stages(workdir) if stage == "teacher" else find_own_stages(workdir)
    if stage in own:
        has = own[stage].record["num_steps"]
        if None not in (has, num_steps):
            check_distilled(num_steps, [has], what="`num_steps`")
        return own[stage]
    if stage in CONTINUOUS:
        return StageFolder(workdir / stage).finished()
    families = {}
    for name, finished in own.items():
        if family_of(name):
            family, n = family_of(name)
            families.setdefault(family, {})[n] = finished
    meant = choose_family(families, stage)
    students = families[meant] if meant else {}
    if num_steps is None:
        num_steps = next(iter(students)) if len(students) == 1 else DEFAULT_STEPS
    check_distilled(num_steps, list(students), what="`num_steps`")
    return students[num_steps]


def steps_of(stage, num_steps):
    """N of a `FinishedStage`: its own, or for a model of any N what is asked, 4 by default."""
    return stage.record["num_steps"] or num_steps or DEFAULT_STEPS


def choose_family(families, stage):
    """The family of students that `stage` means; None for the usual ones where there are none.

    Args:
      families: `{family: {N: FinishedStage}}`.
      stage: as in `Sampler.load`.
    """
    if stage not in ("", "step_two"):
        meant = [family for family in families if f"{family}/".startswith(f"{stage}/")]
        if not meant:
            known = [*CONTINUOUS, *families]
            raise UserError(f"`stage` {stage} is none of {', '.join(known)}{nearest(stage, known)}")
        return meant[0]
    of_algorithm = {pathlib.PurePath(family).name: family for family in reversed(families)}
    sampled = [row.algorithm for row in DISTILLATIONS.values() if row.samplers]
    return next((of_algorithm[name] for name in sampled if name in of_algorithm), None)


def read_labels(labels, record):
    """Numbers of classes that are given as numbers or, where they have some, as names.

    Where all names are numbers, a number is a name. Names are alike in every Unicode form.
    """
    names = [composed(name) for name in record["class_names"]]
    if isinstance(labels, str) or np.ndim(labels) != 1:
        raise UserError(f"labels must be a list, such as [3, 5], got {labels!r}")
    numbers = []
    for label in np.asarray(labels).tolist():
        label = composed(label) if isinstance(label, str) else label
        if str(label) in names and (isinstance(label, str) or all(map(is_number, names))):
            numbers.append(names.index(str(label)))
        elif all(map(is_number, names)) and names:
            raise UserError(f"label {label!r} is none of the classes {', '.join(names)}")
        elif is_number(str(label)):
            numbers.append(int(label))
        else:
            known = f" or names of classes{nearest(label, names)}" if names else ""
            raise UserError(f"labels must be numbers{known}, got {label!r}")
    return numbers


def is_number(name):
    """Whether a class is named by a whole number."""
    return bool(re.fullmatch(r"-?\d+", name))


def one_each(values, n, name):
    """`values` `[n]`, or one for all, as an array `[n]`."""
    array = np.asarray(values)
    if array.shape not in ((), (n,)):
        raise UserError(f"{name} must be one number or {n}, one for each label, got {array.shape}")
    return np.broadcast_to(array, n)


def check_seed(seed):
    """Refuses a seed that a PRNG key would cut."""
    if not (isinstance(seed, int | np.integer) and 0 <= seed <= MAX_SEED):
        raise UserError(f"`seed` must be an integer of 0 to {MAX_SEED}, got {seed!r}")


def read_arrays(cond, takes, n=None):
    """(n, `{name: [n, …]}`) of conditioning that is given by name, or as one bare array.

    Args:
      cond: arrays by name, or one array; None or {} of a model that is conditioned on nothing.
      takes: `{name: jax.ShapeDtypeStruct}` of one example.
      n: samples where the conditioning does not say how many.

    Raises:
      UserError: naming what is missing, unknown or of another shape.
    """
    if not isinstance(cond, Mapping):
        cond = {} if cond is None else {next(iter(takes), "conditioning"): cond}
    words = ", ".join(f"{name} {['n', *one.shape]}" for name, one in takes.items()) or "nothing"
    words = words.replace("'n'", "n")
    for name in [*takes, *cond]:
        if name not in cond or name not in takes:
            what = "missing" if name in takes else f"unknown{nearest(name, takes)}"
            raise UserError(f"conditioning '{name}' is {what}: the model takes {words}")
    cond = {name: np.asarray(cond[name]) for name in takes}
    lengths = {len(values) for values in cond.values() if values.ndim} or {n}
    for name, values in cond.items():
        if values.shape[1:] != takes[name].shape or not values.ndim or len(lengths) > 1:
            raise UserError(
                f"conditioning '{name}' is {list(values.shape)}: the model takes {words}"
            )
    if lengths == {None}:
        raise UserError("the model is conditioned on nothing: `indices` say how many samples")
    return lengths.pop(), cond


def check_weights(record, weights):
    """Refuses weights that the stage was not trained for."""
    w_range = record["w_range"] or (0.0, math.inf)  # The guided teacher takes any weight.
    for w in weights:
        check_w(w, w_range, what="w")


def check_labels(record, labels):
    """Refuses labels that the stage was not trained for."""
    for label in labels:
        if not 0 <= label < record["num_classes"]:
            raise UserError(f"labels must lie in 0 to {record['num_classes'] - 1}, got {label}")
