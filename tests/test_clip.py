"""CLIP models that were imported: the towers are transformers', scores what is computed by hand."""

import json
import os

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from text_to_latents import SAMPLE, get_config, write_latents, write_teacher

import guided_distill
from guided_distill.data.decoded import Decoder
from guided_distill.data.registry import open_dataset
from guided_distill.errors import UserError
from guided_distill.evaluation.asked import AskedExamples
from guided_distill.evaluation.clip_score import ClipScorer, asked_captions, score_real
from guided_distill.evaluation.features import FeatureExtractor
from guided_distill.evaluation.measure import Measurement
from guided_distill.evaluation.reference import ReferenceStats
from guided_distill.jobs import import_model
from guided_distill.jobs.common import see_data
from guided_distill.models.clip import Clip
from guided_distill.models.function import Function
from guided_distill.run import settings
from guided_distill.system.sharding import make_mesh

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from diffusers_folders import MAX_LENGTH, tokenizer  # noqa: E402
from test_decoder import write_decoder  # noqa: E402
from torch_networks import class_of  # noqa: E402

pytest.importorskip("transformers", reason="transformers is not installed")

SIDE, WIDTH = 12, 6
CAPTIONS = ["a cat", "b", "c d e f g h i j k l m n o p", "dog", ""]


def make_clip(folder, eos=53, **pictures):
    """A folder of a CLIPModel with random weights, whose pictures are 12x12; returns the model."""
    sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    text = dict(vocab_size=54, max_position_embeddings=MAX_LENGTH, bos_token_id=52,
                eos_token_id=eos, pad_token_id=53)  # fmt: skip
    config = class_of("transformers", "CLIPConfig")(
        text_config=sizes | text,
        vision_config=sizes | dict(image_size=SIDE, patch_size=4),
        projection_dim=WIDTH,
    )
    torch.manual_seed(0)
    clip = class_of("transformers", "CLIPModel")(config).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    clip.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    asked = dict(size={"shortest_edge": SIDE}, crop_size=SIDE) | pictures
    class_of("transformers", "CLIPImageProcessor")(**asked).save_pretrained(folder)
    return clip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the model of transformers, its folder, the folder it was imported to)."""
    root = tmp_path_factory.mktemp("clip")
    clip = make_clip(root / "from")
    import_model.run(import_model.Request(from_=str(root / "from"), out=str(root / "clip")))
    return clip, root / "from", root / "clip"


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def theirs(clip, pixels, captions, folder):
    """Unit embeddings of prepared pictures and of captions, by transformers."""
    read = class_of("transformers", "CLIPTokenizer").from_pretrained(folder)
    asked = read(
        captions, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    )
    with torch.no_grad():
        result = clip(pixel_values=torch.tensor(pixels), **asked)
    return result.image_embeds.numpy(), result.text_embeds.numpy()


def test_both_towers_are_those_of_transformers(made):
    """At another batch size than the traced; the tokenizer pads as theirs, mask and all."""
    clip, source, folder = made
    found = Clip.load(folder)
    images = np.moveaxis(noise(5, 20, 28, 3), -1, 1) / np.float32(127.5) - 1.0
    pixels = np.asarray(found.prepare(images))
    assert pixels.shape == (5, 3, SIDE, SIDE)
    image, text = theirs(clip, pixels, CAPTIONS, source)
    ours = found.embed_images(found.image.params, images)
    assert_allclose(ours, image, atol=1e-5 * np.abs(image).max())
    ours = found.embed_tokens(found.text.params, found.tokens(CAPTIONS))
    assert_allclose(ours, text, atol=1e-5 * np.abs(text).max())
    assert_allclose(np.linalg.norm(ours, axis=-1), 1.0, rtol=1e-5)
    assert found.num_cut(CAPTIONS) == 1


@pytest.mark.parametrize("shape", [(20, 28), (41, 17), (7, 9), (SIDE, SIDE)])
def test_pictures_are_prepared_as_by_their_preprocessor(made, shape):
    """But for PIL's rounding, of two levels at most."""
    _, source, folder = made
    smooth = Image.fromarray(noise(5, 5, 3)).resize(shape[::-1], Image.Resampling.BICUBIC)
    process = class_of("transformers", "CLIPImageProcessor").from_pretrained(source)
    expected = process(images=[smooth], return_tensors="np")["pixel_values"]
    images = np.moveaxis(np.asarray(smooth)[None], -1, 1) / np.float32(127.5) - 1.0
    assert_allclose(Clip.load(folder).prepare(images), expected, atol=2.0 / 255 / 0.26)


def score_by_hand(clip, source, images, captions):
    """100 max(cos, 0), resized and normalised by PyTorch."""
    x = torch.as_tensor(np.moveaxis(images, -1, 1) / 255.0).float().expand(-1, 3, -1, -1)
    x = torch.nn.functional.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True).clip(0, 1)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    image, text = theirs(clip, ((x - mean) / std).numpy(), captions, source)
    return 100.0 * np.maximum((image * text).sum(-1), 0.0)


@pytest.mark.parametrize("colours", [1, 3])
def test_a_score_is_what_is_computed_by_hand(made, colours):
    clip, source, folder = made
    images, captions = noise(9, 20, 20, colours), [CAPTIONS[k % 5] for k in range(9)]
    scorer = ClipScorer(folder, images.shape[1:], make_mesh())
    expected = score_by_hand(clip, source, images, captions)
    assert_allclose(scorer(images, captions), expected, atol=1e-2)
    assert 0 < (expected > 0).sum() and np.ptp(expected) > 1.0
    flat = FeatureExtractor(
        "mean", 3, "none", lambda x: (x.mean((1, 2)) @ np.ones((colours, 3)), None)
    )
    reference = ReferenceStats(np.zeros(3), np.eye(3), None, {})
    measurement = Measurement(9, flat, None, reference, scorer)
    x = images / np.float32(127.5) - 1.0
    for rows in (slice(0, 4), slice(4, 9)):
        measurement.add(x[rows], None, {}, captions[rows])
    assert_allclose(measurement.result()["clip_score"], expected.mean(), atol=1e-2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, made):
    """Latents with captions and without, a teacher, a decoder, a CLIP model."""
    root = tmp_path_factory.mktemp("run")
    for name in ("latents", "untold"):
        write_latents(root / name)
    lines = "".join(json.dumps(f"{chr(97 + k % 26)} {k}") + "\n" for k in range(60))
    (root / "latents" / "captions-000.jsonl").write_text(lines)
    write_teacher(root / "teacher")
    write_decoder(root / "decoder")
    return root


@pytest.fixture
def config(folders, made):
    os.environ["TEXT_TO_LATENTS"] = str(folders)
    config = get_config()
    config.evaluation.decoder, config.evaluation.clip = str(folders / "decoder"), str(made[2])
    return config


def look(config):
    """What a run does before anything is trained."""
    settings.check_config(config)
    dataset = open_dataset(config.data)
    settings.check_data(config, dataset)
    return dataset, see_data(config, dataset)


def test_a_clip_model_is_tried_and_said(config, made, capsys):
    look(config)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("clip:")]
    assert Clip.load(made[2]).name in line and "bicubic" in line and "on the data" in line


def untold(config, folders, tmp_path):
    config.data.path = str(folders / "untold")


def partly_told(config, folders, tmp_path):
    write_latents(tmp_path / "latents")
    lines = "".join(f"{'null' if k % 3 else json.dumps('a')}\n" for k in range(60))
    (tmp_path / "latents" / "captions-000.jsonl").write_text(lines)
    config.data.path = str(tmp_path / "latents")


def undecoded(config, folders, tmp_path):
    config.evaluation.decoder = ""


def of_something_else(config, folders, tmp_path):
    config.evaluation.clip = str(folders / "decoder")


def missing(config, folders, tmp_path):
    config.evaluation.clip = str(tmp_path / "none")


REFUSALS = {
    untold: "evaluation.clip compares pictures with their captions, and 6 of 6 held-out examples",
    partly_told: " of 6 held-out examples of latents have none that is known: make the data with",
    undecoded: "evaluation.clip looks at pictures, and latents holds latents",
    of_something_else: "decoder holds no CLIP model: it has no clip.json, which --mode=import",
    missing: "none holds no CLIP model",
}


@pytest.mark.parametrize("change", REFUSALS)
def test_what_does_not_fit_is_refused_in_one_line_before_compute(config, folders, tmp_path, change):
    change(config, folders, tmp_path)
    with pytest.raises(UserError) as error:
        look(config)
    assert REFUSALS[change] in str(error.value) and "\n" not in str(error.value)


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def edit(folder, **changes):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


HARMS = {
    "pickle": (pickled, "holds its weights as a pickle"),
    "preprocessor": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        "has no preprocessor_config.json",
    ),
    "resample": (lambda folder: edit(folder, resample=0), "has resample 0, none of 2 (bilinear)"),
    "size": (lambda folder: edit(folder, crop_size=10), "makes pictures of [12, 12] and crops"),
    "rescale": (lambda folder: edit(folder, do_rescale=False), "does not rescale pictures by 1/255"),
    "tokenizer": (
        lambda folder: (folder / "tokenizer_config.json").unlink(), "has no tokenizer_config.json"
    ),
    "weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"1"), "is no safetensors file"
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_folder_that_is_not_whole_is_refused_and_nothing_stays(tmp_path, harm):
    make_clip(tmp_path / "from")
    change, message = HARMS[harm]
    change(tmp_path / "from")
    with pytest.raises(UserError) as error:
        ask = import_model.Request(from_=str(tmp_path / "from"), out=str(tmp_path / "out"))
        import_model.run(ask)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.slow
def test_models_of_before_find_the_end_of_a_caption_too(tmp_path):
    """Their configs say 2 where the token of the end is the largest number."""
    clip = make_clip(tmp_path / "from", eos=2, resample=2)
    import_model.run(import_model.Request(from_=str(tmp_path / "from"), out=str(tmp_path / "clip")))
    found = Clip.load(tmp_path / "clip")
    pixels = np.zeros((5, 3, SIDE, SIDE), np.float32)
    _, text = theirs(clip, pixels, CAPTIONS, tmp_path / "from")
    ours = found.embed_tokens(found.text.params, found.tokens(CAPTIONS))
    assert_allclose(ours, text, atol=1e-5 * np.abs(text).max())
    assert found.resize.startswith("bilinear")
    (tmp_path / "clip" / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer is not that of clip.json: import it again"):
        Clip.load(tmp_path / "clip")
    with pytest.raises(UserError, match="holds no imported function"):
        Function.load(tmp_path / "clip")


@pytest.mark.slow
def test_a_run_is_scored_and_its_prompts_are_named(config, folders, tmp_path, capsys):
    """Rows by the samples that were kept, in the order in which captions were asked for."""
    config.evaluation.num_draws = 1
    guided_distill.train(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    dataset, seen = look(config)
    asked, n = AskedExamples(dataset.test), config.evaluation.num_samples
    scorer = ClipScorer(config.evaluation.clip, seen.image_shape, make_mesh())
    prompts, clip = (results["provenance"][name] for name in ("prompts", "clip"))
    assert prompts == asked.captions(0, 10) and prompts[:4] == prompts[6:]
    x = np.stack([dataset.test.read(np.asarray([i % 6]))[0][0] for i in range(n)])
    decoder = Decoder(folders / "decoder", SAMPLE, make_mesh())
    real = scorer(decoder(x), asked.captions(0, n)).mean()
    assert_allclose(clip["real_pictures"], real, rtol=1e-6)
    assert_allclose(score_real(scorer, dataset.test, seen.see, n), real, rtol=1e-6)
    assert asked_captions(dataset.test, n) == asked.captions(0, 6)
    sampler = guided_distill.Sampler.load(tmp_path / "run", num_steps=1)
    cond = asked.read(0, n)
    drawn = sampler(cond, w=2.0, seed=config.evaluation.seed)
    images = drawn if drawn.dtype == np.uint8 else decoder(drawn)
    (row,) = [
        row for row in results["rows"]
        if (row["model"], row["num_steps"], row["w"]) == ("student", 1, 2.0)
    ]  # fmt: skip
    assert_allclose(row["clip_score"], scorer(images, asked.captions(0, n)).mean(), rtol=1e-3)
    assert all(row["clip_score"] is not None for row in results["rows"])
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "## CLIP score" in report and clip["name"] in report and f"1. “{prompts[0]}”" in report
    assert f"{clip['real_pictures']:.2f} of real pictures" in capsys.readouterr().out
