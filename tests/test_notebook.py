"""The notebook, from its first cell to its last, in a process of its own."""

import json
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT, SMALL, environment

NOTEBOOK = ROOT / "launch" / "colab.ipynb"
SAMPLED = 5  # teacher, step one, three students; encoders have no samples


@pytest.mark.slow
def test_the_notebook_trains_compares_samples_and_translates(tmp_path):
    run, tpu = str(tmp_path / "run"), str(tmp_path / "tpu")
    settings = {
        "parameters": dict(CONFIG=f"{SMALL}:encoder", WORKDIR=run),
        "tpu-parameters": dict(
            TPU_RUN=True, TPU_CONFIG=str(SMALL), TPU_WORKDIR=tpu, SHARE=0.5, NUM_SAMPLES=10
        ),
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    arguments = [NOTEBOOK, tmp_path / "settings.json", tmp_path / "shown.json"]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "run_notebook.py", *arguments],
        cwd=NOTEBOOK.parent, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cpu" in done.stdout
    shown = json.loads((tmp_path / "shown.json").read_text())
    images = {cell: sum("image/png" in kinds for kinds in shown[cell]) for cell in shown}
    assert images["train"] == SAMPLED and images["tpu"] == SAMPLED + 1
    assert images["compare"] == images["dial"] == images["translate"] == 1
    for workdir in (run, tpu):
        assert (tmp_path / workdir / "report" / "index.html").exists()


def test_the_notebook_holds_no_outputs_of_a_run():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
