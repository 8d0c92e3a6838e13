"""What columns of Python objects hold: numbers that became objects on their way, categories of any type."""

from __future__ import annotations

import datetime
import math
import numbers
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

TIMES = (datetime.date, datetime.timedelta, np.datetime64, np.timedelta64)  # a datetime is a date, too
NUMBERS = ("boolean", "integer", "floating", "mixed-integer-float", "decimal")  # of pandas' infer_dtype
PLAIN = (str, bool, int, float, np.bool_, np.number)  # what a category may be
MIXED = ("mixed", "mixed-integer")


def is_missing(value: Any) -> bool:
    """Whether one value of an object column stands for none."""
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def typed(values: npt.NDArray[Any]) -> Any:
    """Return numbers that are held as Python objects as an array of numbers, times of day as Arrow's; others as is.

    Decimals, booleans with missing ones, whole numbers of any size, and all of these mixed are numbers. Text is not,
    whatever it says.

    Examples
    --------
    >>> typed(np.array([1.5, None, 2], dtype=object)).tolist()
    [1.5, None, 2.0]
    >>> typed(np.array(["1.5", None], dtype=object)).tolist()
    ['1.5', None]
    """
    if values.dtype != object or values.ndim != 1:
        return values
    found = pd.api.types.infer_dtype(values, skipna=True)
    if found in MIXED and not all(is_missing(v) or _is_number(v) for v in values):
        return values
    if found not in (*NUMBERS, *MIXED, "time"):
        return values
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, OverflowError):  # of several types, or too large for any
        return np.array([math.nan if is_missing(v) else float(v) for v in values], dtype=np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, (numbers.Real, np.bool_)) or type(value).__name__ == "Decimal"


def holds_text_only(values: npt.NDArray[np.object_]) -> bool:
    """Whether all values that are there are text."""
    return pd.api.types.infer_dtype(values, skipna=True) in ("string", "empty")


def plain_categories(column: pd.Series) -> pd.Series:
    """Return a categorical whose categories are text, numbers or booleans: others are named by their text.

    Examples
    --------
    >>> plain_categories(pd.Series(pd.cut([1, 5], [0, 3, 6]))).tolist()
    ['(0, 3]', '(3, 6]']
    """
    known = column.cat.categories
    kind = pd.api.types.infer_dtype(known, skipna=True)
    if kind in ("string", "empty", "categorical", *NUMBERS[:4]):
        return column
    return column.cat.rename_categories([as_text(value) for value in known])


def as_text(value: Any) -> str:
    """Name a category of any type."""
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)
