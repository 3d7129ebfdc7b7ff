"""A model: a pure function of its parameters, and what must be known to use it as a denoiser."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from guided_distill.diffusion.guidance import guide
from guided_distill.diffusion.parameterization import X_FROM_PREDICTION, straight_path
from guided_distill.diffusion.schedule import Schedule
from guided_distill.system.files import local_path
from guided_distill.system.workdir import StageFolder

Denoiser = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Params = Any  # a pytree of arrays


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What a model is told beside λ and w: a pytree whose leaves have the leading axis B.

    Attributes:
      null: one example of it, without that axis, that means none: the number after the last
        class, the embedding of an empty prompt; None of a model that is not guided.
      example: one example by name, `{name: jax.ShapeDtypeStruct}`; None where it is one label,
        or as the null says.
    """

    null: Any
    example: dict[str, jax.ShapeDtypeStruct] | None = None

    @property
    def takes(self) -> dict[str, jax.ShapeDtypeStruct] | None:
        """What one example is, by name; None where it is one label."""
        if self.example is None and isinstance(self.null, Mapping):
            arrays = {name: jnp.asarray(value) for name, value in self.null.items()}
            return {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in arrays.items()}
        return self.example

    def nulls(self, cond: Any) -> Any:
        """As many nulls as `cond` has examples, in its structure and dtypes."""

        def fill(null, leaf):
            return jnp.broadcast_to(jnp.asarray(null, leaf.dtype), leaf.shape)

        return jax.tree.map(fill, self.null, cond)

    def some(self, n: int) -> Any:
        """n examples to try a model on: its null, or zeros where it has none."""
        one = self.null
        if one is None:
            label = jax.ShapeDtypeStruct((), jnp.int32)
            of = label if self.takes is None else self.takes
            one = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), of)
        return jax.tree.map(lambda a: jnp.broadcast_to(jnp.asarray(a), (n, *jnp.shape(a))), one)

    def select(self, cond: Any) -> Any:
        """What a model takes of the data's conditioning: its own names, one label, or nothing."""
        if self.takes is None:
            return cond
        if isinstance(cond, Mapping):
            return {name: cond[name] for name in self.takes}
        return cond if self.takes else {}

    def drop(self, cond: Any, keys: jax.Array, rate: float) -> Any:
        """Each example's conditioning replaced by the null with probability `rate`.

        All leaves of an example are dropped together; `keys` is `[B]`.
        """
        drop = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)

        def choose(leaf, null):
            return jnp.where(drop.reshape(-1, *[1] * (leaf.ndim - 1)), null, leaf)

        return jax.tree.map(choose, cond, self.nulls(cond))


@dataclasses.dataclass(frozen=True)
class Model:
    """What a network is, so that its parameters become a denoiser `(z, logsnr, w) -> x_hat`.

        model = guided_distill.Model(
            apply=lambda params, z, logsnr, cond, w, dropout_keys: ...,
            init=lambda key: params,
            prediction="eps",
            schedule=cosine_schedule(),
            conditioning=Conditioning(null=empty_prompt),
            sample_shape=(64, 64, 4),
            bound=None,
        )

    Attributes:
      apply: `(params, z [B, …], logsnr [B], cond, w [B] or None, dropout_keys [B] or None) ->
        prediction`, the shape of z.
      init: `key -> params`.
      prediction: what it predicts: "x", "eps", "v" or "flow", which is given the straight path
        (1 − σ) x + σ ε in place of z.
      schedule: `Schedule` that it is trained on.
      conditioning: `Conditioning`.
      sample_shape: of one x, such as (H, W, C).
      knows_w: whether it is conditioned on w; where not, it is given None.
      bound: of x's values, 1 for images; None for none, as of latents.
      raw: of an imported module, `(params, {input: [B, …]}) -> its own output`.
      with_w: makes the same conditioned on w; None of a function, unless it was given.
      folder: that it was loaded from; None of a function.
      guide: the model that stands in the place of the null, of `guided_by`; None where that is
        the model itself, asked with its null.
    """

    apply: Callable[..., jax.Array]
    init: Callable[[jax.Array], Params]
    prediction: str
    schedule: Schedule
    conditioning: Conditioning
    sample_shape: tuple[int, ...]
    knows_w: bool = False
    bound: float | None = 1.0
    raw: Callable[..., jax.Array] | None = None
    with_w: Callable[[], "Model"] | None = None
    folder: pathlib.Path | None = None
    guide: "Model | None" = None

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> tuple["Model", Params]:
        """(model, parameters) of an imported model's folder, or of a finished stage's.

        Raises:
          UserError: where the folder holds neither, or is damaged.
        """
        from guided_distill.models.build import model_of

        stage = StageFolder(local_path(folder, "`folder`")).finished()
        return dataclasses.replace(model_of(stage), folder=stage.path), stage.params

    def denoiser(
        self, params: Params, cond: Any, dropout_keys: jax.Array | None = None
    ) -> Denoiser:
        """Denoiser with parameters and conditioning bound; x_hat is float32, the shape of z."""

        def denoise(z, logsnr, w):
            told = straight_path(z, logsnr) if self.prediction == "flow" else z
            out = self.apply(params, told, logsnr, cond, w if self.knows_w else None, dropout_keys)
            return X_FROM_PREDICTION[self.prediction](out, z, logsnr)

        return denoise

    def pair(self, params: Params, cond: Any) -> tuple[Denoiser, Denoiser]:
        """(x̂_c, x̂) as two denoisers (Algorithm 5)."""
        x_cond = self.denoiser(params, cond)
        if self.guide is None:
            return x_cond, self.denoiser(params, self.conditioning.nulls(cond))
        asked = self.guide.conditioning.select(cond)
        return x_cond, self.guide.denoiser(params["guide"], asked)

    def guided(self, params: Params, cond: Any) -> Denoiser:
        """The pair (x̂_c, x̂) as one denoiser x̂^w.

        One model runs both as one batch of 2B; with neither guide nor null there is no guidance:
        x̂_c alone.
        """
        if self.guide is not None:
            halves = self.pair(params, cond)
            return lambda z, logsnr, w: guide(*(half(z, logsnr, w) for half in halves), w)
        if self.conditioning.null is None:
            return self.denoiser(params, cond)
        nulls = self.conditioning.nulls(cond)
        denoise_both = self.denoiser(params, jax.tree.map(_interleave, cond, nulls))

        def denoise(z, logsnr, w):
            both = denoise_both(*(_interleave(a, a) for a in (z, logsnr, w)))
            return guide(both[0::2], both[1::2], w)

        return denoise


def guided_by(model: Model, guide_model: Model) -> Model:
    """The model with another in the place of its null: x̂^w = (1 + w) x̂_model − w x̂_guide.

    Both are asked with real conditioning, the guide with what it takes of it, and join as x̂, so
    that they may predict different things. Parameters are those of both, `{"model", "guide"}`; a
    denoiser is the conditional half.
    """

    def apply(params, *asked):
        return model.apply(params["model"], *asked)

    def init(key):
        return {"model": model.init(key), "guide": guide_model.init(key)}

    return dataclasses.replace(
        model, apply=apply, init=init, guide=guide_model, raw=None, with_w=None, folder=None
    )


def clip_prediction(denoise: Denoiser, bound: float | jax.Array) -> Denoiser:
    """The denoiser with x̂ clipped to ±bound: infinity for no clip."""
    return lambda z, logsnr, w: jnp.clip(denoise(z, logsnr, w), -bound, bound)


def _interleave(a, b):
    """a₀ b₀ a₁ b₁ …: the 2B batch in an order that keeps each pair on its own device."""
    return jnp.stack([a, b], axis=1).reshape((-1,) + a.shape[1:])
