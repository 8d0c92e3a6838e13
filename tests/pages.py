"""The pages of the documentation, and the code in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MADE = ("_build", "generated", "notebooks")  # by Sphinx, below docs/
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    if not set(MADE) & set(path.relative_to(ROOT).parts[1:-1])
)
FENCE = re.compile(r"^( *)(`{3,})(?!\{)([^\n`]*)\n(.*?)^\1\2 *$", re.M | re.S)
DIRECTIVE = re.compile(r"^( *)(`{3,})\{.*?^\1\2 *$", re.M | re.S)


class Fence(NamedTuple):
    """A block of code: ```` ```python not run: it needs a GPU ```` has the language ``python`` and that reason."""

    language: str
    not_run: str
    code: str
    line: int


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fences(path: Path) -> list[Fence]:
    """All blocks of code of a page, those inside of directives (``:::``) too, in the order of the page."""
    text = DIRECTIVE.sub(lambda found: "\n" * found.group().count("\n"), path.read_text())
    blocks = []
    for found in FENCE.finditer(text):
        language, _, rest = found.group(3).partition(" ")
        if rest and not rest.startswith("not run: "):
            raise ValueError(f'{path}: after the language of a block comes nothing, or "not run: why"; got {rest!r}')
        line = text.count("\n", 0, found.start(4)) + 1
        blocks.append(Fence(language, rest.removeprefix("not run: "), found.group(4), line))
    return blocks


def python(path: Path) -> list[Fence]:
    return [fence for fence in fences(path) if fence.language == "python"]
