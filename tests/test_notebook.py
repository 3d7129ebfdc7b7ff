"""The notebook, from its first cell to its last, in a kernel of its own."""

import nbformat
import pytest
from conftest import ROOT, SMALL, environment
from nbclient import NotebookClient

NOTEBOOK = ROOT / "launch" / "colab.ipynb"
SAMPLED = 5  # teacher, step one, three students; encoders have no samples


def pictures_of(outputs):
    """How many pictures are among the outputs."""
    return sum("image/png" in output.get("data", ()) for output in outputs)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """(notebook, folder of its workdirs) after a run of all cells on a small config."""
    base = tmp_path_factory.mktemp("notebook")
    run, tpu = str(base / "run"), str(base / "tpu")
    settings = {
        "parameters": dict(CONFIG=f"{SMALL}:encoder", WORKDIR=run),
        "tpu-parameters": dict(
            TPU_RUN=True, TPU_CONFIG=str(SMALL), TPU_WORKDIR=tpu, SHARE=0.5, NUM_SAMPLES=10
        ),
    }
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        for name, value in settings.pop(cell.id, {}).items():
            assert f"\n{name} = " in cell.source
            cell.source += f"\n{name} = {value!r}"
    assert not settings
    at = {"metadata": {"path": NOTEBOOK.parent}}
    NotebookClient(notebook, timeout=600, resources=at).execute(env=environment())
    return notebook, base


@pytest.mark.slow
def test_the_notebook_trains_compares_samples_and_translates(executed):
    notebook, base = executed
    outputs = {cell.id: cell.get("outputs") for cell in notebook.cells}
    assert "cpu" in outputs["devices"][0]["text"]
    assert pictures_of(outputs["train"]) == SAMPLED
    assert pictures_of(outputs["compare"]) == pictures_of(outputs["translate"]) == 1
    assert pictures_of(outputs["tpu"]) == SAMPLED + 1
    widgets = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    (dial,) = (w["state"]["outputs"] for w in widgets.values() if w["model_name"] == "OutputModel")
    assert pictures_of(dial) == len(dial) == 1
    for workdir in ("run", "tpu"):
        assert (base / workdir / "report" / "index.html").exists()


def test_the_notebook_holds_no_outputs_of_a_run():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
