"""Laws of sources and batches."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from small import data_settings

from guided_distill.data.batches import Batches, batch_indices
from guided_distill.data.dataset import balanced_labels, cycle_labels
from guided_distill.data.pixels import to_float, to_uint8
from guided_distill.data.registry import open_dataset
from guided_distill.data.sources import ArraySource
from guided_distill.system.sharding import batch_sharding


def test_digits_are_whole_and_their_splits_apart():
    digits = open_dataset(data_settings("digits"))
    train, test = digits.train, digits.test
    assert (len(train), len(test), train.num_classes) == (1500, 297, 10)
    assert train.image_shape == (8, 8, 1) and train.images.dtype == np.uint8
    assert (train.images.min(), train.images.max()) == (0, 255)
    for split in (train, test):
        assert sorted(set(split.labels.tolist())) == list(range(10))
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in test.images)


def test_images_survive_the_way_to_floats_and_back():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert (to_float(images).min(), to_float(images).max()) == (-1.0, 1.0)
    assert_array_equal(to_uint8(to_float(images)), images)
    assert_array_equal(to_uint8(np.array([-3.0, 3.0])), [0, 255])


@pytest.mark.parametrize("counts", [(1000, 100), (3, 1, 5), (10**6, 1, 1, 1), (159, 144, 146)])
def test_labels_have_the_datas_proportions_whatever_n(counts):
    shares = np.asarray(counts) / sum(counts)
    labels = balanced_labels(counts, 2000)
    for n in (1, 9, 100, 1234, 2000):
        assert_array_equal(balanced_labels(counts, n), labels[:n])
        drawn = np.bincount(labels[:n], minlength=len(counts))
        assert np.abs(drawn - n * shares).max() <= len(counts) / 2


def test_classes_of_one_size_come_in_turn():
    assert_array_equal(balanced_labels([7] * 10, 123), cycle_labels(np.arange(123), 10))
    assert_array_equal(balanced_labels([5], 4), [0, 0, 0, 0])


def test_hash_sees_images_labels_and_order():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 2, 2, 1), dtype=np.uint8)
    labels = np.arange(6, dtype=np.int32)
    sources = [
        ArraySource("a", images, labels, 6),
        ArraySource("a", images[::-1], labels, 6),
        ArraySource("a", images, labels[::-1], 6),
    ]
    assert len({source.sha256 for source in sources}) == 3
    assert sources[0].sha256 == ArraySource("b", images.copy(), labels, 6).sha256


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (7, 20), (5, 5)])
def test_every_epoch_is_a_permutation_of_its_own(num_examples, batch_size):
    updates = 3 * num_examples
    stream = np.concatenate([batch_indices(num_examples, batch_size, 0, u) for u in range(updates)])
    epochs = stream[: len(stream) // num_examples * num_examples].reshape(-1, num_examples)
    assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_examples), (len(epochs), 1)))
    assert len({tuple(epoch) for epoch in epochs[:10]}) > 5


def test_batches_are_a_function_of_seed_and_update():
    first = batch_indices(1000, 32, 3, 40)
    batch_indices(1000, 32, 3, 99)
    assert_array_equal(batch_indices(1000, 32, 3, 40), first)
    assert not np.array_equal(batch_indices(1000, 32, 4, 40), first)
    assert not np.array_equal(batch_indices(1000, 32, 3, 41), first)


def test_batches_lie_on_the_devices_in_global_order():
    source = open_dataset(data_settings("digits")).train
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    batches = Batches(source, batch_size=16, seed=0, sharding=batch_sharding(mesh))
    images, labels = batches(5)
    indices = batch_indices(1500, 16, 0, 5)
    assert_array_equal(images, source.images[indices])
    assert_array_equal(labels, source.labels[indices])
    assert {shard.data.shape for shard in images.addressable_shards} == {(2, 8, 8, 1)}
