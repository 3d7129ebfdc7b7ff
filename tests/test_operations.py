"""Every rule of the table against PyTorch's operation: values, dtypes, shapes and gradients."""

import functools
import math
import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from guided_distill.errors import UserError
from guided_distill.models.operations.table import OPERATIONS

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

NARROWED = {"float64": "float32", "int64": "int32", "complex128": "complex64"}
RNG = np.random.default_rng(0)
INF = float("inf")


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def integers(low, high, *shape):
    return RNG.integers(low, high, shape)


def case(*args, **kwargs):
    return args, kwargs


X, Y, V, S = normal(2, 3, 4), normal(3, 1), normal(4), normal()
P, Q = RNG.uniform(0.2, 0.9, (2, 2, 3, 4)).astype(np.float32)  # within every function's domain
I, J = integers(-4, 5, 2, 3, 4), integers(1, 5, 2, 3, 4)  # noqa: E741
Z = X + 1j * P
B, C = X > 0, normal(2, 3, 4) > 0
LIMITS = np.float32([-INF, -1.5, -1, -0.5, 0, 0.5, 1, 2.5, INF, np.nan])
IMAGE, ODD = normal(2, 4, 6, 6), normal(2, 4, 5, 7)
LINE, BLOCK = normal(2, 4, 7), normal(2, 4, 4, 5, 6)
ROW, GRID = integers(0, 3, 2), normal(2, 3, 5, 2)

FLOAT_FUNCTIONS = [
    "sqrt", "rsqrt", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan",
    "asin", "acos", "atan", "sinh", "cosh", "erf", "erfc", "erfinv", "sinc", "tanh", "sigmoid",
    "special_expit", "reciprocal",
]  # fmt: skip
OF_ONE_AT_MOST = ("asin", "acos", "erfinv")
ACTIVATIONS = [
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "silu", "gelu", "mish", "log_sigmoid",
    "softplus", "hardtanh", "hardsigmoid", "hardswish",
]  # fmt: skip
COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]
OF_TWO_SIZES = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", *COMPARISONS]

CASES = {
    **{f"{f}.default": [case(P), case(P[0] if f in OF_ONE_AT_MOST else J)] for f in FLOAT_FUNCTIONS},
    **{f"{f}.default": [case(3 * X), case(I), case(LIMITS)] for f in ("floor", "ceil", "trunc", "round")},
    **{f"{f}.default": [case(X), case(I)] for f in ("neg", "abs", "sign", "square")},
    **{f"{f}.default": [case(5 * X), case(V)] for f in ACTIVATIONS},
    **{f"{f}.Tensor": [case(X, Y), case(I, J), case(I, X)] for f in COMPARISONS},
    **{f"{f}.Scalar": [case(X, 0.5), case(I, 1), case(B, 1)] for f in COMPARISONS},
    **{f"{f}.default": [case(B, C), case(X, I)] for f in ("logical_and", "logical_or", "logical_xor")},
    **{f"bitwise_{f}.Tensor": [case(B, C), case(I, J)] for f in ("and", "or", "xor")},
    **{f"__{f}__.Tensor": [case(B, C), case(I, J)] for f in ("and", "or", "xor")},
    **{f"__{f}__.Scalar": [case(B, True), case(J, 3)] for f in ("and", "or", "xor")},
    **{f"{f}.default": [case(LIMITS)] for f in ("isnan", "isinf", "isfinite")},
    "logical_not.default": [case(B), case(X), case(I)],
    "bitwise_not.default": [case(B), case(I)],
    "add.Tensor": [case(X, Y), case(X, S, alpha=2), case(I, X), case(B, C), case(I, 1), case(I, 0.5), case(B, 2)],
    "add.Scalar": [case(X, 2), case(I, 1.5, 2)],
    "sub.Tensor": [case(X, Y, alpha=0.5), case(I, J), case(V, X)],
    "sub.Scalar": [case(X, 2), case(I, 1)],
    "rsub.Scalar": [case(X, 1), case(I, 1, 2)],
    "rsub.Tensor": [case(X, Y), case(X, Y, alpha=2)],
    "mul.Tensor": [case(X, Y), case(I, 0.5), case(B, X), case(B, C), case(I, J)],
    "mul.Scalar": [case(X, 2), case(I, 0.5)],
    "div.Tensor": [case(X, P), case(I, J), case(I, 2), case(B, J)],
    "div.Scalar": [case(X, 2), case(I, 2)],
    "div.Tensor_mode": [case(a, b, rounding_mode=m) for a, b in ((3 * X, P), (I, J), (I, P)) for m in ("floor", "trunc", None)],
    "div.Scalar_mode": [case(a, 2, rounding_mode=m) for a in (3 * X, I) for m in ("floor", "trunc", None)],
    "true_divide.Tensor": [case(I, J), case(X, P)],
    "floor_divide.default": [case(3 * X, P), case(I, J)],
    "floor_divide.Scalar": [case(I, 2), case(3 * X, 2)],
    "remainder.Scalar": [case(3 * X, 2), case(I, 3), case(I, -3)],
    "remainder.Tensor": [case(3 * X, P), case(I, J), case(3 * X, -P)],
    "fmod.Scalar": [case(3 * X, 2), case(I, 3)],
    "fmod.Tensor": [case(3 * X, P), case(I, J)],
    "pow.Tensor_Scalar": [case(X, 2), case(P, -0.5), case(I, 2), case(I, 2.0), case(X, 3.0), case(X, 0)],
    "pow.Tensor_Tensor": [case(P, Y), case(J, J)],
    "pow.Scalar": [case(2, X), case(10000.0, P), case(2, J)],
    "logaddexp.default": [case(X, Y)],
    "atan2.default": [case(X, Y)],
    "hypot.default": [case(X, Y)],
    "frac.default": [case(3 * X)],
    "minimum.default": [case(X, Y), case(I, J)],
    "maximum.default": [case(X, Y), case(I, X)],
    "min.other": [case(X, Y)],
    "max.other": [case(I, J)],
    "clamp.default": [case(X, -0.5, 0.5), case(X, max=0.1), case(I, 0), case(I, 0.5, None), case(LIMITS, -1.0, 1.0)],
    "clamp.Tensor": [case(X, Y), case(X, None, S), case(I, J)],
    "clamp_min.default": [case(X, 0.1), case(I, 1)],
    "clamp_max.default": [case(X, 0.1), case(I, 1)],
    "nan_to_num.default": [case(LIMITS), case(LIMITS, 1.0, 2.0, 3.0), case(LIMITS, posinf=7.0)],
    "lerp.Scalar": [case(X, P, 0.3)],
    "lerp.Tensor": [case(X, P, Y)],
    "addcmul.default": [case(X, P, Y, value=0.5), case(X, P, Y)],
    "addcdiv.default": [case(X, X, P, value=0.5), case(X, Y, P)],
    "round.decimals": [case(X, decimals=0)],
    "where.self": [case(B, X, Y), case(B, I, X), case(V > 0, X, S)],
    "where.ScalarOther": [case(B, X, 0.5), case(B, I, 1)],
    "where.ScalarSelf": [case(B, 0.5, X), case(B, 1, I)],
    "where.Scalar": [case(B, 0.5, 1.0)],
    "masked_fill.Scalar": [case(X, B, -INF), case(X, V > 0, 2), case(I, B, 7)],
    "masked_fill.Tensor": [case(X, B, S), case(I, B, np.int64(3))],
    "_to_copy.default": [case(X), case(3 * X, dtype="int64"), case(I, dtype="float32"), case(X, dtype="bool"), case(B, dtype="float32"), case(X, dtype="float64")],
    "type_as.default": [case(I, X), case(3 * X, I)],
    "clone.default": [case(X)],
    "alias.default": [case(X)],
    "detach.default": [case(X)],
    "copy.default": [case(X, I), case(I, 3 * Y), case(X, S)],
    # activations with arguments
    "leaky_relu.default": [case(X), case(X, 0.3)],
    "elu.default": [case(X), case(X, 0.7, 1.3, 0.4)],
    "celu.default": [case(X), case(X, 0.7)],
    "gelu.default": [case(X), case(X, approximate="tanh"), case(X, approximate="none")],
    "softplus.default": [case(X), case(9 * X, 2, 5), case(X, 0.5)],
    "hardtanh.default": [case(X), case(X, -0.3, 0.4)],
    "threshold.default": [case(X, 0.1, -3)],
    "prelu.default": [case(X, normal(3)), case(X, normal(1)), case(normal(5, 3), normal(3))],
    "glu.default": [case(X), case(IMAGE, 1), case(IMAGE, -3)],
    "softmax.int": [case(X, 1), case(X, -1, "float32"), case(np.float32([[0, -INF], [1, 2]]), -1)],
    "log_softmax.int": [case(X, 1), case(X, -1, "float32")],
    # reductions
    "sum.default": [case(X), case(B), case(I), case(I, dtype="float32")],
    "sum.dim_IntList": [case(X, [1]), case(X, [-1, 0], True), case(B, [1]), case(X, None), case(I, [], dtype="float32")],
    "mean.default": [case(X), case(I, dtype="float32")],
    "mean.dim": [case(X, [-1, 0]), case(X, [1], True), case(X, None), case(I, [2], dtype="float32")],
    "prod.default": [case(P), case(J)],
    "prod.dim_int": [case(P, 1), case(J, -1, True)],
    **{f"{f}.default": [case(X), case(X, [1]), case(I, [-1, 0], True)] for f in ("amax", "amin")},
    "max.default": [case(X), case(I)],
    "min.default": [case(X), case(I)],
    "max.dim": [case(X, 1), case(I.argsort(-1), -1, True)],
    "min.dim": [case(X, 1), case(I.argsort(-1), -1, True)],
    "argmax.default": [case(X), case(X, 1), case(X, -1, True)],
    "argmin.default": [case(X), case(X, 1), case(X, -1, True)],
    "any.default": [case(B), case(X)],
    "any.dim": [case(B, 1), case(I, -1, True)],
    "all.default": [case(B), case(I)],
    "all.dim": [case(B, 1), case(I, -1, True)],
    "var.default": [case(X), case(X, False)],
    "var.dim": [case(X, [1]), case(X, [-1, 0], False, True)],
    "var.correction": [case(X), case(X, [1], correction=0), case(X, [1, 2], correction=1, keepdim=True), case(X, None, correction=None)],
    "std.default": [case(X), case(X, False)],
    "std.dim": [case(X, [1]), case(X, [-1, 0], False, True)],
    "std.correction": [case(X), case(X, [1], correction=0), case(X, [1, 2], correction=1, keepdim=True)],
    "var_mean.dim": [case(X, [1]), case(X, [-1, 0], False, True)],
    "var_mean.correction": [case(X, [1], correction=0), case(X, keepdim=True)],
    "std_mean.dim": [case(X, [1]), case(X, [-1, 0], False, True)],
    "std_mean.correction": [case(X, [1], correction=0), case(X, keepdim=True)],
    "linalg_vector_norm.default": [case(X, p, [-1, 0], True) for p in (2, 1, 3, 0.5, 0, INF, -INF)] + [case(X), case(X, 2, [1], dtype="float32"), case(np.zeros((2, 3), np.float32), 2, [1])],
    "linalg_norm.default": [case(X), case(X, None, [1]), case(X, None, [0, 1], True)],
    "count_nonzero.default": [case(I), case(I, 1)],
    "count_nonzero.dim_IntList": [case(I, [0, -1])],
    "cosine_similarity.default": [case(X, P), case(X, P, -1, 1.5), case(X, V, 0)],
    "logsumexp.default": [case(X, [1]), case(X, [-1, 0], True)],
    "diff.default": [case(X), case(X, 2, 1), case(X, 1, 1, Y[None] * P[:, :, :1].repeat(4, 2), X)],
    "cumsum.default": [case(X, 1), case(B, -1), case(I, 0, dtype="float32")],
    "cumprod.default": [case(P, 1), case(J, -1)],
    # shapes
    "view.default": [case(X, [6, -1]), case(X, [2, 3, 2, 2]), case(S, [1])],
    "_unsafe_view.default": [case(X, [-1])],
    "transpose.int": [case(X, 0, -1), case(X, 1, 2)],
    "t.default": [case(Y), case(V)],
    "permute.default": [case(X, [2, 0, 1]), case(X, [-1, 0, 1])],
    "expand.default": [case(Y, [2, -1, 4]), case(V, [3, 4]), case(S, [2, 3])],
    "squeeze.default": [case(normal(1, 3, 1)), case(X)],
    "squeeze.dim": [case(Y, -1), case(Y, 0), case(S, 0)],
    "squeeze.dims": [case(normal(1, 3, 1), [0, 1, -1])],
    "unsqueeze.default": [case(X, 1), case(X, -1)],
    "repeat.default": [case(X, [1, 2, 3]), case(V, [2, 3])],
    "tile.default": [case(X, [2]), case(V, [2, 3])],
    "repeat_interleave.self_int": [case(X, 2, 1), case(X, 3), case(X, 2, -1, output_size=8)],
    "flip.default": [case(X, [0, -1])],
    "roll.default": [case(X, [1], [2]), case(X, [1, -2], [0, -1]), case(X, [5])],
    "rot90.default": [case(X, 1, [1, 2]), case(X, 3, [0, -1])],
    "broadcast_tensors.default": [case([X, Y, S])],
    "meshgrid.default": [case([V, normal(3)])],
    "meshgrid.indexing": [case([V, normal(3)], indexing=i) for i in ("ij", "xy")],
    "pixel_shuffle.default": [case(normal(2, 8, 3, 5), 2), case(normal(9, 2, 3), 3)],
    "pixel_unshuffle.default": [case(normal(2, 2, 4, 6), 2), case(normal(1, 3, 6), 3)],
    "channel_shuffle.default": [case(IMAGE, 2)],
    "unfold.default": [case(LINE, 2, 3, 2), case(IMAGE, -2, 2, 1), case(IMAGE, 1, 2, 2)],
    "split.Tensor": [case(X, 2, -1), case(X, 2, 1), case(X, 5)],
    "split_with_sizes.default": [case(X, [1, 3], 2), case(X, [0, 3], -2)],
    "unbind.int": [case(X), case(X, -1)],
    "cat.default": [case([X, P]), case([X, I], -1)],
    "concat.default": [case([X, P], 1)],
    "stack.default": [case([X, P]), case([X, P], -1), case([I, X], 1)],
    "hstack.default": [case([X, P]), case([V, V])],
    "vstack.default": [case([X, P]), case([V, V])],
    "column_stack.default": [case([V, V]), case([Y, normal(3, 2)])],
    # indexing
    "slice.Tensor": [case(X, 1, 1), case(X, -1, -3, -1), case(X, 2, 0, 2**63 - 1, 2), case(X), case(X, 1, None, 9)],
    "select.int": [case(X, 1, 0), case(X, -1, -1)],
    "slice_scatter.default": [case(X, normal(2, 2, 4), 1, 1), case(X, normal(2, 3, 2), -1, 0, 4, 2)],
    "select_scatter.default": [case(X, normal(2, 4), 1, -1)],
    "scatter.value": [case(X, 1, integers(0, 3, 2, 2, 3), 7.0), case(I, -1, integers(0, 4, 2, 3, 1), 7)],
    "scatter.src": [case(X, 2, np.stack([[[0, 2]] * 3] * 2), normal(2, 3, 2))],
    "index_put.default": [case(X, [ROW % 2, ROW], normal(2, 4)), case(X, [None, ROW * 0 + [0, 2]], P[:, :2]), case(X, [np.array([0, 0])], P, True), case(X, [None, ROW[:1]], S)],
    "tril.default": [case(X), case(X, -1)],
    "triu.default": [case(X), case(X, 1)],
    "diagonal.default": [case(X, 0, 1, 2), case(X, 1, -1, 0)],
    "scatter_add.default": [case(X, 1, integers(0, 3, 2, 2, 3), P[:, :2, 1:]), case(X, 2, np.zeros((2, 3, 4), int), P)],
    "index_add.default": [case(X, 1, np.array([2, 0, 2]), P), case(X, -1, np.array([1]), P[..., :1], alpha=0.5)],
    "sort.default": [case(X), case(X, 1, True)],
    "sort.stable": [case(I, stable=True), case(J, stable=True, dim=1, descending=True)],
    "argsort.default": [case(X), case(X, 0, True)],
    "topk.default": [case(X, 2), case(X, 2, 1, False)],
    "one_hot.default": [case(J, 6)],
    "index.Tensor": [case(X, [None, ROW]), case(X, [np.array([[0], [-1]]), ROW]), case(X, [np.array([0, 1]), None, ROW])],
    "index_select.default": [case(X, 1, ROW), case(X, -1, integers(0, 4, 5))],
    "gather.default": [case(X, 1, integers(0, 3, 2, 2, 3)), case(X, -1, integers(0, 4, 1, 3, 5))],
    "take_along_dim.default": [case(X, integers(0, 3, 2, 1, 4), 1), case(X, integers(0, 4, 5))],
    "embedding.default": [case(normal(5, 3), J), case(normal(5, 3), J, 2), case(normal(5, 3), J, -1, False, True)],
    # products
    "linear.default": [case(X, normal(5, 4)), case(X, normal(5, 4), normal(5)), case(V, normal(5, 4))],
    "matmul.default": [case(X, normal(4, 5)), case(X, V), case(V, V), case(normal(5, 1, 3, 4), normal(2, 4, 2)), case(V, normal(2, 4, 3))],
    "mm.default": [case(X[0], normal(4, 5))],
    "bmm.default": [case(X, normal(2, 4, 5))],
    "mv.default": [case(X[0], V)],
    "vdot.default": [case(V, normal(4))],
    "dot.default": [case(V, V[::-1].copy())],
    "outer.default": [case(V, normal(3))],
    "addmm.default": [case(normal(5), X[0], normal(4, 5)), case(normal(3, 5), X[0], normal(4, 5), beta=0.5, alpha=2)],
    "baddbmm.default": [case(np.full((2, 3, 5), np.nan, np.float32), X, normal(2, 4, 5), beta=0, alpha=0.5), case(normal(2, 3, 5), X, normal(2, 4, 5))],
    "einsum.default": [case("bij,bkj->bik", [X, P]), case("...j,j", [X, V]), case("ij->ji", [Y])],
    "cdist.default": [case(X, normal(2, 5, 4)), case(X, X, 2.0)],
    "scaled_dot_product_attention.default": [
        case(normal(2, 2, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 6)),
        case(normal(2, 2, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 6), normal(2, 1, 3, 5), scale=0.3),
        case(normal(2, 2, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 6), np.arange(15).reshape(3, 5) % 4 < 2),
        case(normal(2, 2, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 6), np.float32([[0], [-INF], [1]]) + np.zeros(5, np.float32)),
        case(normal(2, 2, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 6), is_causal=True),
        case(normal(2, 4, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 4), enable_gqa=True),
        case(X, X, X),
    ],
    # convolutions and pooling
    "conv1d.default": [case(LINE, normal(3, 4, 3), normal(3), [2], [1]), case(LINE, normal(6, 2, 2), None, [1], [0], [2], 2)],
    "conv1d.padding": [case(LINE, normal(3, 4, 4), None, [1], "same"), case(LINE, normal(3, 4, 3), normal(3), [2], "valid")],
    "conv2d.default": [case(ODD, normal(3, 4, 3, 3), normal(3), [2, 1], [1, 0]), case(ODD, normal(4, 1, 3, 2), None, [1, 1], [0], [2, 1], 4), case(ODD[0], normal(3, 4, 1, 1))],
    "conv2d.padding": [case(ODD, normal(3, 4, 4, 3), normal(3), [1, 1], "same", [2, 1]), case(ODD, normal(3, 4, 3, 3), None, [2, 2], "valid")],
    "conv3d.default": [case(BLOCK, normal(3, 4, 2, 3, 1), normal(3), [1, 2, 1], [0, 1, 0])],
    "conv3d.padding": [case(BLOCK, normal(3, 4, 2, 3, 1), None, [1, 1, 1], "same")],
    "conv_transpose1d.default": [case(LINE, normal(4, 3, 3), normal(3), [2], [1], [1]), case(LINE, normal(4, 2, 3), None, [3], [0], [2], 2, [2])],
    "conv_transpose2d.input": [case(ODD, normal(4, 3, 3, 2), normal(3), [2, 1], [1, 0], [1, 0]), case(ODD, normal(4, 1, 4, 4), None, [2, 2], [1, 1], [0, 0], 4), case(ODD[0], normal(4, 3, 1, 1))],
    "conv_transpose3d.input": [case(BLOCK, normal(4, 3, 2, 2, 3), normal(3), [2, 1, 1], [0, 1, 1])],
    "im2col.default": [case(ODD, [3, 2], [1, 2], [1, 0], [2, 1])],
    "max_pool1d.default": [case(LINE, [2]), case(LINE, [3], [2], [1])],
    "max_pool2d.default": [case(ODD, [2, 2]), case(ODD, [3, 3], [2, 1], [1, 1]), case(ODD[0], [2, 2], [1, 1])],
    "max_pool3d.default": [case(BLOCK, [2, 2, 2])],
    "avg_pool1d.default": [case(LINE, [2]), case(LINE, [3], [2], [1], False, False)],
    "avg_pool2d.default": [case(ODD, [2, 2]), case(ODD, [3, 3], [1, 2], [1, 1]), case(ODD, [3, 3], [1, 1], [1, 1], False, False), case(ODD, [2, 2], [2, 2], [0, 0], False, True, 3)],
    "avg_pool3d.default": [case(BLOCK, [2, 2, 2]), case(BLOCK, [3, 3, 3], [1, 1, 1], [1, 1, 1], False, False)],
    "adaptive_avg_pool1d.default": [case(LINE, [3]), case(LINE, [9])],
    "adaptive_avg_pool2d.default": [case(ODD, [1, 1]), case(ODD, [3, 4]), case(ODD[0], [5, 2])],
    "adaptive_avg_pool3d.default": [case(BLOCK, [2, 3, 1])],
    # normalisation
    "group_norm.default": [case(IMAGE, 2), case(IMAGE, 4, normal(4), normal(4), 1e-3), case(LINE, 1, normal(4))],
    "layer_norm.default": [case(X, [4]), case(X, [3, 4], normal(3, 4), normal(3, 4), 1e-3), case(X, [4], None, normal(4))],
    "rms_norm.default": [case(X, [4]), case(X, [3, 4], normal(3, 4), 1e-3), case(1e-4 * X, [4])],
    "_native_batch_norm_legit_no_training.default": [case(IMAGE, normal(4), normal(4), normal(4), P[0, 0], 0.1, 1e-3), case(normal(5, 4), None, None, normal(4), P[0, 0], 0.1, 1e-5)],
    "instance_norm.default": [case(IMAGE, None, None, None, None, True, 0.1, 1e-5, True), case(LINE, normal(4), normal(4), None, None, True, 0.1, 1e-3, False), case(LINE, normal(4), normal(4), normal(4), P[0, 0], False, 0.1, 1e-3, False)],
    "_weight_norm.default": [case(normal(3, 4, 2), normal(3, 1, 1)), case(normal(3, 4), normal(1, 4), 1), case(normal(3, 4), normal(1), -1)],
    # resampling
    **{f"{f}1d.vec": [case(LINE, [14], None), case(LINE, None, [1.7]), case(LINE, [3], None)] for f in ("upsample_nearest", "_upsample_nearest_exact")},
    **{f"{f}2d.vec": [case(ODD, None, [2.0, 2.0]), case(ODD, [7, 3], None), case(ODD, None, [0.5, 1.3])] for f in ("upsample_nearest", "_upsample_nearest_exact")},
    **{f"{f}3d.vec": [case(BLOCK, None, [2.0, 1.0, 3.0]), case(BLOCK, [3, 7, 6], None)] for f in ("upsample_nearest", "_upsample_nearest_exact")},
    "upsample_linear1d.vec": [case(LINE, [14], False, None), case(LINE, None, False, [1.7]), case(LINE, [5], True, None), case(LINE, [1], True, None)],
    "upsample_trilinear3d.vec": [case(BLOCK, [3, 7, 6], False, None), case(BLOCK, None, True, [2.0, 1.0, 1.5])],
    **{f"upsample_{f}2d.vec": [case(ODD, [7, 3], False, None), case(ODD, [9, 9], True, None), case(ODD, None, False, [0.5, 1.3]), case(ODD, None, True, [2.0, 2.0])] for f in ("bilinear", "bicubic")},
    "pad.default": [case(ODD, [1, 2]), case(ODD, [1, 0, 2, 1, 1, 1], "constant", 3.0), case(ODD, [-1, 2, 0, -2]), case(I, [1, 1], "constant", 2.0)] + [case(ODD, [1, 2, 3, 0], mode) for mode in ("reflect", "replicate", "circular")] + [case(LINE, [2, 1], "reflect")],
    "constant_pad_nd.default": [case(ODD, [1, 2, 0, 1], 0.5), case(LINE, [-1, 1])],
    # creation
    "arange.default": [case(5), case(5, dtype="float32"), case(4.5)],
    "arange.start": [case(2, 7), case(1, 4, dtype="float32")],
    "arange.start_step": [case(0, 8, 2), case(0, 2, 0.5), case(0, 16, 2, dtype="float64")],
    "linspace.default": [case(0, 1, 6), case(-1.0, 1.0, 1), case(0, 6, 4, dtype="float32")],
    "eye.default": [case(3), case(2, dtype="int64")],
    "eye.m": [case(2, 3)],
    "scalar_tensor.default": [case(3.5), case(3, dtype="int64"), case(3)],
    "full.default": [case([2, 3], 1.5), case([2], 3), case([2], True), case([2], 3, dtype="float32")],
    "zeros.default": [case([2, 3]), case([2], dtype="int64")],
    "ones.default": [case([2, 3]), case([2], dtype="bool")],
    "empty.memory_format": [case([2, 3]), case([2], dtype="int64")],
    "full_like.default": [case(X, 1.5), case(I, 2, dtype="float32")],
    "zeros_like.default": [case(X), case(I), case(X, dtype="bool")],
    "ones_like.default": [case(X), case(I), case(X, dtype="int64")],
    "empty_like.default": [case(X), case(I)],
    "new_full.default": [case(X, [2], 1.5), case(I, [2], 2), case(X, [2], 3, dtype="int64")],
    "new_zeros.default": [case(X, [2]), case(I, [2]), case(X, [2], dtype="bool")],
    "new_ones.default": [case(X, [2]), case(I, [2])],
    "new_empty.default": [case(X, [2, 5]), case(I, [2])],
    "fill.Scalar": [case(X, 2), case(I, 3)],
    "zero.default": [case(X), case(I)],
    # complex numbers
    "complex.default": [case(X, P)],
    "view_as_complex.default": [case(normal(3, 2))],
    "view_as_real.default": [case(Z)],
    "polar.default": [case(P, X)],
    **{f"fft_{way}fft.default": [case(X), case(Y + Z, 5, 0, "ortho")] for way in ("", "i")},
    "fft_rfft.default": [case(X), case(X, 6, 1, "forward")],
    "fft_irfft.default": [case(Z), case(Z, 5, 1, "ortho")],
    **{f"fft_{f}.default": [case(Z), case(Z, [4, 3], [0, -1], "ortho")] for f in ("fft2", "ifft2", "fftn", "ifftn")},
    **{f"fft_{f}.default": [case(X), case(X, [4, 3], [0, -1], "ortho")] for f in ("rfft2", "rfftn")},
    **{f"fft_{f}.default": [case(Z), case(Z, [4, 5], [0, -1], "ortho")] for f in ("irfft2", "irfftn")},
    **{f"fft_{f}.default": [case(X), case(X, [-1])] for f in ("fftshift", "ifftshift")},
    # points of pictures
    "grid_sampler.default": [
        *[case(IMAGE, GRID, mode, pad, corners) for mode, pad, corners in [(0, 0, False), (0, 1, True), (1, 0, False), (1, 1, True)]],
        case(BLOCK, normal(2, 2, 3, 1, 3), 0, 0, False),
    ],
    "affine_grid_generator.default": [
        *[case(normal(2, 2, 3), [2, 4, 3, 5], corners) for corners in (False, True)],
        *[case(normal(2, 3, 4), [2, 1, 2, 3, 1], corners) for corners in (False, True)],
    ],
    # sizes
    "sym_size.int": [case(X, 1), case(X, -1)],
    "sym_numel.default": [case(X)],
    "torch.sym_max": [case(2, 3)],
    "torch.sym_min": [case(2, 3)],
    "torch.sym_float": [case(2)],
    "torch.sym_not": [case(True)],
    "operator.neg": [case(3)],
    "operator.getitem": [case([1, 2, 3], 1)],
    **{f"operator.{f}": [case(7, 2)] for f in OF_TWO_SIZES},
}  # fmt: skip
EMPTY = {"empty.memory_format", "empty_like.default", "new_empty.default"}  # Entries are anything.

REFUSED = {
    "grid_sampler.default": case(IMAGE, GRID, 2, 0, False),
    "round.decimals": case(X, decimals=2),
    "linalg_norm.default": case(X, 2.0, [0, 1]),
    "view.dtype": case(X, "int32"),
    "index.Tensor": case(X, [X > 0]),
    "index_put.default": case(X, [X > 0], S),
    "embedding.default": case(normal(5, 3), J, -1, True),
    "one_hot.default": case(J),
    "cdist.default": case(X, X, 1.0),
    "scaled_dot_product_attention.default": case(X, X, X, dropout_p=0.1),
    "max_pool2d.default": case(ODD, [2, 2], [2, 2], [0, 0], [1, 1], True),
    "max_pool1d.default": case(LINE, [2], [2], [0], [2]),
    "avg_pool2d.default": case(ODD, [2, 2], [2, 2], [0, 0], True),
    "pad.default": case(ODD, [-1, 1], "reflect"),
}


def to_torch(value):
    """A case's argument as PyTorch takes it."""
    if isinstance(value, np.ndarray | np.generic):
        return torch.from_numpy(np.array(value))
    if isinstance(value, list):
        return [to_torch(item) for item in value]
    named = getattr(torch, value, None) if isinstance(value, str) else None
    return named if isinstance(named, torch.dtype) else value


def to_jax(value):
    """A case's argument as a rule takes it."""
    if isinstance(value, np.ndarray | np.generic):
        return jnp.asarray(np.asarray(value, NARROWED.get(value.dtype.name, value.dtype)))
    if isinstance(value, list):
        return [to_jax(item) for item in value]
    return NARROWED.get(value, value) if isinstance(value, str) else value


def operation_of(name):
    """PyTorch's own operation of a name of the table."""
    first, second = name.split(".")
    if first in ("operator", "torch"):
        return getattr({"operator": operator, "torch": torch}[first], second)
    return getattr(getattr(torch.ops.aten, first), second)


def call(name, args, kwargs):
    with jax.numpy_rank_promotion("allow"):
        return OPERATIONS[name](*map(to_jax, args), **{k: to_jax(v) for k, v in kwargs.items()})


def leaves(value):
    return list(value) if isinstance(value, list | tuple) else [value]


def assert_same(name, ours, theirs):
    """Equal shapes, dtypes but for their narrowing, and values."""
    if not isinstance(theirs, torch.Tensor):
        assert ours == theirs and type(ours) is type(theirs)
        return
    theirs = theirs.detach().resolve_conj().numpy()
    assert ours.shape == theirs.shape
    assert str(ours.dtype) == NARROWED.get(theirs.dtype.name, theirs.dtype.name)
    if name not in EMPTY:
        scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=0)
        assert_allclose(ours, theirs, rtol=1e-5, atol=float(3e-6 * scale))


def test_every_rule_has_a_case():
    assert set(OPERATIONS) == set(CASES) | {"view.dtype"}  # which refuses whatever it is given


@pytest.mark.parametrize("name", CASES)
def test_rule_equals_pytorch(name):
    for args, kwargs in CASES[name]:
        theirs = operation_of(name)(
            *map(to_torch, args), **{k: to_torch(v) for k, v in kwargs.items()}
        )
        ours = call(name, args, kwargs)
        for mine, other in zip(leaves(ours), leaves(theirs), strict=True):
            assert_same(name, mine, other)


CHANNELS_LAST = {
    1: "[b, 0, f]x[0, i, o]->[b, 0, f]",
    2: "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]",
    3: "[b, 0, 1, 2, f]x[0, 1, 2, i, o]->[b, 0, 1, 2, f]",
}


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("conv", "im2col"))])
def test_convolutions_are_such_as_xla_has_fast_ones_of_within_a_loop(name):
    axes = 2 if name.startswith("im2col") else int(name[name.index("d.") - 1])
    for args, kwargs in CASES[name]:
        text = jax.jit(functools.partial(call, name, args, kwargs)).lower().as_text()
        found = re.findall(r"dim_numbers = (.*?), window", text)
        assert found and set(found) == {CHANNELS_LAST[axes]}


def is_float(value):
    return isinstance(value, np.ndarray) and value.dtype in (np.float32, np.complex64)


def cotangent(shape):
    return np.cos(np.arange(math.prod(shape), dtype=np.float32)).reshape(shape)


def their_gradients(name, args, kwargs, places):
    """Of Σ cotangent · output with respect to the arguments at `places`; None without any."""
    args = [to_torch(value) for value in args]
    for place in places:
        args[place].requires_grad_(True)
    outputs = leaves(operation_of(name)(*args, **{k: to_torch(v) for k, v in kwargs.items()}))
    outputs = [o for o in outputs if o.requires_grad]
    reals = [torch.view_as_real(o.resolve_conj()) if o.is_complex() else o for o in outputs]
    terms = [(o * torch.from_numpy(cotangent(o.shape))).sum() for o in reals]
    if not terms:
        return None
    return torch.autograd.grad(sum(terms), [args[p] for p in places], materialize_grads=True)


def our_gradients(name, args, kwargs, places):
    def total(chosen):
        given = list(args)
        for place, value in zip(places, chosen, strict=True):
            given[place] = value
        with jax.numpy_rank_promotion("allow"):
            given = [value if isinstance(value, jax.Array) else to_jax(value) for value in given]
            outputs = leaves(OPERATIONS[name](*given, **{k: to_jax(v) for k, v in kwargs.items()}))
            floats = [
                jnp.stack([o.real, o.imag], -1) if o.dtype == jnp.complex64 else o
                for o in outputs
                if o.dtype in (jnp.float32, jnp.complex64)
            ]
            return sum(jnp.sum(o * cotangent(o.shape)) for o in floats)

    found = jax.grad(total)([jnp.asarray(args[place]) for place in places])
    return [jnp.conj(one) for one in found]  # As PyTorch has it of complex numbers.


# PyTorch does not differentiate these as it is asked to here, or they give no real numbers.
UNDIFFERENTIATED = EMPTY | {
    "_native_batch_norm_legit_no_training.default",
    "copy.default",
    "floor_divide.Scalar",
    "floor_divide.default",
    "instance_norm.default",
    "sym_numel.default",
    "sym_size.int",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CASES) - UNDIFFERENTIATED))
def test_gradient_equals_pytorchs(name):
    for args, kwargs in CASES[name]:
        places = [i for i, value in enumerate(args) if is_float(value)]
        if not places or any(value is LIMITS for value in args):
            continue
        theirs = their_gradients(name, args, kwargs, places)
        if theirs is None:
            continue
        for mine, other in zip(our_gradients(name, args, kwargs, places), theirs, strict=True):
            other = other.to_dense().resolve_conj().numpy()
            scale = np.abs(other).max(initial=0.1)
            assert_allclose(mine, other, rtol=1e-4, atol=1e-5 * float(scale))


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused(name):
    with pytest.raises(UserError) as refusal:
        call(name, *REFUSED[name])
    assert "\n" not in str(refusal.value)
