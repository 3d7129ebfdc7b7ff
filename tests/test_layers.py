"""The floors of the house: a module imports only from floors below or from its own folder."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "guided_distill"
FLOORS = {
    "errors": -3, "watch": -2, "processes": -1, "progress": 0, "locks": 0, "diffusion": 0, "models": 1, "distill": 1, "data": 2,
    "training": 3, "evaluation": 4,
    **dict.fromkeys(
        ("rules", "settings", "stages", "stage_checks", "updates", "compile_check", "pipeline", "jobs", "sample", "sampler", "translate", "paper",
         "runs", "main"), 5,
    ),
}  # fmt: skip


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "guided_distill":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("guided_distill."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_imports_go_down(path):
    if path.name == "__init__.py" and path.parent != PACKAGE:
        assert path.read_text() == ""
        return
    here = part_of(path) if path.parent != PACKAGE or path.stem != "__init__" else "main"
    for other in imported_parts(path):
        allowed = FLOORS[other] < FLOORS[here] or other == here or FLOORS[here] == 5
        assert allowed, f"{path.name} ({here}) imports {other}"


def test_core_runs_without_the_packages_of_the_edges():
    """Diffusion, algorithms, models and the update need jax, flax and optax alone."""
    core = [
        *PACKAGE.glob("diffusion/*.py"),
        *PACKAGE.glob("distill/*.py"),
        *PACKAGE.glob("models/*.py"),
    ]
    core += [PACKAGE / "training" / name for name in ("update.py", "state.py", "optimizer.py")]
    allowed = {
        "jax",
        "flax",
        "optax",
        "numpy",
        "guided_distill",
        "math",
        "zlib",
        "typing",
        "difflib",
    }
    for path in core:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                assert name.split(".")[0] in allowed, f"{path} imports {name}"
