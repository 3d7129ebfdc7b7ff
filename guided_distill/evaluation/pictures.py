"""Pictures of samples and curves, as PNG."""

import pathlib

import matplotlib

matplotlib.use("Agg")  # No screen is needed, on a pod or in a test.

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

MIN_PICTURE_SIZE = 32  # pixels; smaller samples are enlarged by a whole factor


def grid(images, columns):
    """Samples `[n, H, W, C]` uint8 side by side, with a gap of one pixel: `[H', W', C]`."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    tiles = np.full((rows * columns, height + 1, width + 1, channels), 255, np.uint8)
    tiles[:n, :height, :width] = images
    tiles = tiles.reshape(rows, columns, height + 1, width + 1, channels)
    sheet = tiles.transpose(0, 2, 1, 3, 4)
    return sheet.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]


def save_grid(path, images, columns):
    """Writes `grid`, small samples enlarged without smoothing."""
    sheet = grid(images, columns)
    factor = max(1, MIN_PICTURE_SIZE // images.shape[1])
    sheet = sheet.repeat(factor, axis=0).repeat(factor, axis=1)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet).save(path)


def save_strips(path, blocks, title):
    """Writes blocks of labelled strips, each strip a row of samples on the same noise.

    Args:
      path: PNG.
      blocks: `{block title: {strip label: images [n, H, W, C] uint8}}`, laid out in a grid
        two blocks wide.
      title: over everything.
    """
    columns = min(2, len(blocks))
    lines = -(-len(blocks) // columns)
    most_strips = max(len(block) for block in blocks.values())
    n = max(len(images) for block in blocks.values() for images in block.values())
    figure, axes = plt.subplots(
        lines,
        columns,
        squeeze=False,
        figsize=(columns * (0.42 * n + 1.9), lines * (0.42 * most_strips + 0.45) + 0.4),
        layout="constrained",
    )
    for axis in axes.flat[len(blocks) :]:
        axis.set_axis_off()
    for axis, (name, block) in zip(axes.flat, blocks.items(), strict=False):
        strips = [grid(images, n) for images in block.values()]
        gap = np.full((1, *strips[0].shape[1:]), 255, np.uint8)
        parts = [np.concatenate([strip, gap]) for strip in strips]
        sheet = np.concatenate(parts)[:-1]
        axis.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        height = parts[0].shape[0]
        axis.set_yticks([(k + 0.5) * height - 0.5 for k in range(len(parts))], list(block))
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.set_title(name, fontsize=10, loc="left")
        for spine in axis.spines.values():
            spine.set_visible(False)
    figure.suptitle(title, fontsize=12)
    _save(figure, path)


def save_distance_by_calls(path, rows):
    """Writes Fréchet distance against network calls, one panel per guidance weight."""
    weights = sorted({row["w"] for row in rows})
    figure, axes = plt.subplots(
        1, len(weights), figsize=(3.1 * len(weights), 3.1), squeeze=False, layout="constrained"
    )
    for axis, w in zip(axes.flat, weights, strict=True):
        here = [row for row in rows if row["w"] == w]
        for model, label, color in (
            ("ddim", "guided DDIM", "tab:orange"),
            ("student", "distilled student", "tab:blue"),
        ):
            curve = sorted((r["network_calls"], r["fid"]) for r in here if r["model"] == model)
            axis.plot(*zip(*curve, strict=True), "o-", color=color, label=label)
        for model, style in (("teacher", "-"), ("step_one", ":")):
            row = next(r for r in here if r["model"] == model)
            label = f"{model.replace('_', ' ')}, {row['network_calls']} calls"
            axis.axhline(row["fid"], color="0.4", linestyle=style, linewidth=1, label=label)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        use_log_distances(axis)
        axis.set_title(f"w = {w:g}", fontsize=10)
        axis.set_xlabel("network calls per sample")
    axes.flat[0].set_ylabel("Fréchet distance")
    axes.flat[-1].legend(fontsize=7)
    _save(figure, path)


def save_trade_off(path, rows):
    """Writes Fréchet distance against inception score; each curve runs over w."""
    figure, axis = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    shown = {(r["model"], r["num_steps"]) for r in rows if r["model"] in ("student", "ddim")}
    step_counts = sorted({num_steps for _, num_steps in shown})
    shades = dict(zip(step_counts, np.linspace(0.35, 0.95, len(step_counts)), strict=True))
    teacher = next((r["model"], r["num_steps"]) for r in rows if r["model"] == "teacher")
    for model, num_steps in [*sorted(shown), teacher]:
        curve = [r for r in rows if (r["model"], r["num_steps"]) == (model, num_steps)]
        curve.sort(key=lambda row: row["w"])
        scores, distances = [r["is"] for r in curve], [r["fid"] for r in curve]
        calls = curve[0]["network_calls"]
        style = {
            "student": dict(color=plt.cm.Blues(shades.get(num_steps, 1.0)), marker="o"),
            "ddim": dict(color=plt.cm.Oranges(shades.get(num_steps, 1.0)), marker="s", ls="--"),
            "teacher": dict(color="black", marker="*"),
        }[model]
        plural = "s" if calls > 1 else ""
        axis.plot(scores, distances, markersize=4, label=f"{model}, {calls} call{plural}", **style)
        for row in curve if model == "teacher" else ():
            axis.annotate(
                f" w = {row['w']:g}", (row["is"], row["fid"]), fontsize=7, va="top", ha="left"
            )
    use_log_distances(axis)
    axis.set_xlabel("inception score (higher: each sample is clearly of a class)")
    axis.set_ylabel("Fréchet distance (lower is better)")
    axis.legend(fontsize=7, ncols=2)
    _save(figure, path)


def use_log_distances(axis):
    """A logarithmic y axis with plain numbers at 1, 2, 5, 10, 20, …"""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="y", alpha=0.3)


def _save(figure, path):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
