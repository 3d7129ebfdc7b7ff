"""A folder of arrays as data: every format alike, every mistake named, and a run on latents."""

import json
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import save_file
from small import data_settings

from guided_distill.data import array_folder
from guided_distill.data.array_folder import LABELS
from guided_distill.data.batches import Batches
from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError
from guided_distill.system.sharding import batch_sharding, make_mesh

N, CUTS = 50, (7, 30)  # examples, where shards end
BF16 = jnp.dtype("bfloat16")


def make_arrays(n=N, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        "x": (2.0 * rng.standard_normal((n, 4, 4, 2))).astype(dtype),
        "text": rng.standard_normal((n, 3, 5)).astype(np.float32),
        "pooled": rng.standard_normal((n, 6)).astype(np.float16),
    }


def cut(arrays):
    """Three shards of uneven sizes."""
    parts = {name: np.split(array, CUTS) for name, array in arrays.items()}
    return [{name: parts[name][k] for name in parts} for k in range(len(CUTS) + 1)]


def write(folder, shards, kind="npz"):
    folder.mkdir(parents=True, exist_ok=True)
    for k, arrays in enumerate(shards):
        if kind == "npz":
            np.savez(folder / f"{k:03d}.npz", **arrays)
        elif kind == "compressed":
            np.savez_compressed(folder / f"{k:03d}.npz", **arrays)
        elif kind == "safetensors":
            save_file(
                {name: np.ascontiguousarray(a) for name, a in arrays.items()},
                folder / f"{k:03d}.safetensors",
            )
        else:
            for name, array in arrays.items():
                np.save(folder / f"{name}-{k:03d}.npy", array)
    return folder


def settings_of(folder, **changes):
    cache = str(folder.parent / "cache")
    return data_settings("arrays", path=str(folder), cache=cache, **changes)


def open_folder(folder, **changes):
    dataset = open_dataset(settings_of(folder, **changes))
    return dataset, dataset.train, dataset.test


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("kind", ["npz", "npy", "safetensors", "compressed"])
def test_every_format_is_the_arrays_themselves(tmp_path, kind, held):
    arrays = make_arrays()
    folder = write(tmp_path / "mine", cut(arrays), kind)
    if kind == "compressed" and not held:
        with pytest.raises(UserError, match=r"000.npz: '\w+' is compressed, and .* GB"):
            _ = open_folder(folder, memory_gb=0.0)
        return
    dataset, train, test = open_folder(folder, memory_gb=1.0 if held else 0.0)
    assert train.in_memory == held and (len(train), len(test)) == (45, 5)
    assert not dataset.pictures and dataset.num_classes is None
    rows = {"train": np.setdiff1d(np.arange(N), find_rows(test, arrays)), "test": None}
    order = np.random.default_rng(1).permutation(45)[:20]
    x, cond = train.read(order)
    assert_array_equal(x, arrays["x"][rows["train"][order]])
    assert sorted(cond) == ["pooled", "text"]
    for name in cond:
        assert cond[name].dtype == arrays[name].dtype
        assert_array_equal(cond[name], arrays[name][rows["train"][order]])
    assert train.sha256 == open_folder(write(tmp_path / "mine2", [arrays]))[1].sha256
    assert train.sha256 != test.sha256


def find_rows(source, arrays):
    x, _ = source.read(np.arange(len(source)))
    return [int(np.flatnonzero((arrays["x"] == one).all((1, 2, 3)))[0]) for one in x]


def test_splits_have_folders_of_their_own_or_a_share(tmp_path):
    arrays = make_arrays()
    write(tmp_path / "two" / "train", cut(arrays))
    write(tmp_path / "two" / "test", [make_arrays(6, seed=1)], "safetensors")
    _, train, test = open_folder(tmp_path / "two")
    assert (len(train), len(test)) == (N, 6)
    assert_array_equal(test.read(np.arange(6))[0], make_arrays(6, seed=1)["x"])
    write(tmp_path / "one" / "train", cut(arrays))
    _, train, test = open_folder(tmp_path / "one", test_share=0.2)
    assert (len(train), len(test)) == (40, 10)
    again = open_folder(tmp_path / "one", test_share=0.2)[1]
    assert again.sha256 == train.sha256
    assert open_folder(tmp_path / "one", test_share=0.3)[1].sha256 != train.sha256


def test_halves_are_kept_and_whole_numbers_are_int32(tmp_path):
    arrays = make_arrays(dtype=BF16) | {
        "size": np.arange(2 * N).reshape(N, 2),
        "mask": np.arange(N * 3).reshape(N, 3) % 2 == 0,
    }
    dataset, train, _ = open_folder(write(tmp_path / "mine", [arrays], "safetensors"), memory_gb=0)
    x, cond = train.read([3, 1])
    assert x.dtype == BF16 and cond["size"].dtype == np.int32 and cond["mask"].dtype == bool
    assert dataset.example[0].dtype == BF16 and dataset.example[1]["size"].dtype == np.int32
    batches = Batches(train, batch_size=8, seed=0, sharding=batch_sharding(make_mesh()))
    assert batches(0)[0].dtype == BF16 and batches(0)[1]["size"].dtype == jnp.int32


def test_fortran_order_is_read_as_it_is_meant(tmp_path):
    arrays = make_arrays()
    arrays["x"] = np.asfortranarray(arrays["x"])
    (tmp_path / "mine").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "mine" / f"{name}.npy", array)
    _, train, test = open_folder(tmp_path / "mine", memory_gb=0.0)
    assert len(find_rows(train, arrays)) == 45 and len(find_rows(test, arrays)) == 5
    assert train.sha256 == open_folder(write(tmp_path / "c", [make_arrays()]))[1].sha256


@pytest.mark.parametrize("num_workers", [0, 2])
def test_held_and_streamed_batches_are_the_same(tmp_path, num_workers):
    from absl import flags

    flags.FLAGS([sys.argv[0]], known_only=True)
    folder = write(tmp_path / "mine", cut(make_arrays()), "safetensors")
    held, streamed = (
        Batches(
            open_folder(folder, memory_gb=memory)[1], batch_size=16, seed=0,
            sharding=batch_sharding(make_mesh()), num_workers=num_workers,
        )
        for memory in (1.0, 0.0)
    )  # fmt: skip
    count = 0
    for update, batch in enumerate(streamed.between(37, 41), start=37):
        jax.tree.map(assert_array_equal, batch, held(update))
        count += 1
    assert count == 4
    assert batch[1]["text"].shape == (16, 3, 5)
    source = pickle.loads(pickle.dumps(streamed.source))
    jax.tree.map(assert_array_equal, source.read([4]), streamed.source.read([4]))


@pytest.mark.parametrize("name", LABELS)
def test_one_array_of_labels_makes_classes(tmp_path, name):
    labels = np.arange(N) % 3
    pictures = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 1), np.uint8)
    folder = write(tmp_path / "mine", cut({"x": pictures, name: labels}))
    dataset, train, test = open_folder(folder)
    assert dataset.num_classes == train.num_classes == 3 and dataset.pictures
    assert set(test.labels) == {0, 1, 2} and len(train) + len(test) == N
    images, found = train.read([0, 5])
    assert images.dtype == np.uint8 and found.dtype == np.int32
    assert_array_equal(found, train.labels[[0, 5]])
    assert dataset.example[1].shape == () and dataset.example[1].dtype == np.int32


def test_contents_are_read_through_once(tmp_path, monkeypatch):

    folder = write(tmp_path / "mine", cut(make_arrays()))
    first = open_folder(folder)[1].sha256
    read = array_folder.read_through
    monkeypatch.setattr(array_folder, "read_through", None)
    assert open_folder(folder)[1].sha256 == first
    monkeypatch.setattr(array_folder, "read_through", read)
    changed = make_arrays(seed=3)
    np.savez(folder / "000.npz", **{name: a[:7] for name, a in changed.items()})
    assert open_folder(folder)[1].sha256 != first


MISTAKES = {
    "001.npz: 'text' must have a leading axis of 5 examples": dict(text=np.zeros((4, 3, 5))),
    "001.npz: 'text' is float16 [n, 3, 5], but": dict(text=np.zeros((5, 3, 5), np.float16)),
    "001.npz: 'text' is float32 [n, 4, 5], but": dict(text=np.zeros((5, 4, 5), np.float32)),
    "001.npz has no array 'text': its shard holds x, pooled": dict(text=None),
    "001.npz has no array 'x': its shard holds": dict(x=None),
    "001.npz: 'more' is an array that": dict(more=np.zeros(5)),
    "000.npz: 'text' holds Python objects": dict(text=np.array([None] * 5, object), first=True),
    "'text' is float64, not one of float16": dict(text=np.zeros((5, 2)), first=True),
    "is uint8 [5, 4, 4, 2]: pictures are [n, H, W, 1 or 3]": dict(
        x=np.zeros((5, 4, 4, 2), np.uint8), first=True
    ),
    "'x' must be [n, …], got one number": dict(x=np.float32(1), text=None, pooled=None, first=True),
    "'text' holds no numbers, got [5, 0]": dict(text=np.zeros((5, 0), np.float32), first=True),
    "'x' must be [n, …], got [5]": dict(x=np.zeros(5, np.float32), first=True),
    "001.npz: 'text' [2, 1, 4] is not finite: nan": dict(text=(2, 1, 4, np.nan)),
    "001.npz: 'x' [1, 0, 0, 1] is not finite: inf": dict(x=(1, 0, 0, 1, np.inf)),
    "'size' [3] is no int32: 4294967296": dict(size=np.array([0, 0, 0, 2**32, 0]), first=True),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_name_file_and_array(tmp_path, message):
    changes = dict(MISTAKES[message])
    bad = make_arrays(5)
    shards = [bad] if changes.pop("first", False) else [make_arrays(5), bad]
    for name, value in changes.items():
        if isinstance(value, tuple):
            bad[name][value[:-1]] = value[-1]
        elif value is None:
            del bad[name]
        else:
            bad[name] = value
    folder = write(tmp_path / "mine", shards)
    with pytest.raises(UserError) as error:
        open_folder(folder)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["npz", "npy", "safetensors"])
def test_truncated_files_are_named(tmp_path, kind):
    folder = write(tmp_path / "mine", cut(make_arrays()), kind)
    for path in folder.iterdir():
        if "001" in path.name:
            path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"001\.\w+(: '\w+' is truncated| cannot be read)"):
        open_folder(folder)


def test_folders_without_examples_are_refused(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        open_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no shards"):
        open_folder(tmp_path / "empty")
    with pytest.raises(UserError, match="has zero examples"):
        open_folder(write(tmp_path / "zero", [make_arrays(0)]))
    write(tmp_path / "half" / "test", [make_arrays()])
    with pytest.raises(UserError, match="no train/"):
        open_folder(tmp_path / "half")
    write(write(tmp_path / "both", [make_arrays()]) / "train", [make_arrays()])
    with pytest.raises(UserError, match="beside train/"):
        open_folder(tmp_path / "both")
    write(tmp_path / "void", [make_arrays(dtype=BF16)], "npy")
    with pytest.raises(UserError, match=r"bfloat16 is kept by .safetensors alone"):
        open_folder(tmp_path / "void")
    write(tmp_path / "odd" / "train", [make_arrays()])
    write(tmp_path / "odd" / "test", [{"x": make_arrays()["x"]}])
    with pytest.raises(UserError, match="must have the same arrays: one of them lacks pooled"):
        open_folder(tmp_path / "odd")
    with pytest.raises(UserError, match="data.cache .* lies in data.path"):
        folder = write(tmp_path / "in", [make_arrays()])
        open_dataset(data_settings("arrays", path=str(folder), cache=str(folder / "cache")))


def test_what_is_null_stands_beside_and_is_checked(tmp_path):
    folder = write(tmp_path / "mine", cut(make_arrays()))
    null = {"text": np.ones((3, 5), np.float32), "pooled": np.zeros(6, np.float32)}
    np.savez(folder / "null.npz", **null)
    assert_array_equal(open_folder(folder)[0].null["text"], null["text"])
    for change, message in {
        "text": "must have the shape of one example",
        "pooled": "is not finite",
    }.items():
        wrong = dict(text=np.ones((2, 5)), pooled=np.full(6, np.nan))[change]
        np.savez(folder / "null.npz", **(null | {change: wrong}))
        with pytest.raises(UserError, match=message):
            open_folder(folder)
    np.savez(folder / "null.npz", text=null["text"])
    with pytest.raises(UserError, match="but the shards have text, pooled"):
        open_folder(folder)
    save_file(null, folder / "null.safetensors")
    with pytest.raises(UserError, match="both say what is null"):
        open_folder(folder)


def test_what_is_wrong_with_the_test_split_is_said_before_training(tmp_path):
    write(tmp_path / "mine" / "train", [make_arrays()])
    bad = make_arrays(5)
    bad["text"][3, 0, 0] = np.inf
    write(tmp_path / "mine" / "test", [bad])
    with pytest.raises(UserError, match=r"test/000.npz: 'text' \[3, 0, 0\] is not finite: inf"):
        _ = open_dataset(settings_of(tmp_path / "mine")).train


def test_a_record_is_plain_json(tmp_path):
    open_folder(write(tmp_path / "mine", [make_arrays()]))
    (record,) = (tmp_path / "cache").glob("mine-*/record.json")
    assert set(json.loads(record.read_text())) == {"sha256"}
