"""Write docs/compatibility.md from the cases: ``python -m tests.compatibility.table``."""

from __future__ import annotations

import importlib
from itertools import groupby
from pathlib import Path

from .case import Case

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "compatibility.md"
HEAD = """# What goes in, and what comes out

After this page you know what daskdl does with a kind of frame, column, module, loss or objective. Every line is a test
of its own, in `tests/compatibility/`, and this page is written from them: `python -m tests.compatibility.table`.
"""


def all_cases() -> list[Case]:
    """The cases of every module in this folder that has some, in the order of the modules' names."""
    names = sorted(path.stem for path in HERE.glob("of_*.py"))
    return [case for name in names for case in importlib.import_module(f".{name}", __package__).CASES]


def page() -> str:
    """The page as it should be."""
    parts = [HEAD]
    for group, cases in groupby(all_cases(), key=lambda case: case.group):
        lines = [
            f"| {case.given.replace('|', chr(92) + '|')} | {case.gets.replace('|', chr(92) + '|')} |" for case in cases
        ]
        parts.append("\n".join([f"## {group}\n", "| given | gets |", "|---|---|", *lines, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
