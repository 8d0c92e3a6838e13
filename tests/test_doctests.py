"""Every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import daskdl

SKIPPED = ("daskdl.cluster.warm",)  # changes the process that imports it: it is the fork server's
MODULES = sorted(m.name for m in pkgutil.walk_packages(daskdl.__path__, "daskdl.") if m.name not in SKIPPED)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
