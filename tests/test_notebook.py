"""The notebook: what it sets up, what it comes with, and all of it run in a process of its own."""

import fnmatch
import glob
import importlib.util
import json
import os
import re
import subprocess
import sys
import types

import nbformat
import pytest
from conftest import ROOT, SMALL, environment

NOTEBOOK = ROOT / "launch" / "colab.ipynb"
SAMPLED = 5  # teacher, step one, three students; encoders have no samples
MAX_BYTES = 300_000
SECONDS = re.compile(r"(?:^|\n)\d+\.\d s\n$")
NOT_TO_BE_SEEN = re.compile(r"(?<![\w.])/(?:tmp|work|root|opt|home|Users|var|dev)\b|Warning|\x1b")


def code_cells(path):
    """`{cell's id: code cell}`."""
    cells = nbformat.read(path, as_version=4).cells
    return {cell.id: cell for cell in cells if cell.cell_type == "code"}


def count_pictures(cell):
    return sum("image/png" in output.get("data", ()) for output in cell.outputs)


@pytest.fixture
def setup():
    """What the first cell defines, without what it does."""
    source, action, _ = code_cells(NOTEBOOK)["setup"].source.partition('\nif "began" not in')
    assert action
    module = types.ModuleType("setup")
    exec(source, module.__dict__)
    return module


@pytest.fixture
def nowhere(setup, monkeypatch, tmp_path):
    """An empty folder, with the package not installed; commands are noted, and clones appear."""
    calls = []

    def call(*command):
        calls.append(command)
        if command[0] == "git":
            for name in ("configs", "guided_distill"):
                (tmp_path / setup.CLONE / name).mkdir(parents=True)
            (tmp_path / setup.CLONE / "guided_distill" / "__init__.py").touch()
            (tmp_path / setup.CLONE / "requirements.txt").write_text("numpy>=2\nnobody_has_this\n")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(setup, "find_device", lambda: "")
    monkeypatch.setattr(setup, "call", call)
    return calls


@pytest.mark.parametrize(
    ("driver", "files", "variables", "device"),
    [
        ("580.65.06", [], {}, "NVIDIA GPU"),
        ("550.54.15", [], {}, "NVIDIA GPU (CUDA 12)"),
        (None, ["/proc/driver/nvidia/gpus/0000:00:04.0"], {}, "NVIDIA GPU"),
        (None, ["/dev/accel0"], {}, "TPU"),
        (None, ["/dev/vfio/0"], {}, "TPU"),
        ("", [], {"TPU_NAME": "local"}, "TPU"),
        ("", ["/dev/accel", "/dev/vfio/vfio"], {}, ""),  # other accelerators, no device in use
    ],
)
def test_the_device_is_found_by_what_its_driver_left(
    setup, monkeypatch, tmp_path, driver, files, variables, device
):
    for name in setup.TPU_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(tmp_path))
    if driver is not None:  # "" where there is the program and no GPU
        stub = tmp_path / "nvidia-smi"
        stub.write_text(f"#!/bin/sh\necho '{driver or 'NVIDIA-SMI has failed'}'\n")
        stub.chmod(0o755)
    monkeypatch.setattr(
        glob, "glob", lambda pattern: [f for f in files if fnmatch.fnmatch(f, pattern)]
    )
    assert setup.find_device() == device and device in setup.INSTALLS


def test_without_a_clone_and_an_address_one_line_says_what_to_set(setup, nowhere):
    with pytest.raises(setup.Stop, match="set REPOSITORY") as stopped:
        setup.set_up("")
    assert stopped.value._render_traceback_() == [str(stopped.value)]
    assert "\n" not in str(stopped.value) and nowhere == []


@pytest.mark.parametrize(
    ("device", "extra"), [("", "."), ("TPU", ".[tpu]"), ("NVIDIA GPU", ".[cuda]")]
)
def test_it_clones_once_and_installs_for_the_device(setup, nowhere, monkeypatch, device, extra):
    monkeypatch.setattr(setup, "find_device", lambda: device)
    assert setup.set_up("an/address") == device
    clone, install = nowhere
    assert (
        clone[-2:] == ("an/address", setup.CLONE) and os.path.basename(os.getcwd()) == setup.CLONE
    )
    assert install[:4] == (sys.executable, "-m", "pip", "install") and install[-1] == extra
    os.chdir("..")  # A new session begins where the first did.
    setup.set_up("an/address")
    assert nowhere[2:] == [install]


def test_in_a_clone_it_needs_no_address_and_installs_nothing(setup, nowhere, monkeypatch, capsys):
    monkeypatch.chdir(NOTEBOOK.parent)
    setup.set_up("")
    assert os.getcwd() == str(ROOT) and nowhere == []
    assert capsys.readouterr().out == "device: CPU\n"


def test_a_module_that_was_replaced_after_its_import_asks_for_a_restart(
    setup, nowhere, monkeypatch
):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys.modules["numpy"], "__version__", "1.26")
    with pytest.raises(setup.Stop, match="Restart the session and run again: numpy"):
        setup.set_up("")


def test_the_notebook_comes_with_small_outputs_of_a_run_of_its_own_cells():
    assert NOTEBOOK.stat().st_size <= MAX_BYTES
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    cells = code_cells(NOTEBOOK)
    assert [cell.execution_count for cell in cells.values()] == [*range(1, len(cells) + 1)]
    for cell in cells.values():
        assert SECONDS.search(cell.outputs[-1].text), cell.id
        for output in cell.outputs:
            texts = [output.text] if output.output_type == "stream" else output.data.values()
            assert output.get("name", "stdout") == "stdout" and output.output_type != "error"
            for text in texts if "image/png" not in output.get("data", ()) else ():
                assert not NOT_TO_BE_SEEN.search(text), text
    pictured = {name for name, cell in cells.items() if count_pictures(cell)}
    assert pictured == {"draw", "dial", "train", "compare", "own-dial", "translate"}


@pytest.mark.slow
def test_the_notebook_draws_trains_compares_samples_and_translates(tmp_path):
    run, tpu = str(tmp_path / "run"), str(tmp_path / "tpu")
    settings = {
        "parameters": dict(CONFIG=f"{SMALL}:encoder", WORKDIR=run),
        # In float32 most programs are those of the run above, compiled already.
        "tpu-parameters": dict(
            TPU_RUN=True, TPU_CONFIG=str(SMALL), TPU_WORKDIR=tpu, DTYPE="float32", SHARE=0.5,
            NUM_SAMPLES=10,
        ),
    }  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    arguments = [NOTEBOOK, tmp_path / "out.ipynb", tmp_path / "settings.json"]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "run_notebook.py", *arguments],
        cwd=NOTEBOOK.parent, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 x cpu" in done.stdout
    cells = code_cells(tmp_path / "out.ipynb")
    pictures = {name: count_pictures(cell) for name, cell in cells.items()}
    assert pictures["train"] == SAMPLED and pictures["tpu"] == SAMPLED + 1
    for name in ("draw", "dial", "compare", "own-dial", "translate"):
        assert pictures[name] == 1
    assert all(SECONDS.search(cell.outputs[-1].text) for cell in cells.values())
    for workdir in (run, tpu):
        assert (tmp_path / workdir / "report" / "index.html").exists()
