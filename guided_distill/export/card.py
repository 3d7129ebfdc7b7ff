"""What every card of a student says: where it comes from, and what was measured of it."""

import textwrap

from guided_distill.distill.distillations import distillation_of
from guided_distill.report.tables import table

METHOD = "On Distillation of Guided Diffusion Models (Meng et al.), with guided_distill"


def origin_of(record, num_steps, base_model):
    """A list of a student's provenance.

    Args:
      record: of its stage.
      num_steps: N.
      base_model: in words.
    """
    low, high = record["w_range"]
    data = f"{record['data']} (sha256 `{record['data_sha256']}`)" if record["data"] else "not said"
    lines = [
        f"- base model: {base_model}",
        f"- stage: {record['name']}, N = {num_steps}, w in [{low:g}, {high:g}]",
        f"- data: {data}",
        f"- parameters: sha256 `{record['params_sha256']}`",
        f"- method: {METHOD}",
    ]
    return "\n".join(lines)


def results_of(record, num_steps, results):
    """Parts of a card: the table of the student's rows in a run's results, where they are its own.

    Args:
      record: of its stage.
      num_steps: N.
      results: `results.json` of the run, None where it was not measured.
    """
    if results is None:
        return []
    provenance = results["provenance"]
    if provenance["params_sha256"].get(record["name"]) != record["params_sha256"]:
        return []
    low, high = record["w_range"]
    row = distillation_of(record)
    own = ((row.model if row else "step_one"), num_steps)
    rows = [
        row
        for row in results["rows"]
        if low <= row["w"] <= high
        and (row["model"] == "teacher" or (row["model"], row["num_steps"]) == own)
    ]
    if not any((row["model"], row["num_steps"]) == own for row in rows):
        return []
    words = f"Fréchet distance, lower is better. {provenance['distance']}"
    return ["## Results", textwrap.fill(words, 100), table(rows, "fid", 2)]
