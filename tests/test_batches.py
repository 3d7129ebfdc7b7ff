"""Batches: a function of (seed, update), in one process or several, held or streamed."""

import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from small import data_settings
from test_arrays import cut, make_arrays
from test_arrays import settings_of as settings_of_arrays
from test_arrays import write as write_shards
from test_folders import settings_of, write_images

from guided_distill.data.augment import augment
from guided_distill.data.batches import Batches, batch_indices
from guided_distill.data.registry import open_dataset
from guided_distill.system.sharding import batch_sharding, make_mesh

BATCH, UPDATES = 16, (0, 3, 90)

# One of several processes: writes what of x and conditioning lies on its devices, and where.
PROCESS = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count={devices}"
import jax, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("localhost:{port}", {processes}, {process})
sys.path.insert(0, {tests!r})
import test_batches
np.savez({out!r}, **test_batches.local_batches({folder!r}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 30 pictures, decoded into a cache that all processes share."""
    folder = tmp_path_factory.mktemp("data") / "mine"
    for name in ("ant", "bee"):
        write_images(folder / name, 30)
    _ = open_dataset(settings_of(folder)).train
    return folder


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """Latents with two conditionings in three shards."""
    return write_shards(tmp_path_factory.mktemp("data") / "arrays", cut(make_arrays()))


def open_source(folder, **changes):
    of_folder = settings_of_arrays if folder.name == "arrays" else settings_of
    return open_dataset(of_folder(folder, **changes)).train


def make_batches(folder, *, streamed, num_workers=0):
    source = open_source(folder, memory_gb=0.0 if streamed else 1.0)
    assert source.in_memory != streamed
    return Batches(
        source,
        batch_size=BATCH,
        seed=0,
        sharding=batch_sharding(make_mesh()),
        num_workers=num_workers,
    )


def local_batches(folder):
    """`{name: array}` of what lies on this process's devices."""
    found = {}
    for streamed in (False, True):
        batches = make_batches(pathlib.Path(folder), streamed=streamed)
        for update in UPDATES:
            for k, leaf in enumerate(jax.tree.leaves(batches(update))):
                for shard in leaf.addressable_shards:
                    start = shard.index[0].start or 0
                    found[f"{streamed} {update} {start} {k}"] = np.asarray(shard.data)
    return found


def put_together(parts, k):
    """The whole leaf of `{(start, leaf): part}`."""
    return np.concatenate([parts[start, leaf] for start, leaf in sorted(parts) if leaf == k])


@pytest.mark.parametrize("kind", ["folder", "arrays"])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_together_see_the_same_batches(request, kind, tmp_path, processes):
    folder = request.getfixturevalue(kind)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS.format(
                devices=4 // processes, port=port, processes=processes, process=process,
                tests=str(pathlib.Path(__file__).parent), out=str(tmp_path / f"{process}.npz"),
                folder=str(folder),
            )],
            stderr=subprocess.PIPE, text=True,
        )
        for process in range(processes)
    ]  # fmt: skip
    errors = [run.communicate()[1] for run in runs]
    assert not any(run.returncode for run in runs), errors
    parts = {}
    for process in range(processes):
        with np.load(tmp_path / f"{process}.npz") as file:
            for key in file.files:
                streamed, update, start, k = key.split()
                parts.setdefault((streamed, int(update)), {})[int(start), int(k)] = file[key]
    source = open_source(folder)
    for (_, update), batch in parts.items():
        whole = source.read(batch_indices(len(source), BATCH, 0, update))
        for k, leaf in enumerate(jax.tree.leaves(whole)):
            assert_array_equal(put_together(batch, k), leaf)
    assert len(parts) == 2 * len(UPDATES)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streams_go_on_where_a_run_was_stopped(folder, num_workers):
    from absl import flags

    flags.FLAGS([sys.argv[0]], known_only=True)  # grain asks absl for its flags.
    held = make_batches(folder, streamed=False)
    streamed = make_batches(folder, streamed=True, num_workers=num_workers)
    for update, (images, labels) in enumerate(streamed.between(37, 45), start=37):
        assert_array_equal(images, held(update)[0])
        assert_array_equal(labels, held(update)[1])
    assert update == 44


def test_batches_larger_than_the_data_set_go_round(folder):
    source = open_dataset(settings_of(folder)).train
    batches = Batches(source, batch_size=128, seed=0, sharding=batch_sharding(make_mesh()))
    images, labels = batches(0)
    assert images.shape == (128, 8, 8, 3) and len(source) == 54
    assert_array_equal(np.bincount(labels, minlength=2) // 50, [1, 1])


def example_keys(count):
    return jax.random.split(jax.random.key(0), count)


def test_half_of_all_images_are_flipped_each_by_its_own_key():
    x = jnp.arange(400 * 2 * 4).reshape(400, 2, 4, 1).astype(jnp.float32)
    flipped = augment(x, example_keys(400), ("flip",))
    is_flipped = np.asarray((flipped == x[:, :, ::-1]).all(axis=(1, 2, 3)))
    assert (is_flipped | np.asarray((flipped == x).all(axis=(1, 2, 3)))).all()
    assert 160 < is_flipped.sum() < 240
    assert_array_equal(augment(x[7:9], example_keys(400)[7:9], ("flip",)), flipped[7:9])


def test_shifts_move_images_by_a_sixteenth_and_repeat_their_edges():
    x = jnp.tile(jnp.arange(32.0)[None, None, :, None], (64, 32, 1, 1))
    shifted = np.asarray(augment(x, example_keys(64), ("shift",)))
    moves = shifted[:, 16, 16, 0] - 16
    assert set(moves) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    for row, move in zip(shifted[:, 0, :, 0], moves, strict=True):
        assert_array_equal(row, np.clip(np.arange(32) + move, 0, 31))


def test_no_augmentation_leaves_images_as_they_are():
    x = jnp.ones((2, 4, 4, 1))
    assert augment(x, example_keys(2), ()) is x


def test_digits_need_no_cache(tmp_path):
    dataset = open_dataset(data_settings("digits", cache=str(tmp_path / "cache")))
    assert len(dataset.train) == 1500 and not (tmp_path / "cache").exists()
