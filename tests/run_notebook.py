"""Runs a notebook's cells one after the other, as a kernel would, and tells what each showed:

    python tests/run_notebook.py NOTEBOOK SETTINGS OUT

SETTINGS is JSON, `{cell's id: {name: value}}`, assigned at the end of that cell; OUT is written as
JSON, `{cell's id: [kinds of everything displayed]}`. There is no kernel and no port: an error in a
cell ends the process, and widgets show what they hold at once.
"""

import json
import pathlib
import sys

import matplotlib
import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

matplotlib.use("Agg")


def run(path, settings):
    """`{cell's id: [MIME types of each output]}` of the notebook's code cells."""
    shell = InteractiveShell.instance()
    shown = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        source = cell.source
        for name, value in settings.pop(cell.id, {}).items():
            assert f"\n{name} = " in source, name
            source += f"\n{name} = {value!r}"
        with capture_output() as captured:
            result = shell.run_cell(source)
        print(captured.stdout, captured.stderr, sep="\n")
        result.raise_error()
        shown[cell.id] = [sorted(output.data) for output in captured.outputs]
    assert not settings, settings
    return shown


if __name__ == "__main__":
    notebook, settings, out = map(pathlib.Path, sys.argv[1:])
    out.write_text(json.dumps(run(notebook, json.loads(settings.read_text()))))
