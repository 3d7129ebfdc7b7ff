"""The floors of the house: a module imports only from floors below or from its own folder."""

import ast
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "guided_distill"
FLOORS = {
    "errors": -1,
    "diffusion": 0, "system": 0,
    "distill": 1, "models": 1,
    "data": 2,
    "training": 3, "sampling": 3, "evaluation": 3,
    "run": 4, "report": 4,
    "export": 5,
    "jobs": 6,
    "main": 7, "__init__": 7,
}  # fmt: skip
CORE = {"jax", "flax", "optax", "numpy", "guided_distill"}
STANDARD = {
    "collections", "dataclasses", "difflib", "functools", "itertools", "math", "operator", "pathlib",
    "typing", "zlib",
}  # fmt: skip
EDGES = {  # the modules that need PyTorch; the last, transformers for its tokenizers alone
    "from_torch.py", "importing.py", "diffusers_folder.py", "clip_folder.py",
    "pipeline.py",
}  # fmt: skip


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_parts(path):
    """Every part of the package that a module imports from, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "guided_distill":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("guided_distill."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("guided_distill."):
                    yield alias.name.split(".")[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_imports_go_down(path):
    if path.name == "__init__.py" and path.parent != PACKAGE:
        assert path.read_text() == ""
        return
    here = part_of(path)
    for other in imported_parts(path):
        allowed = FLOORS[other] < FLOORS[here] or other == here
        assert allowed, f"{path.name} ({here}) imports {other}"


def test_the_root_holds_three_modules_and_folders():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "main.py", "errors.py"}


def test_core_runs_without_the_packages_of_the_edges():
    """Diffusion, algorithms, models and the update need jax, flax and optax alone."""
    core = [
        path
        for part in ("diffusion", "distill", "models")
        for path in (PACKAGE / part).rglob("*.py")
        if path.name not in EDGES
    ]
    core += [PACKAGE / "training" / name for name in ("update.py", "state.py", "optimizer.py")]
    for path in core:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                assert name.split(".")[0] in CORE | STANDARD, f"{path} imports {name}"


def code_of(path):
    """A module's strings but for docstrings, and its code without comments."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            body[0] = ast.Pass()
    return ast.unparse(tree)


def modules_with(pattern):
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(pattern, code_of(path))
    }


def test_a_distillation_is_spelt_in_its_table_alone():
    names = r"['\"](deterministic|stochastic|encoder|two_student|single_w)['\"]"
    # A sampler and a folder have the name of one.
    others = {"main.py", "sampling/generator.py", "models/pipeline.py"}
    assert modules_with(names) - others == {"distill/distillations.py"}


def test_what_a_model_is_has_one_home():
    assert modules_with(r"\bUNet\(") - {"models/unet.py"} == {"models/build.py"}
    assert modules_with(r"\bcosine_schedule\(") - {"diffusion/schedule.py"} == {"models/build.py"}
    assert modules_with(r"X_FROM_PREDICTION\[") == {"models/model.py"}


def test_functions_are_short():
    """None above 60 lines but one, whose arguments take a page; half have ten or fewer."""
    lengths = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths[f"{path.relative_to(PACKAGE)}:{node.name}"] = (
                    node.end_lineno - node.lineno + 1
                )
    assert sum(length > 60 for length in lengths.values()) <= 1, sorted(
        (length, name) for name, length in lengths.items() if length > 60
    )
    assert sorted(lengths.values())[len(lengths) // 2] <= 10
