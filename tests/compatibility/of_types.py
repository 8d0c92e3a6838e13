"""Types of columns: what each becomes, the same in memory and lazily."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client

from daskdl.data.rows import learn, read_rows
from daskdl.errors import DataError

from .case import Case

GROUP = "Types of columns"
LABEL = pd.Series([0, 1, 0, 1])


def _kinds(column: Any, client: Client) -> list[str]:
    """Kinds of the column in memory and in a lazy frame; their statistics are the same."""
    frame = pd.DataFrame({"c": column, "y": LABEL})
    both = [
        read_rows(X, "y", classes=True, client=client).stats["c"] for X in (frame, dd.from_pandas(frame, npartitions=2))
    ]
    assert both[0].n_missing == both[1].n_missing
    assert both[0].values == both[1].values
    return [stats.kind for stats in both]


def _is(kind: str, *columns: Any) -> Callable[[Client], None]:
    def check(client: Client) -> None:
        for column in columns:
            assert _kinds(column, client) == [kind, kind]

    return check


def _refused(message: str, *columns: Any) -> Callable[[Client], None]:
    def check(client: Client) -> None:
        for column in columns:
            with pytest.raises(DataError, match=message):
                _kinds(column, client)

    return check


def _objects(*values: Any) -> pd.Series:
    return pd.Series(list(values), dtype=object)


def _text_of_lists(client: Client) -> None:
    lazy = dd.from_pandas(pd.DataFrame({"c": [[1], [2], [3], [4]], "y": LABEL}), npartitions=2).persist()
    rows = read_rows(lazy, "y", classes=True, client=client)
    with pytest.raises(DataError, match="convert-string"):
        learn(rows, "y", classes=True, missing="impute")


NUMBERS = (
    np.array([1, 2, 3, 4], np.uint8),
    np.array([2**63, 1, 2, 3], np.uint64),
    np.array([1, 2, np.nan, 4], np.float16),
    pd.array([1, None, 3, 4], dtype="Int64"),
    pd.array([True, None, False, True], dtype="boolean"),
)
OBJECTS = (
    _objects(Decimal("1.5"), None, Decimal(2), Decimal(3)),
    _objects(1.5, None, 2, True),
    _objects(True, None, False, True),
    _objects(2**70, 1, 2, 3),
)
INTERVALS = pd.Series(pd.cut([1, 2, 5, 6], [0, 3, 9]))
SPARSE = pd.Series(pd.arrays.SparseArray([0.0, 0, 1, 2]))
DAY = pd.Timestamp("2021-01-01")
DATES = (pd.date_range("2021", periods=4, tz="UTC"), _objects(DAY, None, datetime.datetime(3000, 1, 1), DAY))
TIME = _objects(datetime.time(1), datetime.time(2, 30), None, datetime.time(3))

CASES = [
    Case(GROUP, "integers and floats of any width, nullable ones, booleans", "numbers", _is("number", *NUMBERS)),
    Case(GROUP, "objects: Decimals, floats, whole numbers of any size, booleans", "numbers", _is("number", *OBJECTS)),
    Case(GROUP, "durations, times of day", "numbers: seconds", _is("number", pd.to_timedelta([1, 2, 3, 4]), TIME)),
    Case(GROUP, "pandas Sparse", "as if it were dense", _is("number", SPARSE)),
    Case(GROUP, "dates with and without time zones, and beyond the year 2262", "dates", _is("time", *DATES)),
    Case(GROUP, "text, categoricals", "categories", _is("category", list("abab"), pd.Categorical(list("abab")))),
    Case(GROUP, "`pd.cut`", "categories named by the text of their intervals", _is("category", INTERVALS)),
    Case(GROUP, "lists of numbers", "arrays, or lists of any length", _is("array", [[1, 2]] * 4)),
    Case(
        GROUP, "text beside numbers", "`DataError`: make all of it one", _refused("beside text", _objects("a", 1, 2, 3))
    ),
    Case(
        GROUP,
        "complex numbers, periods",
        "`DataError`",
        _refused("dtype", [1j] * 4, pd.period_range("2020", periods=4)),
    ),
    Case(
        GROUP,
        "lists that Dask has turned into text",
        "are lists again; if they were kept as text, `DataError` with the setting",
        _text_of_lists,
    ),
]
