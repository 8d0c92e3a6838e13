"""What loads what: a light front door, and imports that go down only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import daskdl

ROOT = Path(daskdl.__file__).parent
DOCUMENT = ROOT.parent / "docs" / "architecture.md"
HEAVY = ("torch", "xgboost", "bokeh", "mlflow", "pandas", "distributed", "dask")


def test_a_bare_import_is_light() -> None:
    code = f"import sys, daskdl; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", daskdl.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(daskdl, name) is not None


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Torch'.*TorchClassifier"):
        _ = daskdl.Torch


def layers() -> list[tuple[set[str], bool]]:
    """The drawing, top first: the names of each row, and whether they may import each other."""
    drawing = re.search(r"\n    cli\n(?:    .+\n)+", DOCUMENT.read_text())
    assert drawing, "the drawing of the layers is gone"
    rows = [line.strip() for line in drawing.group().strip("\n").splitlines()]
    return [(set(re.findall(r"\w+", row)), "|" not in row) for row in rows]


def modules() -> dict[str, Path]:
    paths = sorted(ROOT.rglob("*.py"))
    return {".".join(("daskdl", *path.relative_to(ROOT).with_suffix("").parts)): path for path in paths}


def imported(path: Path) -> set[str]:
    """Modules of daskdl that a file imports anywhere, by the first part of their name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "daskdl":
            found |= {f"daskdl.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return {name.split(".")[1] for name in found if name.startswith("daskdl.")}


def test_every_module_is_drawn() -> None:
    drawn = set().union(*(names for names, _ in layers()))
    assert {name.split(".")[1] for name in modules()} - {"__init__"} == drawn


def test_imports_go_down_only() -> None:
    rank = {name: i for i, (names, _) in enumerate(layers()) for name in names}
    friends = {name: names if together else {name} for names, together in layers() for name in names}
    wrong = []
    for module, path in modules().items():
        own = module.split(".")[1]
        for other in imported(path) & rank.keys() if own in rank else ():
            if other not in friends[own] and rank[other] <= rank[own]:
                wrong.append(f"{module} imports {other}")
    assert wrong == []


# Circles that are still there; one that is gone leaves this list and does not come back.
KNOWN_CIRCLES: list[set[str]] = [
    {"daskdl.execution.holders", "daskdl.execution.overseer"},
]


def module_imports(path: Path, known: set[str]) -> set[str]:
    """Modules of daskdl that a file imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & known) or {str(node.module)}
    return found & known


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules each of which leads to all others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ways = [start]
        while ways:
            new = graph[ways.pop()] - seen
            seen |= new
            ways += new
        return seen

    all_reached = {name: reached(name) for name in graph}
    found = {frozenset(o for o in all_reached[n] if n in all_reached[o]) for n in graph}
    return [set(circle) for circle in found if circle]


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]


def test_no_modules_import_each_other_in_a_circle() -> None:
    paths = {name.removesuffix(".__init__"): path for name, path in modules().items()}
    graph = {name: module_imports(path, set(paths)) - {name} for name, path in paths.items()}
    assert [sorted(circle) for circle in circles(graph) if not any(circle <= known for known in KNOWN_CIRCLES)] == []
