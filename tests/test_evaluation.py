"""Laws of the metrics, of sample generation and of the report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gaussian_denoiser
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from guided_distill.data.dataset import Dataset
from guided_distill.data.pixels import to_float
from guided_distill.data.sources import ArraySource
from guided_distill.diffusion.schedule import cosine_schedule
from guided_distill.errors import UserError
from guided_distill.evaluation import classifier
from guided_distill.evaluation.classifier import TrainedClassifier, load_or_train_classifier
from guided_distill.evaluation.measure import Measurement
from guided_distill.evaluation.metrics import (
    Moments,
    frechet_distance,
    inception_score,
    moments,
    rmse,
)
from guided_distill.evaluation.nearest import nearest_images
from guided_distill.evaluation.reference import compute_reference
from guided_distill.models.model import Conditioning, Model
from guided_distill.report.grids import grid, save_grid
from guided_distill.report.tables import table
from guided_distill.sampling.generator import Generator
from guided_distill.system.sharding import make_mesh


def random_gaussian(seed, dim=5, rank=None):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((dim, rank or dim))
    return rng.standard_normal(dim), root @ root.T


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    """With diagonal covariances: |μ − ν|² + Σ (σ − τ)²."""
    rng = np.random.default_rng(0)
    (mu, nu), (sigma, tau) = rng.standard_normal((2, 6)), rng.uniform(0, 3, (2, 6))
    expected = np.sum((mu - nu) ** 2) + np.sum((sigma - tau) ** 2)
    assert_allclose(
        frechet_distance(mu, np.diag(sigma**2), nu, np.diag(tau**2)), expected, rtol=1e-10
    )


def test_frechet_distance_is_a_distance_also_for_singular_covariances():
    a, b = random_gaussian(1), random_gaussian(2, rank=2)
    assert_allclose(frechet_distance(*a, *b), frechet_distance(*b, *a), rtol=1e-7)
    assert_allclose(frechet_distance(*b, *b), 0.0, atol=1e-6)
    rotation, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((5, 5)))
    turned = [(rotation @ m, rotation @ c @ rotation.T) for m, c in (a, b)]
    assert_allclose(frechet_distance(*turned[0], *turned[1]), frechet_distance(*a, *b), rtol=1e-7)


def test_moments_are_those_of_the_features():
    features = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    mean, cov = moments(features)
    assert mean.dtype == cov.dtype == np.float64
    assert_allclose(mean, features.mean(axis=0), atol=1e-6)
    assert_allclose(cov[0, 1], np.cov(features[:, 0], features[:, 1])[0, 1], rtol=1e-6)


def test_inception_score_runs_from_one_to_the_number_of_classes():
    score = lambda p: inception_score(np.log(np.maximum(p, 1e-300)), num_splits=2)  # noqa: E731
    assert_allclose(score(np.full((20, 4), 0.25)), (1.0, 0.0), atol=1e-6)
    assert_allclose(score(np.tile(np.eye(4), (10, 1))), (4.0, 0.0), atol=1e-6)
    assert_allclose(score(np.tile([[1.0, 0, 0, 0]], (20, 1))), (1.0, 0.0), atol=1e-6)
    halves = np.concatenate([np.tile(np.eye(4), (5, 1)), np.tile([[1.0, 0, 0, 0]], (20, 1))])
    assert_allclose(score(halves), (2.5, 1.5), atol=1e-6)  # each split has a p(y) of its own


def test_streamed_moments_equal_those_of_all_at_once_and_refuse_nan():
    features = 1e3 + np.random.default_rng(0).standard_normal((1000, 4))
    streamed = Moments()
    for part in np.split(features, [3, 10, 400]):
        streamed.add(part)
    assert streamed.n == 1000
    assert_allclose(streamed.mean, features.mean(axis=0), rtol=1e-12)
    assert_allclose(streamed.covariance, np.cov(features, rowvar=False), rtol=1e-9, atol=1e-9)
    with pytest.raises(UserError, match="not finite"):
        streamed.add(np.full((2, 4), np.nan))


def test_rmse_is_the_root_of_the_mean_square():
    assert_allclose(rmse(np.full((2, 3, 3, 1), 1.0), np.full((2, 3, 3, 1), -2.0)), 3.0)


def make_generator(batch_size):
    """Of a model that knows the data, N(0, 0.4²), exactly."""
    denoise = gaussian_denoiser(0.4)
    model = Model(
        apply=lambda params, z, logsnr, cond, w, dropout_keys: denoise(z, logsnr, w),
        init=lambda key: {},
        prediction="x",
        schedule=cosine_schedule(),
        conditioning=Conditioning(null=3),
        sample_shape=(4, 4, 1),
    )
    return Generator(model, "stochastic", guided=False, mesh=make_mesh(), batch_size=batch_size)


def draw(batch_size, n, first=0, seed=3):
    indices = np.arange(first, first + n)
    return make_generator(batch_size)(
        {}, cond=indices % 3, w=np.zeros(n), indices=indices, num_steps=2, seed=seed
    )


def test_a_sample_depends_on_its_seed_and_index_alone():
    whole = draw(16, 40)
    assert whole.shape == (40, 4, 4, 1)
    assert_allclose(draw(8, 40), whole, atol=1e-6)
    assert_allclose(draw(16, 5, first=30), whole[30:35], atol=1e-6)
    assert np.abs(draw(16, 40, seed=4) - whole).max() > 0.1


@pytest.fixture
def shapes_source():
    """Four classes, each a bright quadrant in noise."""

    def make(seed, n):
        rng = np.random.default_rng(seed)
        labels = np.arange(n, dtype=np.int32) % 4
        images = rng.integers(0, 100, (n, 8, 8, 1), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            top, left = 4 * (label // 2), 4 * (label % 2)
            image[top : top + 4, left : left + 4] += 120
        return ArraySource("shapes", images, labels, 4)

    return make(0, 200), make(1, 100)


def test_classifier_learns_states_its_accuracy_and_is_kept(tmp_path, shapes_source, monkeypatch):
    train, test = shapes_source
    make = lambda updates=60: load_or_train_classifier(  # noqa: E731
        tmp_path, train, test, num_updates=updates, seed=0
    )
    extractor = make()
    assert extractor.accuracy > 0.95
    features, log_p = extractor.apply(np.zeros((3, 8, 8, 1), np.uint8))
    assert features.shape == (3, 64)
    assert_allclose(np.exp(log_p).sum(axis=1), 1.0, rtol=1e-5)
    again = make()
    assert again.name == extractor.name
    _, params = extractor.apply.args
    moved = jax.tree.map(lambda leaf: leaf + 1.0, params)
    monkeypatch.setattr(classifier, "train_classifier", lambda *args, **on: moved)
    assert make(updates=1).name != extractor.name


def test_grid_places_samples_row_by_row(tmp_path):
    images = np.stack([np.full((2, 2, 1), 10 * k, np.uint8) for k in range(5)])
    sheet = grid(images, columns=3)
    assert sheet.shape == (5, 8, 1)
    assert_array_equal(sheet[0, [0, 3, 6], 0], [0, 10, 20])
    assert_array_equal(sheet[3, [0, 3, 6], 0], [30, 40, 255])
    save_grid(tmp_path / "new" / "grid.png", images, columns=3)
    with Image.open(tmp_path / "new" / "grid.png") as picture:
        assert picture.size == (8 * 16, 5 * 16)


def test_table_marks_the_best_few_call_model_in_each_column():
    def row(model, num_steps, w, fid):
        calls = num_steps * (2 if model in ("teacher", "ddim") else 1)
        return dict(model=model, num_steps=num_steps, network_calls=calls, w=w, fid=fid)

    rows = [
        row("teacher", 64, 0.0, 1.0), row("teacher", 64, 2.0, 1.5),
        row("student", 4, 0.0, 2.0), row("student", 4, 2.0, 3.0),
        row("ddim", 4, 0.0, 4.0), row("ddim", 4, 2.0, 2.5),
    ]  # fmt: skip
    lines = table(rows, "fid", 1).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "**2.0**" in lines[3] and "**3.0**" not in lines[3]
    assert "**2.5**" in lines[4] and "128" in lines[2]


def few_pictures(n, samples):
    """(row of metrics, blocks of the nearest) of some samples against `n` training pictures."""
    extractor = TrainedClassifier(
        name="means", num_features=3, resize="none", accuracy=1.0,
        apply=lambda images: (images.mean(axis=(1, 2)), np.full((len(images), 2), np.log(0.5))),
    )  # fmt: skip
    draw = lambda n: np.random.default_rng(n).integers(0, 256, (n, 4, 4, 3), np.uint8)  # noqa: E731
    source = ArraySource("few", draw(n), np.arange(n, dtype=np.int32) % 2, 2)
    dataset = Dataset("few", source.image_shape, 2, lambda split: source)
    reference = compute_reference(dataset.train, extractor)
    measurement = Measurement(samples, extractor, extractor, reference)
    measurement.add(to_float(draw(samples)), np.zeros(samples), {})
    nearest = nearest_images({"few": draw(samples)}, extractor, reference, source)
    return measurement.result(), nearest["few"]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_few_pictures_are_measured_by_what_they_allow(n):
    """Balls to the third neighbour need four pictures; all else needs two."""
    row, nearest = few_pictures(n, samples=6)
    assert (row["precision"] is None) == (row["recall"] is None) == (n < 4)
    assert all(np.isfinite(value) for value in row.values() if isinstance(value, float))
    assert len(nearest) == 1 + min(3, n)
    assert few_pictures(6, samples=3)[0]["precision"] is None


def test_one_picture_to_learn_from_is_refused():
    with pytest.raises(UserError, match="few has 1 picture to learn from: two or more are needed"):
        few_pictures(1, samples=6)


def test_exact_gaussian_samples_have_the_spread_of_the_data():
    x = make_generator(64)(
        {}, cond=np.zeros(256), w=np.zeros(256), indices=np.arange(256), num_steps=200, seed=0
    )
    assert_allclose(np.std(x), 0.4, rtol=0.05)
    assert jnp.asarray(x).dtype == jnp.float32
    assert jax.device_count() == 8
