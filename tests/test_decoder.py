"""Latents that are seen as pictures: decoders, imported features, and what they change."""

import dataclasses
import inspect
import json
import os

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from text_to_latents import SAMPLE, get_config, write_latents, write_teacher

import guided_distill
from guided_distill.data.decoded import DecodedDataset, DecodedSource, Decoder
from guided_distill.data.pixels import to_float, to_uint8
from guided_distill.data.registry import open_dataset
from guided_distill.data.sources import ArraySource
from guided_distill.errors import UserError
from guided_distill.evaluation.asked import AskedClasses
from guided_distill.evaluation.comparison import Comparison
from guided_distill.evaluation.features import FeatureExtractor, load_imported_extractor, through
from guided_distill.evaluation.measure import Measurement
from guided_distill.evaluation.metrics import frechet_distance, moments
from guided_distill.evaluation.nearest import nearest_images
from guided_distill.evaluation.reference import compute_reference
from guided_distill.jobs import import_model, reference_stats, translate
from guided_distill.jobs import sample as sampling
from guided_distill.jobs.common import see_data
from guided_distill.jobs.evaluate import evaluate
from guided_distill.jobs.measure_images import measure_images
from guided_distill.report.sheets import CELL_SIDE, GAP
from guided_distill.run import settings
from guided_distill.run.settings import read_config
from guided_distill.system.sharding import make_mesh

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch import nn  # noqa: E402

PICTURE, FEATURES = (8, 8, 3), 5
HEIGHT, WIDTH, CHANNELS = SAMPLE


class Upsampler(nn.Module):
    """Latents to pictures of twice their size: a matrix on the channels, then tanh."""

    def __init__(self, gain=0.5, channels=CHANNELS, colours=PICTURE[-1]):
        super().__init__()
        matrix = np.random.default_rng(0).standard_normal((colours, channels))
        self.colours = nn.Parameter(torch.tensor(gain * matrix, dtype=torch.float32))

    def forward(self, latent):
        image = torch.einsum("oc,bchw->bohw", self.colours, latent)
        return image.tanh().repeat_interleave(2, 2).repeat_interleave(2, 3)


class Identity(nn.Module):
    def forward(self, latent):
        return latent * 1.0


class Features(nn.Module):
    """Means of a convolution, and logits of three classes."""

    def __init__(self, colours=PICTURE[-1]):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.head = nn.Conv2d(colours, FEATURES, 3), nn.Linear(FEATURES, 3)

    def forward(self, image):
        features = self.conv(image).tanh().mean((2, 3))
        return features, self.head(features)


def write_function(folder, module, shape, results=None, scale=1.0):
    """A folder of a module of one input `[2, *shape]`."""
    (name,) = inspect.signature(module.forward).parameters
    example = {name: scale * torch.linspace(-1, 1, 2 * int(np.prod(shape))).reshape(2, *shape)}
    return guided_distill.import_function(module.eval(), example, out=folder, results=results)


def write_decoder(folder, module=None, shape=(CHANNELS, HEIGHT, WIDTH)):
    return write_function(folder, module or Upsampler(), shape)


def write_features(folder, module=None, shape=(3, 8, 8), results=None):
    return write_function(folder, module or Features(), shape, results)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Data, teacher, decoders and features, each once."""
    root = tmp_path_factory.mktemp("decoder")
    os.environ["TEXT_TO_LATENTS"] = str(root)
    write_latents(root / "latents")
    write_teacher(root / "teacher")
    write_decoder(root / "decoder")
    write_decoder(root / "other", Upsampler(gain=1.0))
    write_features(root / "features", results={"features": 0})
    write_features(root / "scored", results={"features": 0, "logits": 1})
    return root


@pytest.fixture
def config(folders):
    """The tiny run's, with the decoder."""
    os.environ["TEXT_TO_LATENTS"] = str(folders)
    config = get_config()
    config.evaluation.decoder = str(folders / "decoder")
    return config


def decode_by_hand(x, gain=0.5):
    module = Upsampler(gain)
    with torch.no_grad():
        image = module(torch.tensor(np.moveaxis(np.asarray(x, np.float32), -1, 1)))
    return np.moveaxis(image.numpy(), 1, -1)


@pytest.mark.parametrize("n", [1, 7, 8, 70])
def test_a_decoder_gives_the_modules_pictures_of_any_number_of_latents(folders, n):
    decoder = Decoder(folders / "decoder", SAMPLE, make_mesh())
    x = np.random.default_rng(n).standard_normal((n, *SAMPLE))
    expected = decode_by_hand(x)
    assert decoder.image_shape == PICTURE and decoder.name.startswith("Upsampler-")
    assert_allclose(decoder.decode(x), expected, atol=1e-6)
    pictures = decoder(x)
    assert pictures.dtype == np.uint8
    assert np.abs(pictures.astype(int) - to_uint8(expected)).max() <= 1


def flat_extractor():
    """Means of the four quarters of pictures, as features."""

    def apply(images):
        quarters = images.reshape(len(images), 2, images.shape[1] // 2, 2, -1, images.shape[3])
        return quarters.mean((2, 4)).reshape(len(images), -1) / 64.0, None

    return FeatureExtractor("quarters", 12, "none", apply)


def test_distances_through_a_decoder_are_those_of_the_decoded_pictures(folders):
    """The same numbers as of a data set and of samples that are those pictures themselves."""
    rng = np.random.default_rng(0)
    data, samples = rng.standard_normal((2, 60, *SAMPLE)).astype(np.float32)
    decoder = Decoder(folders / "decoder", SAMPLE, make_mesh())
    labels = np.zeros(60, np.int32)
    latents = DecodedSource(ArraySource("mine", data, labels, 1), decoder)
    pictures = ArraySource("mine", decoder(data), labels, 1)
    rows = []
    for source, extractor, x in (
        (latents, through(decoder, flat_extractor()), samples),
        (pictures, flat_extractor(), to_float(decoder(samples))),
    ):
        measurement = Measurement(60, extractor, None, compute_reference(source, extractor))
        measurement.add(x, labels, {})
        row = measurement.result()
        rows.append({key: row[key] for key in ("fid", "kid", "precision", "recall")})
    assert rows[0] == rows[1] and None not in rows[0].values()
    features = [flat_extractor().apply(decoder(x))[0] for x in (samples, data)]
    expected = frechet_distance(*moments(features[0]), *moments(features[1]))
    assert_allclose(rows[0]["fid"], expected, rtol=1e-6)


def test_an_identity_decoder_sees_latents_as_pictures_are_seen(tmp_path):
    shape = (4, 4, 3)
    write_decoder(tmp_path / "out", Identity(), (3, 4, 4))
    decoder = Decoder(tmp_path / "out", shape, make_mesh())
    images = np.random.default_rng(0).integers(0, 256, (9, *shape), np.uint8)
    assert_array_equal(decoder(to_float(images)), images)
    assert_array_equal(decoder(3.0 * to_float(images)), to_uint8(3.0 * to_float(images)))


def test_features_are_the_modules_and_logits_give_a_score(folders):
    images = np.random.default_rng(0).integers(0, 256, (11, *PICTURE), np.uint8)
    extractor = load_imported_extractor(folders / "scored", PICTURE, make_mesh())
    features, log_p = extractor.apply(images)
    with torch.no_grad():
        theirs, logits = Features()(torch.tensor(np.moveaxis(to_float(images), -1, 1)))
    assert extractor.num_features == FEATURES and features.shape == (11, FEATURES)
    assert_allclose(features, theirs, atol=1e-5)
    assert_allclose(log_p, torch.log_softmax(logits, 1), atol=1e-5)
    alone = load_imported_extractor(folders / "features", PICTURE, make_mesh())
    assert alone.apply(images)[1] is None and alone.name != extractor.name


def test_what_is_measured_is_named_by_decoder_and_features(folders, config):
    config.evaluation.features = str(folders / "features")
    found = {}
    for name in ("decoder", "other"):
        config.evaluation.decoder = str(folders / name)
        seen = see_data(config, open_dataset(config.data))
        extractor = through(seen.decoder, flat_extractor())
        reference = compute_reference(seen.train, extractor)
        assert reference.provenance["decoder"] == seen.decoder.name
        assert reference.provenance["features"] == extractor.name
        found[name] = extractor.name, seen.train.sha256, settings.file_digests(config)["decoder"]
    assert all(a != b for a, b in zip(*found.values(), strict=True))


def test_rows_of_another_decoder_are_never_reused(folders, tmp_path):
    """Though the statistics of the reference were the same."""
    decoders = [Decoder(folders / name, SAMPLE, make_mesh()) for name in ("decoder", "other")]
    latents = np.random.default_rng(0).standard_normal((20, *SAMPLE)).astype(np.float32)
    source = DecodedSource(ArraySource("mine", latents, np.zeros(20, np.int32), 1), decoders[0])
    reference = compute_reference(source, through(decoders[0], flat_extractor()))

    @dataclasses.dataclass
    class Contender:
        model, sampler, num_steps, ancestral_mix = "student", "ddim", 1, None
        stage = type("Stage", (), {"record": {"params_sha256": "a"}})

    paths = set()
    for decoder in decoders:
        comparison = Comparison(
            tmp_path, reference, through(decoder, flat_extractor()), None,
            asked=AskedClasses((1,), 4), sample_shape=SAMPLE, num_samples=4, batch_size=4, seed=0,
        )  # fmt: skip
        paths.add(comparison._row_path(Contender(), 0.0))
    assert len(paths) == 2


def test_an_even_share_of_many_latents_is_decoded(folders, monkeypatch):
    monkeypatch.setattr("guided_distill.data.decoded.MOST_DECODED", 7)
    latents = np.random.default_rng(0).standard_normal((20, *SAMPLE)).astype(np.float32)
    decoder = Decoder(folders / "decoder", SAMPLE, make_mesh())
    source = DecodedSource(ArraySource("mine", latents, np.arange(20) % 4, 4), decoder)
    assert len(source) == 7 and set(np.diff(source.rows)) == {2, 3}
    images, labels = source.read(np.arange(7))
    assert_array_equal(images, decoder(latents[source.rows]))
    assert_array_equal(labels, source.rows % 4)
    extractor = through(decoder, flat_extractor())
    reference = compute_reference(source, extractor)
    assert reference.provenance["n"] == 7
    found = nearest_images({"copies": images[2:4]}, extractor, reference, source)
    assert_array_equal(found["copies"]["nearest 1"], images[2:4])


class NoLarge(nn.Module):
    """NaN where a number is larger than those of the example, as some of the data's are."""

    def __init__(self, limit, flat=False):
        super().__init__()
        self.limit, self.flat = limit, flat

    def forward(self, x):
        x = (self.limit - x[:, :1].abs()).log()
        return x.flatten(1) if self.flat else x


class Flat(nn.Module):
    def forward(self, latent):
        return latent.flatten(1)


class Two(nn.Module):
    def forward(self, latent, other):
        return latent + other


def refusals(folders):
    """(what is written into a folder, its key, what is said)."""
    two = {name: torch.zeros(2, CHANNELS, 4, 4) for name in ("latent", "other")}
    return {
        "missing": (None, "decoder", "evaluation.decoder {folder} is no folder"),
        "model": (
            lambda out: write_teacher(out), "decoder", "{folder} holds a model: name a folder with"
        ),
        "empty": (lambda out: out.mkdir(), "decoder", "holds no imported function"),
        "shape": (
            lambda out: write_decoder(out, Upsampler(channels=4), (4, 4, 4)), "decoder",
            "takes [4, 4, 4], but the latents are [2, 4, 4]",
        ),
        "flat": (lambda out: write_decoder(out, Flat()), "decoder", "gives [32]: a picture is"),
        "colours": (
            lambda out: write_decoder(out, Upsampler(colours=5)), "decoder",
            "gives [5, 8, 8]: a picture is [1 or 3, H, W]",
        ),
        "nan": (
            lambda out: write_decoder(out, NoLarge(1.5)), "decoder", "makes pictures of latents that are not finite",
        ),
        "two inputs": (
            lambda out: guided_distill.import_function(Two().eval(), two, out=out), "decoder",
            "takes latent, other: it must take one input",
        ),
        "results": (
            lambda out: write_features(out, results={"a": 0, "b": 1}), "features",
            "gives a, b: it must give one result, or 'features'",
        ),
        "size": (
            lambda out: write_features(out, shape=(3, 6, 6), results={"features": 0}), "features",
            "takes [3, 6, 6], but the pictures are [3, 8, 8]",
        ),
        "rank": (
            lambda out: write_features(out, nn.Conv2d(3, 4, 3)), "features",
            "gives [B, 4, 6, 6]: features must be [B, D]",
        ),
        "nan features": (
            lambda out: write_function(out, NoLarge(0.02, flat=True), (3, 8, 8), scale=0.01),
            "features",
            "gives features of latents that are not finite",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(refusals(None)))
def test_what_does_not_fit_is_refused_in_one_line_before_compute(config, tmp_path, name):
    write, key, message = refusals(None)[name]
    folder = tmp_path / "folder"
    if write:
        write(folder)
    config.evaluation[key] = str(folder)
    with pytest.raises(UserError) as error:
        guided_distill.train(config, tmp_path / "run")
    assert message.format(folder=folder) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run" / "step_one").exists()


def test_keys_that_mean_nothing_are_refused(folders, config):
    dataset = open_dataset(config.data)
    config.evaluation.features = str(folders / "features")
    settings.check_data(config, dataset)
    config.evaluation.decoder = ""
    with pytest.raises(UserError, match="evaluation.features looks at pictures, and latents holds"):
        settings.check_data(config, dataset)
    config.evaluation.inception = str(folders / "inception.npz")
    with pytest.raises(UserError, match="both give features: name one"):
        settings.check_config(config)
    pixels = DecodedDataset(dataset, Decoder(folders / "decoder", SAMPLE, make_mesh()))
    config.evaluation.decoder = str(folders / "decoder")
    with pytest.raises(
        UserError, match="evaluation.decoder makes pictures of latents, and latents"
    ):
        settings.check_data(config, pixels)


def test_a_decoder_beside_the_teacher_is_taken_and_said(
    folders, config, tmp_path, capsys, monkeypatch
):
    config.evaluation.decoder = ""
    assert settings.decoder_path(config) == ""
    assert not see_data(config, open_dataset(config.data)).pictures
    config.teacher.path = str(tmp_path / "teacher")
    write_decoder(tmp_path / "teacher" / "decoder")
    capsys.readouterr()
    seen = see_data(config, open_dataset(config.data))
    assert seen.pictures and seen.image_shape == PICTURE
    (line,) = capsys.readouterr().err.splitlines()
    assert "decoder: Upsampler-" in line and "[4, 4, 2] to [8, 8, 3]" in line
    assert line.endswith(f"beside the teacher: {tmp_path / 'teacher' / 'decoder'}")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings.decoder_beside("~/teacher") == str(tmp_path / "teacher" / "decoder")
    config.evaluation.decoder = str(folders / "other")
    assert settings.decoder_path(config) == str(folders / "other")


def test_the_command_line_imports_functions(tmp_path, capsys):
    script = tmp_path / "decoder.py"
    begin = "import torch\nfrom torch import nn\n"
    body = "    return dict(module=nn.Upsample(scale_factor=2).eval(), example=dict(input=torch.ones(2, 3, 4, 4)))\n"
    script.write_text(f"{begin}def get_function():\n{body}")
    ask = import_model.Request(from_=str(script), out=str(tmp_path / "out"))
    import_model.run(ask)
    assert "input [B, 3, 4, 4] -> output [B, 3, 8, 8]" in capsys.readouterr().err
    assert Decoder(tmp_path / "out", (4, 4, 3), make_mesh()).image_shape == (8, 8, 3)
    for text, message in (
        (f"{begin}def get_function():\n    return dict(example=1)\n", "gives no module"),
        (f"{begin}def get_function():\n{body}get_teacher = get_function\n", "defines both get_"),
        (begin, "defines no get_teacher"),
    ):
        script.write_text(text)
        with pytest.raises(UserError, match=message) as error:
            import_model.run(dataclasses.replace(ask, out=str(tmp_path / "more")))
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def run_folder(folders, tmp_path_factory):
    """A finished run whose decoder lies beside its teacher."""
    os.environ["TEXT_TO_LATENTS"] = str(folders)
    workdir = tmp_path_factory.mktemp("run") / "run"
    write_decoder(folders / "teacher" / "decoder")
    config = get_config()
    config.evaluation.features = str(folders / "features")
    guided_distill.train(config, workdir)
    return workdir


@pytest.mark.slow
def test_a_run_on_latents_is_seen_through_its_decoder(run_folder, folders):
    results = json.loads((run_folder / "report/results.json").read_text())
    provenance = results["provenance"]
    decoder = Decoder(folders / "decoder", SAMPLE, make_mesh())
    features = load_imported_extractor(folders / "features", PICTURE, make_mesh())
    for row in results["rows"]:
        assert row["features"] == f"{features.name}-of-{decoder.name}" and row["fid"] > 0
        assert row["kid"] is not None and row["precision"] is not None
        assert row["rmse_to_teacher"] is not None
    assert provenance["pictures"] and provenance["decoder"] == decoder.name
    assert provenance["reference"]["decoder"] == decoder.name
    assert f"54 pictures that {decoder.name} makes of the data's latents" in provenance["distance"]
    report = (run_folder / "report/report.md").read_text()
    for present in (decoder.name, features.name, "latents as they are", "comparison.png",
                    "student.png", "nearest.png", "decoding left out", "imported network"):  # fmt: skip
        assert present in report, present
    assert "No decoder was given" not in report and "not Inception's" not in report
    with Image.open(run_folder / "samples/step_one.png") as image:
        # Strips of ten 8x8 pictures at two weights, a pixel between, four times as large.
        assert image.size == (4 * (10 * 9 - 1), 4 * (2 * 9 - 1)) and image.mode == "RGB"


@pytest.mark.slow
def test_samples_become_pictures_or_stay_latents(run_folder, folders, tmp_path):
    ask = dict(workdir=str(run_folder), num_steps=1, w=(0.0, 2.0), n=8)
    sampling.run(sampling.Request(**ask, out=str(tmp_path / "x.npz")))
    sampling.run(sampling.Request(**ask, out=str(tmp_path / "x.png")))
    with np.load(tmp_path / "x.npz") as file:
        assert file["samples"].shape == (8, *SAMPLE) and "images" not in file
        expected = Decoder(folders / "decoder", SAMPLE, make_mesh())(file["samples"])
    with Image.open(tmp_path / "x.png") as image:
        sheet = np.asarray(image)
    # Two lines of four, named on the left; counted from the other end.
    side, cell = CELL_SIDE, CELL_SIDE + GAP
    for place, one in enumerate(expected):
        row, column = divmod(place, 4)
        top, left = sheet.shape[0] - (2 - row) * cell, sheet.shape[1] - (4 - column) * cell
        assert_array_equal(sheet[top : top + side : 8, left : left + side : 8], one)
    other = dict(decoder=str(folders / "other"))
    sampling.run(sampling.Request(**ask, **other, out=str(tmp_path / "other.png")))
    with Image.open(tmp_path / "other.png") as image:
        assert np.abs(np.asarray(image).astype(int) - sheet).max() > 20
    with pytest.raises(UserError, match="`decoder` makes pictures of latents, and .npz has"):
        sampling.run(sampling.Request(**ask, **other, out=str(tmp_path / "x.npz")))


@pytest.mark.slow
def test_another_decoder_is_measured_anew_and_the_same_is_not(run_folder, folders, capsys):
    config = read_config(run_folder)
    assert not evaluate(config, run_folder)
    before = json.loads((run_folder / "report/results.json").read_text())["rows"]
    config.evaluation.decoder = str(folders / "other")
    assert evaluate(config, run_folder)
    told = capsys.readouterr().out
    rows = json.loads((run_folder / "report/results.json").read_text())["rows"]
    name = Decoder(folders / "other", SAMPLE, make_mesh()).name
    assert name in told
    for row, old in zip(rows, before, strict=True):
        assert row["fid"] != old["fid"] and name in row["features"]
        assert_allclose(row["rmse_to_teacher"], old["rmse_to_teacher"])
    out = run_folder / "reference.npz"
    reference_stats.run(reference_stats.Request(config, str(run_folder), str(out)))
    config.evaluation.reference_stats = str(out)
    assert evaluate(config, run_folder)
    config.evaluation.decoder = str(folders / "decoder")
    with pytest.raises(UserError, match="was made with another"):
        evaluate(config, run_folder)


@pytest.fixture(scope="module")
def labelled(folders, tmp_path_factory):
    """(config, workdir) of a finished run on labelled latents, encoder and all."""
    os.environ["TEXT_TO_LATENTS"] = str(folders)
    root = tmp_path_factory.mktemp("labelled")
    labels = np.arange(60) % 3
    noise = np.random.default_rng(0).standard_normal((60, *SAMPLE))
    (root / "latents").mkdir()
    x = (0.3 * noise + labels[:, None, None, None] - 1.0).astype(np.float32)
    np.savez(root / "latents" / "000.npz", x=x, labels=labels)
    write_teacher(root / "teacher", takes=("labels",), schedule="cosine")
    config = get_config()
    config.data.path, config.teacher.path = str(root / "latents"), str(root / "teacher")
    config.evaluation.decoder = str(folders / "decoder")
    with config.ignore_type():
        config.distillations = ("deterministic", "encoder")
        config.evaluation.translations, config.evaluation.translation_num_steps = ((0, 2),), 1
    config.evaluation.paper_report, config.evaluation.classifier_updates = True, 60
    guided_distill.train(config, root / "run")
    return config, root / "run"


@pytest.mark.slow
def test_labelled_latents_have_a_classifier_translations_and_the_papers_figures(labelled):
    config, workdir = labelled
    results = json.loads((workdir / "report/results.json").read_text())
    provenance, rows = results["provenance"], results["rows"]
    assert provenance["classifier"] and provenance["classifier_accuracy"] > 0.9
    assert all(row["accuracy"] is not None and row["is"] is not None for row in rows)
    assert rows[0]["features"] == provenance["classifier"]
    assert rows[0]["features"].endswith(f"-of-{provenance['decoder']}")
    assert len(results["translations"]) == 4
    for name in ("paper.md", "paper/run/translation_0_to_2.png", "paper/run/ddim.png"):
        assert (workdir / "report" / name).exists(), name


@pytest.mark.slow
def test_latents_are_translated_into_pictures(labelled, tmp_path):
    config, workdir = labelled
    ask = dict(source_label=0, target_label=2, n=4, w=(0.0, 1.0), out=str(tmp_path / "x.png"))
    translate.run(translate.Request(config, str(workdir), **ask))
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert rows and all(np.isfinite(row["round_trip_rmse"]) for row in rows)
    with Image.open(tmp_path / "x.png") as image:
        assert image.size[0] > 100
    mine = np.random.default_rng(0).integers(0, 256, (2, *PICTURE), np.uint8)
    for k, image in enumerate(mine):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    with pytest.raises(UserError, match="`images` are pictures, and latents holds latents, which"):
        translate.run(translate.Request(config, str(workdir), **ask, images=(str(tmp_path),)))
    blind = config.copy_and_resolve_references()
    blind.evaluation.decoder, blind.evaluation.paper_report = "", False
    blind.evaluation.translations = ()
    with pytest.raises(UserError, match="shows pictures, and latents holds latents: name their"):
        translate.run(translate.Request(blind, str(workdir), **ask))


@pytest.mark.slow
def test_any_images_are_measured_against_decoded_latents(labelled, tmp_path, capsys):
    """The data's own decoded latents, saved as files, are no distance from them."""
    config, workdir = labelled
    seen = see_data(config, open_dataset(config.data))
    images, _ = seen.train.read(np.arange(len(seen.train)))
    for k, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{k:02d}.png")
    measure_images(config, workdir, [str(tmp_path)], out=str(tmp_path / "mine.json"))
    row = json.loads((tmp_path / "mine.json").read_text())
    assert row["n"] == len(images) == 54
    assert_allclose(row["fid"], 0.0, atol=1e-3)
