"""Laws of the training algorithms, with no network at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import constant_denoiser, gaussian_denoiser
from numpy.testing import assert_allclose, assert_array_equal

from guided_distill.diffusion.ddim import ddim_step, x_tilde
from guided_distill.diffusion.guidance import guide
from guided_distill.diffusion.parameterization import eps_from_x, v_from_x
from guided_distill.diffusion.schedule import Schedule, cosine_logsnr, cosine_schedule
from guided_distill.distill.algorithms import (
    add_noise,
    ddim_path,
    ddim_target,
    deterministic_loss,
    draw_index,
    draw_uniform,
    split_keys,
    step_one_loss,
    stochastic_loss,
    teacher_loss,
    two_student_loss,
)
from guided_distill.distill.distillations import ALGORITHMS
from guided_distill.distill.losses import LOSS_WEIGHTS, weighted_mse

W_RANGE = (0.0, 4.0)


def recording(denoise, calls):
    """A denoiser that notes the arguments of every call."""

    def wrapped(z, logsnr, w):
        calls.append((z, logsnr, w))
        return denoise(z, logsnr, w)

    return wrapped


def curved(z, logsnr, w):
    """A denoiser without structure to hide behind: nonlinear in z, λ and w."""
    shape = (-1, 1, 1, 1)
    return jnp.tanh(z + 0.3 * jnp.sin(logsnr).reshape(shape) + 0.1 * w.reshape(shape) * z**2)


def plain(z, logsnr, w):
    """Another denoiser, unlike `curved`."""
    return 0.5 * jnp.tanh(z)


@pytest.mark.parametrize(
    ("name", "error_in"),
    [
        ("x", lambda x, z, logsnr: x),
        ("snr", eps_from_x),
        ("v", v_from_x),
    ],
)
def test_loss_weights_are_squared_errors_in_x_eps_and_v(noise, name, error_in):
    logsnr = jnp.linspace(-4.0, 4.0, 16)
    x, x_hat, z = noise, jnp.tanh(noise[::-1]), noise * 0.3
    loss = weighted_mse(x_hat, x, LOSS_WEIGHTS[name](logsnr))
    difference = error_in(x_hat, z, logsnr) - error_in(x, z, logsnr)
    assert_allclose(loss, jnp.mean(difference**2, axis=(1, 2, 3)), rtol=1e-3)


def test_truncated_snr_is_the_larger_of_the_errors_in_x_and_eps():
    logsnr = jnp.linspace(-8.0, 8.0, 17)
    expected = np.maximum(LOSS_WEIGHTS["x"](logsnr), LOSS_WEIGHTS["snr"](logsnr))
    assert_allclose(LOSS_WEIGHTS["snr_trunc"](logsnr), expected, rtol=1e-6)


def test_add_noise_has_the_variances_of_the_schedule():
    keys = jax.random.split(jax.random.key(3), 4000)
    for logsnr in (-2.0, 0.0, 3.0):
        z = add_noise(jnp.ones((4000, 2, 2, 1)), keys, jnp.full(4000, logsnr))
        assert_allclose(np.mean(z), np.sqrt(1 / (1 + np.exp(-logsnr))), atol=0.03)
        assert_allclose(np.var(z), 1 / (1 + np.exp(logsnr)), rtol=0.05)


def test_draws_cover_their_ranges_and_depend_on_each_key_alone():
    keys = jax.random.split(jax.random.key(5), 3000)
    indices = np.asarray(draw_index(keys, 1, 4))
    assert sorted(set(indices.tolist())) == [1, 2, 3, 4]
    assert_allclose(np.bincount(indices)[1:] / 3000, 0.25, atol=0.04)
    uniform = draw_uniform(keys, 1.0, 3.0)
    assert 1.0 <= uniform.min() < 1.01 and 2.99 < uniform.max() < 3.0
    assert_array_equal(draw_uniform(keys[7:9], 1.0, 3.0), uniform[7:9])
    a, b = split_keys(keys, 2)
    assert not np.array_equal(jax.random.key_data(a), jax.random.key_data(b))


def test_teacher_loss_is_zero_for_the_truth_and_known_for_a_constant(keys, noise):
    x = jnp.full(noise.shape, 0.5)
    kwargs = dict(schedule=cosine_schedule(), loss_weight=LOSS_WEIGHTS["x"])
    assert_allclose(teacher_loss(constant_denoiser(0.5), x, keys, **kwargs), 0.0, atol=1e-12)
    loss = teacher_loss(constant_denoiser(0.2), x, keys, **kwargs)
    assert loss.shape == (16,)
    assert_allclose(loss, 0.09, rtol=1e-5)


def test_teacher_loss_trains_on_times_from_clean_to_noise(noise):
    calls = []
    keys = jax.random.split(jax.random.key(9), 2000)
    teacher_loss(
        recording(constant_denoiser(0.0), calls),
        jnp.zeros((2000, 2, 2, 1)),
        keys,
        schedule=Schedule(lambda t: t),  # shows the times themselves
        loss_weight=LOSS_WEIGHTS["x"],
    )
    times = np.sort(calls[0][1])
    assert_allclose(times, (np.arange(2000) + 0.5) / 2000, atol=0.04)


def test_step_one_is_solved_by_the_guided_teacher_and_only_for_its_w(keys, noise):
    cond, uncond = gaussian_denoiser(0.5), gaussian_denoiser(1.5)

    def teacher(z, logsnr, w):
        return guide(cond(z, logsnr, w), uncond(z, logsnr, w), w)

    kwargs = dict(w_range=W_RANGE, schedule=cosine_schedule(), loss_weight=LOSS_WEIGHTS["x"])
    assert_array_equal(step_one_loss(teacher, teacher, noise, keys, **kwargs), np.zeros(16))
    assert np.all(step_one_loss(cond, teacher, noise, keys, **kwargs) > 0)
    unguided = step_one_loss(cond, teacher, noise, keys, **(kwargs | {"w_range": (0.0, 0.0)}))
    assert_array_equal(unguided, np.zeros(16))


def test_step_one_shows_student_and_teacher_the_same_noise_level_and_weight(keys, noise):
    student_calls, teacher_calls = [], []
    step_one_loss(
        recording(curved, student_calls), recording(curved, teacher_calls), noise, keys,
        w_range=(1.0, 3.0), schedule=cosine_schedule(), loss_weight=LOSS_WEIGHTS["x"],
    )  # fmt: skip
    for seen, shown in zip(student_calls[0], teacher_calls[0], strict=True):
        assert_array_equal(seen, shown)
    w = student_calls[0][2]
    assert np.all((w >= 1.0) & (w < 3.0)) and np.ptp(w) > 1.0


@pytest.mark.parametrize("sub_steps", [2, 3, 4])
@pytest.mark.parametrize("num_steps", [1, 8, 256])
def test_target_is_the_jump_that_meets_the_teachers_sub_steps(noise, num_steps, sub_steps):
    t = jnp.linspace(1, num_steps, 16).round() / num_steps
    times = [t - k / (sub_steps * num_steps) for k in range(sub_steps + 1)]
    w = jnp.linspace(0.0, 4.0, 16)
    target = ddim_target(curved, noise, w, times, cosine_logsnr)
    jump = ddim_step(
        target, noise, logsnr_t=cosine_logsnr(times[0]), logsnr_s=cosine_logsnr(times[-1])
    )
    z = noise
    for a, b in zip(times[:-1], times[1:], strict=True):
        logsnr_a = cosine_logsnr(a)
        z = ddim_step(curved(z, logsnr_a, w), z, logsnr_t=logsnr_a, logsnr_s=cosine_logsnr(b))
    assert_allclose(jump, z, atol=2e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 16, 128])
def test_target_is_a_weighted_mean_of_the_two_teacher_predictions(noise, num_steps):
    """x̃ = x_2 + (x_1 − x_2) expm1((λ_mid − λ_t)/2) / expm1((λ_end − λ_t)/2): an independent form."""
    t = jnp.linspace(1, num_steps, 16).round() / num_steps
    times = (t, t - 0.5 / num_steps, t - 1 / num_steps)
    calls = []
    w = jnp.linspace(0.0, 4.0, 16)
    denoise = recording(curved, calls)
    target = ddim_target(denoise, noise, w, times, cosine_logsnr)
    x_1, x_2 = (curved(*call) for call in calls)
    level_t, level_mid, level_end = (
        np.exp(np.asarray(cosine_logsnr(time), np.float64) / 2) for time in times
    )
    share = ((level_mid - level_t) / (level_end - level_t)).reshape(-1, 1, 1, 1)
    assert_allclose(target, x_2 + (x_1 - x_2) * share, atol=3e-6 * num_steps + 3e-6)


def test_target_of_a_constant_teacher_is_that_constant(noise):
    t = jnp.full(16, 0.75)
    times = (t, t - 0.125, t - 0.25)
    target = ddim_target(constant_denoiser(0.3), noise, jnp.zeros(16), times, cosine_logsnr)
    assert_allclose(target, 0.3, atol=1e-5)


# What the paper's lines t, t′, t″ say of each algorithm, times N, with `factor` sub-steps.
JUMPS = {
    "deterministic": lambda i, factor: [i - k / factor for k in range(factor + 1)],
    "stochastic": lambda i, factor: [max(i - 2 * k / factor, 0) for k in range(factor + 1)],
    "encoder": lambda i, factor: [i + k / factor for k in range(factor + 1)],
}


def starts(algorithm, num_steps):
    """i of t = i/N."""
    return np.arange(num_steps) + (0 if algorithm == "encoder" else 1)


def round_kwargs(num_steps, **kwargs):
    return dict(
        num_steps=num_steps, w_range=W_RANGE,
        schedule=cosine_schedule(), loss_weight=LOSS_WEIGHTS["snr_trunc"],
    ) | kwargs  # fmt: skip


def start_of(logsnr, algorithm, num_steps):
    """Which i each example's student was called at; fails off the grid."""
    i = starts(algorithm, num_steps)
    distance = np.abs(np.asarray(cosine_logsnr(i / num_steps))[None] - np.asarray(logsnr)[:, None])
    assert distance.min(axis=1).max() < 1e-4
    return i[distance.argmin(axis=1)]


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("algorithm", list(JUMPS))
def test_rounds_visit_the_students_grid_and_the_teachers_sub_steps(keys, noise, algorithm, factor):
    num_steps, student_calls, teacher_calls = 4, [], []
    ALGORITHMS[algorithm].loss(
        recording(curved, student_calls), recording(curved, teacher_calls), noise, keys,
        **round_kwargs(np.int32(num_steps), factor=factor),
    )  # fmt: skip
    assert len(student_calls) == 1 and len(teacher_calls) == factor
    i = start_of(student_calls[0][1], algorithm, num_steps)
    assert set(i) == set(starts(algorithm, num_steps))
    assert_array_equal(student_calls[0][0], teacher_calls[0][0])
    for k, (_, logsnr, w) in enumerate(teacher_calls):
        t = jnp.array([JUMPS[algorithm](one, factor)[k] for one in i]) / num_steps
        assert_allclose(logsnr, cosine_logsnr(t), atol=1e-4)
        assert_array_equal(w, student_calls[0][2])


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("algorithm", list(JUMPS))
def test_rounds_are_solved_by_the_exact_jump(keys, noise, algorithm, factor):
    """A student that goes in ONE step where the teacher's sub-steps lead has no loss."""
    num_steps = 4

    def jump(z, logsnr, w):
        i = start_of(logsnr, algorithm, num_steps)
        times = jnp.array([JUMPS[algorithm](one, factor) for one in i]).T / num_steps
        return ddim_target(curved, z, w, list(times), cosine_logsnr)

    loss = ALGORITHMS[algorithm].loss
    kwargs = round_kwargs(num_steps, factor=factor)
    # At t = 0 the encoder's weight is e^20: what float32 leaves of an exact x̂ is seen there.
    assert loss(jump, curved, noise, keys, **kwargs).max() < 1e-4
    assert loss(curved, curved, noise, keys, **kwargs).mean() > 1e-2


@pytest.mark.parametrize("algorithm", list(JUMPS))
def test_a_constant_teacher_gives_that_constant(keys, noise, algorithm):
    loss = ALGORITHMS[algorithm].loss
    kwargs = round_kwargs(8, loss_weight=LOSS_WEIGHTS["x"])
    same, other = constant_denoiser(0.3), constant_denoiser(0.5)
    assert_allclose(loss(same, same, noise, keys, **kwargs), 0.0, atol=1e-9)
    assert_allclose(loss(other, same, noise, keys, **kwargs), 0.04, rtol=1e-3)


def test_stochastic_at_the_last_step_is_one_teacher_step_to_zero(keys, noise):
    """The paper's else-case, t = 1/N: x̃ is the teacher's own prediction there."""
    num_steps, student_calls = 4, []
    student = recording(curved, student_calls)
    kwargs = round_kwargs(num_steps, loss_weight=LOSS_WEIGHTS["x"])
    loss = stochastic_loss(student, curved, noise, keys, **kwargs)
    last = start_of(student_calls[0][1], "stochastic", num_steps) == 1
    assert last.any() and not last.all()
    assert np.max(loss[last]) < 1e-9 and np.min(loss[~last]) > 1e-4
    assert stochastic_loss(curved, curved, noise, keys, **round_kwargs(1)).max() < 1e-9


@pytest.mark.parametrize("factor", [2, 4])
def test_two_equal_halves_learn_twice_what_one_learns(keys, noise, factor):
    """With x̂_c = x̂ the guided teacher is that same model, for every w."""
    kwargs = round_kwargs(4, factor=factor)
    pair = two_student_loss((plain, plain), (curved, curved), noise, keys, **kwargs)
    alone = deterministic_loss(plain, curved, noise, keys, **kwargs)
    assert_allclose(pair, 2 * alone, rtol=1e-4)


def test_two_students_learn_the_halves_of_the_last_sub_step(keys, noise):
    """The first sub-step is guided, the second is each half's own."""
    num_steps, student_calls, cond_calls, uncond_calls = 4, [], [], []
    cond, uncond = curved, gaussian_denoiser(0.5)
    targets = []

    def solve(half, z, logsnr, w):
        i = start_of(logsnr, "deterministic", num_steps)
        times = [jnp.asarray(i - k / 2) / num_steps for k in range(3)]
        guided = lambda z, logsnr, w: guide(cond(z, logsnr, w), uncond(z, logsnr, w), w)  # noqa: E731
        z_mid = ddim_path(guided, z, w, times[:2], cosine_logsnr)
        z_end = ddim_path(half, z_mid, w, times[1:], cosine_logsnr)
        ends = dict(logsnr_s=cosine_logsnr(times[2]), logsnr_t=logsnr)
        targets.append(x_tilde(z_end, z, **ends))
        return targets[-1]

    student = tuple(
        recording(lambda *call, half=half: solve(half, *call), student_calls)
        for half in (cond, uncond)
    )
    teacher = (recording(cond, cond_calls), recording(uncond, uncond_calls))
    loss = two_student_loss(student, teacher, noise, keys, **round_kwargs(num_steps))
    assert loss.max() < 1e-6 and np.abs(targets[0] - targets[1]).max() > 1e-2
    assert len(student_calls) == len(cond_calls) == len(uncond_calls) == 2
    swapped = two_student_loss(student[::-1], teacher, noise, keys, **round_kwargs(num_steps))
    assert swapped.mean() > 1e-2


@pytest.mark.parametrize("which", ["step_one", *ALGORITHMS])
def test_no_gradient_reaches_the_teacher(keys, noise, which):
    def scaled(scale):
        one = lambda z, logsnr, w: scale * curved(z, logsnr, w)  # noqa: E731
        return (one, one) if which == "two_student" else one

    def loss(student_scale, teacher_scale):
        kwargs = dict(w_range=W_RANGE, schedule=cosine_schedule(), loss_weight=LOSS_WEIGHTS["v"])
        if which != "step_one":
            kwargs["num_steps"] = 4
        losses = step_one_loss if which == "step_one" else ALGORITHMS[which].loss
        return losses(scaled(student_scale), scaled(teacher_scale), noise, keys, **kwargs).mean()

    to_student, to_teacher = jax.grad(loss, argnums=(0, 1))(0.7, 1.2)
    assert to_teacher == 0.0 and abs(to_student) > 1e-3


def test_losses_depend_on_each_examples_key_and_not_on_its_place(keys, noise):
    kwargs = dict(w_range=W_RANGE, schedule=cosine_schedule(), loss_weight=LOSS_WEIGHTS["v"])
    whole = deterministic_loss(curved, gaussian_denoiser(0.5), noise, keys, num_steps=4, **kwargs)
    order = np.random.default_rng(0).permutation(16)
    shuffled = deterministic_loss(
        curved, gaussian_denoiser(0.5), noise[order], keys[order], num_steps=4, **kwargs
    )
    assert_allclose(shuffled, whole[order], rtol=1e-5)
