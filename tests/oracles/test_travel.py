"""What workers compute with code of the user's is what this process computes with it; what is saved is what is loaded.

The oracle of code is the same call in this process. Modules are generated, written to a folder that workers do not
have, imported, edited and loaded anew. The oracle of a folder is the estimator that was saved.
"""

from __future__ import annotations

import datetime
import math
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from usercode import Code, users_folder

import daskdl
from daskdl.estimators.plain import from_json, to_json
from daskdl.estimators.saving import params_of

NAMES = ("core", "core.deep.parts", "flat")
# pieces of a module that a function `work(n)` may lean on; each adds to its answer
PIECES = {
    "a constant": ("CONSTANT = {k}", "CONSTANT"),
    "a table": ("TABLE = dict(one={k}, two=2)", "TABLE['one']"),
    "a function": ("def helper(n):\n    return n * {k}", "helper(n)"),
    "a default": ("def defaulted(n, by={k}):\n    return n + by", "defaulted(n)"),
    "a closure": ("def made(k):\n    return lambda n: n + k\nclosure = made({k})", "closure(n)"),
    "a decorator": (
        "import functools\ndef doubled(f):\n    @functools.wraps(f)\n    def call(*a):\n        return {k} * f(*a)\n"
        "    return call\n@doubled\ndef decorated(n):\n    return n + 1",
        "decorated(n)",
    ),
    "a cache": ("from functools import lru_cache\n@lru_cache(8)\ndef cached(n):\n    return n + {k}", "cached(n)"),
    "a lock": ("import threading\nLOCK = threading.RLock()\ndef locked(n):\n    with LOCK:\n        return n - {k}",
               "locked(n)"),
    "a class": (
        "class Base:\n    scale = {k}\n    @property\n    def half(self):\n        return self.scale / 2\n"
        "class Child(Base):\n    def __init__(self, n):\n        super().__init__()\n        self.n = n\n"
        "    @classmethod\n    def of(cls, n):\n        return cls(n)",
        "Child.of(n).half + isinstance(Child(1), Base)",
    ),
    "a dataclass": (
        "from dataclasses import dataclass, field, replace\n@dataclass(frozen=True)\nclass Point:\n    x: int\n"
        "    ys: tuple = field(default=({k}, 2))",
        "replace(Point(1), x=n).x + sum(Point(3).ys)",
    ),
    "an enum": ("import enum\nclass Kind(enum.IntEnum):\n    LOW = 1\n    HIGH = {k}", "Kind(1) + Kind['HIGH']"),
    "a named tuple": (
        "from typing import NamedTuple\nclass Pair(NamedTuple):\n    a: int\n    b: int = {k}",
        "Pair(n).b",
    ),
    "a registry": ("KNOWN = {{}}\ndef known(f):\n    KNOWN[f.__name__] = f\n    return f\n@known\ndef reg(n):\n"
                   "    return n + {k}", "KNOWN['reg'](n)"),
    "an error": ("class Own(ValueError):\n    pass\ndef guarded(n):\n    try:\n        raise Own({k})\n"
                 "    except Own as e:\n        return e.args[0]", "guarded(n)"),
    "an abstract class": (
        "import abc\nclass Shape(abc.ABC):\n    @abc.abstractmethod\n    def area(self): ...\nclass Square(Shape):\n"
        "    def area(self):\n        return {k}",
        "Square().area() + isinstance(Square(), Shape)",
    ),
    "slots": (
        "class Small:\n    __slots__ = ('n',)\n    def __init__(self, n):\n        self.n = n + {k}",
        "Small(n).n",
    ),
}  # fmt: skip


def written(pieces: list[str], k: int, sibling: str) -> dict[str, str]:
    """Files of a package and a module; ``work`` leans on pieces, on a sibling and on the flat module."""
    lines = [PIECES[name][0].format(k=k) for name in pieces]
    inside, outside = {
        "at the top": ("", "from . import sibling\nimport flat"),
        "when called": ("    from .sibling import value\n    from core import sibling\n    import flat\n", ""),
        "by name": ("    import core.deep.sibling as sibling\n", "from flat import *\nimport flat"),
    }[sibling]
    total = " + ".join(["sibling.value()", "flat.plus(n)", *(PIECES[name][1] for name in pieces)])
    body = "\n".join([outside, *lines, f"def work(n):\n{inside}    return {total}"])
    value = f"SECRET = {k}\ndef value():\n    return SECRET + 1"
    return {
        "core/__init__.py": "",
        "core/sibling.py": value,
        "core/deep/__init__.py": "",
        "core/deep/sibling.py": value,
        "core/deep/parts.py": body,
        "flat.py": f"import math\ndef plus(n):\n    return n + {k}",
    }


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as found:
        yield Path(found)


chosen = st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=6, unique=True)
siblings = st.sampled_from(["at the top", "when called", "by name"])


@pytest.mark.cluster
@settings(max_examples=15, deadline=None)
@given(pieces=chosen, edited=chosen, sibling=siblings, ks=st.tuples(st.integers(1, 9), st.integers(10, 99)))
def test_workers_compute_what_this_process_does(
    cluster: Client, pieces: list[str], edited: list[str], sibling: str, ks: tuple[int, int]
) -> None:
    with tempfile.TemporaryDirectory() as folder, users_folder(Path(folder)) as code, cluster.as_current():
        for k, now in zip(ks, (pieces, edited), strict=True):
            code.write(written(now, k, sibling))
            core = _imported(code)
            here = core.work(5)
            assert daskdl.spmd.run(core.work, 5, num_workers=1) == [here]
            assert daskdl.spmd.run(_called, core.work, num_workers=2) == [here, here]


def _imported(code: Code) -> Any:
    for name in ("flat", "core.sibling", "core.deep.sibling"):
        code.imported(name)
    return code.imported("core.deep.parts")


def _called(function: Any) -> Any:
    return function(5)


# -- folders --------------------------------------------------------------------------------------------------------

typed = [
    *(np.float32(0.5), np.int8(3), np.bool_(True), np.datetime64("2026-11-27")),
    *(pd.Timestamp("2026-11-27"), pd.Timedelta("1h")),
    *(daskdl.Image(3, 4), daskdl.Array(2, 3), daskdl.Text(max_length=3)),
]
plain = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False), st.text(max_size=5)),
    *(st.binary(max_size=4), st.decimals(allow_nan=False, allow_infinity=False), st.dates(), st.datetimes()),
    st.sampled_from(typed),
)
keys = st.one_of(st.text(max_size=3), st.integers(0, 9), st.just("__type__"), st.tuples(st.integers(0, 9)))
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(values)
def test_what_is_written_as_json_is_read_as_it_was(value: Any) -> None:
    import json

    assert _same(from_json(json.loads(json.dumps(to_json(value)))), value)


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    return bool(one == other) or (isinstance(one, float) and math.isnan(one))


labels = st.sampled_from(
    [
        [0, 1],
        [False, True],
        ["no", "yes", "maybe"],
        [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)],
        [Decimal(1), Decimal(2)],
        [pd.Timestamp("2026-01-01"), pd.Timestamp("2026-01-02")],
        [2**40, 2**40 + 1],
    ]
)
columns = st.lists(st.sampled_from(["x", "text", "day", "flag"]), min_size=1, max_size=4, unique=True)
params = st.fixed_dictionaries(
    {},
    optional={
        "num_workers": st.sampled_from([1, (1, 2)]),
        "missing": st.sampled_from(["impute", "indicator"]),
        "weight_decay": st.floats(0, 0.1),
        "kinds": st.just({"x": "number"}),
        "checkpoints": st.just(daskdl.Checkpoints("/nowhere", keep=3)),
        "name": st.text(max_size=3),
    },
)


@settings(max_examples=10, deadline=None)
@given(family=st.sampled_from(["Torch", "XGB"]), classes=labels, names=columns, options=params)
def test_an_estimator_that_was_saved_is_the_one_that_is_loaded(
    family: str, classes: list[Any], names: list[str], options: dict[str, Any]
) -> None:
    n = 40
    frame = pd.DataFrame(
        {
            "x": np.arange(n) / 7.0,
            "text": ["a", "b"] * (n // 2),
            "day": pd.date_range("2026-01-01", periods=n),
            "flag": [True, False] * (n // 2),
        }
    )[names]
    y = pd.Series([classes[i % len(classes)] for i in range(n)], name="y")
    if family == "XGB":
        options = {key: value for key, value in options.items() if key in ("checkpoints", "name")}
        estimator = daskdl.XGBClassifier(n_estimators=2, verbose=0, **options)
    else:
        options = {k: v for k, v in options.items() if k not in ("num_workers", "checkpoints")}
        if "x" not in names:
            options.pop("kinds", None)
        estimator = daskdl.TorchClassifier(epochs=1, verbose=0, **options)
    estimator.fit(frame, y)
    with tempfile.TemporaryDirectory() as folder:
        estimator.save(folder)
        loaded = daskdl.load(folder)
    assert np.array_equal(loaded.predict_proba(frame), estimator.predict_proba(frame))
    assert [_plain(v) for v in loaded.predict(frame)] == [_plain(v) for v in estimator.predict(frame)]
    assert params_of(loaded) == params_of(estimator)
    assert loaded.get_params(deep=False).keys() == estimator.get_params(deep=False).keys()


def _plain(value: Any) -> Any:
    return type(value), value
