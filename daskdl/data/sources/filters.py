"""Row filters in the form of Dask and pandas, and whether a Parquet row group can match them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

Condition = tuple[str, str, Any]  # column, operator, value
Filters = Sequence[Any]  # of conditions, or of lists of conditions

OPERATORS = ("=", "==", "!=", "<", "<=", ">", ">=", "in", "not in")


def normal_form(filters: Filters | None) -> list[list[Condition]]:
    """Return filters as a list (any of) of lists (all of) of conditions; refuses what is none."""
    if not filters:
        return []
    outer = [list(filters)] if isinstance(filters[0][0], str) else [list(inner) for inner in filters]
    for condition in (c for inner in outer for c in inner):
        if len(condition) != 3 or condition[1] not in OPERATORS:
            raise ValueError(
                f"a filter is (column, operator, value) with one of {', '.join(OPERATORS)}; got {condition!r}. For "
                "example filters=[('year', '>=', 2010)]."
            )
    return [[(str(c), str(op), value) for c, op, value in inner] for inner in outer]


def may_match(group: pq.RowGroupMetaData, filters: list[list[Condition]], constants: dict[str, Any]) -> bool:
    """Whether any row of a row group may match, by the smallest and largest value of each column."""
    bounds: dict[str, tuple[Any, Any]] = {name: (value, value) for name, value in constants.items()}
    for i in range(group.num_columns):
        column = group.column(i)
        if column.is_stats_set and column.statistics.has_min_max:
            bounds[column.path_in_schema] = (column.statistics.min, column.statistics.max)
    return any(all(_may(bounds.get(name), op, value) for name, op, value in inner) for inner in filters)


def _may(bounds: tuple[Any, Any] | None, op: str, value: Any) -> bool:
    if bounds is None:
        return True
    low, high = bounds
    try:
        match op:
            case "=" | "==":
                return bool(low <= value <= high)
            case "<":
                return bool(low < value)
            case "<=":
                return bool(low <= value)
            case ">":
                return bool(high > value)
            case ">=":
                return bool(high >= value)
            case "in":
                return any(low <= v <= high for v in value)
    except TypeError:  # statistics of another type than the value: look at the rows
        return True
    return True
