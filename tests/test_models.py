"""Laws of the network and of the denoisers made from it."""

import runpy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, plain_model, random_params, small_model, small_unet
from numpy.testing import assert_allclose, assert_array_equal

from guided_distill.diffusion.guidance import guide
from guided_distill.diffusion.parameterization import X_FROM_PREDICTION, straight_path
from guided_distill.models.build import count_params, unet_model
from guided_distill.models.embeddings import embed_logsnr, embed_w
from guided_distill.models.group_norm import group_norm
from guided_distill.models.model import Conditioning, clip_prediction
from guided_distill.models.student import init_student
from guided_distill.models.unet import Dropout

BATCH = 6


def fresh_params(model):
    """As training starts from."""
    return jax.jit(model.init)(jax.random.key(0))


@pytest.fixture
def inputs():
    """z, λ, labels (null among them) and w."""
    z = jax.random.normal(jax.random.key(2), (BATCH, 8, 8, 1))
    labels = jnp.array([0, 1, 2, 3, 0, 3])
    return z, jnp.linspace(-15.0, 15.0, BATCH), labels, jnp.linspace(0.0, 4.0, BATCH)


@pytest.mark.parametrize(
    ("name", "image_shape", "num_classes", "out_channels", "expected"),
    [
        # 295,905,222 with an output of 2C channels; this network has C.
        ("imagenet64", (64, 64, 3), 1000, 6, 295_905_222),
        # 60,004,099 without classes, to which the class projection adds (10 + 1) · 1024.
        ("cifar10", (32, 32, 3), 10, 3, 60_004_099 + 11 * 1024),
    ],
)
@pytest.mark.parametrize("variant", ["", "stochastic", "encoder", "two_student", "single_w"])
def test_paper_configs_build_the_papers_networks(
    name, variant, image_shape, num_classes, out_channels, expected
):
    """By shape only: the teacher's count, and the student's, which has a w branch more."""
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](variant)
    counts = []
    for knows_w in (False, True):
        model = unet_model(
            config.model,
            config.schedule,
            image_shape=image_shape,
            num_classes=num_classes,
            knows_w=knows_w,
        )
        counts.append(count_params(jax.eval_shape(model.init, jax.random.key(0))))
    width = config.model.width
    assert counts[0] + (out_channels - 3) * (9 * width + 1) == expected
    emb = 4 * width
    assert counts[1] - counts[0] == (width * emb + emb) + (emb * emb + emb)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (dict(width=4, channel_mults=(1,), attention_resolutions=()), (5, 5, 2)),
        (dict(width=20, channel_mults=(1, 3), attention_resolutions=(3,)), (6, 6, 3)),
        (dict(width=8, head_dim=4, channel_mults=(1, 2, 2)), (16, 16, 1)),
    ],
)
def test_unet_takes_any_width_square_size_and_channel_count(settings, shape):
    model = small_model(image_shape=shape, **settings)
    z = jax.random.normal(jax.random.key(0), (2, *shape))
    out = model.apply(random_params(model), z, jnp.zeros(2), jnp.zeros(2, jnp.int32), None, None)
    assert out.shape == z.shape and out.dtype == jnp.float32 and np.isfinite(out).all()


def test_fresh_unet_predicts_zero(inputs):
    model = small_model()
    out = model.apply(fresh_params(model), *inputs[:3], None, None)
    assert_array_equal(out, np.zeros((BATCH, 8, 8, 1)))


@pytest.mark.parametrize("w", [0.0, 0.3, 4.0])
def test_fresh_student_equals_the_conditional_teacher_for_every_w(inputs, w):
    z, logsnr, labels, _ = inputs
    teacher_model, student_model = small_model(), small_model(w_conditioned=True)
    teacher_params = random_params(teacher_model)
    student_params = init_student(fresh_params(student_model), teacher_params)
    teacher = teacher_model.denoiser(teacher_params, labels)
    student = student_model.denoiser(student_params, labels)
    weights = jnp.full(BATCH, w)
    expected = teacher(z, logsnr, weights)
    assert_allclose(student(z, logsnr, weights), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected).max() > 0.1


def test_students_new_parameters_are_the_w_branch_and_learn(inputs):
    z, logsnr, labels, w = inputs
    model = small_model("x", w_conditioned=True)
    teacher_params = random_params(small_model())
    params = init_student(fresh_params(model), teacher_params)
    assert set(params) - set(teacher_params) == {"w_0", "w_1"}

    def loss(params):
        return jnp.mean(model.denoiser(params, labels)(z, logsnr, w) ** 2)

    grads = jax.jit(jax.grad(loss))(params)
    assert np.abs(grads["w_1"]["kernel"]).max() > 0


def test_student_of_another_architecture_is_refused():
    fresh = random_params(small_model(w_conditioned=True))
    with pytest.raises(ValueError, match="unexpected .*conv_0"):
        init_student({"w_0": fresh["w_0"]}, random_params(small_model()))
    with pytest.raises(ValueError, match="of another shape .*conv_in"):
        wider = random_params(small_model(width=12, w_conditioned=True))
        init_student(wider, random_params(small_model()))


def test_guided_pair_is_the_combination_of_two_passes(inputs):
    z, logsnr, labels, w = inputs
    model = small_model()
    params = random_params(model)
    cond, uncond = (half(z, logsnr, w) for half in model.pair(params, labels))
    guided = model.guided(params, labels)(z, logsnr, w)
    null = model.denoiser(params, jnp.full_like(labels, 3))(z, logsnr, w)
    assert_array_equal(uncond, null)
    assert_allclose(guided, guide(cond, uncond, w), atol=2e-5)
    assert np.abs(cond - uncond)[labels != 3].max() > 1e-3


def test_labels_matter_and_the_null_label_is_shared_by_all_classes(inputs):
    z, logsnr, _, _ = inputs
    model = small_model()
    params = random_params(model)
    predict = lambda label: model.apply(  # noqa: E731
        params, z, logsnr, jnp.full(BATCH, label), None, None
    )
    assert np.abs(predict(0) - predict(1)).max() > 1e-3
    assert np.abs(predict(0) - predict(3)).max() > 1e-3


def test_clipped_prediction_is_the_prediction_inside_its_bound(inputs):
    z, logsnr, _, w = inputs
    tripled = lambda z, logsnr, w: 3.0 * z  # noqa: E731
    assert np.abs(3.0 * z).max() > 1.0
    assert_array_equal(clip_prediction(tripled, 1.0)(z, logsnr, w), np.clip(3.0 * z, -1.0, 1.0))
    assert_array_equal(clip_prediction(tripled, jnp.inf)(z, logsnr, w), 3.0 * z)


def test_label_dropout_has_its_rate_and_touches_nothing_else():
    labels = jnp.tile(jnp.arange(3), 2000)
    keys = jax.random.split(jax.random.key(0), 6000)
    conditioning = Conditioning(null=3)
    dropped = conditioning.drop(labels, keys, 0.1)
    assert_allclose(np.mean(dropped == 3), 0.1, atol=0.015)
    assert_array_equal(dropped[dropped != 3], labels[dropped != 3])
    assert_array_equal(conditioning.drop(labels, keys, 0.0), labels)


@pytest.mark.parametrize("prediction", sorted(X_FROM_PREDICTION))
def test_denoiser_reads_each_kind_of_prediction(inputs, prediction):
    z, logsnr, labels, w = inputs
    model = small_model(prediction)
    params = random_params(model)
    told = straight_path(z, logsnr) if prediction == "flow" else z
    raw = model.apply(params, told, logsnr, labels, None, None)
    x_hat = model.denoiser(params, labels)(z, logsnr, w)
    assert_array_equal(x_hat, X_FROM_PREDICTION[prediction](raw, z, logsnr))


def test_bfloat16_network_stays_close_and_returns_float32(inputs):
    z, logsnr, labels, w = inputs
    params = random_params(small_model())
    exact = small_model().denoiser(params, labels)(z, logsnr, w)
    coarse = small_model(dtype=jnp.bfloat16).denoiser(params, labels)(z, logsnr, w)
    assert coarse.dtype == jnp.float32
    assert 0 < np.abs(coarse - exact).max() < 0.1 * np.abs(exact).max()


def test_bfloat16_keeps_what_z_says(inputs):
    """z is not rounded: of a network whose blocks add nothing, out is that of float32."""
    z, logsnr, labels, _ = inputs
    outs = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        model = plain_model(dtype=dtype, num_res_blocks=1)
        conv = lambda params, dtype=dtype: nn.Conv(8, (3, 3)).apply({"params": params}, z)  # noqa: E731
        params = random_params(model)
        _, state = small_unet(
            channel_mults=(1,), attention_resolutions=(), dtype=dtype
        ).apply(
            {"params": params}, z, logsnr, labels, capture_intermediates=True,
            mutable=["intermediates"],
        )  # fmt: skip
        (outs[dtype],) = state["intermediates"]["conv_in"]["__call__"]
        assert_array_equal(outs[dtype], conv(params["conv_in"]))
        (last,) = state["intermediates"]["conv_out"]["__call__"]
        assert outs[dtype].dtype == last.dtype == jnp.float32


def test_dropout_keeps_the_mean_and_depends_on_each_examples_key_alone():
    keys = jax.random.split(jax.random.key(0), 64)
    x = jnp.ones((64, 8, 8, 4))
    drop = lambda rate, x, keys: Dropout(rate).apply({}, x, keys)  # noqa: E731
    dropped = drop(0.25, x, keys)
    assert_allclose(np.unique(dropped), [0.0, 1 / 0.75], rtol=1e-6)
    assert_allclose(dropped.mean(), 1.0, atol=0.02)
    assert_array_equal(drop(0.25, x[3:5], keys[3:5]), dropped[3:5])
    assert_array_equal(drop(0.25, x, None), x)


def test_dropout_layers_draw_different_masks(inputs):
    z, logsnr, labels, _ = inputs
    network = small_unet(dropout=0.5)
    params = random_params(small_model(dropout=0.5))
    keys = jax.random.split(jax.random.key(0), BATCH)
    _, state = network.apply(
        {"params": params}, z, logsnr, labels, None, keys,
        capture_intermediates=lambda module, _: isinstance(module, Dropout),
        mutable=["intermediates"],
    )  # fmt: skip
    masks = [np.asarray(leaf == 0) for leaf in jax.tree.leaves(state["intermediates"])]
    same_shape = [m for m in masks if m.shape == masks[0].shape]
    assert len(same_shape) >= 2 and not np.array_equal(same_shape[0], same_shape[1])


def test_embeddings_tell_neighbouring_values_apart():
    for embed, values in (
        (embed_w, jnp.linspace(0.0, 4.0, 41)),
        (embed_logsnr, jnp.linspace(-20.0, 20.0, 41)),
    ):
        features = np.asarray(embed(values, 32))
        assert features.shape == (41, 32) and np.abs(features).max() <= 1.0
        distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
        assert distances[~np.eye(41, dtype=bool)].min() > 1e-3


@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("rows", [1, BATCH], ids=["affine", "film"])
@pytest.mark.parametrize("axis", [1, -1], ids=["channels_first", "channels_last"])
def test_group_norm_is_flaxs_with_what_follows_it(axis, rows, swish):
    """Its value and all three gradients, which it works out by a formula of its own."""
    x, scale, shift, weight = (
        jax.random.normal(jax.random.key(k), shape)
        for k, shape in enumerate([(BATCH, 5, 4, 12), (rows, 12), (rows, 12), (BATCH, 5, 4, 12)])
    )
    x = 3.0 * x + 2.0
    move = lambda array: jnp.moveaxis(array, -1, axis)  # noqa: E731

    def fields(x, scale, shift):
        norm = nn.GroupNorm(num_groups=3, use_scale=False, use_bias=False, epsilon=1e-6)
        y = norm.apply({}, x) * scale[:, None, None] + shift[:, None, None]
        return weight * (nn.swish(y) if swish else y)

    def ours(x, scale, shift):
        y = group_norm(move(x), scale, shift, groups=3, eps=1e-6, axis=axis, swish=swish)
        return move(weight) * y

    assert_allclose(ours(x, scale, shift), move(fields(x, scale, shift)), atol=1e-5)
    slopes = [jax.grad(lambda *args, f=f: f(*args).sum(), (0, 1, 2)) for f in (ours, fields)]
    for found, expected in zip(*(slope(x, scale, shift) for slope in slopes), strict=True):
        assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_group_norm_stays_exact_far_from_zero():
    """Where E[x²] − E[x]² has lost all digits."""
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    one, zero = jnp.ones((1, 4)), jnp.zeros((1, 4))
    near, far = (group_norm(x + add, one, zero, 2, 1e-6, -1) for add in (0.0, 4096.0))
    assert_allclose(far, near, atol=1e-3)


def test_group_norm_in_bfloat16_computes_in_float32():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4)).astype(jnp.bfloat16)
    one, zero = jnp.ones((1, 4)), jnp.zeros((1, 4))
    of = lambda x: group_norm(x, one, zero, 2, 1e-6, -1, True)  # noqa: E731
    exact = of(x.astype(jnp.float32))
    assert of(x).dtype == jnp.bfloat16
    assert_array_equal(of(x), exact.astype(jnp.bfloat16))
    assert jax.grad(lambda x: of(x).astype(jnp.float32).sum())(x).dtype == jnp.bfloat16
