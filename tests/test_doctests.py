"""Every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import daskdl
from daskdl.tracking.mirror import copier

SKIPPED = ("daskdl.cluster.warm",)  # changes the process that imports it: it is the fork server's
MODULES = sorted(m.name for m in pkgutil.walk_packages(daskdl.__path__, "daskdl.") if m.name not in SKIPPED)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    copier.flush(60.0)  # its thread may import MLflow, and linecache, which doctest asks, does not expect that
    assert doctest.testmod(module).failed == 0
