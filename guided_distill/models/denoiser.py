"""From a network and its parameters to a denoiser `(z, logsnr, w) -> x_hat`."""

import flax
import jax
import jax.numpy as jnp

from guided_distill.diffusion.guidance import guide
from guided_distill.diffusion.parameterization import X_FROM_PREDICTION


def bind(network, params, labels, *, prediction, dropout_keys=None):
    """Denoiser with its parameters and labels bound.

    Args:
      network: module `(z, logsnr, labels, w, dropout_keys) -> prediction` with a
        `w_conditioned` attribute; where that is false the denoiser ignores w.
      params: the network's parameters.
      labels: `[B]` int32.
      prediction: what the network predicts, "x", "eps" or "v".
      dropout_keys: `[B]` keys while training with dropout, else None.

    Returns:
      Denoiser; x_hat is `[B, H, W, C]` float32.
    """

    def denoise(z, logsnr, w):
        w = w if network.w_conditioned else None
        out = network.apply({"params": params}, z, logsnr, labels, w, dropout_keys)
        return X_FROM_PREDICTION[prediction](out, z, logsnr)

    return denoise


def bind_guided(network, params, labels, null_labels, *, prediction):
    """The guided pair (x̂_c, x̂) as one denoiser x̂^w; both run as one batch of 2B.

    Args:
      network: as in `bind`.
      params: the teacher's parameters.
      labels: conditioning, a pytree with leading axis B.
      null_labels: conditioning that means none, of the same structure.
      prediction: as in `bind`.

    Returns:
      Denoiser; x_hat is `[B, H, W, C]` float32.
    """
    both_labels = jax.tree.map(_interleave, labels, null_labels)
    denoise_both = bind(network, params, both_labels, prediction=prediction)

    def denoise(z, logsnr, w):
        both = denoise_both(*(_interleave(a, a) for a in (z, logsnr, w)))
        return guide(both[0::2], both[1::2], w)

    return denoise


def _interleave(a, b):
    """a₀ b₀ a₁ b₁ …: the 2B batch in an order that keeps each pair on its own device."""
    return jnp.stack([a, b], axis=1).reshape((-1,) + a.shape[1:])


def clip_prediction(denoise, bound):
    """The denoiser with x̂ clipped to [-bound, bound]: 1 in samplers, infinity for no clip."""
    return lambda z, logsnr, w: jnp.clip(denoise(z, logsnr, w), -bound, bound)


def drop_labels(labels, keys, *, null_label, rate):
    """Replaces each label by the null label with probability `rate` (label dropout)."""
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
    return jnp.where(drop, null_label, labels)


def init_student(fresh_params, teacher_params):
    """A student's first parameters: the teacher's, plus the fresh ones of the w branch.

    Args:
      fresh_params: parameters of a newly initialised w-conditioned network.
      teacher_params: parameters of the teacher, without a w branch.

    Returns:
      Parameters of the student. The w branch ends in zeros, so the student equals the
      conditional teacher for every w.

    Raises:
      ValueError: where the two differ by anything but the w branch.
    """
    fresh = flax.traverse_util.flatten_dict(fresh_params, sep="/")
    teacher = flax.traverse_util.flatten_dict(teacher_params, sep="/")
    unexpected = sorted(set(teacher) - set(fresh))
    missing = sorted(p for p in set(fresh) - set(teacher) if not p.startswith("w_"))
    wrong = sorted(p for p in teacher if p in fresh and teacher[p].shape != fresh[p].shape)
    if unexpected or missing or wrong:
        raise ValueError(
            "the student must be the teacher plus a w branch: "
            f"unexpected {unexpected}, missing {missing}, of another shape {wrong}"
        )
    return flax.traverse_util.unflatten_dict(fresh | teacher, sep="/")
