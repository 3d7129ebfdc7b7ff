"""Curves over the rows of an evaluation, as PNG."""

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from guided_distill.report.grids import plt, save_figure
from guided_distill.report.tables import BASELINES, STUDENTS

COLOURS = ("tab:blue", "tab:green", "tab:purple", "tab:brown", "tab:orange", "tab:red")
LINES = ("o-", "D-", "v-", "x--", "s--", "^--")
MODEL_STYLES = {  # in the order of legends: name, colour, line
    model: style
    for model, *style in zip(
        [*STUDENTS, *BASELINES],
        [*(row.legend for row in STUDENTS.values()), *BASELINES.values()],
        COLOURS,
        LINES,
        strict=True,
    )
}
REFERENCE_STYLES = {"teacher": "-", "step_one": ":"}
METRICS = {"fid": "Fréchet distance", "is": "inception score"}
FAR = 3.0  # times the distance of the teacher: points beyond are not drawn in trade-offs


def save_distance_by_calls(path, rows):
    """Writes Fréchet distance against network calls, one panel per guidance weight."""
    weights = sorted({row["w"] for row in rows})
    figure, axes = _panels(1, len(weights), 3.1, 3.1)
    for axis, w in zip(axes.flat, weights, strict=True):
        _draw_metric(axis, [r for r in rows if r["w"] == w], "network_calls", "fid")
        axis.set_title(f"w = {w:g}", fontsize=10)
        axis.set_xlabel("network calls per sample")
    axes.flat[0].set_ylabel(METRICS["fid"])
    _finish(figure, axes, path)


def save_metrics_by_steps(path, rows):
    """Writes distance and score against N, a column of panels per w (Figures 2, 8 and 10)."""
    weights = sorted({row["w"] for row in rows})
    figure, axes = _panels(2, len(weights), 3.1, 2.7)
    for column, w in enumerate(weights):
        here = [row for row in rows if row["w"] == w]
        for line, (metric, label) in enumerate(METRICS.items()):
            axis = axes[line, column]
            _draw_metric(axis, here, "num_steps", metric)
            axis.set_xlabel("sampling steps N")
            if column == 0:
                axis.set_ylabel(label)
        axes[0, column].set_title(f"w = {w:g}", fontsize=10)
    _finish(figure, axes, path)


def save_trade_off(path, rows):
    """Writes distance against score, a panel per N; each curve runs over w (Figures 9 and 11)."""
    step_counts = sorted({r["num_steps"] for r in rows if r["model"] in MODEL_STYLES})
    columns = min(3, len(step_counts))
    lines = -(-len(step_counts) // columns)
    figure, axes = _panels(lines, columns, 4.2, 3.3)
    for axis in axes.flat[len(step_counts) :]:
        axis.set_axis_off()
    teacher = [row for row in rows if row["model"] == "teacher"]
    farthest = FAR * max(row["fid"] for row in teacher)
    for axis, num_steps in zip(axes.flat, step_counts, strict=False):
        for model, (label, color, line) in MODEL_STYLES.items():
            curve = _over_w(r for r in rows if (r["model"], r["num_steps"]) == (model, num_steps))
            curve = [row for row in curve if row["fid"] <= farthest]
            _plot(axis, curve, "is", "fid", line, color=color, label=label, markersize=4)
        curve = _over_w(teacher)
        _plot(axis, curve, "is", "fid", "*-", color="black", label="full teacher", markersize=5)
        for row in curve:
            axis.annotate(f" {row['w']:g}", (row["is"], row["fid"]), fontsize=7, va="top")
        use_log_distances(axis)
        axis.set_title(f"N = {num_steps}", fontsize=10)
        axis.set_xlabel(METRICS["is"])
    axes[0, 0].set_ylabel(METRICS["fid"])
    _finish(figure, axes, path)


def save_round_gaps(path, gaps):
    """Writes the gap of each round over the time its step starts at: families by weights.

    Args:
      path: PNG.
      gaps: rows of `measure_round_gaps`.
    """
    families = list(dict.fromkeys(gap["stage"].rpartition("/")[0] for gap in gaps))
    weights = sorted({gap["w"] for gap in gaps})
    figure, axes = _panels(max(1, len(families)), max(1, len(weights)), 3.1, 2.6)
    step_counts = sorted({gap["num_steps"] for gap in gaps})
    shades = dict(zip(step_counts, np.linspace(0.95, 0.25, len(step_counts)), strict=True))
    for line, family in enumerate(families):
        for column, w in enumerate(weights):
            axis = axes[line, column]
            for n in step_counts:
                curve = [
                    gap
                    for gap in gaps
                    if gap["stage"].rpartition("/")[0] == family
                    and (gap["w"], gap["num_steps"]) == (w, n)
                ]
                color = plt.cm.viridis(shades[n])
                _plot(axis, curve, "t", "rmse", "o-", color=color, label=f"N = {n}", markersize=3)
            axis.set_yscale("log")
            axis.set_xlabel("t")
            axis.set_title(f"{family}, w = {w:g}", fontsize=8)
        axes[line, 0].set_ylabel("RMSE of a step")
    _finish(figure, axes, path)


def use_log_distances(axis):
    """A logarithmic y axis with plain numbers at 1, 2, 5, 10, 20, …"""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="y", alpha=0.3)


def save_sweep(path, curves):
    """Writes Fréchet distance against N, a panel per w and a line per run: `{run: rows}`."""
    weights = sorted({row["w"] for rows in curves.values() for row in rows})
    figure, axes = _panels(1, len(weights), 3.1, 3.6)
    for axis, w in zip(axes.flat, weights, strict=True):
        for name, rows in curves.items():
            here = sorted((r for r in rows if r["w"] == w), key=lambda row: row["num_steps"])
            _plot(axis, here, "num_steps", "fid", "o-", label=name, markersize=4)
        axis.set_title(f"w = {w:g}", fontsize=10)
        axis.set_xlabel("sampling steps N")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        use_log_distances(axis)
    axes.flat[0].set_ylabel(METRICS["fid"])
    _finish(figure, axes, path)


def _draw_metric(axis, rows, x, metric):
    """Curves of every few-step model, and a level line for each reference."""
    for model, (label, color, line) in MODEL_STYLES.items():
        curve = sorted((r for r in rows if r["model"] == model), key=lambda row: row[x])
        _plot(axis, curve, x, metric, line, color=color, label=label, markersize=4)
    for model, line in REFERENCE_STYLES.items():
        for row in (row for row in rows if row["model"] == model):
            label = f"{model.replace('_', ' ')}, {row[x]} {'calls' if 'calls' in x else 'steps'}"
            axis.axhline(row[metric], color="0.4", linestyle=line, linewidth=1, label=label)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    if metric == "fid":
        use_log_distances(axis)


def _plot(axis, curve, x, y, line, **style):
    if curve:
        axis.plot([row[x] for row in curve], [row[y] for row in curve], line, **style)


def _over_w(rows):
    return sorted(rows, key=lambda row: row["w"])


def _panels(lines, columns, width, height):
    """(figure, axes `[lines, columns]`) of panels of that size, inches."""
    return plt.subplots(
        lines,
        columns,
        figsize=(width * columns, height * lines),
        squeeze=False,
        layout="constrained",
    )


def _finish(figure, axes, path):
    """Draws one legend below all panels, and writes the figure."""
    handles = {}
    for axis in np.ravel(axes):
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=4, fontsize=8)
    save_figure(figure, path)
