"""TensorFlow Datasets, prepared from local files and read without TensorFlow."""

import importlib.util
import io
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from small import data_settings

from guided_distill.data.pixels import crop_and_resize
from guided_distill.data.prepare import prepare_tfds
from guided_distill.data.registry import open_dataset
from guided_distill.data.tfds_builders import find_prepared, find_test_split
from guided_distill.errors import UserError

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
RNG = np.random.default_rng(0)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "PNG")
    return io.BytesIO(file.getvalue())


class LocalBuilder(tfds.core.GeneratorBasedBuilder):
    """Pictures that the test makes, `splits` of them, in the given features."""

    VERSION = tfds.core.Version("1.0.0")
    splits = {"train": 40, "test": 10}
    sizes = ((8, 8),)

    def _info(self):
        size = self.sizes[0] if len(self.sizes) == 1 else (None, None)
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(*size, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["ant", "bee", "cat"]),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate(split) for split in self.splits}

    def _generate_examples(self):
        raise NotImplementedError

    def _generate(self, split):
        for number in range(self.splits[split]):
            image = picture(split, number, self.sizes[number % len(self.sizes)])
            yield number, {"image": png(image), "label": number % 3}


class MixedImages(LocalBuilder):
    sizes = ((8, 12), (20, 16))
    splits = {"train": 40}


class PlainImages(LocalBuilder):
    pass


class TensorImages(LocalBuilder):
    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Tensor(shape=(8, 8, 3), dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=3),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate(self, split):
        for number in range(self.splits[split]):
            yield number, {"image": picture(split, number, (8, 8)), "label": number % 3}


class BrokenImages(LocalBuilder):
    def _generate(self, split):
        for number, example in super()._generate(split):
            yield number, example | ({"image": io.BytesIO(b"no PNG")} if number == 7 else {})


class TextAndImages(LocalBuilder):
    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate(self, split):
        yield 0, {"text": "no picture"}


def picture(split, number, size):
    seed = number + 1_000 * (split == "test")
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """All builders of this file, prepared as array_record."""
    root = tmp_path_factory.mktemp("tfds")
    for builder in (PlainImages, MixedImages, TensorImages, BrokenImages, TextAndImages):
        builder(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def opened(name, root, **kwargs):
    return open_dataset(data_settings(name, path=str(root), cache=str(root / "cache"), **kwargs))


@pytest.mark.parametrize("name", ["plain_images", "tensor_images"])
def test_prepared_builders_are_read_whole(name, data_dir):
    dataset = opened(name, data_dir)
    assert dataset.image_shape == (8, 8, 3) and dataset.num_classes == 3
    assert dataset.class_names == (("ant", "bee", "cat") if name == "plain_images" else ())
    for split, source in {"train": dataset.train, "test": dataset.test}.items():
        wanted = {picture(split, k, (8, 8)).tobytes(): k % 3 for k in range(len(source))}
        found = {i.tobytes(): c for i, c in zip(source.images, source.labels, strict=True)}
        assert found == wanted


def test_images_of_all_sizes_are_cropped_and_shares_are_held_out(data_dir):
    with pytest.raises(UserError, match="has pictures of different sizes: .* data.image_size"):
        opened("mixed_images", data_dir)
    dataset = opened("mixed_images", data_dir, image_size=8)
    assert dataset.name == "mixed_images-8x8"
    assert (len(dataset.train), len(dataset.test)) == (37, 3)
    wanted = {
        crop_and_resize(picture("train", k, MixedImages.sizes[k % 2]), 8).tobytes()
        for k in range(40)
    }
    found = [i.tobytes() for s in (dataset.train, dataset.test) for i in s.images]
    assert set(found) == wanted and len(found) == 40


def test_broken_records_are_named_and_counted_when_skipped(data_dir, capsys):
    with pytest.raises(UserError, match=r"1 of 40 .*split train, record \d+: not a picture"):
        _ = opened("broken_images", data_dir).train
    assert len(opened("broken_images", data_dir, skip_broken=True).train) == 39
    assert "1 broken pictures left out, 39 kept" in capsys.readouterr().err


def test_worker_processes_read_builders_alike(data_dir, tmp_path):
    settings = data_settings("plain_images", path=str(data_dir), cache=str(tmp_path))
    workers = data_settings(
        "plain_images", path=str(data_dir), cache=str(tmp_path / "x"), num_workers=2
    )
    assert open_dataset(workers).train.sha256 == open_dataset(settings).train.sha256


def test_data_sets_without_images_are_refused(data_dir):
    with pytest.raises(UserError, match="is no image classification: its features are text"):
        opened("text_and_images", data_dir)


def test_what_is_not_prepared_is_refused_without_a_connection(tmp_path, monkeypatch):
    """TensorFlow Datasets alone would retry for minutes."""

    def connect(*args):
        raise AssertionError("tried to connect")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(UserError, match="cifar10 is not prepared in .* the job prepare_data"):
        opened("cifar10", tmp_path)
    with pytest.raises(UserError, match=r"data.name=cifar_10 is neither .*did you mean cifar10\?"):
        opened("cifar_10", tmp_path)
    with pytest.raises(UserError, match="cifar10 is not prepared: put"):
        prepare_tfds("cifar10", tmp_path, download=False)


MISSING = {
    "cifar10": r"put cifar-10-binary.tar.gz .* into .*manual, or let it be fetched with `download`",
    "imagenet_resized/64x64": r"put Imagenet64_\w+.zip .* into",
    "imagenet2012": r"ILSVRC2012_img_train.tar",
    "imagenet_resized": r"several configurations: take one of imagenet_resized/8x8, ",
    "cifar_10": r"did you mean cifar10\?",
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_archives_are_named_with_their_place(name, tmp_path):
    with pytest.raises(UserError, match=MISSING[name]):
        prepare_tfds(name, tmp_path, download=False)
    assert find_prepared(name, tmp_path) is None


def test_addresses_that_cannot_be_reached_are_named(tmp_path, monkeypatch):
    def unreachable(*args):
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(UserError, match=r"cannot be reached \(no route\): put cifar-10-binary"):
        prepare_tfds("cifar10", tmp_path, download=True)


def test_wrong_archives_are_named(tmp_path):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "cifar-10-binary.tar.gz").write_bytes(b"something else")
    with pytest.raises(UserError, match="an archive is damaged or another one"):
        prepare_tfds("cifar10", tmp_path, download=False)


def test_prepared_data_are_found_by_version_and_configuration(tmp_path):
    for folder in ("a/1.2.0", "a/1.10.0", "b/small/1.0.0", "c/small/1.0.0", "c/large/1.0.0"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "dataset_info.json").write_text("{}")
    for name, found in {
        "a": "a/1.10.0", "a:1.2.0": "a/1.2.0", "b": "b/small/1.0.0", "c/large": "c/large/1.0.0",
    }.items():  # fmt: skip
        assert find_prepared(name, tmp_path) == tmp_path / found
    assert find_prepared("d", tmp_path) is None
    with pytest.raises(UserError, match="take one of c/large, c/small"):
        find_prepared("c", tmp_path)


def test_held_out_splits_are_those_with_labels():
    splits = {"train": 1, "validation": 2, "test": 3}
    assert find_test_split("imagenet2012", splits) == "validation"
    assert find_test_split("cifar10", splits) == "test"
    assert find_test_split("cifar10", {"train": 1}) is None
    with pytest.raises(UserError, match="has no split `train`, only test"):
        find_test_split("cifar10", {"test": 1})


def test_reading_loads_no_tensorflow(data_dir):
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from small import data_settings
from guided_distill.data.registry import open_dataset
data = open_dataset(data_settings("plain_images", path={str(data_dir)!r}, cache={str(data_dir / "c2")!r}))
assert len(data.train) == 40 and "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(HAS_TENSORFLOW, reason="TensorFlow is installed")
def test_a_missing_tensorflow_is_named(tmp_path, monkeypatch):
    """The real CIFAR-10 builder, on an archive with the registered checksum's place taken."""
    import tarfile

    from tensorflow_datasets.core.download import checksums

    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    archive = manual / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("cifar-10-batches-bin/batches.meta.txt"))
    known = tfds.builder_cls("cifar10").url_infos
    fake = {url: checksums.compute_url_info(archive) for url in known}
    for info in fake.values():
        object.__setattr__(info, "filename", archive.name)
    monkeypatch.setattr(tfds.builder_cls("cifar10"), "url_infos", fake)
    with pytest.raises(UserError, match=r"cifar10 needs TensorFlow .*guided_distill\[tf\]"):
        prepare_tfds("cifar10", tmp_path, download=False)
