"""Reference statistics: computed once, stored with their origin, refused where they do not fit."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from guided_distill.data.pixels import to_float
from guided_distill.data.sources import ArraySource
from guided_distill.errors import UserError
from guided_distill.evaluation.features import FeatureExtractor
from guided_distill.evaluation.measure import Measurement
from guided_distill.evaluation.reference import (
    compute_reference,
    load_kept_reference,
    load_reference,
    save_reference,
)


def extractor(name="pixels", scale=1.0):
    """Pixels as features, and two classes by brightness."""

    def apply(images):
        features = scale * images.reshape(len(images), -1)[:, :6].astype(np.float32)
        logits = np.stack([features.mean(axis=1) - 128, 128 - features.mean(axis=1)], axis=1)
        return features, logits - np.logaddexp(logits[:, :1], logits[:, 1:])

    return FeatureExtractor(name, 6, "none", apply)


@pytest.fixture
def source():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2500, 4, 4, 1), np.uint8)
    return ArraySource("noise", images, np.zeros(2500, np.int32), 1)


def test_statistics_are_those_of_all_images_and_survive_the_disk(source, tmp_path):
    stats = compute_reference(source, extractor())
    features, _ = extractor().apply(source.images)
    assert_allclose(stats.mean, features.mean(axis=0), rtol=1e-6)
    assert_allclose(stats.covariance, np.cov(features, rowvar=False), rtol=1e-6)
    assert stats.provenance["n"] == 2500 and len(stats.features) == 2500
    save_reference(tmp_path / "a" / "stats.npz", stats)
    loaded = load_reference(tmp_path / "a" / "stats.npz", source, extractor())
    assert_allclose(loaded.covariance, stats.covariance)
    assert loaded.provenance["data_sha256"] == source.sha256
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "stats.npz"]


def test_kept_statistics_are_just_as_computed_or_damaged(source, tmp_path):
    path, stats = tmp_path / "stats.npz", compute_reference(source, extractor())
    save_reference(path, stats)
    kept = load_kept_reference(path, source, extractor())
    assert (kept.provenance, kept.sha256) == (stats.provenance, stats.sha256)
    written = path.read_bytes()
    for name in (b"features.npy", b"provenance.npy"):
        path.write_bytes(written.replace(name, name.swapcase()))
        with pytest.raises(UserError, match="stats.npz is damaged"):
            load_kept_reference(path, source, extractor())


def measure(images, extractor, reference, batch_size=300):
    """The metrics of pictures, batch by batch."""
    measurement = Measurement(len(images), extractor, extractor, reference)
    for part in np.array_split(images, -(-len(images) // batch_size)):
        measurement.add(to_float(part), np.zeros(len(part)), {})
    return measurement.result()


def test_files_of_other_tools_are_read_but_lack_neighbours(source, tmp_path):
    small = extractor(scale=0.01)
    features, _ = small.apply(source.images)
    np.savez(tmp_path / "x.npz", mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))
    row = measure(source.images, small, load_reference(tmp_path / "x.npz", source, small))
    assert row["fid"] < 1e-6 and row["is"] >= 1 and row["is_std"] >= 0 and row["n"] == 2500
    assert row["kid"] is row["precision"] is row["recall"] is None
    own = measure(source.images[:500], small, compute_reference(source, small))
    assert own["precision"] == 1.0 and 0.5 < own["recall"] <= 1.0 and abs(own["kid"]) < 0.05


def test_samples_that_are_not_finite_are_named(source):
    reference = compute_reference(source, extractor())
    measurement = Measurement(20, extractor(), extractor(), reference)
    x = to_float(source.images[:10])
    measurement.add(x, np.zeros(10), {})
    x[3, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="sample 13 is not finite"):
        measurement.add(x, np.zeros(10), {})


def test_metrics_do_not_depend_on_the_batches(source):
    reference = compute_reference(source, extractor(scale=0.01))
    rows = [
        measure(source.images[:501], extractor(scale=0.01), reference, batch_size=size)
        for size in (7, 100, 501)
    ]
    for row in rows[1:]:
        for name, value in rows[0].items():
            assert value is None or isinstance(value, str) or np.isclose(row[name], value), name


def test_statistics_that_do_not_fit_are_refused(source, tmp_path):
    path = tmp_path / "stats.npz"
    with pytest.raises(UserError, match="stats.npz is missing: the job reference_stats makes it"):
        load_reference(path, source, extractor())
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="is no reference statistics with mu and sigma"):
        load_reference(path, source, extractor())
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(UserError, match=r"shape \(3,\) and \(3, 3\), but pixels gives 6 features"):
        load_reference(path, source, extractor())
    np.savez(path, mu=np.full(6, np.nan), sigma=np.eye(6))
    with pytest.raises(UserError, match="not finite"):
        load_reference(path, source, extractor())
    for sigma, what in (
        (np.eye(6) + np.eye(6, k=1), "sigma is not symmetric"),
        (np.eye(6) - 2.0 * np.eye(6, k=5) - 2.0 * np.eye(6, k=-5), "has a negative eigenvalue"),
    ):
        np.savez(path, mu=np.zeros(6), sigma=sigma)
        with pytest.raises(UserError, match=what):
            load_reference(path, source, extractor())
    save_reference(path, compute_reference(source, extractor()))
    with pytest.raises(UserError, match="made with another features: pixels there, other here"):
        load_reference(path, source, extractor("other"))
    changed = ArraySource("noise", source.images[:-1], source.labels[:-1], 1)
    with pytest.raises(UserError, match="made with another data_sha256"):
        load_reference(path, changed, extractor())
