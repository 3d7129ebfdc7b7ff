"""`report.md`, a function a section."""

from guided_distill.distill.distillations import round_costs
from guided_distill.report.tables import (
    COST_WORDS,
    MODEL_NAMES,
    align,
    calls_label,
    gap_table,
    main_model,
    same_noise,
    speed_table,
    table,
    translation_table,
)
from guided_distill.report.words import (
    as_text,
    chance_words,
    distance_name,
    distance_words,
    learns_pictures,
    of_pictures,
    on_inception,
    prompts_of,
    with_clip_note,
)


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
