"""The card of a student's own folder: what it is, and the few lines that sample it."""

import textwrap

from guided_distill.export.card import origin_of, results_of

FILES = {
    "stage.json": "what the student is: network, schedule, w range, data, updates, seed",
    "params.safetensors": "its parameters",
}
PROGRAM_FILES = {
    "sample.jax.gz, noise.jax.gz, program.json": "its sampler as `jax.export` artifacts, for "
    "CPU, CUDA and TPU and any number of samples, and what they take",
    "load.py": "the loader of those; needs JAX and NumPy",
}


def write_card(path, record, num_steps, results, *, name, with_program):
    """Writes the folder's README.md.

    Args:
      path: of the file.
      record: of the stage.
      num_steps: N.
      results: `results.json` of the run, None where it was not measured.
      name: of the folder.
      with_program: whether the folder has its program.
    """
    taught = "one that was imported" if "model" in record else "a teacher of the same run"
    parts = [
        f"# {name}",
        _what(record, num_steps),
        "## Use",
        f"```python\n{_snippet(record, num_steps, name)}\n```",
        *(_loader(record, name) if with_program else []),
        "## Files",
        _files(with_program),
        "## Where it comes from",
        origin_of(record, num_steps, taught),
        *results_of(record, num_steps, results),
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _what(record, num_steps):
    calls = f"{num_steps} network call{'s' if num_steps > 1 else ''}"
    low, high = record["w_range"]
    shape = " x ".join(map(str, record["image_shape"]))
    classes = f", of {record['num_classes']} classes" if record["num_classes"] else ""
    return textwrap.fill(
        f"A distilled guided diffusion model that draws samples of {shape}{classes} in {calls}. "
        f"The guidance weight w is a dial from {low:g} to {high:g}; 0 is unguided, and what others "
        "call a guidance scale is 1 + w.",
        100,
    )


def _example(record):
    """(conditioning, w) as one types them."""
    low, high = record["w_range"]
    many = record["num_classes"]
    cond = str([k % many for k in range(4)]) if many else "cond"
    return cond, f"{min(max(2.0, low), high):g}"


def _snippet(record, num_steps, name):
    cond, w = _example(record)
    lines = ["import guided_distill", ""]
    lines.append(f'sampler = guided_distill.Sampler.load("{name}", num_steps={num_steps})')
    lines.append(f"images = sampler({cond}, w={w}, seed=0)")
    return "\n".join(lines)


def _loader(record, name):
    cond, w = _example(record)
    words = "Where guided_distill is not installed, from inside the folder, the same numbers:"
    return [words, f"```python\nfrom load import sample\n\nx = sample({cond}, w={w}, seed=0)\n```"]


def _files(with_program):
    lines = []
    for names, what in (FILES | (PROGRAM_FILES if with_program else {})).items():
        quoted = ", ".join(f"`{one}`" for one in names.split(", "))
        lines.append(textwrap.fill(f"- {quoted}: {what}", 100, subsequent_indent="  "))
    return "\n".join(lines)
