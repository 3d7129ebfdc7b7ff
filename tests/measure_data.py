"""Measures the data path on this machine: `python tests/measure_data.py`. Not a test.

Prints batches a second from memory, from TensorFlow Datasets item by item and from a stream, and
what a stream of 100,000 pictures of 64x64 holds resident, its worker processes included.
"""

import os
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np
from absl import flags
from small import data_settings

from guided_distill.data.batches import Batches, LocalBatch
from guided_distill.data.cache import Items, read_through_cache
from guided_distill.data.images import Picture
from guided_distill.data.registry import open_dataset
from guided_distill.data.sources import ArraySource
from guided_distill.data.tfds_builders import TfdsImages
from guided_distill.system.sharding import batch_sharding, make_mesh

BATCH = 128


def rate(read, count):
    """Calls a second of `read(0)`, …, after one that is not counted."""
    jax.block_until_ready(read(0))
    started = time.perf_counter()
    for update in range(1, count + 1):
        jax.block_until_ready(read(update))
    return count / (time.perf_counter() - started)


def resident_mb():
    """Resident memory of this process and its children; pages they share are counted once."""
    pids = [os.getpid()]
    for pid in pids:
        for children in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            pids += [int(child) for child in children.read_text().split()]
    total = 0
    for pid in pids:
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total / 1024, len(pids)


def make_64x64(index):
    """A picture of 64x64 noise."""
    rng = np.random.Generator(np.random.Philox(index))
    return Picture(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), index % 1000


def measure_memory_and_items(root):
    images = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    held = ArraySource("held", images, np.zeros(len(images), np.int32), 10)
    reader = LocalBatch(held, BATCH, 0, np.arange(BATCH))
    placed = Batches(held, batch_size=BATCH, seed=0, sharding=batch_sharding(make_mesh()))
    from test_tfds import LocalBuilder

    class MeasuredImages(LocalBuilder):
        splits = {"train": 2_000, "test": 10}
        sizes = ((32, 32),)

    MeasuredImages(data_dir=root, file_format="array_record").download_and_prepare()
    directory = root / "measured_images" / "1.0.0"
    items = TfdsImages(str(directory), "train", None, "image", "label", (32, 32, 3), "crop")

    def by_item(update):
        return np.stack([items((update * BATCH + k) % 2_000)[0].image for k in range(BATCH)])

    rates = {"item by item (TFDS, PNG)": rate(by_item, 20)}
    cached = open_dataset(
        data_settings("measured_images", path=str(root), cache=str(root / "cache"))
    ).train
    rates["from memory, cache of the same data"] = rate(
        LocalBatch(cached, BATCH, 0, np.arange(BATCH)), 20_000
    )
    rates["from memory, 50,000 pictures"] = rate(reader, 20_000)
    rates["the same, laid on the device"] = rate(placed, 5_000)
    for what, value in rates.items():
        print(f"{what}: {value:,.0f} batches/s of {BATCH} x 32x32x3")
    first, second = list(rates.values())[:2]
    print(f"cache over items: {second / first:,.0f} x")


def measure_stream(root):
    items = Items(
        name="noise",
        split="train",
        decode=make_64x64,
        describe=lambda index: f"noise {index}",
        length=100_000,
        image_shape=(64, 64, 3),
        num_classes=1000,
        fingerprint="1",
    )
    settings = data_settings("noise", cache=str(root / "cache"), memory_gb=0.0)
    streamed = read_through_cache(items, settings)
    for num_workers in (0, 2):
        batches = Batches(
            streamed, batch_size=BATCH, seed=0, sharding=batch_sharding(make_mesh()),
            num_workers=num_workers,
        )  # fmt: skip
        peak, started, count = 0.0, None, 3 * len(streamed) // BATCH
        for update, batch in enumerate(batches.between(0, count)):
            jax.block_until_ready(batch)
            started = started or time.perf_counter()
            if update % 50 == 0:
                megabytes, processes = resident_mb()
                peak = max(peak, megabytes)
        seconds = time.perf_counter() - started
        print(
            f"stream of 100,000 x 64x64x3, 3 epochs, {num_workers} worker processes: at most "
            f"{peak:,.0f} MB resident in {processes} processes, {count / seconds:,.0f} batches/s"
        )


if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])
    with tempfile.TemporaryDirectory() as folder:
        measure_memory_and_items(pathlib.Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        measure_stream(pathlib.Path(folder))
