"""The report of a run: `results.json`, a table for the terminal, `report.md` with pictures."""

import pathlib
import re

from guided_distill.evaluation.curves import save_distance_by_calls, save_round_gaps, save_trade_off
from guided_distill.evaluation.html import write_html
from guided_distill.evaluation.pictures import save_strips
from guided_distill.processes import first_only
from guided_distill.training.checkpoint import write_json

MODEL_NAMES = {
    "teacher": "full teacher",
    "step_one": "step one",
    "student": "student",
    "stochastic": "stochastic student",
    "single_w": "single-w student",
    "two_student": "two students",
    "ddim": "guided DDIM",
    "ancestral": "guided DDPM",
}
REFERENCES = ("teacher", "step_one")
BASELINES = ("ddim", "ancestral")
PAIRS = ("teacher", "two_student", *BASELINES)  # two network calls per step
STRIP_LENGTH = 10
NEAREST_PART = """## Nearest training pictures

![Samples and the training pictures nearest to them](nearest.png)

Nearest by features: a student that copied its data would show the same picture twice.
"""
HIGHER_IS_BETTER = ("accuracy", "is", "precision", "recall")
SCALES = {"kid": 1000}


@first_only
def write_report(folder, results, pictures, nearest):
    """Writes the report into `folder`.

    Args:
      folder: `report/` of the workdir.
      results: plain JSON: `rows` of `Evaluation.run`, `translations` of `measure_translation`,
        `round_gaps` of `measure_round_gaps`, and `provenance`, what the numbers rest on.
      pictures: pictures of `Evaluation.run`.
      nearest: blocks of `nearest_pictures`, or none.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = results["rows"]
    save_round_gaps(folder / "round_gaps.png", results["round_gaps"])
    save_distance_by_calls(folder / "distance_by_calls.png", rows)
    save_trade_off(folder / "trade_off.png", rows)
    compared = comparison_blocks(pictures)
    save_strips(folder / "comparison.png", compared, "The same noise through every model")
    dial = dial_blocks(pictures)
    save_strips(folder / "student.png", dial, "One student family: guidance weight by steps")
    if nearest:
        save_strips(
            folder / "nearest.png", nearest, "Samples and the training pictures nearest to them"
        )
    text = render_markdown(results, with_nearest=bool(nearest))
    (folder / "report.md").write_text(text)
    write_html(folder / "index.html", text)
    write_json(folder / "results.json", results)


def main_model(models):
    """The distilled model that a report is about: the student, or what there is in its place."""
    distilled = [m for m in MODEL_NAMES if m not in REFERENCES + BASELINES]
    return next(model for model in distilled if model in models)


def comparison_blocks(pictures):
    """One block per w: the full teacher, then DDIM and student at a middle N and the fewest."""
    student = main_model({model for model, _, _ in pictures})
    distilled = sorted({steps for model, steps, _ in pictures if model == student})
    shown = sorted({distilled[len(distilled) // 2], distilled[0]}, reverse=True)
    wanted = [("ddim", steps) for steps in shown] + [(student, steps) for steps in shown]
    blocks = {}
    for w in sorted({w for _, _, w in pictures}):
        full_steps = next(steps for model, steps, _ in pictures if model == "teacher")
        block = {
            calls_label(model, steps): pictures[model, steps, w][:STRIP_LENGTH]
            for model, steps in [("teacher", full_steps), *wanted]
            if (model, steps, w) in pictures
        }
        blocks[f"w = {w:g}"] = block
    return blocks


def dial_blocks(pictures, model=None):
    """One block per N of a model, one strip per w."""
    model = model or main_model({model for model, _, _ in pictures})
    blocks = {}
    for name, steps, w in sorted(pictures, key=lambda key: key[1:]):
        if name == model:
            strips = blocks.setdefault(f"N = {steps}", {})
            strips[f"w = {w:g}"] = pictures[name, steps, w][:STRIP_LENGTH]
    return blocks


def calls_label(model, num_steps):
    """'student, 4 calls'."""
    calls = num_steps * (2 if model in PAIRS else 1)
    return f"{MODEL_NAMES[model]}, {calls} call{'s' if calls > 1 else ''}"


def table(rows, metric, digits):
    """A Markdown table of one metric: a line per model and N, a column per w.

    The best of the few-call models (all but the references) in each column is bold.
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
    header = ["model", "N", "calls"] + [f"w = {w:g}" for w in weights]
    return align([header, *body])


def glance_table(rows, provenance, minutes):
    """The run at a glance."""
    full = next(row for row in rows if row["model"] == "teacher")
    student = main_model({row["model"] for row in rows})
    fewest = min((row for row in rows if row["model"] == student), key=lambda r: r["num_steps"])
    speed_up = fewest["images_per_second"] / full["images_per_second"]
    name, w = distance_name(provenance, full["n"]), full["w"]
    both = {
        f"full teacher, {full['network_calls']} calls": full,
        calls_label(student, fewest["num_steps"]): fewest,
    }
    return align(
        [
            ["at a glance", ""],
            ["data", provenance["data"]],
            ["training", f"{minutes:.1f} minutes on {provenance['devices']}"],
            *([f"{name}, w = {w:g}: {who}", f"{row['fid']:.2f}"] for who, row in both.items()),
            ["speed-up of the latter", f"{speed_up:,.0f} x"],
        ]
    )


def provenance_table(provenance):
    """What the numbers rest on, in short."""
    reference, evaluation = provenance["reference"], provenance["evaluation"]
    lines = {
        "data": f"{provenance['data']}, sha256 {reference.get('data_sha256', 'unknown')[:16]}",
        "reference": f"{reference.get('n', 'unknown number of')} pictures",
        "features": f"{provenance['features']}, resize: {reference.get('resize', 'unknown')}",
        "classifier": provenance["classifier"],
        "samples": f"{evaluation['num_samples']:,} a row, seed {evaluation['seed']}, "
        f"draws {evaluation['num_draws']}",
        "software": f"jax {provenance['jax']} on {provenance['devices']}",
    }
    return align([["provenance", ""], *([key, value] for key, value in lines.items())])


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


def speed_table(rows):
    """Images per second of each model over all w, and the speed-up over the full teacher."""
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
    return align([["model", "N", "calls", "images/s", "speed-up"], *body])


def translation_table(rows):
    """A Markdown table of the rows of `measure_translation`."""
    header = [
        "encoder and decoder", "N each", "calls", "w", "seen as the target",
        "RMSE to source", "of fresh noise", "round trip",
    ]  # fmt: skip
    body = [
        [
            row["system"],
            str(row["num_steps"]),
            str(row["network_calls"]),
            f"{row['w']:g}",
            f"{row['target_accuracy']:.1%}",
            f"{row['rmse_to_source']:.3f}",
            f"{row['rmse_of_fresh_to_source']:.3f}",
            f"{row['round_trip_rmse']:.3f}",
        ]
        for row in rows
    ]
    return align([header, *body])


def terminal_summary(results):
    """What a run prints at its end."""
    rows, translations = results["rows"], results["translations"]
    provenance = results["provenance"]
    n = rows[0]["n"]
    translated = ["Style transfer of held-out pictures", translation_table(translations), ""]
    return "\n".join(
        [
            "",
            f"{distance_name(provenance, n)} to {provenance['data']} on {provenance['features']} "
            f"(n = {n}; classifier {provenance['classifier_accuracy']:.1%} right on held-out "
            "data); lower is better, * is the best",
            star_best(table(rows, "fid", 2)),
            "",
            "Same-noise RMSE to the full teacher; lower is better",
            star_best(table(same_noise(rows), "rmse_to_teacher", 3)),
            "",
            *(translated if translations else []),
        ]
    )


def star_best(text):
    """A Markdown table for the terminal: a star in place of bold, in as many columns."""
    return re.sub(r"\*\*(.+?)\*\*", r"   *\1", text)


def neighbours_part(rows, provenance):
    """Precision, recall and kernel distance; '' where the reference has no features of its own."""
    if rows[0]["precision"] is None:
        return ""
    text = f"""
## Precision and recall

Share of samples among the training pictures (precision), and of those among the samples (recall),
by balls to the third neighbour:

{table(rows, "precision", 3)}

{table(rows, "recall", 3)}
"""
    if on_inception(provenance):
        text += f"""
## Kernel inception distance

Unbiased squared MMD with the cubic kernel x 1000, mean ± deviation over subsets; lower is better:

{table(rows, "kid", 2)}
"""
    return text


def on_inception(provenance):
    """Whether distances are on InceptionV3's features."""
    return provenance["features"].startswith("inception")


def distance_name(provenance, n):
    """'FID-50k' for 50,000 samples on Inception features and for nothing else."""
    if not on_inception(provenance):
        return "Fréchet distance"
    return "FID-50k" if n == 50_000 else f"FID of {n:,} samples"


def distance_words(provenance, n):
    """What the distance was measured on, and how it is biased."""
    reference = provenance["reference"]
    size = f"{reference['n']:,} pictures" if "n" in reference else f"{reference['file']}"
    on = f"To {size}, on {provenance['features']}; n = {n:,} samples in every row."
    if not on_inception(provenance):
        on += (
            " The features are those of a classifier trained on the same data, not Inception's: "
            "compare rows, not papers."
        )
    if n < 50_000:
        on += " A small n biases every value upwards."
    return on


def render_markdown(results, *, with_nearest):
    """The report as Markdown."""
    rows, translations = results["rows"], results["translations"]
    provenance = results["provenance"]
    full = next(row for row in rows if row["model"] == "teacher")
    student = main_model({row["model"] for row in rows})
    students = [row for row in rows if row["model"] == student]
    fewest = min(students, key=lambda row: row["network_calls"])
    stages = provenance["stages"]
    minutes = sum(stage["seconds"] for stage in stages.values()) / 60
    trained = [
        [
            name,
            f"{stage['updates']:,}",
            f"{stage['evaluations'] / 1e6:,.1f}",
            f"{stage['seconds']:.0f}",
        ]
        for name, stage in stages.items()
    ]
    to_step_one = [row for row in rows if row["rmse_to_step_one"] is not None]
    step_one_part = f"""
The same from the step-one model at {full["num_steps"]} steps, which is what step two distills:

{table(to_step_one, "rmse_to_step_one", 3)}
"""
    translation_part = f"""
## Style transfer

Held-out pictures, encoded with their own class and decoded with another; the round trip decodes
with their own.

{translation_table(translations)}
"""
    return f"""# {provenance["data"]}: distilled guided diffusion

A guided teacher that needs {full["network_calls"]} network calls for a picture, distilled into
students that need {fewest["network_calls"]} to {max(r["network_calls"] for r in students)}, over
guidance weights w in [{provenance["w_range"][0]:g}, {provenance["w_range"][1]:g}] (w = 0 is
unguided).

{glance_table(rows, provenance, minutes)}

![The same noise through every model](comparison.png)

Every strip starts from the same ten noise samples, labels 0 to 9 of the data set's classes.

## {distance_name(provenance, full["n"])}

{distance_words(provenance, full["n"])} Lower is better; bold marks the best of the few-call models.

{table(rows, "fid", 2)}

![Fréchet distance against network calls](distance_by_calls.png)

![Trade-off of distance and score over w](trade_off.png)

## Distance from the full teacher, sample by sample

Root mean square difference of samples from the same noise and label, pictures in [-1, 1].

{table(same_noise(rows), "rmse_to_teacher", 3)}
{step_one_part if to_step_one else ""}
## Which round lost what

Each student's one step against its teacher's sub-steps: RMSE of its prediction from the target of
its round, on noised training pictures, over up to eight times t = i/N.

{gap_table(results["round_gaps"])}

![Gap of each round over time](round_gaps.png)

## Class accuracy and inception score

Share of samples that get the class that was asked for from a classifier trained on the same data
({provenance["classifier"]}; {provenance["classifier_accuracy"]:.1%} right on
{provenance["test_size"]} held-out pictures):

{table(rows, "accuracy", 3)}

exp E[KL(p(y|x) ‖ p(y))] on {provenance["features"]}, mean ± deviation over 10 splits:

{table(rows, "is", 2)}
{neighbours_part(rows, provenance)}
{translation_part if translations else ""}
## Speed

Measured in this run, compilation left out, batches of {provenance["batch_size"]}.

{speed_table(rows)}

## One dial

![Guidance weight by number of steps](student.png)

{NEAREST_PART if with_nearest else ""}
## What it took

{align([["stage", "updates", "million network evaluations", "seconds"], *trained])}

A forward pass of one example is one evaluation, forward and backward are three.

## Provenance

{provenance_table(provenance)}

All settings and the hash of every stage's parameters stand in [results.json](results.json).
"""
