"""The card of a student's diffusers folder: what it is, how it is sampled, what is not known."""

import json
import pathlib
import textwrap

from guided_distill.export.card import origin_of, results_of
from guided_distill.models.to_diffusers import needs_sigmas

PICTURE_TO_PICTURE = {"StableDiffusionPipeline", "StableDiffusionXLPipeline"}
LABELS = "class_labels"


def write_card(path, student, record, results, *, name, w=None):
    """Writes the folder's README.md.

    Args:
      path: of the file.
      student: `models.to_diffusers.Student`.
      record: of the stage.
      results: `results.json` of the run, None where it was not measured.
      name: of the folder, as one would load it.
      w: that is folded in; None where the folder keeps the dial.
    """
    parts = [
        _metadata(student),
        f"# {pathlib.PurePath(name).name}",
        _what(student, record, w),
        "## Use",
        f"```python\n{_snippet(student, record, name, w)}\n```",
        _hints(student, record, w),
        "## Where it comes from",
        _origin(student, record),
        *results_of(record, student.num_steps, results),
        "## License",
        "Not known here. The base model's license binds this one; add a `license:` line above "
        "before you publish the folder.",
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def base_model(source):
    """Name of a diffusers folder as hubs know it: of a download cache, else its last part."""
    path = pathlib.PurePath(source)
    cached = [part for part in path.parts if part.startswith("models--")]
    return cached[-1].removeprefix("models--").replace("--", "/") if cached else path.name


def _takes(student):
    """What the pipeline is given: "prompt", LABELS or ""."""
    conditioning = student.description["conditioning"]
    if LABELS in conditioning:
        return LABELS
    return "prompt" if conditioning else ""


def _metadata(student):
    task = "text-to-image" if _takes(student) == "prompt" else "unconditional-image-generation"
    lines = [
        "---",
        "library_name: diffusers",
        f"pipeline_tag: {task}",
        f"base_model: {json.dumps(base_model(student.diffusers['source']), ensure_ascii=False)}",
        "base_model_relation: finetune",
        "tags:",
        "- guidance-distillation",
        "- progressive-distillation",
        f"- {student.num_steps}-step",
        "---",
    ]
    return "\n".join(lines)


def _what(student, record, w):
    calls = f"{student.num_steps} network call{'s' if student.num_steps > 1 else ''}"
    low, high = record["w_range"]
    if w is None:
        dial = (
            f"The guidance weight w is a dial from {low:g} to {high:g} (0 is unguided), given as "
            "`guidance_scale = 1 + w`. The stock pipeline does not refuse a w outside of that "
            "range, but the student never learnt it."
        )
    else:
        dial = (
            f"The guidance weight is fixed at w = {w:g} (0 is unguided; elsewhere that is a "
            f"guidance scale of {1 + w:g}), folded into the weights. The pipeline itself must not "
            "guide any more: `guidance_scale=1.0`, where it takes one."
        )
    return textwrap.fill(
        f"A student of {base_model(student.diffusers['source'])} that samples in {calls}, one per "
        f"image and step: guidance is part of the network. {dial} It is made for "
        f"{student.num_steps} steps on its own scheduler, which is in this folder; other numbers "
        "of steps and other schedulers are not what it learnt.",
        100,
    )


def _snippet(student, record, name, w):
    if _takes(student) == LABELS and student.diffusers["class"] == "UNet2DModel":
        return _loop(student, name)
    arguments = [f"num_inference_steps={student.num_steps}"]
    if w is None:
        arguments.append("guidance_scale=1 + w")
    elif _takes(student):
        arguments.append("guidance_scale=1.0")
    if needs_sigmas(student):
        sigmas = [round(i / student.num_steps, 6) for i in range(student.num_steps, 0, -1)]
        arguments.append(f"sigmas={sigmas}")
    if student.description["bound"] is not None:
        arguments.append("use_clipped_model_output=True")
    prompt = {"prompt": '"a red bicycle"', LABELS: "class_labels=[0]", "": "batch_size=1"}
    lines = ["from diffusers import DiffusionPipeline", ""]
    lines.append(f"pipe = DiffusionPipeline.from_pretrained({json.dumps(name)})")
    if w is None:
        low, high = record["w_range"]
        lines.append(f"w = {min(max(2.0, low), high):g}  # {low:g} to {high:g}")
    call = ",\n    ".join([prompt[_takes(student)], *arguments])
    lines.append(f"image = pipe(\n    {call},\n).images[0]")
    return "\n".join(lines)


def _loop(student, name):
    """Of networks that no pipeline gives a class to."""
    shape = student.description["sample_shape"]
    clip = ", use_clipped_model_output=True" if student.description["bound"] is not None else ""
    return textwrap.dedent(f"""\
        import torch
        from diffusers import DDIMScheduler, UNet2DModel

        unet = UNet2DModel.from_pretrained({json.dumps(name)}, subfolder="unet")
        scheduler = DDIMScheduler.from_pretrained({json.dumps(name)}, subfolder="scheduler")
        scheduler.set_timesteps({student.num_steps})
        labels = torch.tensor([0])
        z = torch.randn(1, {shape[-1]}, {shape[0]}, {shape[1]})
        with torch.no_grad():
            for time in scheduler.timesteps:
                says = unet(z, time, labels).sample
                z = scheduler.step(says, time, z{clip}).prev_sample
        image = (z / 2 + 0.5).clamp(0, 1)""")


def _hints(student, record, w):
    steps, hints = student.num_steps, []
    if w is None:
        hints.append(
            "A negative prompt has no effect: there is no second, unconditional call for it."
        )
    if needs_sigmas(student):
        hints.append(
            "`sigmas` must be given as above: the scheduler's own spacing leaves the student's "
            "grid at more than two steps."
        )
    if student.description["bound"] is not None:
        hints.append(
            "`use_clipped_model_output=True` goes with the scheduler's `clip_sample`: the student "
            "is sampled so that ε belongs to the clipped x."
        )
    if student.diffusers["pipeline"] in PICTURE_TO_PICTURE:
        strengths = ", ".join(f"{k / steps:g}" for k in range(1, steps + 1))
        hints.append(
            "`AutoPipelineForImage2Image` and `AutoPipelineForInpainting` load the folder too. "
            f"`strength=k/{steps}` begins at the student's own time k/{steps} and takes k calls "
            f"({strengths}); any other strength is cut to the one below, and below "
            f"{1 / steps:g} nothing is left."
        )
    return "\n".join(textwrap.fill(f"- {hint}", 100, subsequent_indent="  ") for hint in hints)


def _origin(student, record):
    diffusers = student.diffusers
    base = f"{base_model(diffusers['source'])}, its `{diffusers['component']}` "
    return origin_of(record, student.num_steps, f"{base}({diffusers['class']})")
