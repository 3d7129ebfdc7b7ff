"""Matrix products and attention."""

import jax
import jax.numpy as jnp

from guided_distill.models.operations.refusals import refuse


def _linear(x, weight, bias=None):
    """`[…, D_in]` times `weight` `[D_out, D_in]`, transposed."""
    y = x @ weight.T
    return y if bias is None else y + bias


def _add_product(c, a, b, *, beta=1, alpha=1):
    """β c + α a b; with β = 0 nothing of c is used, not even what is no number."""
    product = a @ b if alpha == 1 else alpha * (a @ b)
    if beta == 0:
        return product
    return product + (c if beta == 1 else beta * c)


def _einsum(equation, operands, *, path=None):
    return jnp.einsum(equation, *operands)


def _distances(a, b, p=2.0, compute_mode=None):
    """Euclidean distances `[…, N, M]` between rows; of equal rows 0, and so is the gradient."""
    refuse("cdist", p=(p, 2.0))
    squared = jnp.sum((a[..., :, None, :] - b[..., None, :, :]) ** 2, axis=-1)
    apart = squared > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1)), 0)


def _attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    *,
    scale=None,
    enable_gqa=False,
):
    """softmax(scale Q Kᵀ + mask) V of `[…, heads, length, width]`.

    The softmax is float32. A query that may look at nothing gets zeros.

    Args:
      attn_mask: True where a query may look, or numbers added to the scores.
      is_causal: query i may look at the keys up to i.
      enable_gqa: fewer heads of keys and values, each for several consecutive query heads.
    """
    refuse("scaled_dot_product_attention", dropout_p=(dropout_p, 0.0))
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (jnp.repeat(a, repeats, axis=-3) for a in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (scale * query @ jnp.swapaxes(key, -1, -2)).astype(jnp.float32)
    if is_causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    if attn_mask is None:  # Each query may look at a key: the checks of `_weights` cost passes.
        return jax.nn.softmax(scores).astype(value.dtype) @ value
    return _weights(_masked(scores, attn_mask)).astype(value.dtype) @ value


def _masked(scores, mask):
    return jnp.where(mask, scores, -jnp.inf) if mask.dtype == bool else scores + mask


def _weights(scores):
    """Softmax over the last axis; a row of −∞ alone becomes zeros."""
    nothing = jnp.all(scores == -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(nothing, 0, jax.nn.softmax(jnp.where(nothing, 0, scores)))


PRODUCTS = {
    "linear.default": _linear,
    "matmul.default": jnp.matmul,
    "mm.default": jnp.matmul,
    "bmm.default": jnp.matmul,
    "mv.default": jnp.matmul,
    "dot.default": jnp.matmul,
    "vdot.default": jnp.vdot,
    "outer.default": jnp.outer,
    "addmm.default": _add_product,
    "baddbmm.default": _add_product,
    "einsum.default": _einsum,
    "cdist.default": _distances,
    "scaled_dot_product_attention.default": _attention,
}
