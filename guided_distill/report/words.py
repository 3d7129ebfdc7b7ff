"""What a report says of its numbers: what they stand on, and what they must not be taken for."""

import html
import re

CHANCE_FACTOR = 2.0  # accuracy up to so many times chance is taken for chance


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
