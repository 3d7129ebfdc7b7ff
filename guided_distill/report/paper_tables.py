"""The paper's tables in its own layout, from the rows of an evaluation, beside its own numbers.

A row is a dict as in `results.json`: `model`, `num_steps`, `w`, `fid`, `is`, …
"""

import csv
import pathlib

from guided_distill.distill.distillations import (
    DETERMINISTIC,
    SINGLE_W,
    STOCHASTIC,
    TWO_STUDENT,
    round_costs,
)
from guided_distill.report.tables import COST, MODEL_NAMES, align, millions
from guided_distill.system.workdir import stage_name

PAPER_RESULTS = pathlib.Path(__file__).with_name("paper_results.csv")
TABLE_1_STEPS = (1, 4, 8, 16)
D_AND_S = (DETERMINISTIC.model, STOCHASTIC.model)  # in one line
ONE_BY_ONE = (SINGLE_W.model, "ddim", "ancestral", "teacher")  # rows after those of D / S
METRICS = ("fid", "is")
HEADERS = {"fid": "FD", "is": "IS"}


PAPER_NAMES = {"imagenet2012-64x64": "imagenet64"}  # as `data.name` and size say it


def load_paper_results(data):
    """Rows of the paper's Tables 2 and 3 for a data set, in the keys of `results.json`.

    Each has `note`, which is not empty where Table 1 misprints the value. Other data sets than
    "cifar10" and "imagenet64" have none.
    """
    with open(PAPER_RESULTS, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["data"] == PAPER_NAMES.get(data, data)]
    return [
        row
        | {"w": float(row["w"]), "num_steps": int(row["num_steps"])}
        | {metric: float(row[metric]) for metric in METRICS}
        for row in rows
    ]


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
        SINGLE_W.model: f"Single-w {num_steps}-step",
    }
    return names.get(model) or f"Ours {num_steps}-step (D/S)"


def table_1(rows, costs):
    """Models by guidance weight: FD and IS in neighbouring columns, best of each in bold.

    `costs` are those of `round_costs`, here and below.
    """
    weights = sorted({row["w"] for row in rows})
    header = ["method", COST] + [f"{HEADERS[m]}, w = {w:g}" for w in weights for m in METRICS]
    by_key = index_rows(rows)
    few = [n for n in steps_of(rows, *D_AND_S) if n in TABLE_1_STEPS]
    body = []
    for models, steps in _groups(rows, few):
        cells = [
            _joined([by_key.get((model, steps, w)) for model in models], metric, rows, w)
            for w in weights
            for metric in METRICS
        ]
        body.append([label(models[0], steps), _joined_costs(costs, models, steps), *cells])
    return align([header, *body])


def table_2(rows, costs, paper=(), *, differences=False):
    """Grouped by guidance weight; with the paper's numbers, and ours less theirs, where asked."""
    theirs = index_rows(paper)
    by_key = index_rows(rows)
    header = ["w", "model", COST, *(HEADERS[m] for m in METRICS)]
    if paper:
        columns = ("paper", "difference") if differences else ("paper",)
        header += [f"{HEADERS[m]}, {of}" for m in METRICS for of in columns]
    body = []
    for w in sorted({row["w"] for row in rows}):
        first = True
        for models, steps in _groups(rows, steps_of(rows, *D_AND_S)):
            ours = [by_key.get((model, steps, w)) for model in models]
            if not any(ours):
                continue
            line = [f"{w:g}" if first else "", label(models[0], steps)]
            line.append(_joined_costs(costs, models, steps))
            line += [_joined(ours, metric) for metric in METRICS]
            if paper:
                printed = [theirs.get((model, steps, w)) for model in models]
                for metric in METRICS:
                    line.append(_joined(printed, metric))
                    line += [_difference(ours, printed, metric)] if differences else []
            body.append(line)
            first = False
    return align([header, *body])


def table_3(rows, costs, paper=()):
    """The two students of Algorithm 5, by w and N; '' where there are none."""
    theirs = index_rows(paper)
    ours = sorted(
        (row for row in rows if row["model"] == TWO_STUDENT.model),
        key=lambda row: (row["w"], row["num_steps"]),
    )
    if not ours:
        return ""
    by_key = index_rows(rows)
    header = ["w", "N", "calls", COST, "FD", "IS"]
    header += ["FD of DDIM, same N", "FD of ours (D), same N", f"its {COST}"]
    header += ["FD, paper", "IS, paper"] if paper else []
    body = []
    for row in ours:
        key = (row["num_steps"], row["w"])
        line = [f"{row['w']:g}", str(row["num_steps"]), str(row["network_calls"])]
        line.append(millions(costs, TWO_STUDENT.model, row["num_steps"]))
        line += [f"{row['fid']:.2f}", f"{row['is']:.2f}"]
        line += [
            _joined([by_key.get((model, *key))], "fid") for model in ("ddim", DETERMINISTIC.model)
        ]
        line.append(millions(costs, DETERMINISTIC.model, row["num_steps"]))
        if paper:
            printed = theirs.get((TWO_STUDENT.model, *key))
            line += [_joined([printed], metric) for metric in METRICS]
        body.append(line)
    return align([header, *body])


def naive_against_ddim(rows):
    """How often two students of Algorithm 5 are worse than plain guided DDIM of equal calls."""
    by_key = index_rows(rows)
    pairs = [
        (row, by_key["ddim", row["num_steps"], row["w"]])
        for row in rows
        if row["model"] == TWO_STUDENT.model and ("ddim", row["num_steps"], row["w"]) in by_key
    ]
    worse = sum(naive["fid"] > ddim["fid"] for naive, ddim in pairs)
    return (
        f"The naive students are worse than guided DDIM of as many calls in {worse} of "
        f"{len(pairs)} cases."
    )


def misprints(paper):
    """A line for each number that the paper misprints."""
    return [
        f"{label(row['model'], row['num_steps'])} at w = {row['w']:g}: {row['note']}; "
        f"Table 2 has the right {row['fid']:.2f} and {row['is']:.2f}."
        for row in paper
        if row["note"]
    ]


def sampler_table(rows):
    """The ratio of the two samplers' distances, by N and w; '' where one of them is missing."""
    by_key = index_rows(rows)
    weights = sorted({row["w"] for row in rows})
    body = []
    for steps in steps_of(rows, STOCHASTIC.model):
        pairs = [
            [by_key.get((row.model, steps, w)) for row in (STOCHASTIC, DETERMINISTIC)]
            for w in weights
        ]
        if all(s and d for s, d in pairs):
            body.append([str(steps)] + [f"{s['fid'] / d['fid']:.2f}" for s, d in pairs])
    header = ["N"] + [f"w = {w:g}" for w in weights]
    return align([header, *body]) if body else ""


def factor_table(costs):
    """Students by N, the factor of their rounds, and network evaluations spent.

    Args:
      costs: lines of `training_costs`, of one or several runs.
    """
    weights = sorted({w for line in costs for w in line["fid"]})
    header = ["N", "factor", COST, *(f"FD, w = {w:g}" for w in weights), "run"]
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
    return align([header, *body])


def training_costs(name, rows, stages):
    """What each deterministic student took to train, and its distances.

    Args:
      name: of the run.
      rows: its rows.
      stages: `provenance["stages"]` of its results.

    Returns:
      Plain dicts: `run`, `factor`, `num_steps`, `evaluations` as in `round_costs`, `fid` by w.
    """
    costs, distances = round_costs(stages), {}
    for row in rows:
        if row["model"] == DETERMINISTIC.model:
            distances.setdefault(row["num_steps"], {})[row["w"]] = row["fid"]
    return [
        {
            "run": name,
            "factor": stages[stage_name("step_two", DETERMINISTIC.algorithm, num_steps)]["factor"],
            "num_steps": num_steps,
            "evaluations": costs[DETERMINISTIC.model, num_steps],
            "fid": distances[num_steps],
        }
        for num_steps in sorted(distances, reverse=True)
    ]


def _groups(rows, student_steps):
    """((models of one line), N) in the paper's order: D / S first, then baselines, teacher."""
    groups = [(D_AND_S, steps) for steps in student_steps]
    for model in ONE_BY_ONE:
        groups += [((model,), steps) for steps in steps_of(rows, model)]
    return groups


def _joined_costs(costs, models, num_steps):
    """'6.46 / 6.46': the cost of one or two models' rounds; '' for what has none."""
    cells = [millions(costs, model, num_steps) for model in models]
    return " / ".join(cell or "-" for cell in cells) if any(cells) else ""


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
