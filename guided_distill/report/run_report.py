"""The report of a run: `results.json`, a table for the terminal, `report.md` with images."""

import pathlib

from guided_distill.report.curves import save_distance_by_calls, save_round_gaps, save_trade_off
from guided_distill.report.dial import dial_html, save_film
from guided_distill.report.grids import save_strips
from guided_distill.report.html import write_html
from guided_distill.report.run_sections import (
    render_markdown,
)
from guided_distill.report.tables import (
    calls_label,
    main_model,
    same_noise,
    star_best,
    table,
    translation_table,
)
from guided_distill.report.words import (
    chance_words,
    distance_name,
    feature_words,
    prompts_of,
)
from guided_distill.system.files import file_sha256, write_json
from guided_distill.system.processes import first_only
from guided_distill.system.progress import to_stderr

FILES = (  # that stand beside `results.json`; the last two may be missing
    "index.html", "report.md", "round_gaps.png", "distance_by_calls.png", "trade_off.png",
    "comparison.png", "student.png", "nearest.png", "dial.gif",
)  # fmt: skip
STRIP_LENGTH = 10


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
