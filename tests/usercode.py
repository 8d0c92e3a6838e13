"""Modules of a user's, written to a folder that workers do not have, imported here, and edited."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from types import ModuleType

_numbers = itertools.count()


class Code:
    """A folder with modules of the user's, found by this process only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / f"code{next(_numbers)}"
        self.folder.mkdir()

    def write(self, files: Mapping[str, str]) -> None:
        """Write files by their path; those that are there are edited."""
        for path, text in files.items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(dedent(text))
        importlib.invalidate_caches()

    def imported(self, name: str) -> ModuleType:
        """Import a module, or load it anew if it was edited."""
        sys.dont_write_bytecode = True  # a file that is edited twice in one second would not be compiled again
        return importlib.reload(sys.modules[name]) if name in sys.modules else importlib.import_module(name)


@contextmanager
def users_folder(tmp_path: Path) -> Iterator[Code]:
    """Have a folder of a user's on the path of this process; what it imported from there is forgotten."""
    code, known = Code(tmp_path), set(sys.modules)
    before = sys.dont_write_bytecode
    sys.path.insert(0, str(code.folder))
    try:
        yield code
    finally:
        sys.path.remove(str(code.folder))
        sys.dont_write_bytecode = before
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(code.folder)):
                del sys.modules[name]
