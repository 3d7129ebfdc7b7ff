"""The report of a run: `results.json`, a table for the terminal, `report.md` with images."""

import html
import pathlib
import re

from guided_distill.distill.distillations import round_costs
from guided_distill.report.curves import save_distance_by_calls, save_round_gaps, save_trade_off
from guided_distill.report.dial import dial_html, save_film
from guided_distill.report.grids import save_strips
from guided_distill.report.html import write_html
from guided_distill.report.tables import (
    COST_WORDS,
    MODEL_NAMES,
    align,
    calls_label,
    gap_table,
    main_model,
    same_noise,
    speed_table,
    star_best,
    table,
    translation_table,
)
from guided_distill.system.files import file_sha256, write_json
from guided_distill.system.processes import first_only
from guided_distill.system.progress import to_stderr

FILES = (  # that stand beside `results.json`; the last two may be missing
    "index.html", "report.md", "round_gaps.png", "distance_by_calls.png", "trade_off.png",
    "comparison.png", "student.png", "nearest.png", "dial.gif",
)  # fmt: skip
STRIP_LENGTH = 10
CHANCE_FACTOR = 2.0  # accuracy up to so many times chance is taken for chance


@first_only
def write_report(folder, results, images, nearest):
    """Writes the report into `folder`.

    Args:
      folder: `report/` of the workdir.
      results: plain JSON: `rows` of `Comparison.run`, `translations` of `measure_translation`,
        `round_gaps` of `measure_round_gaps`, and `provenance`, what the numbers rest on; with the
        digests of the report's other files it becomes `results.json`.
      images: those of `Comparison.run`; none of latents.
      nearest: blocks of `nearest_images`, or none.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = results["rows"]
    save_round_gaps(folder / "round_gaps.png", results["round_gaps"])
    save_distance_by_calls(folder / "distance_by_calls.png", rows)
    if rows[0]["is"] is not None:
        save_trade_off(folder / "trade_off.png", rows)
    if images:
        prompts = prompts_of(results["provenance"])
        compared, title = comparison_blocks(images), "The same noise through every model"
        save_strips(folder / "comparison.png", compared, title, prompts)
        dial, title = dial_blocks(images), "One student family: guidance weight by steps"
        save_strips(folder / "student.png", dial, title, prompts)
        save_film(folder / "dial.gif", images)
    if nearest:
        save_strips(
            folder / "nearest.png", nearest, "Samples and the training images nearest to them"
        )
    text = render_markdown(results, with_nearest=bool(nearest))
    (folder / "report.md").write_text(text, encoding="utf-8")
    write_html(folder / "index.html", text, dial_html(images, STRIP_LENGTH))
    files = {name: file_sha256(folder / name) for name in FILES if (folder / name).exists()}
    write_json(folder / "results.json", results | {"files": files})


def report_is_whole(folder, results):
    """Whether the files beside `results.json` are those that were written; says which is not."""
    for name, sha256 in results["files"].items():
        path = pathlib.Path(folder, name)
        if not path.exists() or file_sha256(path) != sha256:
            to_stderr(f"{path} is missing or damaged: it is made again")
            return False
    return True


def comparison_blocks(images):
    """One block per w: the full teacher, then DDIM and student at a middle N and the fewest."""
    student = main_model({model for model, _, _ in images})
    distilled = sorted({steps for model, steps, _ in images if model == student})
    shown = sorted({distilled[len(distilled) // 2], distilled[0]}, reverse=True)
    wanted = [("ddim", steps) for steps in shown] + [(student, steps) for steps in shown]
    blocks = {}
    for w in sorted({w for _, _, w in images}):
        full_steps = next(steps for model, steps, _ in images if model == "teacher")
        block = {
            calls_label(model, steps): images[model, steps, w][:STRIP_LENGTH]
            for model, steps in [("teacher", full_steps), *wanted]
            if (model, steps, w) in images
        }
        blocks[f"w = {w:g}"] = block
    return blocks


def dial_blocks(images, model=None):
    """One block per N of a model, one strip per w."""
    model = model or main_model({model for model, _, _ in images})
    blocks = {}
    for name, steps, w in sorted(images, key=lambda key: key[1:]):
        if name == model:
            strips = blocks.setdefault(f"N = {steps}", {})
            strips[f"w = {w:g}"] = images[name, steps, w][:STRIP_LENGTH]
    return blocks


def fewest_calls(images):
    """`{title: images}` by w of the main model with the fewest steps: the first of each strip."""
    model = main_model({model for model, _, _ in images})
    fewest = min(steps for name, steps, _ in images if name == model)
    return {
        f"N = {steps}, w = {w:g}": samples[:STRIP_LENGTH]
        for (name, steps, w), samples in images.items()
        if (name, steps) == (model, fewest)
    }


def terminal_summary(results):
    """What a run prints at its end."""
    rows, translations = results["rows"], results["translations"]
    provenance = results["provenance"]
    n = rows[0]["n"]
    translated = ["Style transfer of held-out pictures", translation_table(translations), ""]
    doubts = "".join(f"; {words}" for words in [feature_words(provenance)] if words)
    known = ""
    if provenance["classifier"]:
        known = f"; classifier {provenance['classifier_accuracy']:.1%} right on held-out data"
    return "\n".join(
        [
            chance_words(rows, provenance),
            f"{distance_name(provenance, n)} to {provenance['data']} on {provenance['features']} "
            f"(n = {n}{known}){doubts}; lower is better, * is the best",
            star_best(table(rows, "fid", 2)),
            "",
            "Same-noise RMSE to the full teacher; lower is better",
            star_best(table(same_noise(rows), "rmse_to_teacher", 3)),
            "",
            *clip_summary(rows, provenance),
            *(translated if translations else []),
        ]
    )


def clip_summary(rows, provenance):
    """The lines of the terminal on the CLIP score; none where it was not measured."""
    clip = provenance.get("clip")
    if not clip:
        return []
    real = f"{clip['real_pictures']:.2f} of real pictures"
    title = f"CLIP score with the own caption, on {clip['name']}; {real}; higher is better"
    return [title, star_best(table(rows, "clip_score", 2)), ""]


def chance_words(rows, provenance):
    """What is to be known of a teacher whose samples are seen as their class by chance; ''."""
    if rows[0]["accuracy"] is None:
        return ""
    seen = max(row["accuracy"] for row in rows if row["model"] == "teacher")
    chance = 1 / provenance["num_classes"]
    if provenance["num_classes"] == 1 or seen > CHANCE_FACTOR * chance:
        return ""
    return (
        f"The teacher's samples are seen as their class in {seen:.0%} of cases, and chance is "
        f"{chance:.0%}: these are no images yet, and nothing here tells one model from another."
    )


def on_inception(provenance):
    """Whether distances are on InceptionV3's features."""
    return provenance["features"].startswith("inception")


def on_imported(provenance):
    """Whether distances are on the features of a network that was imported."""
    return bool(provenance.get("evaluation", {}).get("features"))


def of_pictures(provenance):
    """Whether the samples are seen as pictures, and not as latents."""
    return provenance.get("pictures", True)


def prompts_of(provenance):
    """The prompts of the strips' columns; () where they are not known."""
    prompts = [prompt or "(not known)" for prompt in provenance.get("prompts") or ()]
    return [prompt.encode("utf-8", "replace").decode() for prompt in prompts]


def as_text(text):
    """A text on one line of Markdown, where nothing of it is markup."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]])", r"\\\1", text)


def learns_pictures(provenance):
    """Whether what models learn are pictures, and not latents, decoded or not."""
    return of_pictures(provenance) and not provenance.get("decoder")


def distance_name(provenance, n):
    """'FID-50k' for 50,000 samples on Inception features to real pictures and for nothing else."""
    if not of_pictures(provenance):
        return "Fréchet distance of latents"
    if not on_inception(provenance):
        return "Fréchet distance"
    if "decoder" in provenance["reference"]:
        return "FID among decoded latents"
    return "FID-50k" if n == 50_000 else f"FID of {n:,} samples"


def distance_words(provenance, n):
    """What the distance was measured on, and how it is biased."""
    reference = provenance["reference"]
    what = "pictures" if of_pictures(provenance) else "latents"
    size = f"{reference['n']:,} {what}" if "n" in reference else f"{reference['file']}"
    if "decoder" in reference:
        size += f" that {reference['decoder']} makes of the data's latents"
    on = f"To {size}, on {provenance['features']}; n = {n:,} samples in every row."
    if feature_words(provenance):
        on += f" {feature_words(provenance).capitalize()}."
    elif on_imported(provenance):
        on += " The features are those of an imported network: compare what is on the same alone."
    elif not on_inception(provenance):
        on += (
            " The features are those of a classifier trained on the same data, not Inception's: "
            "compare rows, not papers."
        )
    if n < 50_000:
        on += " A small n biases every value upwards."
    return on + clip_words(provenance)


def feature_words(provenance):
    """How far features that were not learnt can be trusted; '' of those that were."""
    if not of_pictures(provenance):
        return "no decoder was given: compare rows only"
    if provenance["features"].startswith("random-features"):
        return (
            "features of a network that learnt nothing, for there are no classes: compare rows "
            "only (evaluation.inception or evaluation.features give distances that mean more)"
        )
    return ""


def clipped_stages(provenance):
    """Names of the stages whose teacher was clipped in their targets."""
    return [
        name
        for name, stage in provenance["stages"].items()
        if stage["settings"].get("step_two", {}).get("clip_teacher")
    ]


def clip_words(provenance):
    """Which students learnt from a clipped teacher, as the paper's do not; '' for none."""
    clipped = clipped_stages(provenance)
    if not clipped:
        return ""
    return (
        " The teacher's predictions are clipped to [-1, 1] in the targets of "
        f"{', '.join(clipped)}; the paper's targets are not clipped."
    )


def with_clip_note(text, provenance):
    """What is shown of students, and which of them learnt from a clipped teacher."""
    clipped = clipped_stages(provenance)
    if not (text and clipped):
        return text
    return f"{text.rstrip()}\n\nTeacher clipped in the targets of {', '.join(clipped)}.\n"


def render_markdown(results, *, with_nearest):
    """The report as Markdown."""
    rows, provenance = results["rows"], results["provenance"]
    of_students = [
        _title(rows, provenance),
        _distance(rows, provenance),
        _same_noise(rows, provenance),
        _round_gaps(results["round_gaps"]),
        _classes(rows, provenance),
        _score(rows, provenance),
        _clip(rows, provenance),
        _neighbours(rows, provenance),
        _translation(results["translations"]),
        _dial(provenance),
        _nearest() if with_nearest else "",
    ]
    parts = [with_clip_note(part, provenance) for part in of_students]
    parts += [_speed(rows, provenance), _training(provenance), _provenance(provenance)]
    return "\n".join(part for part in parts if part)


def _title(rows, provenance):
    """What the run is, and the run at a glance."""
    full = next(row for row in rows if row["model"] == "teacher")
    student = main_model({row["model"] for row in rows})
    calls = [row["network_calls"] for row in rows if row["model"] == student]
    w_min, w_max = provenance["w_range"]
    one = "an image" if of_pictures(provenance) else "a sample"
    return f"""# {provenance["data"]}: distilled guided diffusion

A guided teacher that needs {full["network_calls"]} network calls for {one}, distilled into
students that need {min(calls)} to {max(calls)}, over guidance weights w in [{w_min:g}, {w_max:g}]
(w = 0 is unguided).

{chance_words(rows, provenance)}

{_glance_table(rows, provenance)}

{_strips(provenance)}"""


def _strips(provenance):
    if not of_pictures(provenance):
        return ""
    prompts = prompts_of(provenance)
    if not prompts:
        return """![The same noise through every model](comparison.png)

Every strip starts from the same ten noise samples and has the same labels.
"""
    lines = "\n".join(f"{k}. “{as_text(prompt)}”" for k, prompt in enumerate(prompts, start=1))
    return f"""![The same noise through every model](comparison.png)

Every strip starts from the same {len(prompts)} noise samples and has the same prompts, by column:

{lines}
"""


def _glance_table(rows, provenance):
    full = next(row for row in rows if row["model"] == "teacher")
    student = main_model({row["model"] for row in rows})
    fewest = min((row for row in rows if row["model"] == student), key=lambda r: r["num_steps"])
    speed_up = fewest["images_per_second"] / full["images_per_second"]
    minutes = sum(stage["seconds"] for stage in provenance["stages"].values()) / 60
    name, w = distance_name(provenance, full["n"]), full["w"]
    both = {
        f"{MODEL_NAMES['teacher']}, {full['network_calls']} calls": full,
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


def _distance(rows, provenance):
    n = rows[0]["n"]
    return f"""## {distance_name(provenance, n)}

{distance_words(provenance, n)} Lower is better; bold marks the best of the few-call models.
{COST_WORDS}

{table(rows, "fid", 2, round_costs(provenance["stages"]))}

![Fréchet distance against network calls](distance_by_calls.png)
{_trade_off(rows)}"""


def _trade_off(rows):
    if rows[0]["is"] is None:
        return ""
    return """
![Trade-off of distance and score over w](trade_off.png)
"""


def _same_noise(rows, provenance):
    what = "label, images in [-1, 1]"
    if not learns_pictures(provenance):
        what = "conditioning, latents as they are"
    text = f"""## Distance from the full teacher, sample by sample

Root mean square difference of samples from the same noise and {what}.

{table(same_noise(rows), "rmse_to_teacher", 3)}
"""
    to_step_one = [row for row in rows if row["rmse_to_step_one"] is not None]
    if not to_step_one:
        return text
    full = next(row for row in rows if row["model"] == "teacher")
    return f"""{text}
The same from the step-one model at {full["num_steps"]} steps, which is what step two distills:

{table(to_step_one, "rmse_to_step_one", 3)}
"""


def _round_gaps(gaps):
    return f"""## Which round lost what

Each student's one step against its teacher's sub-steps: RMSE of its prediction from the target of
its round, on noised training examples, over up to eight times t = i/N.

{gap_table(gaps)}

![Gap of each round over time](round_gaps.png)
"""


def _classes(rows, provenance):
    if rows[0]["accuracy"] is None:
        return ""
    return f"""## Class accuracy

Share of samples that get the class that was asked for from a classifier trained on the same data
({provenance["classifier"]}; {provenance["classifier_accuracy"]:.1%} right on
{provenance["test_size"]} held-out images):

{table(rows, "accuracy", 3)}
"""


def _score(rows, provenance):
    if rows[0]["is"] is None:
        return ""
    draws = provenance["evaluation"]["num_draws"]
    spread = f"{draws} draws" if draws > 1 else "10 splits"
    return f"""## Inception score

exp E[KL(p(y|x) ‖ p(y))] on {provenance["features"]}, mean ± deviation over {spread}:

{table(rows, "is", 2)}
"""


def _clip(rows, provenance):
    clip = provenance.get("clip")
    if not clip:
        return ""
    decoded, cut = ", decoded" if provenance.get("decoder") else "", ""
    if clip["captions_cut"]:
        cut = f" {clip['captions_cut']} of {clip['captions']} captions were cut at its limit."
    return f"""## CLIP score

100 max(cos, 0) of each sample and its own caption, the mean over n = {rows[0]["n"]:,} samples, on
{clip["name"]} ({clip["resize"]}); higher is better. The real pictures of the same captions{decoded}
have {clip["real_pictures"]:.2f}.{cut}

{table(rows, "clip_score", 2)}
"""


def _neighbours(rows, provenance):
    """Precision, recall and kernel distance; '' where the reference has no features of its own."""
    if rows[0]["precision"] is None:
        return ""
    text = f"""## Precision and recall

Share of samples among the training images (precision), and of those among the samples (recall),
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


def _translation(translations):
    if not translations:
        return ""
    return f"""## Style transfer

Held-out images, encoded with their own class and decoded with another; the round trip decodes
with their own.

{translation_table(translations)}
"""


def _speed(rows, provenance):
    left_out = "compilation and decoding" if provenance.get("decoder") else "compilation"
    return f"""## Speed

Measured in this run, {left_out} left out, batches of {provenance["batch_size"]}.

{speed_table(rows, "images" if of_pictures(provenance) else "samples")}
"""


def _dial(provenance):
    if not of_pictures(provenance):
        return ""
    named = "\nThe columns have the prompts that are listed under the first picture.\n"
    return f"""## One dial

![Guidance weight by number of steps](student.png)
{named if prompts_of(provenance) else ""}"""


def _nearest():
    return """## Nearest training images

![Samples and the training images nearest to them](nearest.png)

Nearest by features: a student that copied its data would show the same image twice.
"""


def _training(provenance):
    trained = [
        [
            name,
            f"{stage['updates']:,}",
            f"{stage['evaluations'] / 1e6:,.1f}",
            f"{stage['seconds']:.0f}",
        ]
        for name, stage in provenance["stages"].items()
    ]
    return f"""## What it took

{align([["stage", "updates", "million network evaluations", "seconds"], *trained])}

A forward pass of one example is one evaluation, forward and backward are three.
"""


def _provenance(provenance):
    """What the numbers rest on, in short."""
    reference, evaluation = provenance["reference"], provenance["evaluation"]
    guide = provenance.get("guide")
    has_classes = provenance["num_classes"] is not None
    asked = "classes in the training images' proportions"
    lines = {
        "data": f"{provenance['data']}, sha256 {reference.get('data_sha256', 'unknown')[:16]}",
        "reference": f"{reference.get('n', 'unknown number of')} examples",
        **({"decoder": provenance["decoder"]} if provenance.get("decoder") else {}),
        "features": f"{provenance['features']}, resize: {reference.get('resize', 'unknown')}",
        "guidance": f"by {guide}" if guide else "by the teacher's own null",
        "classifier": provenance["classifier"] or "none",
        "samples": f"{evaluation['num_samples']:,} a row, seed {evaluation['seed']}, "
        f"draws {evaluation['num_draws']}, "
        f"{asked if has_classes else 'conditioned as the held-out examples in turn'}",
        "software": f"jax {provenance['jax']} on {provenance['devices']}",
    }
    return f"""## Provenance

{align([["provenance", ""], *([key, value] for key, value in lines.items())])}

All settings and the hash of every stage's parameters stand in [results.json](results.json).
"""
