"""Convolutions and pooling over one, two or three axes, channels first: `[B, C, …]`."""

import jax
import jax.numpy as jnp
import numpy as np

from guided_distill.models.operations.refusals import refuse


def _each(value, axes):
    """A number for each of the axes, from one for all or a list."""
    value = [value] if isinstance(value, int) else list(value)
    return value * axes if len(value) == 1 else value


def _batched(rule):
    """The rule given `[B, C, …]` where it was called with `[C, …]`."""

    def call(x, weight, *args):
        if x.ndim == weight.ndim:
            return rule(x, weight, *args)
        return rule(x[None], weight, *args)[0]

    return call


def _add_bias(y, bias):
    return y if bias is None else y + bias.reshape(-1, *[1] * (y.ndim - 2))


def _paddings(padding, kernel, dilation):
    """(before, after) of each axis; "same" puts the odd one after."""
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in _each(padding, len(kernel))]


def _channels_last(axes):
    """Dimension numbers of a convolution over so many axes: `[B, …, C]`, kernels `[…, C, C_out]`.

    With others XLA has no fast convolution of CPUs within a loop, such as that of a sampler's
    steps: only outside of loops does it turn them into these.
    """
    data = (0, axes + 1, *range(1, axes + 1))
    return jax.lax.ConvDimensionNumbers(data, (axes + 1, axes, *range(axes)), data)


def _correlate(x, weight, **window):
    """`conv_general_dilated` of `[B, C, …]` with `[C_out, C, …]`, computed with channels last."""
    y = jax.lax.conv_general_dilated(
        jnp.moveaxis(x, 1, -1),
        jnp.moveaxis(weight, (0, 1), (-1, -2)),
        dimension_numbers=_channels_last(x.ndim - 2),
        **window,
    )
    return jnp.moveaxis(y, -1, 1)


@_batched
def _convolve(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """`weight` is `[C_out, C_in / groups, …]`."""
    kernel = weight.shape[2:]
    dilation = _each(dilation, len(kernel))
    y = _correlate(
        x,
        weight,
        window_strides=_each(stride, len(kernel)),
        padding=_paddings(padding, kernel, dilation),
        rhs_dilation=dilation,
        feature_group_count=groups,
    )
    return _add_bias(y, bias)


@_batched
def _convolve_transposed(
    x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    """The gradient of a convolution; `weight` is `[C_in, C_out / groups, …]`."""
    axes = weight.ndim - 2
    stride, padding, extra, dilation = (
        _each(value, axes) for value in (stride, padding, output_padding, dilation)
    )
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    y = _correlate(
        x,
        _flipped(weight, groups),
        window_strides=[1] * axes,
        padding=[(r - p, r - p + e) for r, p, e in zip(reach, padding, extra, strict=True)],
        lhs_dilation=stride,
        rhs_dilation=dilation,
        feature_group_count=groups,
    )
    return _add_bias(y, bias)


def _flipped(weight, groups):
    """`[C_in, C_out / groups, …]` -> `[C_out, C_in / groups, …]`, its kernel turned round."""
    inputs, outputs, *kernel = weight.shape
    weight = jnp.flip(weight, range(2, weight.ndim))
    weight = weight.reshape(groups, inputs // groups, outputs, *kernel)
    return jnp.swapaxes(weight, 1, 2).reshape(groups * outputs, inputs // groups, *kernel)


def _windows(axes, x, kernel, stride, padding):
    """Arguments of `reduce_window` over the last `axes` axes of x."""
    kernel = _each(kernel, axes)
    lead = x.ndim - axes
    return dict(
        window_dimensions=(*[1] * lead, *kernel),
        window_strides=(*[1] * lead, *(_each(stride, axes) if stride else kernel)),
        padding=(*[(0, 0)] * lead, *[(p, p) for p in _each(padding, axes)]),
    )


def _max_pool(axes):
    def rule(x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
        dilation = set(_each(dilation, axes))
        refuse("max_pool", ceil_mode=(ceil_mode, False), dilation=(dilation, {1}))
        windows = _windows(axes, x, kernel, stride, padding)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, **windows)

    return rule


def _avg_pool(axes):
    def rule(
        x,
        kernel,
        stride=None,
        padding=0,
        ceil_mode=False,
        count_include_pad=True,
        divisor_override=None,
    ):
        refuse("avg_pool", ceil_mode=(ceil_mode, False))
        windows = _windows(axes, x, kernel, stride, padding)
        total = jax.lax.reduce_window(x, 0.0, jax.lax.add, **windows)
        if divisor_override is not None:
            return total / divisor_override
        if count_include_pad:
            return total / np.prod(windows["window_dimensions"])
        # Of one channel of one row: XLA works out constants while it compiles, slowly.
        one = jnp.ones((*[1] * (x.ndim - axes), *x.shape[-axes:]), x.dtype)
        return total / jax.lax.reduce_window(one, 0.0, jax.lax.add, **windows)

    return rule


def apply_along(x, matrix, axis):
    """A matrix `[out, in]` applied along an axis of length `in`."""
    return jnp.moveaxis(jnp.tensordot(x, jnp.asarray(matrix, x.dtype), (axis, 1)), -1, axis)


def _averages(size, bins):
    """`[bins, size]`: each row averages the entries that its bin touches."""
    edges = np.arange(bins + 1) * size / bins
    first, last = np.floor(edges[:-1]), np.ceil(edges[1:])
    entry = np.arange(size)
    inside = (entry >= first[:, None]) & (entry < last[:, None])
    return inside / inside.sum(1, keepdims=True)


def _adaptive_avg_pool(axes):
    def rule(x, sizes):
        sizes = _each(sizes, axes)
        for axis, bins in zip(range(-axes, 0), sizes, strict=True):
            x = apply_along(x, _averages(x.shape[axis], bins), axis)
        return x

    return rule


def _patches(x, kernel, dilation, padding, stride):
    """`[B, C, H, W]` -> `[B, C k k, windows]`."""
    patches = jax.lax.conv_general_dilated_patches(
        jnp.moveaxis(x, 1, -1),
        kernel,
        stride,
        [(p, p) for p in padding],
        rhs_dilation=dilation,
        dimension_numbers=_channels_last(len(kernel)),
    )
    return jnp.moveaxis(patches.reshape(len(x), -1, patches.shape[-1]), -1, 1)


CONVOLUTIONS = {
    "conv1d.default": _convolve,
    "conv1d.padding": _convolve,
    "conv2d.default": _convolve,
    "conv2d.padding": _convolve,
    "conv3d.default": _convolve,
    "conv3d.padding": _convolve,
    "conv_transpose1d.default": _convolve_transposed,
    "conv_transpose2d.input": _convolve_transposed,
    "conv_transpose3d.input": _convolve_transposed,
    "im2col.default": _patches,
}

POOLINGS = {
    "max_pool1d.default": _max_pool(1),
    "max_pool2d.default": _max_pool(2),
    "max_pool3d.default": _max_pool(3),
    "avg_pool1d.default": _avg_pool(1),
    "avg_pool2d.default": _avg_pool(2),
    "avg_pool3d.default": _avg_pool(3),
    "adaptive_avg_pool1d.default": _adaptive_avg_pool(1),
    "adaptive_avg_pool2d.default": _adaptive_avg_pool(2),
    "adaptive_avg_pool3d.default": _adaptive_avg_pool(3),
}
