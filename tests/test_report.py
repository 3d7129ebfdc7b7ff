"""The report: one file that needs nothing else, the same as its Markdown, readable anywhere."""

import html
import re
import shutil
import subprocess

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from guided_distill.data.sources import ArraySource
from guided_distill.evaluation.comparison import merge_draws
from guided_distill.evaluation.features import FeatureExtractor
from guided_distill.evaluation.nearest import nearest_images
from guided_distill.evaluation.reference import compute_reference
from guided_distill.report.grids import save_strips
from guided_distill.report.html import write_html
from guided_distill.report.run_report import fewest_calls
from guided_distill.report.run_sections import _strips
from guided_distill.report.tables import gap_table, table
from guided_distill.report.words import (
    chance_words,
    distance_name,
    distance_words,
    prompts_of,
    with_clip_note,
)

TEXT = """# A run: of <digits>

Some **words** and a [link](results.json).

## Numbers

| model | w = 0 |
| ----- | ----: |
| one   | **1.00** |

![A picture](a.png)
"""


@pytest.fixture
def page(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    write_html(tmp_path / "index.html", TEXT)
    return tmp_path / "index.html"


def test_html_is_one_file_that_needs_no_network(page):
    text = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert sources and all(
        s.startswith("data:image/png;base64,") or s == "results.json" for s in sources
    )
    assert "http:" not in text and "https:" not in text and "<script" not in text
    assert '<div class="scroll" tabindex="0"><table>' in text and "<strong>1.00</strong>" in text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert "<title>A run: of &lt;digits&gt;</title>" in text


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize("width", [390, 1400])
def test_html_fits_a_phone_and_a_wide_screen(page, tmp_path, width):
    picture = tmp_path / "shot.png"
    wide = (
        TEXT
        + "\n| "
        + " | ".join(f"column {k}" for k in range(40))
        + " |\n"
        + "| --- " * 40
        + "|\n"
    )
    write_html(page, wide)
    probe = page.read_text().replace(
        "</body>",
        "<script>document.title = document.documentElement.scrollWidth</script></body>",
    )
    page.write_text(probe)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    dom = subprocess.run(
        ["chromium", *options, "--dump-dom", page.as_uri()], capture_output=True, text=True
    ).stdout
    assert int(re.search(r"<title>(\d+)</title>", dom)[1]) <= max(width, 500)
    subprocess.run(
        ["chromium", *options, f"--screenshot={picture}", page.as_uri()], capture_output=True
    )
    with Image.open(picture) as image:
        reds = np.all(np.asarray(image.convert("RGB")) == (255, 0, 0), axis=-1)
    assert reds.sum() >= 40 * 30  # the picture is there


def test_only_50000_samples_on_inception_features_are_called_fid_50k():
    stages = {"step_two/deterministic/0004": {"settings": {"step_two": {"clip_teacher": False}}}}
    inception = {"features": "inception-2015-12-05-abc", "reference": {"n": 1500}, "stages": stages}
    assert distance_name(inception, 50_000) == "FID-50k"
    assert distance_name(inception, 5_000) == "FID of 5,000 samples"
    assert "A small n biases every value upwards" in distance_words(inception, 5_000)
    assert "biases" not in distance_words(inception, 50_000)
    stages = {"step_two/deterministic/0004": {"settings": {"step_two": {"clip_teacher": True}}}}
    own = {
        "features": "digits-classifier-abc", "reference": {"file": "stats.npz"}, "stages": stages,
    }  # fmt: skip
    assert distance_name(own, 50_000) == "Fréchet distance"
    assert "not Inception's" in distance_words(own, 500) and "stats.npz" in distance_words(own, 500)
    assert "clipped to [-1, 1] in the targets of step_two/deterministic/0004" in (
        distance_words(own, 500)
    )
    assert "clipped" not in distance_words(inception, 500)


def test_what_shows_students_of_a_clipped_teacher_says_so():
    stages = {
        f"step_two/deterministic/{n:04d}": {"settings": {"step_two": {"clip_teacher": n < 4}}}
        for n in (1, 2, 4)
    }
    noted = with_clip_note("![a figure](a.png)", {"stages": stages})
    assert noted.endswith("targets of step_two/deterministic/0001, step_two/deterministic/0002.\n")
    assert (
        with_clip_note("a", {"stages": {}}) == "a" and with_clip_note("", {"stages": stages}) == ""
    )


def test_tables_show_deviations_and_mark_the_best_on_the_right_side():
    rows = [
        dict(model="student", num_steps=n, network_calls=n, w=0.0, precision=0.5 * n, kid=0.001 * n,
             kid_std=0.0005)
        for n in (1, 2)
    ]  # fmt: skip
    assert "**1.00**" in table(rows, "precision", 2)
    assert "**1.0 ± 0.5**" in table(rows, "kid", 1)


def test_draws_are_merged_to_means_with_deviations():
    rows = [
        dict(model="student", fid=fid, **{"is": 2.0}, kid=None, precision=0.5, recall=0.5,
             accuracy=1.0, rmse_to_teacher=0.1, rmse_to_step_one=10.0 * fid, n=50)
        for fid in (1.0, 2.0, 3.0)
    ]  # fmt: skip
    merged = merge_draws(rows)
    assert (merged["fid"], merged["fid_std"], merged["draws"]) == (2.0, 1.0, 3)
    assert merged["kid"] is None and merged["n"] == 50
    assert (merged["rmse_to_step_one"], merged["rmse_to_step_one_std"]) == (20.0, 10.0)
    assert merge_draws(rows[:1]) == rows[0]


def test_gaps_are_put_together_over_time():
    gaps = [
        dict(stage="step_two/deterministic/0002", num_steps=2, w=w, t=t, rmse=3.0 * t + w)
        for w in (0.0, 1.0)
        for t in (0.5, 1.0)
    ]
    line = gap_table(gaps).splitlines()[2]
    expected = [np.sqrt(np.mean([(3.0 * t + w) ** 2 for t in (0.5, 1.0)])) for w in (0.0, 1.0)]
    assert_allclose([float(v) for v in re.findall(r"\d\.\d{4}", line)], expected, atol=1e-4)


def test_a_copied_training_image_is_its_own_nearest():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 4, 4, 1), np.uint8)
    source = ArraySource("noise", images, np.zeros(60, np.int32), 1)
    extractor = FeatureExtractor(
        "pixels", 16, "none", lambda x: (x.reshape(len(x), -1) / 255.0, np.zeros((len(x), 1)))
    )
    reference = compute_reference(source, extractor)
    pictures = {("student", n, 0.0): images[[7, 30]] for n in (1, 4)}
    ((title, block),) = nearest_images(fewest_calls(pictures), extractor, reference, source).items()
    assert title == "N = 1, w = 0" and list(block)[:2] == ["sample", "nearest 1"]
    np.testing.assert_array_equal(block["nearest 1"], images[[7, 30]])
    assert not np.array_equal(block["nearest 2"], images[[7, 30]])
    other = ArraySource("other", images[::-1].copy(), np.zeros(60, np.int32), 1)
    assert nearest_images(fewest_calls(pictures), extractor, reference, other) == {}


def test_html_in_a_name_is_text_and_only_the_reports_images_are_taken(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "secret.png")
    (tmp_path / "report").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "report" / "own.png")
    names = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "![x](../secret.png)")
    text = "".join(f"# {name}\n\n{name} beside text\n\n" for name in names) + "![own](own.png)"
    write_html(tmp_path / "report" / "index.html", text)
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "<script" not in page and "<img src=x" not in page
    assert page.count("data:image/png") == 1


PROMPTS = [
    "a *red* cat_1",
    "1. [x](https://a.b) <b> & ![i](j.png)",
    "日本 $x$ `y`",
    None,
    "a " * 300,
    "e",
]


def test_prompts_are_numbered_over_their_columns_and_listed_as_they_are(tmp_path):
    provenance = {"pictures": True, "prompts": PROMPTS}
    write_html(tmp_path / "index.html", "# T\n" + _strips(provenance))
    found = html.unescape("".join(re.findall("<ol>(.*)</ol>", page_of(tmp_path), re.S)))
    items = re.findall("<li>“(.*?)”</li>", found, re.S)
    assert items == [" ".join((prompt or "(not known)").split()) for prompt in PROMPTS]
    assert "<a " not in page_of(tmp_path) and "ten noise samples" not in page_of(tmp_path)
    same = _strips({"pictures": True, "prompts": None}), _strips({"pictures": True})
    assert same[0] == same[1] and "the same ten noise samples and has the same labels" in same[0]


def page_of(folder):
    return (folder / "index.html").read_text()


def test_strips_with_prompts_are_taller_and_without_are_what_they_were(tmp_path, recwarn):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    blocks = {"w = 0": {"teacher": images, "student, 1 call": images}, "w = 1": {"teacher": images}}
    sizes = {}
    for name, prompts in {"with": prompts_of({"prompts": PROMPTS}), "without": ()}.items():
        save_strips(tmp_path / f"{name}.png", blocks, "title", prompts)
        with Image.open(tmp_path / f"{name}.png") as image:
            sizes[name] = image.size
    assert sizes["with"][0] == sizes["without"][0] and sizes["with"][1] > sizes["without"][1]
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_a_teacher_at_chance_is_said_to_have_no_images_yet():
    rows = [dict(model="teacher", accuracy=a) for a in (0.11, 0.19)] + [
        dict(model="student", accuracy=0.9)
    ]
    assert "these are no images yet" in chance_words(rows, {"num_classes": 10})
    assert chance_words([*rows, dict(model="teacher", accuracy=0.5)], {"num_classes": 10}) == ""
    assert chance_words(rows, {"num_classes": 1}) == ""
