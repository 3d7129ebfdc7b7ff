"""The paper's tables and figures from finished runs, beside the paper's own numbers."""

import csv
import dataclasses
import pathlib

from guided_distill.evaluation.curves import save_metrics_by_steps, save_trade_off
from guided_distill.evaluation.report import MODEL_NAMES, align, translation_table

PAPER_RESULTS = pathlib.Path(__file__).with_name("paper_results.csv")
TABLE_1_STEPS = (1, 4, 8, 16)
ONE_BY_ONE = ("single_w", "ddim", "ancestral", "teacher")  # rows after those of D / S
METRICS = ("fid", "is")
HEADERS = {"fid": "FD", "is": "IS"}


@dataclasses.dataclass(frozen=True)
class Run:
    """What the report needs of one workdir.

    Attributes:
      name: the workdir's last folder.
      rows: as in `results.json`.
      provenance: as in `results.json`.
      translations: rows of `measure_translation`, empty without an encoder.
      figures: `{caption: path}` of the grids drawn for it, relative to the report.
    """

    name: str
    rows: list
    provenance: dict
    translations: list
    figures: dict


def load_paper_results(data):
    """Rows of the paper's Tables 2 and 3 for a data set, in the keys of `results.json`.

    Each has `note`, which is not empty where Table 1 misprints the value. Other data sets than
    "cifar10" and "imagenet64" have none.
    """
    with open(PAPER_RESULTS, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["data"] == data]
    return [
        row
        | {"w": float(row["w"]), "num_steps": int(row["num_steps"])}
        | {metric: float(row[metric]) for metric in METRICS}
        for row in rows
    ]


def write_paper_report(folder, runs):
    """Writes `paper.md`, and the curves in `paper/`, into `folder`.

    Args:
      folder: `report/` of the first workdir.
      runs: `Run`s, the first of which gives the title.
    """
    folder = pathlib.Path(folder)
    parts = [f"# {runs[0].provenance['data']}: the paper's tables and figures\n"]
    for run in runs:
        if len(runs) > 1:
            parts.append(f"# {run.name}\n")
        parts.append(_render_run(folder, run))
    costs = [line for run in runs for line in training_costs(run)]
    if len({line["factor"] for line in costs}) > 1:
        parts.append(_render_factors(costs))
    (folder / "paper.md").write_text("\n".join(parts))


def _render_run(folder, run):
    provenance = run.provenance
    paper = load_paper_results(provenance["data"])
    beside = "The paper's numbers, and ours less theirs, stand beside." if paper else ""
    curves = {}
    for name, draw in (("metrics_by_steps", save_metrics_by_steps), ("trade_off", save_trade_off)):
        curves[name] = f"paper/{run.name}/{name}.png"
        draw(folder / curves[name], run.rows)
    naive = table_3(run.rows, paper)
    parts = [
        f"""
n = {run.rows[0]["n"]} samples in every row, against {provenance["reference_size"]:,} training
pictures, features: {provenance["features"]}. FD is the Fréchet distance on these features (the
paper's FID is on Inception features, n = 50,000), IS the inception score of the same classifier.
D / S: deterministic / stochastic sampler, each with the student distilled for it. {beside}

## Table 1: by guidance weight

{table_1(run.rows)}

## Table 2: everything

{table_2(run.rows, paper)}
""",
        misprints(paper),
        f"""
## Figures 2, 8, 10: distance and score against the number of steps

![Distance and score by steps]({curves["metrics_by_steps"]})

## Figures 9, 11: trade-off of distance and score over w

![Trade-off]({curves["trade_off"]})
""",
        stochastic_against_deterministic(run.rows),
        f"\n## Table 3: naive progressive distillation (Algorithm 5)\n\n{naive}\n" if naive else "",
        f"\n## Style transfer (Figures 3, 4, 12)\n\n{translation_table(run.translations)}\n"
        if run.translations
        else "",
        *(f"\n## {caption}\n\n![{caption}]({path})\n" for caption, path in run.figures.items()),
    ]
    return "".join(parts)


def index_rows(rows):
    """`{(model, N, w): row}`."""
    return {(row["model"], row["num_steps"], row["w"]): row for row in rows}


def steps_of(rows, *models):
    """Every N of these models, few first."""
    return sorted({row["num_steps"] for row in rows if row["model"] in models})


def label(model, num_steps):
    """A row's name as the paper writes it."""
    names = {
        "teacher": f"Teacher (DDIM {num_steps}x2-step)",
        "ddim": f"DDIM {num_steps}x2-step",
        "ancestral": f"DDPM {num_steps}x2-step",
        "single_w": f"Single-w {num_steps}-step",
    }
    return names.get(model) or f"Ours {num_steps}-step (D/S)"


def table_1(rows):
    """Models by guidance weight: FD and IS in neighbouring columns, best of each in bold."""
    weights = sorted({row["w"] for row in rows})
    header = ["method"] + [f"{HEADERS[m]}, w = {w:g}" for w in weights for m in METRICS]
    by_key = index_rows(rows)
    few = [n for n in steps_of(rows, "student", "stochastic") if n in TABLE_1_STEPS]
    body = []
    for models, steps in _groups(rows, few):
        cells = [
            _joined([by_key.get((model, steps, w)) for model in models], metric, rows, w)
            for w in weights
            for metric in METRICS
        ]
        body.append([label(models[0], steps), *cells])
    return align([header, *body])


def table_2(rows, paper=()):
    """Grouped by guidance weight; with the paper's numbers and ours less theirs where known."""
    theirs = index_rows(paper)
    by_key = index_rows(rows)
    header = ["w", "model", *(HEADERS[m] for m in METRICS)]
    if paper:
        header += [f"{HEADERS[m]}, {of}" for m in METRICS for of in ("paper", "difference")]
    body = []
    for w in sorted({row["w"] for row in rows}):
        first = True
        for models, steps in _groups(rows, steps_of(rows, "student", "stochastic")):
            ours = [by_key.get((model, steps, w)) for model in models]
            if not any(ours):
                continue
            line = [f"{w:g}" if first else "", label(models[0], steps)]
            line += [_joined(ours, metric) for metric in METRICS]
            if paper:
                printed = [theirs.get((model, steps, w)) for model in models]
                for metric in METRICS:
                    line += [_joined(printed, metric), _difference(ours, printed, metric)]
            body.append(line)
            first = False
    return align([header, *body])


def table_3(rows, paper=()):
    """The two students of Algorithm 5, by w and N; '' where there are none."""
    theirs = index_rows(paper)
    ours = sorted(
        (row for row in rows if row["model"] == "two_student"),
        key=lambda row: (row["w"], row["num_steps"]),
    )
    if not ours:
        return ""
    by_key = index_rows(rows)
    header = ["w", "N", "calls", "FD", "IS", "FD of DDIM, same N", "FD of ours (D), same N"]
    header += ["FD, paper", "IS, paper"] if paper else []
    body = []
    for row in ours:
        key = (row["num_steps"], row["w"])
        line = [f"{row['w']:g}", str(row["num_steps"]), str(row["network_calls"])]
        line += [f"{row['fid']:.2f}", f"{row['is']:.2f}"]
        line += [_joined([by_key.get((model, *key))], "fid") for model in ("ddim", "student")]
        if paper:
            printed = theirs.get(("two_student", *key))
            line += [_joined([printed], metric) for metric in METRICS]
        body.append(line)
    return align([header, *body])


def misprints(paper):
    """A line for each number that the paper misprints; '' where there is none."""
    return "".join(
        f"\n{label(row['model'], row['num_steps'])} at w = {row['w']:g}: {row['note']}; "
        f"Table 2 has the right {row['fid']:.2f} and {row['is']:.2f}.\n"
        for row in paper
        if row["note"]
    )


def stochastic_against_deterministic(rows):
    """The ratio of the two samplers' distances, by N and w; '' where one of them is missing."""
    by_key = index_rows(rows)
    weights = sorted({row["w"] for row in rows})
    body = []
    for steps in steps_of(rows, "stochastic"):
        pairs = [
            (by_key.get(("stochastic", steps, w)), by_key.get(("student", steps, w)))
            for w in weights
        ]
        if all(s and d for s, d in pairs):
            body.append([str(steps)] + [f"{s['fid'] / d['fid']:.2f}" for s, d in pairs])
    if not body:
        return ""
    header = ["N"] + [f"w = {w:g}" for w in weights]
    return (
        "\n## Stochastic against deterministic\n\nFréchet distance of S over that of D; below 1 "
        f"the stochastic sampler is better.\n\n{align([header, *body])}\n"
    )


def training_costs(run):
    """What each deterministic student took to train, and its distances.

    Returns:
      Plain dicts: `run`, `factor`, `num_steps`, `evaluations` (network evaluations of its round
      and of those before it, without teacher and step one), `fid` by w.
    """
    rounds = [
        stage
        for name, stage in run.provenance["stages"].items()
        if name.startswith("step_two/deterministic/")
    ]
    distances = {}
    for row in run.rows:
        if row["model"] == "student":
            distances.setdefault(row["num_steps"], {})[row["w"]] = row["fid"]
    spent, costs = 0, []
    for stage in sorted(rounds, key=lambda stage: -stage["num_steps"]):
        spent += stage["evaluations"]
        if stage["num_steps"] in distances:
            costs.append(
                {
                    "run": run.name,
                    "factor": stage["factor"],
                    "num_steps": stage["num_steps"],
                    "evaluations": spent,
                    "fid": distances[stage["num_steps"]],
                }
            )
    return costs


def _render_factors(costs):
    """Runs that divide N by different factors, by network evaluations spent."""
    weights = sorted({w for line in costs for w in line["fid"]})
    header = ["N", "factor", "million evaluations", *(f"FD, w = {w:g}" for w in weights), "run"]
    body = [
        [
            str(line["num_steps"]),
            str(line["factor"]),
            f"{line['evaluations'] / 1e6:.2f}",
            *(f"{line['fid'][w]:.2f}" if w in line["fid"] else "" for w in weights),
            line["run"],
        ]
        for line in sorted(costs, key=lambda line: (line["num_steps"], line["factor"]))
    ]
    return (
        "\n## By what factor to divide\n\nNetwork evaluations of all rounds up to the student "
        "(forward = 1, forward and backward = 3; teacher and step one left out), and its Fréchet "
        f"distance.\n\n{align([header, *body])}\n"
    )


def _groups(rows, student_steps):
    """((models of one line), N) in the paper's order: D / S first, then baselines, teacher."""
    groups = [(("student", "stochastic"), steps) for steps in student_steps]
    for model in ONE_BY_ONE:
        groups += [((model,), steps) for steps in steps_of(rows, model)]
    return groups


def _joined(rows, metric, all_rows=None, w=None):
    """'4.14 / 3.91': one metric of one or two rows; bold where it is the best of all at w."""
    best = None
    if all_rows is not None:
        choose = min if metric == "fid" else max
        best = choose(r[metric] for r in all_rows if r["w"] == w and r["model"] in MODEL_NAMES)

    def cell(row):
        if row is None:
            return "-"
        text = f"{row[metric]:.2f}"
        return f"**{text}**" if row[metric] == best else text

    return " / ".join(cell(row) for row in rows) if any(rows) else ""


def _difference(ours, theirs, metric):
    """'+0.12 / -0.30'; '' where nothing can be compared."""
    pairs = list(zip(ours, theirs, strict=True))
    if not any(a and b for a, b in pairs):
        return ""
    return " / ".join(f"{a[metric] - b[metric]:+.2f}" if a and b else "-" for a, b in pairs)
