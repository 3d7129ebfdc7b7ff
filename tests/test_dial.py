"""The dial of a report: its sheet holds what was drawn, and its sliders show it."""

import base64
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageSequence

from guided_distill.report.dial import (
    CELL_SIDES,
    FEWEST,
    FILM_BYTES,
    SHEET_PIXELS,
    dial_html,
    save_film,
)
from guided_distill.report.html import write_html

LENGTH = 10
WEIGHTS, STEPS, TEACHER_STEPS = (0.0, 0.5, 4.0), (1, 2, 8), 64
STATES = [("teacher", TEACHER_STEPS), ("ddim", 8), *(("student", n) for n in STEPS)]
in_a_browser = pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")


def drawn(shape, states=STATES, weights=WEIGHTS, n=12):
    """Random pictures of that shape for every state: `{(model, N, w): [n, H, W, C]}`."""
    rng = np.random.default_rng(0)
    keys = [(model, steps, w) for w in weights for model, steps in states]
    return {key: rng.integers(0, 256, (n, *shape), np.uint8) for key in keys}


def parts(page):
    """(facts, sheet `[H', W', C]`) that a page holds."""
    facts = json.loads(re.search(r'id="dial-data">(.*?)</script>', page)[1])
    data = re.search(r'url\("data:image/png;base64,([^"]+)"\)', page)[1]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    return facts, sheet.reshape(*sheet.shape[:2], -1)


def strip_of(facts, sheet, row):
    """The samples of one row of the sheet, `[n, H, W, C]`."""
    width, height = facts["side"]
    strip = sheet[row * height : (row + 1) * height]
    return np.stack(np.split(strip, facts["samples"], axis=1))


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 24, 3), (96, 96, 3)])
def test_the_sheet_holds_the_images_of_every_state(shape):
    images = drawn(shape, n=12)
    facts, sheet = parts(dial_html(images, LENGTH))
    n = facts["samples"]
    assert (facts["weights"], facts["num_steps"]) == (list(WEIGHTS), list(STEPS))
    assert n == LENGTH and facts["side"] == [shape[1], shape[0]]
    for j, w in enumerate(WEIGHTS):
        teacher = strip_of(facts, sheet, facts["teacher_rows"][j])
        assert_array_equal(teacher, images["teacher", TEACHER_STEPS, w][:n])
        for i, steps in enumerate(STEPS):
            student = strip_of(facts, sheet, facts["student_rows"][i][j])
            assert_array_equal(student, images["student", steps, w][:n])
    assert sheet.shape[0] == shape[0] * len(WEIGHTS) * (1 + len(STEPS))  # each once, no others


@pytest.mark.parametrize(("side", "cell"), [(8, 64), (28, 84), (32, 64), (64, 64), (256, 96)])
def test_cells_are_small_samples_enlarged_and_large_ones_reduced(side, cell):
    images = {key: np.full_like(x, 70) for key, x in drawn((side, side, 1)).items()}
    facts, sheet = parts(dial_html(images, LENGTH))
    assert facts["cell"] == [cell, cell] and max(facts["side"]) <= CELL_SIDES[1]
    assert np.all(sheet == 70)


def test_the_sheet_of_many_large_samples_shows_fewer_and_says_so():
    weights = tuple(range(10))
    images = drawn((96, 96, 1), weights=weights)
    page = dial_html(images, LENGTH)
    facts, sheet = parts(page)
    assert FEWEST <= facts["samples"] < LENGTH and sheet.size <= SHEET_PIXELS
    assert f"{facts['samples']} samples" in page


def test_names_say_network_calls_and_the_dial_is_the_main_models():
    states = [("teacher", 64), ("two_student", 2), ("two_student", 4), ("ddim", 2)]
    facts, _ = parts(dial_html(drawn((4, 4, 1), states), LENGTH))
    assert facts["teacher"] == "full teacher, 128 calls" and facts["calls"] == [4, 8]
    states += [("student", 4), ("stochastic", 2)]
    facts, _ = parts(dial_html(drawn((4, 4, 1), states), LENGTH))
    assert facts["students"] == ["student, 4 calls"]


def test_what_was_not_drawn_has_no_row():
    images = drawn((4, 4, 1))
    del images["student", 2, 4.0], images["teacher", TEACHER_STEPS, 0.0]
    facts, sheet = parts(dial_html(images, LENGTH))
    assert facts["teacher_rows"][0] is None and facts["student_rows"][1][2] is None
    kept = strip_of(facts, sheet, facts["student_rows"][2][2])
    assert_array_equal(kept, images["student", 8, 4.0][:LENGTH])


def test_a_slider_needs_two_positions_and_a_dial_two_states():
    one_w = dial_html(drawn((4, 4, 1), weights=(1.0,)), LENGTH)
    assert 'id="dial-n" ' in one_w and 'id="dial-w" ' not in one_w
    one_n = dial_html(drawn((4, 4, 1), STATES[:3]), LENGTH)
    assert 'id="dial-w" ' in one_n and 'id="dial-n" ' not in one_n
    assert dial_html(drawn((4, 4, 1), STATES[:3], weights=(1.0,)), LENGTH) == ""
    assert dial_html({}, LENGTH) == ""  # latents that nothing decodes


def test_a_page_has_its_dial_before_the_first_table(tmp_path):
    page = write_page(tmp_path, drawn((8, 8, 1)))
    assert page.index("<h1>") < page.index('id="dial"') < page.index("<table>")
    for knob in ("dial-w", "dial-n"):
        assert f'<label for="{knob}">' in page and f'<output id="{knob}-out"' in page
    assert "http:" not in page and "https:" not in page
    assert 'hidden>\n<div class="knobs">' in page  # until the script shows it


def frames_of(path):
    """The frames of a GIF, `[k, H, W]`."""
    with Image.open(path) as film:
        return np.stack([np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(film)])


def test_the_film_turns_w_at_each_n_from_many_to_few(tmp_path):
    images = drawn((8, 8, 1), n=LENGTH)
    greys = {key: np.uint8(5 * k + 20) for k, key in enumerate(images)}
    save_film(tmp_path / "dial.gif", {key: x * 0 + greys[key] for key, x in images.items()})
    frames = frames_of(tmp_path / "dial.gif")
    states = [(n, w) for n in sorted(STEPS, reverse=True) for w in WEIGHTS]
    assert len(frames) == len(states)
    assert (tmp_path / "dial.gif").stat().st_size <= FILM_BYTES
    for frame, (n, w) in zip(frames, states, strict=True):
        height, right = frame.shape[0], frame[:, -20]  # a column within the last samples
        assert right[height // 4] == greys["teacher", TEACHER_STEPS, w]
        assert right[3 * height // 4] == greys["student", n, w]


def test_a_film_too_large_is_left_out_and_an_old_one_removed(tmp_path):
    (tmp_path / "dial.gif").write_bytes(b"old")
    save_film(tmp_path / "dial.gif", drawn((128, 128, 3), weights=(0.0, 1.0), n=3))
    assert not (tmp_path / "dial.gif").exists()
    save_film(tmp_path / "dial.gif", drawn((4, 4, 1), STATES[:3], weights=(1.0,)))
    assert not (tmp_path / "dial.gif").exists()


def write_page(folder, images):
    """The text of a page with a dial."""
    text = "# A run\n\nWords.\n\n| a | b |\n| - | -: |\n| " + "long " * 40 + " | 1 |\n"
    write_html(folder / "index.html", text, dial_html(images, LENGTH))
    return (folder / "index.html").read_text("utf-8")


def browse(page, option):
    """What headless Chromium says of a file."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,900", option]
    command = ["chromium", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def framed(page, width, more="", attributes=""):
    """A page whose frame of that width holds another, whose scripts `sandbox` would stop."""
    style = f"width:{width}px;height:880px;border:0"
    return f'<iframe {attributes} srcdoc="{html.escape(page)}" style="{style}"></iframe>{more}'


def shot(folder, page):
    """A screenshot of a page's text, `[H, W, 3]`."""
    (folder / "shot.html").write_text(page, "utf-8")
    (folder / "shot.png").unlink(missing_ok=True)
    browse(folder / "shot.html", f"--screenshot={folder / 'shot.png'}")
    with Image.open(folder / "shot.png") as image:
        return np.asarray(image.convert("RGB"))


def cells_of_colour(picture, colour):
    """How many cells' area of a screenshot has a colour."""
    return np.sum(np.all(picture == colour, axis=-1)) / CELL_SIDES[0] ** 2


@in_a_browser
def test_a_slider_changes_the_picture(tmp_path):
    images = drawn((8, 8, 3))
    colours = {key: np.uint8([40 + 3 * k, 250 - 3 * k, 90]) for k, key in enumerate(images)}
    page = write_page(tmp_path, {key: x * 0 + colours[key] for key, x in images.items()})
    for at_w, at_n in [(0, 0), (0, 2), (2, 2)]:
        script = "".join(
            f"document.getElementById('{knob}').value = {value};"
            f"document.getElementById('{knob}').dispatchEvent(new Event('input', {{bubbles: true}}));"
            for knob, value in [("dial-w", at_w), ("dial-n", at_n)]
        )
        picture = shot(tmp_path, page.replace("</body>", f"<script>{script}</script></body>"))
        w, steps = WEIGHTS[at_w], STEPS[at_n]
        shown = {("teacher", TEACHER_STEPS, w), ("student", steps, w)}
        for key, colour in colours.items():
            cells = cells_of_colour(picture, colour)
            assert 0.98 * LENGTH < cells <= LENGTH if key in shown else cells == 0
    picture = shot(tmp_path, framed(page, 1200, attributes="sandbox"))  # no scripts: no dial
    assert picture.std() > 0
    assert not any(cells_of_colour(picture, colour) for colour in colours.values())


@in_a_browser
@pytest.mark.parametrize("side", [8, 28, 256])
def test_a_dial_fits_a_phone(tmp_path, side):
    page = write_page(tmp_path, drawn((side, side, 1), n=LENGTH))
    probe = """<script>onload = () => {
        const page = document.querySelector("iframe").contentDocument;
        document.title = [page.documentElement.scrollWidth,
          page.querySelector("td + td").getBoundingClientRect().right,
          page.getElementById("dial-student-name").textContent].join(); }</script>"""
    (tmp_path / "frame.html").write_text(framed(page, 390, probe), "utf-8")
    dom = browse(tmp_path / "frame.html", "--dump-dom")
    width, right, name = re.search(r"<title>(.*?),(.*?),(.*?)</title>", dom).groups()
    assert int(width) <= 390 and float(right) <= 390 and name.startswith("student")
