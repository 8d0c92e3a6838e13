"""Frames as Arrow tables, with lists and arrays of any shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from daskdl.data.schema.objects import is_missing


def table_of(rows: Any) -> pa.Table:
    """Give a pandas or cudf frame as an Arrow table, without its index and without pandas' notes.

    Lists and arrays become lists of lists, whose type does not depend on their shapes, nor on what is NaN.

    Raises
    ------
    pyarrow.ArrowException, TypeError, ValueError
        A column holds values that Arrow has no one type for.

    Examples
    --------
    >>> table_of(pd.DataFrame({"x": [1], "v": [np.zeros((1, 2))]}))["v"].to_pylist()
    [[[0.0, 0.0]]]
    """
    if hasattr(rows, "to_arrow"):
        return rows.to_arrow(preserve_index=False).replace_schema_metadata(None)
    lists = {name: _list_array(column) for name, column in rows.items() if _holds_lists(column)}
    table = pa.Table.from_pandas(rows.drop(columns=list(lists)), preserve_index=False)
    return pa.table({str(name): lists[name] if name in lists else table[str(name)] for name in rows.columns})


def _holds_lists(column: pd.Series) -> bool:
    first = next((value for value in column if not is_missing(value)), None) if column.dtype == object else None
    return isinstance(first, (list, tuple, np.ndarray))


def _list_array(column: pd.Series) -> pa.Array:
    return pa.array([None if is_missing(value) else _lists(value) for value in column])


def _lists(value: Any) -> Any:
    return [_lists(part) for part in value] if isinstance(value, np.ndarray) and value.ndim > 1 else value
