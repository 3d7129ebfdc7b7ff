"""Tables of an evaluation's rows, in Markdown that lines up in a terminal too.

A row is a dict as in `results.json`: `model`, `num_steps`, `w`, `fid`, `is`, …
"""

import re

from guided_distill.distill.distillations import DISTILLATIONS

STUDENTS = {row.model: row for row in DISTILLATIONS.values() if row.samplers}
REFERENCES = {"teacher": "full teacher", "step_one": "step one"}
BASELINES = {"ddim": "guided DDIM", "ancestral": "guided DDPM"}
MODEL_NAMES = REFERENCES | {model: row.title for model, row in STUDENTS.items()} | BASELINES
PAIRS = ("teacher", *BASELINES, *(m for m, row in STUDENTS.items() if row.learns_pair))
HIGHER_IS_BETTER = ("accuracy", "is", "precision", "recall", "clip_score")
SCALES = {"kid": 1000}
COST = "million evaluations"
COST_WORDS = (
    "Million evaluations: what its round and those before it took to train, in network "
    "evaluations (forward = 1, forward and backward = 3), teacher and step one left out."
)


def main_model(models):
    """The distilled model that a report is about: the student, or what there is in its place."""
    return next(model for model in STUDENTS if model in models)


def network_calls(model, num_steps):
    """Those of one sample in N steps: twice as many of a guided pair."""
    return num_steps * (2 if model in PAIRS else 1)


def calls_label(model, num_steps):
    """'student, 4 calls'."""
    calls = network_calls(model, num_steps)
    return f"{MODEL_NAMES[model]}, {calls} call{'s' if calls > 1 else ''}"


def table(rows, metric, digits, costs=None):
    """A Markdown table of one metric: a line per model and N, a column per w.

    The best of the few-call models (all but the references) in each column is bold. With `costs`
    of `round_costs`, a last column has the million evaluations that a model's rounds took.
    """
    weights = sorted({row["w"] for row in rows})
    lines = {}
    for row in rows:
        lines.setdefault((row["model"], row["num_steps"]), {})[row["w"]] = row
    lowest = metric not in HIGHER_IS_BETTER
    best = {}
    for w in weights:
        few = [r[metric] for r in rows if r["w"] == w and r["model"] not in REFERENCES]
        best[w] = min(few) if lowest else max(few)

    def cell(row):
        if row is None:
            return ""
        scale = SCALES.get(metric, 1)
        text = f"{scale * row[metric]:.{digits}f}"
        if row.get(f"{metric}_std") is not None:
            text += f" ± {scale * row[f'{metric}_std']:.{digits}f}"
        is_best = row["model"] not in REFERENCES and row[metric] == best[row["w"]]
        return f"**{text}**" if is_best else text

    body = []
    for (model, num_steps), by_w in sorted(lines.items(), key=lambda item: line_order(*item[0])):
        calls = next(iter(by_w.values()))["network_calls"]
        name = [MODEL_NAMES[model], str(num_steps), str(calls)]
        body.append(name + [cell(by_w.get(w)) for w in weights])
        body[-1] += [millions(costs, model, num_steps)] if costs else []
    header = ["model", "N", "calls"] + [f"w = {w:g}" for w in weights]
    return align([header + ([COST] if costs else []), *body])


def millions(costs, model, num_steps):
    """The cost of a model's rounds in millions, of `round_costs`; '' for what has no rounds."""
    cost = costs.get((model, num_steps))
    return "" if cost is None else f"{cost / 1e6:.2f}"


def gap_table(gaps):
    """The gap of each round over all its times, a line per stage and a column per w."""
    weights = sorted({gap["w"] for gap in gaps})
    body = []
    for stage in dict.fromkeys(gap["stage"] for gap in gaps):
        squares = {w: [] for w in weights}
        for gap in gaps:
            if gap["stage"] == stage:
                squares[gap["w"]].append(gap["rmse"] ** 2)
        cells = [f"{(sum(s) / len(s)) ** 0.5:.4f}" if s else "" for s in squares.values()]
        body.append([stage, *cells])
    return align([["round", *(f"w = {w:g}" for w in weights)], *body])


def same_noise(rows):
    """The rows of samplers that draw no noise on the way: their samples can be compared."""
    return [row for row in rows if row["sampler"] == "ddim"]


def line_order(model, num_steps):
    """References, students, then baselines, each from many steps to few."""
    return (list(MODEL_NAMES).index(model), -num_steps)


def align(cells):
    """A Markdown table whose columns line up in a terminal; the first row is the header."""
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(cells[0]))]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    rows = [cells[0], rule, *cells[1:]]
    return "\n".join(
        "| "
        + " | ".join(
            text.ljust(width) if k == 0 else text.rjust(width)
            for k, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    )


def speed_table(rows, what="images"):
    """Samples per second of each model over all w, and the speed-up over the full teacher."""
    rates = {}
    for row in rows:
        rates.setdefault((row["model"], row["num_steps"], row["network_calls"]), []).append(
            row["images_per_second"]
        )
    mean = {key: len(values) / sum(1 / v for v in values) for key, values in rates.items()}
    full = next(rate for (model, _, _), rate in mean.items() if model == "teacher")
    body = [
        [MODEL_NAMES[model], str(steps), str(calls), f"{rate:,.1f}", f"{rate / full:,.1f} x"]
        for (model, steps, calls), rate in sorted(
            mean.items(), key=lambda item: line_order(*item[0][:2])
        )
    ]
    return align([["model", "N", "calls", f"{what}/s", "speed-up"], *body])


def translation_table(rows):
    """A Markdown table of the rows of `measure_translation`."""
    judged = all(row["target_accuracy"] is not None for row in rows)
    header = [
        "encoder and decoder", "N each", "calls", "w", *["seen as the target"] * judged,
        "RMSE to source", "of fresh noise", "round trip",
    ]  # fmt: skip
    body = [
        [
            row["system"],
            str(row["num_steps"]),
            str(row["network_calls"]),
            f"{row['w']:g}",
            *([f"{row['target_accuracy']:.1%}"] if judged else []),
            f"{row['rmse_to_source']:.3f}",
            f"{row['rmse_of_fresh_to_source']:.3f}",
            f"{row['round_trip_rmse']:.3f}",
        ]
        for row in rows
    ]
    return align([header, *body])


def star_best(text):
    """A Markdown table for the terminal: a star in place of bold, in as many columns."""
    return re.sub(r"\*\*(.+?)\*\*", r"   *\1", text)
