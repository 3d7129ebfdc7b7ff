"""Runs a notebook's cells one after the other, as a kernel would, and keeps what each showed:

    python tests/run_notebook.py NOTEBOOK OUT [SETTINGS]

OUT is the notebook with its outputs. SETTINGS is JSON, `{cell's id: {name: value}}`: where the cell
assigns the name, it assigns this value instead. There is no kernel and no port: an error in a cell
ends the process, and widgets show what they hold at once.

The outputs that launch/colab.ipynb comes with are of this (a run that was finished before draws
nothing):

    rm -rf runs/digits_smoke
    python tests/run_notebook.py launch/colab.ipynb launch/colab.ipynb

What a person should see is kept: results and pictures. Progress, warnings and the like, all that
goes to standard error, is shown here alone; and of widgets, which need a kernel, what they hold.
"""

import base64
import contextlib
import io
import json
import pathlib
import re
import sys

import matplotlib
import nbformat
import PIL.Image
from IPython.core.displayhook import CapturingDisplayHook
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

matplotlib.use("Agg")
COLOURS = 32
KEPT = ("text/plain", "text/markdown", "image/png")
WIDGET = "application/vnd.jupyter.widget-view+json"


class Stdout(io.TextIOBase):
    """Standard output among a cell's other outputs, and on the terminal as well."""

    def __init__(self, outputs):
        self.outputs, self.terminal = outputs, sys.stdout

    def write(self, text):
        if not (self.outputs and "text" in self.outputs[-1]):
            self.outputs.append({"text": ""})
        self.outputs[-1]["text"] += text
        return self.terminal.write(text)


def run(notebook, settings):
    """Runs the code cells, and puts into each what it showed, in its order."""
    shell = InteractiveShell.instance()
    shell.display_pub = CapturingDisplayPublisher()
    shown = shell.display_pub.outputs
    shell.display_trap.hook = CapturingDisplayHook(shell, shown)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(cells, 1):
        source = assign(cell.source, settings.pop(cell.id, {}))
        shown.clear()
        with contextlib.redirect_stdout(Stdout(shown)):
            result = shell.run_cell(source)
        result.raise_error()
        cell.execution_count = count
        cell.outputs = [output_of(one) for one in shown if WIDGET not in one.get("data", ())]
    assert not settings, settings


def assign(source, values):
    """A cell's source with other values where it first assigns these names."""
    for name, value in values.items():
        line = f"{name} = {value!r}"
        before = re.search(rf"^{name} = .*$", source, re.MULTILINE)
        assert before, name
        source = source.replace(before[0], line, 1)
    return source


def smaller(png):
    """A picture in few colours: most are grey, and figures are anything but photographs."""
    small = io.BytesIO()
    with PIL.Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
    return min(png, small.getvalue(), key=len)


def output_of(shown):
    """As a notebook's file has it."""
    if "text" in shown:
        return nbformat.v4.new_output("stream", name="stdout", text=shown["text"])
    data = {kind: shown["data"][kind] for kind in KEPT if kind in shown["data"]}
    if "image/png" in data:
        png = data["image/png"]  # bytes, or base64 already
        png = base64.b64decode(png) if isinstance(png, str) else png
        data["image/png"] = base64.b64encode(smaller(png)).decode()
    return nbformat.v4.new_output("display_data", data=data)


if __name__ == "__main__":
    path, out = (pathlib.Path(argument).resolve() for argument in sys.argv[1:3])
    notebook = nbformat.read(path, as_version=4)
    run(notebook, json.loads(pathlib.Path(sys.argv[3]).read_text()) if sys.argv[3:] else {})
    nbformat.write(notebook, out)
