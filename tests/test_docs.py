"""The pages of the documentation: links lead somewhere, every public name is there, the code runs, the site builds."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pages import DOCS, MADE, PAGES, ROOT, name_of, python

import daskdl

BESIDE = ("notebooks", "benchmarks/LOG.md", "CHANGELOG.md")  # what the pages include


@cache
def tokens(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(path.read_text())


# -- links ------------------------------------------------------------------------------------------------------------


def links(path: Path) -> Iterator[str]:
    for token in tokens(path):
        for child in token.children or ():
            link = child.attrGet("href") or child.attrGet("src")
            if link:
                yield str(link)


def anchors(path: Path) -> set[str]:
    """Where headings can be linked to, in GitHub's spelling, which is MyST's too."""
    found = set()
    for before, token in pairwise(tokens(path)):
        if before.type == "heading_open":
            text = "".join(child.content for child in token.children or () if child.type in ("text", "code_inline"))
            found.add(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_local_links_and_pictures_lead_somewhere(path: Path) -> None:
    dead = []
    for link in links(path):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if target.is_relative_to(DOCS / "notebooks"):  # copied there when the site is built
            target = ROOT / "notebooks" / target.name
        if not target.exists() or (parts.fragment and parts.fragment not in anchors(target)):
            dead.append(link)
    assert dead == []


# -- names ------------------------------------------------------------------------------------------------------------


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    listed = set(re.findall(r"\bdaskdl\.(\w+)", (DOCS / "api.md").read_text()))
    assert set(daskdl.__all__) - {"__version__"} <= listed


def test_every_error_and_plot_is_on_the_page_of_the_api() -> None:
    page = (DOCS / "api.md").read_text()
    classes = {name: value for name, value in vars(daskdl.errors).items() if isinstance(value, type)}
    errors = {name for name, value in classes.items() if issubclass(value, Exception)}
    plots = {name for name in daskdl.plotting.__all__ if callable(getattr(daskdl.plotting, name))} - {"compare"}
    assert errors - set(re.findall(r"daskdl\.errors\.(\w+)", page)) == set()
    assert plots - set(re.findall(r"daskdl\.plotting\.(\w+)", page)) == set()


# -- code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_code_uses_names_and_arguments_that_exist(path: Path) -> None:
    wrong: list[str] = []
    for block in python(path):
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.Attribute) and (dotted := dotted_name(node)) and dotted.startswith("daskdl."):
                wrong += [] if found(dotted) is not None else [dotted]
            if isinstance(node, ast.Call) and (dotted := dotted_name(node.func) or "").startswith("daskdl."):
                wrong += misfits(dotted, node)
    assert wrong == []


def dotted_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted_name(node.value)):
        return f"{before}.{node.attr}"
    return None


def found(dotted: str) -> Any:
    thing: Any = daskdl
    for name in dotted.split(".")[1:]:
        if (
            inspect.ismodule(thing)
            and not hasattr(thing, name)
            and importlib.util.find_spec(f"{thing.__name__}.{name}")
        ):
            importlib.import_module(f"{thing.__name__}.{name}")
        thing = getattr(thing, name, None)
    return thing


def misfits(dotted: str, call: ast.Call) -> list[str]:
    if any(isinstance(arg, ast.Starred) for arg in call.args) or found(dotted) is None:
        return []
    keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
    try:
        inspect.signature(found(dotted)).bind_partial(*call.args, **keywords)
    except TypeError as error:
        return [f"{dotted}: {error}"]
    return []


# -- the site ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason='needs Sphinx: pip install "daskdl[docs]"')
@pytest.mark.timeout(300)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns(*MADE))
    for name in BESIDE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, tmp_path / name)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", "site"]
    for command in (sphinx, [sys.executable, "docs/links.py", "site"]):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
