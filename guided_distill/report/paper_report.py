"""The report in the paper's layout, `paper.md`, from the results of finished runs."""

import dataclasses
import pathlib

from guided_distill.distill.distillations import round_costs
from guided_distill.report.curves import save_metrics_by_steps, save_trade_off
from guided_distill.report.html import write_html
from guided_distill.report.paper_tables import (
    factor_table,
    load_paper_results,
    misprints,
    naive_against_ddim,
    sampler_table,
    table_1,
    table_2,
    table_3,
    training_costs,
)
from guided_distill.report.tables import COST_WORDS, translation_table
from guided_distill.report.words import distance_name, distance_words, with_clip_note
from guided_distill.system.processes import first_only


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


@first_only
def write_paper_report(folder, runs):
    """Writes `paper.md`, and the curves in `paper/`, into `folder`.

    Args:
      folder: `report/` of the first workdir.
      runs: `Run`s, the first of which gives the title.
    """
    folder = pathlib.Path(folder)
    parts = [f"# {runs[0].provenance['data']}: the paper's tables and figures"]
    costs = []
    for run in runs:
        if len(runs) > 1:
            parts.append(f"# {run.name}")
        parts.append(introduction(run))
        sections = list_sections(run, draw_curves(folder, run))
        parts += [
            f"## {title}\n\n{with_clip_note(body, run.provenance)}"
            for title, body in sections.items()
            if body
        ]
        costs += training_costs(run.name, run.rows, run.provenance["stages"])
    if len({line["factor"] for line in costs}) > 1:
        parts.append(f"# By what factor to divide\n\n{COST_WORDS}\n\n{factor_table(costs)}")
    text = "\n\n".join(parts) + "\n"
    (folder / "paper.md").write_text(text, encoding="utf-8")
    write_html(folder / "paper.html", text)


def draw_curves(folder, run):
    """Draws the two figures of curves; returns `{title: path}` relative to `folder`."""
    curves = {
        "Figures 2, 8, 10: distance and score against the number of steps": (
            "metrics_by_steps",
            save_metrics_by_steps,
        ),
        "Figures 9, 11: trade-off of distance and score over w": ("trade_off", save_trade_off),
    }
    paths = {}
    for title, (name, draw) in curves.items():
        paths[title] = f"paper/{run.name}/{name}.png"
        draw(folder / paths[title], run.rows)
    return paths


def introduction(run):
    """What the numbers of a run are."""
    provenance = run.provenance
    beside = f" The paper has no numbers for {provenance['data']}: ours stand alone."
    if load_paper_results(provenance["data"]):
        beside = " The paper's numbers stand beside, and ours less theirs."
        if not is_comparable(run):
            beside = (
                " The paper's numbers stand beside for their trend alone: they are on Inception "
                "features with n = 50,000, these are not, so no difference is taken."
            )
    return f"""{distance_words(provenance, run.rows[0]["n"])} FD is the Fréchet distance on these
features (the paper's FID: on Inception features, n = 50,000), IS the inception score on them.
D / S: deterministic / stochastic sampler, each with the student distilled for it.
{COST_WORDS}{beside}"""


def is_comparable(run):
    """Whether a run is measured as the paper measures."""
    return distance_name(run.provenance, run.rows[0]["n"]) == "FID-50k"


def list_sections(run, curves):
    """`{title: Markdown}` of one run, '' where it has nothing to show."""
    rows = run.rows
    paper = load_paper_results(run.provenance["data"])
    images = curves | run.figures
    costs = round_costs(run.provenance["stages"])
    samplers, naive = sampler_table(rows), table_3(rows, costs, paper)
    everything = table_2(rows, costs, paper, differences=is_comparable(run))
    return {
        "Table 1: by guidance weight": table_1(rows, costs),
        "Table 2: everything": "\n\n".join([everything, *misprints(paper)]),
        "Stochastic against deterministic": samplers
        and "Fréchet distance of S over that of D; below 1 the stochastic sampler is better. Where "
        "rounds halve, the 1-step stochastic student is a copy of the 2-step one, whose own "
        f"prediction at t = 1 is its target.\n\n{samplers}",
        "Table 3: naive progressive distillation (Algorithm 5)": naive
        and f"{naive}\n\n{naive_against_ddim(rows)}",
        "Style transfer (Figures 3, 4, 12)": run.translations
        and translation_table(run.translations),
        **{title: f"![{title}]({path})" for title, path in images.items()},
    }
