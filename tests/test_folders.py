"""Folders, idx files and `.npz`: read right, or refused in one line."""

import gzip
import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from small import data_settings

from guided_distill.data.dataset import hold_out
from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError

DEBIAN_FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")
RNG = np.random.default_rng(0)


def write_images(folder, count, size=(20, 16), suffix=".png"):
    """`count` random pictures `0.png`, …; returns them as arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}{suffix}")
    return images


@pytest.fixture
def folder(tmp_path):
    """Three classes of 4, 6 and 10 pictures."""
    for name, count in {"ant": 4, "bee": 6, "cat": 10}.items():
        write_images(tmp_path / "mine" / name, count)
    return tmp_path / "mine"


def settings_of(path, **kwargs):
    defaults = dict(image_size=8, cache=str(pathlib.Path(path).parent / "cache"))
    return data_settings("folder", path=str(path), **(defaults | kwargs))


def test_subfolders_are_classes_and_every_class_is_held_out_in_part(folder):
    dataset = open_dataset(settings_of(folder, test_share=0.25))
    assert dataset.class_names == ("ant", "bee", "cat") and dataset.image_shape == (8, 8, 3)
    assert_array_equal(np.bincount(dataset.test.labels), [1, 2, 2])
    assert_array_equal(np.bincount(dataset.train.labels), [3, 4, 8])
    seen = {image.tobytes() for image in dataset.train.images}
    assert len(seen) == 15 and not any(image.tobytes() in seen for image in dataset.test.images)
    again = open_dataset(settings_of(folder, test_share=0.25))
    assert again.train.sha256 == dataset.train.sha256


def test_train_and_test_folders_are_the_splits(folder, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    os.rename(folder, both / "train")
    write_images(both / "val" / "bee", 3)
    dataset = open_dataset(settings_of(both))
    assert (len(dataset.train), len(dataset.test)) == (20, 3)
    assert set(dataset.test.labels) == {1}
    write_images(both / "val" / "dog", 1)
    with pytest.raises(UserError, match="is of class dog, which the training pictures do not have"):
        open_dataset(settings_of(both))


def test_mixed_sizes_formats_and_colours_fit_one_shape(folder):
    write_images(folder / "ant", 3, size=(9, 31), suffix=".jpg")
    write_images(folder / "ant", 3, size=(40, 8), suffix=".webp")
    Image.fromarray(RNG.integers(0, 256, (5, 5), dtype=np.uint8)).save(folder / "ant" / "grey.png")
    dataset = open_dataset(settings_of(folder))
    assert len(dataset.train) + len(dataset.test) == 27
    grey = open_dataset(settings_of(folder, channels=1))
    assert grey.train.images.shape[1:] == (8, 8, 1)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_gives_the_labels(folder, kind):
    rows = [(f"{name}/{k}.png", name) for name in ("cat", "bee") for k in range(4)]
    if kind == "csv":
        text = "\n".join(["file,label", *(f"{file},{label}" for file, label in rows)])
    else:
        text = "\n".join(json.dumps({"file_name": f, "label": label}) for f, label in rows)
    (folder / f"labels.{kind}").write_text(text)
    dataset = open_dataset(settings_of(folder, labels=f"labels.{kind}"))
    assert dataset.class_names == ("bee", "cat")
    assert len(dataset.train) == 6 and set(dataset.train.labels) == {0, 1}


def test_numbers_in_a_table_mean_themselves(folder):
    rows = [f"cat/{k}.png,{k % 10}" for k in range(10)] + [f"bee/{k}.png,{k}" for k in range(6)]
    rows += [f"ant/{k}.png,{k + 6}" for k in range(4)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    dataset = open_dataset(settings_of(folder, labels="labels.csv"))
    assert dataset.class_names == tuple(map(str, range(10)))


TABLES = {
    "": "names no picture",
    "file,label": "names no picture",
    "name,colour\na.png,red": "row 1 must have a column of file and one of label, has name, colour",
    "file,label\nant/9.png,a": "row 1 names ant/9.png, which is not in",
    "file,label\nant/1.png,": "row 1 must have a column",
    "file,label\nant/1.png,a\nant/1.png,b": "row 2 names ant/1.png again",
    "file,label\nant/1.png,0\nant/2.png,2\nant/3.png,2": "class 1 has no picture",
    "file,label\nant/1.png,-1\nant/2.png,0": "label -1 .* is below 0",
    "file,label\nant/1.png,a\nant/2.png,b": "no class has two",
}


@pytest.mark.parametrize("text", TABLES)
def test_tables_that_are_wrong_are_named(folder, text):
    (folder / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=TABLES[text]):
        open_dataset(settings_of(folder, labels="labels.csv"))


def test_tables_that_cannot_be_read_are_named(folder):
    (folder / "labels.jsonl").write_text('{"file": "ant/1.png", "label"')
    with pytest.raises(UserError, match="cannot be read"):
        open_dataset(settings_of(folder, labels="labels.jsonl"))
    (folder / "labels.jsonl").write_text("5")
    with pytest.raises(UserError, match="row 1 must have a column of file .*, has 5"):
        open_dataset(settings_of(folder, labels="labels.jsonl"))
    (folder / "labels.csv").write_bytes(b"file,label\n\xff\xfe,1")
    with pytest.raises(UserError, match="cannot be read"):
        open_dataset(settings_of(folder, labels="labels.csv"))
    with pytest.raises(UserError, match="cannot be read"):
        open_dataset(settings_of(folder, labels="nowhere.csv"))


def test_folders_that_cannot_be_learnt_are_named(folder, tmp_path):
    (folder / "dog").mkdir()
    with pytest.raises(UserError, match="class folder .*dog holds no picture"):
        open_dataset(settings_of(folder))
    with pytest.raises(UserError, match="is no folder of pictures"):
        open_dataset(settings_of(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="needs data.image_size"):
        open_dataset(settings_of(folder, image_size=0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        open_dataset(settings_of(tmp_path / "empty"))
    write_images(tmp_path / "one" / "ant", 1)
    with pytest.raises(UserError, match="holds 1 picture, and no class has two"):
        open_dataset(settings_of(tmp_path / "one"))


def test_files_that_are_not_read_are_counted(folder, capsys):
    for name in ("0.heic", "ant/1.heic", "bee/notes.txt", ".hidden", "ant/.hidden.png"):
        (folder / name).write_bytes(b"something")
    dataset = open_dataset(settings_of(folder))
    assert "3 files are not read" in capsys.readouterr().err
    assert len(dataset.train) + len(dataset.test) == 20


def test_images_without_classes_are_one_class(tmp_path):
    write_images(tmp_path / "flat", 12)
    dataset = open_dataset(settings_of(tmp_path / "flat"))
    assert dataset.num_classes == 1 and set(dataset.train.labels) == {0}


def test_names_that_are_not_unicode_are_read(folder):
    picture = (folder / "ant" / "0.png").read_bytes()
    with open(os.fsencode(folder / "ant") + b"/\xe9.png", "wb") as file:
        file.write(picture[:40])
    with pytest.raises(UserError, match=r"ant/\\xe9.png \(record \d+\): not a picture"):
        _ = open_dataset(settings_of(folder, test_share=0.01)).train
    with open(os.fsencode(folder / "ant") + b"/\xe9.png", "wb") as file:
        file.write(picture)
    dataset = open_dataset(settings_of(folder))
    assert len(dataset.train) + len(dataset.test) == 21


def test_held_out_shares_leave_something_on_both_sides():
    labels = np.repeat(np.arange(3), [1, 2, 200])
    rows = hold_out(labels, 0.999, name="x")
    assert_array_equal(np.bincount(labels[rows["train"]]), [1, 1, 1])
    assert_array_equal(np.bincount(labels[hold_out(labels, 1e-6, name="x")["test"]]), [0, 1, 1])
    assert_array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(203))


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wb") as file:
        file.write(header + array.tobytes())


def write_mnist(folder, suffix=""):
    folder.mkdir()
    for prefix, count in {"train": 30, "t10k": 10}.items():
        images = RNG.integers(0, 256, (count, 6, 6), dtype=np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        labels = np.arange(count, dtype=np.uint8) % 3
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folders_are_read_and_padded(tmp_path, suffix):
    write_mnist(tmp_path / "mnist", suffix)
    dataset = open_dataset(
        data_settings("idx", path=str(tmp_path / "mnist"), image_size=8, fit="pad")
    )
    assert dataset.name == "mnist" and dataset.num_classes == 3
    assert dataset.train.images.shape == (30, 8, 8, 1) and dataset.test.images.shape[0] == 10
    assert dataset.train.images[:, 0].max() == 0 and dataset.train.images[:, 1].max() > 0


def test_idx_folders_that_are_damaged_are_named(tmp_path):
    def opened():
        return open_dataset(data_settings("idx", path=str(folder)))

    folder = tmp_path / "mnist"
    with pytest.raises(UserError, match="is no folder: data.name=idx needs one"):
        opened()
    write_mnist(folder)
    images = folder / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="train-images-idx3-ubyte is no whole idx file"):
        opened()
    images.write_bytes(whole)
    write_idx(folder / "t10k-labels-idx1-ubyte", np.full(10, 3, np.uint8))
    with pytest.raises(UserError, match="test: label 3 of picture 0 is not in 0 to 2"):
        opened()
    write_idx(folder / "t10k-labels-idx1-ubyte", np.zeros(9, np.uint8))
    with pytest.raises(UserError, match="10 pictures but 9 labels in test"):
        opened()
    images.rename(folder / "train-images-idx3-ubyte.gz")
    with pytest.raises(UserError, match="ubyte.gz cannot be read"):
        opened()
    (folder / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(UserError, match="must hold one train-images-idx.* file, has none"):
        opened()


@pytest.mark.skipif(
    not DEBIAN_FASHION.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_is_whole():
    dataset = open_dataset(data_settings("idx", path=str(DEBIAN_FASHION), image_size=32, fit="pad"))
    assert_array_equal(np.bincount(dataset.train.labels), [6_000] * 10)
    assert_array_equal(np.bincount(dataset.test.labels), [1_000] * 10)
    assert dataset.image_shape == (32, 32, 1)
    # Means of the data set that its authors publish: 0.2860 of the range, over 28x28 pixels.
    assert abs(dataset.train.images.mean() / 255 * (32 / 28) ** 2 - 0.2860) < 1e-4


def test_npz_arrays_are_read(tmp_path):
    images = RNG.integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
    path = tmp_path / "mine.npz"
    np.savez(path, images=images, labels=np.arange(20) % 4)
    dataset = open_dataset(data_settings("npz", path=str(path)))
    assert (dataset.name, dataset.num_classes, dataset.image_shape) == ("mine", 4, (6, 6, 3))
    assert len(dataset.train) == 16 and len(dataset.test) == 4
    np.savez(path, images=images, labels=np.arange(20) % 4, test_images=images[:4],
             test_labels=np.arange(4))  # fmt: skip
    assert len(open_dataset(data_settings("npz", path=str(path))).train) == 20
    np.savez(path, images=images[..., 0])
    unlabelled = open_dataset(data_settings("npz", path=str(path)))
    assert unlabelled.num_classes == 1 and unlabelled.image_shape == (6, 6, 1)


SQUARE = np.zeros((6, 4, 4, 3), np.uint8)
ARRAYS = {
    "has no array 'images'": dict(pictures=SQUARE),
    "must be uint8": dict(images=SQUARE.astype(np.float32), labels=np.arange(6)),
    r"got uint8 \[6\]": dict(images=SQUARE[:, 0, 0, 0]),
    "'labels' must be 6 integers": dict(images=SQUARE, labels=np.arange(5)),
    "must be 6 integers, got float64": dict(images=SQUARE, labels=np.arange(6.0)),
    "label -1 of picture 2 is below 0": dict(images=SQUARE, labels=np.array([0, 0, -1, 1, 1, 0])),
    "class 1 has no picture": dict(images=SQUARE, labels=np.array([0, 0, 2, 2, 2, 0])),
    "has pictures of 4x2: the U-Net takes squares": dict(images=SQUARE[:, :, :2]),
    "has 2 channels": dict(images=SQUARE[..., :2]),
    "holds 0 pictures": dict(images=SQUARE[:0]),
    "no readable .npz": None,
}


@pytest.mark.parametrize("message", ARRAYS)
def test_npz_arrays_that_are_wrong_are_named(tmp_path, message):
    path = tmp_path / "x.npz"
    if ARRAYS[message] is not None:
        np.savez(path, **ARRAYS[message])
    else:
        path.write_bytes(b"hello")
    with pytest.raises(UserError, match=message):
        open_dataset(data_settings("npz", path=str(path)))


def test_npz_with_code_in_it_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="no readable .npz"):
        open_dataset(data_settings("npz", path=str(tmp_path / "x.npz")))


def classes_of(folder):
    return open_dataset(settings_of(folder)).class_names


@pytest.mark.parametrize("train", ["train", "Train", "training"])
@pytest.mark.parametrize("test", ["test", "VAL", "valid", "dev"])
def test_splits_are_known_in_other_spellings(folder, tmp_path, capsys, train, test):
    for split in (train, test):
        shutil.copytree(folder, tmp_path / "splits" / split)
    assert classes_of(tmp_path / "splits") == ("ant", "bee", "cat")
    assert f"{train} is learnt, {test} is held out" in capsys.readouterr().err


def test_of_two_held_out_folders_one_is_read_and_the_other_named(folder, tmp_path, capsys):
    for split in ("train", "val", "test"):
        shutil.copytree(folder, tmp_path / "splits" / split)
    assert classes_of(tmp_path / "splits") == ("ant", "bee", "cat")
    assert "train is learnt, test is held out; not read: val" in capsys.readouterr().err


def test_train_alone_holds_the_classes_and_among_classes_it_is_one(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "one" / "train")
    assert classes_of(tmp_path / "one") == ("ant", "bee", "cat")
    shutil.copytree(folder / "ant", folder / "train")
    assert classes_of(folder) == ("ant", "bee", "cat", "train")
    shutil.copytree(folder / "ant", folder / "test")
    with pytest.raises(UserError, match=r"holds splits \(train, test\) and ant, bee, cat beside"):
        classes_of(folder)


def test_hidden_and_linked_folders_and_links_upwards(folder, capsys):
    for name in (".cache", "@eaDir"):
        write_images(folder / "ant" / name, 2)
    write_images(folder.parent / "elsewhere", 2)
    (folder / "bee" / "more").symlink_to(folder.parent / "elsewhere")
    dataset = open_dataset(settings_of(folder))
    assert len(dataset.train) + len(dataset.test) == 20
    assert "1 linked folders are not read, such as" in capsys.readouterr().err
    (folder / "self").symlink_to(".")
    with pytest.raises(UserError, match="self is a link to a folder that holds it"):
        classes_of(folder)


def write_table(folder, rows, columns="file,label,split"):
    (folder / "labels.csv").write_text(columns + "\n" + "\n".join(rows))
    return open_dataset(settings_of(folder, labels="labels.csv"))


def test_a_tables_splits_are_kept_and_decimal_labels_are_integers(folder):
    rows = [f"cat/{k}.png,{k % 2}.0,{'train' if k < 7 else 'Valid'}" for k in range(10)]
    dataset = write_table(folder, rows)
    assert (len(dataset.train), len(dataset.test)) == (7, 3)
    assert dataset.class_names == ("0", "1")
    with pytest.raises(UserError, match="row 11 is of split extra, which is none of train, "):
        write_table(folder, [*rows, "ant/0.png,1,extra"])
    with pytest.raises(UserError, match="rows with a split and rows without"):
        write_table(folder, [*rows, "ant/0.png,1,"])


@pytest.mark.parametrize("file", ["../outside.png", "/etc/passwd", "ant/../../x.png"])
def test_tables_do_not_lead_out_of_their_folder(folder, file):
    with pytest.raises(UserError, match="row 1 names .* which lies outside of"):
        write_table(folder, [f"{file},0"], "file,label")


@pytest.mark.parametrize(("name", "kind"), [("photo.jpg", "MPO"), ("pages.tiff", "TIFF")])
def test_photos_with_previews_and_pages_are_stills(folder, name, kind):
    first, second = (Image.fromarray(RNG.integers(0, 256, (9, 9, 3), np.uint8)) for _ in range(2))
    first.save(folder / "ant" / name, format=kind, save_all=True, append_images=[second])
    with Image.open(folder / "ant" / name) as stored:
        assert stored.n_frames == 2
    dataset = open_dataset(settings_of(folder))
    assert len(dataset.train) + len(dataset.test) == 21


def write_dim(folder, count, white=4095, bright=()):
    """`count` pictures of 16 bits that use values up to `white`; those of `bright` use all."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        ramp = np.linspace(0, 65535 if number in bright else white, 64).astype(np.uint16)
        Image.fromarray(ramp.reshape(8, 8)).save(folder / f"{number}.png")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_sixteen_bit_sets_that_use_twelve_are_refused_until_white_is_told(tmp_path, num_workers):
    write_dim(tmp_path / "mine" / "ant", 20)
    asked = dict(channels=1, num_workers=num_workers)
    dim = open_dataset(settings_of(tmp_path / "mine", **asked))
    with pytest.raises(UserError, match="18 pictures are stored in 16 bits, .* 4095 of 12 bits"):
        _ = dim.train
    told = open_dataset(settings_of(tmp_path / "mine", max_value=4095, **asked)).train
    assert_array_equal(told.images[0].ravel(), np.round(np.linspace(0, 255, 64)))
    night = open_dataset(settings_of(tmp_path / "mine", max_value=65535, **asked)).train
    assert night.images.max() == 16 and night.sha256 != told.sha256


def test_a_dark_picture_among_bright_ones_is_taken(tmp_path):
    write_dim(tmp_path / "mine" / "ant", 20, bright=range(1, 20))
    assert len(open_dataset(settings_of(tmp_path / "mine", channels=1)).train) == 18


def test_what_a_decoder_warns_of_is_counted_with_the_pictures_names(folder, capfd):
    exif = Image.Exif()
    exif[0x010F] = "a maker of cameras"
    picture = Image.fromarray(write_images(folder / "ant", 1)[0])
    for name in ("x.jpg", "y.png"):
        picture.save(folder / "ant" / name, exif=exif.tobytes()[:20])
    for _ in range(2):  # It is said whenever the cache is read.
        dataset = open_dataset(settings_of(folder))
        assert len(dataset.train) + len(dataset.test) == 22
        said = [line for line in capfd.readouterr().err.splitlines() if "warn" in line.lower()]
        assert sum(line.count("EXIF") for line in said) == 2
        assert all(
            re.match(r"mine (train|test): \d pictures are taken though", line) for line in said
        )
        assert "ant/x.jpg (record" in "".join(said) and "ant/y.png (record" in "".join(said)
