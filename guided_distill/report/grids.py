"""Pictures of samples, as PNG."""

import pathlib
import textwrap
import warnings

import matplotlib

matplotlib.use("Agg")  # No screen is needed, on a pod or in a test.

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from guided_distill.system.processes import first_only
from guided_distill.system.progress import to_stderr

PROMPT_SIZE = 8  # points, of prompts at the foot of a figure
LETTERS_PER_INCH = 15  # of that size
NO_BREAK = "\u00a0"
MIN_IMAGE_SIZE = 32  # pixels; smaller samples are enlarged by a whole factor


def grid(images, columns):
    """Samples `[n, H, W, C]` uint8 side by side, with a gap of one pixel: `[H', W', C]`."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    tiles = np.full((rows * columns, height + 1, width + 1, channels), 255, np.uint8)
    tiles[:n, :height, :width] = images
    tiles = tiles.reshape(rows, columns, height + 1, width + 1, channels)
    sheet = tiles.transpose(0, 2, 1, 3, 4)
    return sheet.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]


def picture_of(x):
    """`[H, W, C]` uint8 as a Pillow image."""
    return Image.fromarray(x.squeeze(-1) if x.shape[-1] == 1 else x)


def is_picture(path):
    """Whether a whole picture lies at a path; says where it is damaged."""
    try:
        with Image.open(path) as picture:
            picture.verify()
        return True
    except FileNotFoundError:
        return False
    except (OSError, SyntaxError):
        to_stderr(f"{path} is damaged: it is drawn again")
        return False


@first_only
def save_grid(path, images, columns):
    """Writes `grid`, small samples enlarged without smoothing."""
    sheet = grid(images, columns)
    factor = max(1, MIN_IMAGE_SIZE // images.shape[1])
    sheet = sheet.repeat(factor, axis=0).repeat(factor, axis=1)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture_of(sheet).save(path)


def save_strips(path, blocks, title, prompts=()):
    """Writes blocks of labelled strips, each strip a row of samples on the same noise.

    Args:
      path: PNG.
      blocks: `{block title: {strip label: images [n, H, W, C] uint8}}`, laid out in a grid
        two blocks wide.
      title: over everything.
      prompts: a text for each column: their numbers stand over the columns, and they at the foot.
    """
    columns = min(2, len(blocks))
    lines = -(-len(blocks) // columns)
    most_strips = max(len(block) for block in blocks.values())
    n = max(len(images) for block in blocks.values() for images in block.values())
    width = columns * (0.42 * n + 1.9)
    foot = _numbered(prompts, int(width * LETTERS_PER_INCH))
    height = lines * (0.42 * most_strips + (0.6 if foot else 0.45)) + 0.4
    size = width, height + len(foot) * PROMPT_SIZE * 1.35 / 72
    figure, axes = plt.subplots(lines, columns, squeeze=False, figsize=size, layout="constrained")
    for axis in axes.flat[len(blocks) :]:
        axis.set_axis_off()
    for axis, (name, block) in zip(axes.flat, blocks.items(), strict=False):
        _draw_block(axis, block, n, len(prompts))
        axis.set_title(name, fontsize=10, loc="left")
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    if foot:
        style = dict(ha="left", fontsize=PROMPT_SIZE, linespacing=1.3, parse_math=False)
        figure.supxlabel("\n".join(foot), x=0.02, **style)
    save_figure(figure, path)


def _numbered(prompts, letters):
    """Lines of "1 a cat   2 a dog", none longer than so many letters: long prompts are cut."""
    parts = (f"{k} {_cut(prompt, letters - 3)}" for k, prompt in enumerate(prompts, 1))
    text = "   ".join(part.replace(" ", NO_BREAK) for part in parts)
    return textwrap.wrap(text, letters, break_on_hyphens=False)


def _draw_block(axis, block, n, num_numbered):
    """Draws strips below each other, their labels beside them and numbers over the columns."""
    strips = [grid(images, n) for images in block.values()]
    gap = np.full((1, *strips[0].shape[1:]), 255, np.uint8)
    parts = [np.concatenate([strip, gap]) for strip in strips]
    sheet = np.concatenate(parts)[:-1]
    axis.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    height, width = parts[0].shape[0], (sheet.shape[1] + 1) // n
    axis.set_yticks([(k + 0.5) * height - 0.5 for k in range(len(parts))], list(block))
    numbers = range(num_numbered)
    axis.set_xticks([(k + 0.5) * width - 0.5 for k in numbers], [str(k + 1) for k in numbers])
    axis.tick_params(length=0)
    if num_numbered:
        axis.xaxis.tick_top()
        axis.tick_params("x", labelsize=PROMPT_SIZE, pad=1)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _cut(text, letters):
    """The beginning of a text, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def save_figure(figure, path):
    """Writes a figure and closes it."""
    _write_figure(figure, pathlib.Path(path))
    plt.close(figure)


@first_only
def _write_figure(figure, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # A box stands for it.
        figure.savefig(path, dpi=130)
