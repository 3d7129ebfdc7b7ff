"""The dial of a report: sliders of w and N over one sheet of samples, without a server."""

import io
import json
import pathlib

import numpy as np
from PIL import Image

from guided_distill.report.grids import picture_of
from guided_distill.report.html import png_uri
from guided_distill.report.sheets import draw_sheet, names_width
from guided_distill.report.tables import calls_label, main_model, network_calls

CELL_SIDES = (64, 96)  # CSS pixels of a sample's longer side: at least, at most
SHEET_PIXELS = 2**21  # of large samples so many are shown that the sheet stays below, or FEWEST
FEWEST = 4
FILM_SAMPLES = (10, 5, 3)  # the first that keeps a film below FILM_BYTES is taken
FILM_BYTES = 300_000
FRAME_MS = 900

STYLE = """
.dial { margin: 1.5rem 0; padding: .8rem; border: 1px solid var(--line); border-radius: .6rem;
  background: var(--band); }
.dial .knobs { display: grid; gap: .8rem 2.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)); }
.dial label { display: block; }
.dial output { font-weight: 700; font-variant-numeric: tabular-nums; }
.dial input { width: 100%; margin: .3rem 0 0; height: 2rem; accent-color: var(--best); }
.dial .name { margin: 1.1rem 0 .4rem; font-weight: 600; }
.dial .strip { display: grid; gap: 3px; grid-template-columns: repeat(auto-fill, var(--width)); }
.dial .strip span { width: var(--width); height: var(--height); background-size: var(--sheet);
  image-rendering: pixelated; border-radius: 3px; }
.dial .note { margin: 1rem 0 0; font-size: .9rem; color: var(--soft); }
"""

SCRIPT = """
(() => {
  const root = document.getElementById("dial");
  const dial = JSON.parse(document.getElementById("dial-data").textContent);
  const [width, height] = dial.cell;
  const position = (knob) => Number(document.getElementById(knob)?.value ?? 0);
  const say = (knob, text) => {
    document.getElementById(knob + "-out").value = text;
    document.getElementById(knob)?.setAttribute("aria-valuetext", text);
  };
  const show = (who, name, row) => {
    const strip = document.getElementById(who);
    document.getElementById(who + "-name").textContent = row === null ? name + ": none" : name;
    strip.setAttribute("aria-label", name);
    strip.style.visibility = row === null ? "hidden" : "visible";
    [...strip.children].forEach((cell, k) => {
      cell.style.backgroundPosition = `${-k * width}px ${-(row ?? 0) * height}px`;
    });
  };
  const turn = () => {
    const at_w = position("dial-w"), at_n = position("dial-n");
    const w = dial.weights[at_w];
    say("dial-w", `${w}`);
    say("dial-n", `${dial.calls[at_n]}`);
    show("dial-teacher", `${dial.teacher}, w = ${w}`, dial.teacher_rows[at_w]);
    show("dial-student", `${dial.students[at_n]}, w = ${w}`, dial.student_rows[at_n][at_w]);
  };
  root.addEventListener("input", turn);
  root.hidden = false;
  turn();
})();
"""


def dial_html(images, length):
    """The dial over `{(model, N, w): [n, H, W, C] uint8}`; '' where there is nothing to turn.

    It shows the first `length` samples. Without JavaScript it stays hidden. A slider with one
    position only is left out.
    """
    facts, sheet = make_dial({key: x[:length] for key, x in images.items()})
    if facts is None:
        return ""
    width, height = facts["cell"]
    rows, columns = sheet.shape[0] // facts["side"][1], facts["samples"]
    sizes = f"--width: {width}px; --height: {height}px; "
    sizes += f"--sheet: {columns * width}px {rows * height}px"
    cells = "<span></span>" * columns
    strips = "".join(
        f'<p class="name" id="dial-{who}-name"></p>\n'
        f'<div class="strip" id="dial-{who}" role="img">{cells}</div>\n'
        for who in ("teacher", "student")
    )
    data = json.dumps(facts).replace("<", "\\u003c")
    return f"""<style>{STYLE}
.dial .strip span {{ background-image: url("{png_uri(png_of(sheet))}"); }}</style>
<section class="dial" id="dial" aria-label="The dial" style="{sizes}" hidden>
<div class="knobs">
{_knob("dial-w", "guidance weight w", facts["weights"])}
{_knob("dial-n", "network calls of the student", facts["calls"])}
</div>
{strips}<p class="note">{columns} samples: each starts everywhere from the same noise and is
asked for the same.</p>
</section>
<script type="application/json" id="dial-data">{data}</script>
<script>{SCRIPT}</script>
"""


def make_dial(images):
    """(facts, sheet): what the page's script reads, and all samples in one picture.

    Args:
      images: `{(model, N, w): [n, H, W, C] uint8}` of the teacher, the main model and others.

    Returns:
      facts: plain JSON. A strip is a row of the sheet; `teacher_rows[w]` and
        `student_rows[N][w]` say which, by positions in `weights` and `num_steps`, or None.
        `side` is a cell's (width, height) in the sheet, `cell` that on the page.
      sheet: `[H', W', C]` uint8. Both are None where there are fewer than two states.
    """
    keys = dial_keys(images)
    students = [key for key in keys if key[0] != "teacher"]
    if len(students) < 2:
        return None, None
    weights = sorted({w for _, _, w in students})
    num_steps = sorted({n for _, n, _ in students})
    (student, _, _), (_, full_steps, _) = students[0], keys[0]
    height, width = fitted_size(*images[keys[0]].shape[1:3])
    samples = samples_shown(len(images[keys[0]]), len(keys) * height * width)
    row = {key: k for k, key in enumerate(keys)}
    factor = max(1, -(-CELL_SIDES[0] // max(height, width)))
    facts = {
        "side": [width, height],
        "cell": [factor * width, factor * height],
        "samples": samples,
        "weights": weights,
        "num_steps": num_steps,
        "calls": [network_calls(student, n) for n in num_steps],
        "teacher": calls_label("teacher", full_steps),
        "students": [calls_label(student, n) for n in num_steps],
        "teacher_rows": [row.get(("teacher", full_steps, w)) for w in weights],
        "student_rows": [[row.get((student, n, w)) for w in weights] for n in num_steps],
    }
    strips = [[fit(x, height, width) for x in images[key][:samples]] for key in keys]
    return facts, np.concatenate([np.concatenate(strip, axis=1) for strip in strips])


def save_film(path, images):
    """Writes the dial as a GIF: w goes up at each N, from many to few, beside the teacher.

    Where not even the fewest samples fit into `FILM_BYTES`, or nothing turns, no file is left.
    """
    path = pathlib.Path(path)
    path.unlink(missing_ok=True)
    for samples in FILM_SAMPLES:
        frames = film_frames({key: x[:samples] for key, x in images.items()})
        if len(frames) < 2:
            return
        buffer = io.BytesIO()
        frames[0].save(
            buffer, "GIF", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0
        )
        if buffer.tell() <= FILM_BYTES:
            path.write_bytes(buffer.getvalue())
            return


def film_frames(images):
    """A Pillow image per (N, w) of the main model that the teacher has samples of, too."""
    keys = dial_keys(images)
    teacher = {w: images[model, n, w] for model, n, w in keys if model == "teacher"}
    lines = [
        [
            (f"{calls_label(*keys[0][:2])}, w = {w:g}", [], teacher[w]),
            (f"{calls_label(model, n)}, w = {w:g}", [], images[model, n, w]),
        ]
        for model, n, w in sorted(keys, key=lambda key: (-key[1], key[2]))
        if model != "teacher" and w in teacher
    ]
    left = names_width(name for frame in lines for name, _, _ in frame) if lines else 0
    return [draw_sheet(frame, left) for frame in lines]


def dial_keys(images):
    """(model, N, w) of the dial's strips: the teacher's first; none without a student."""
    models = {model for model, _, _ in images}
    if "teacher" not in models:
        return []
    order = ["teacher", main_model(models)]
    keys = [key for key in images if key[0] in order]
    return sorted(keys, key=lambda key: (order.index(key[0]), *key[1:]))


def samples_shown(n, pixels):
    """How many of `n` samples a sheet has that takes so many pixels for each."""
    return min(n, max(FEWEST, SHEET_PIXELS // pixels))


def fitted_size(height, width):
    """The size in the sheet: a sample's own, or reduced to the largest side of a cell."""
    factor = min(1.0, CELL_SIDES[1] / max(height, width))
    return max(1, round(factor * height)), max(1, round(factor * width))


def fit(x, height, width):
    """One sample `[H, W, C]` uint8 at that size, reduced by area."""
    if x.shape[:2] == (height, width):
        return x
    reduced = picture_of(x).resize((width, height), Image.Resampling.BOX)
    return np.asarray(reduced).reshape(height, width, -1)


def png_of(x):
    """`[H, W, C]` uint8 as the bytes of a PNG."""
    buffer = io.BytesIO()
    picture_of(x).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _knob(name, title, values):
    """A slider over positions of `values`, with its value beside its label."""
    label = f'{title} = <output id="{name}-out" for="{name}"></output>'
    if len(values) == 1:
        return f"<div>{label}</div>"
    return (
        f'<div><label for="{name}">{label}</label>'
        f'<input type="range" id="{name}" min="0" max="{len(values) - 1}" step="1" '
        f'value="{len(values) // 2}"></div>'
    )
