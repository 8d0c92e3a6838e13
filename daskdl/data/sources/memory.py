"""Rows that are in memory already: frames, Arrow tables, numpy arrays as a source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from daskdl.data.sources.base import Chunk, Source
from daskdl.data.sources.fingerprint import fingerprint_of_columns
from daskdl.errors import DataError


class MemorySource(Source):
    """Rows of a frame or of arrays that this process holds; they travel with the source when it is sent to workers.

    Parameters
    ----------
    data : frame, pyarrow.Table, dict of arrays, array, or tuple ``(X, y)``
        - a pandas or cudf frame, or an Arrow table, as it is; the index is no column.
        - a dict of arrays of shape ``(n_rows, ...)``: one column each.
        - an array of shape ``(n_rows, n_columns)``: columns ``x0``, ``x1``, ...; of any other shape: column ``x``. To
          keep a matrix as one field, give it as ``{"x": matrix}``.
        - ``(X, y)``: the columns of ``X``, which is any of these, and a column ``y``.

        Whatever ``numpy.asarray`` takes is an array here, tensors on the CPU too.
    group_rows : int
        Rows of each group, the last excepted. Arrays are not copied; groups are views.

    Raises
    ------
    DataError
        Columns of different lengths or of the same name, no columns, or values that Arrow has no type for.

    Notes
    -----
    The fingerprint is made of the content, at about a second for a gigabyte.

    Examples
    --------
    >>> source = MemorySource((np.arange(6.0).reshape(3, 2), [0, 1, 1]), group_rows=2)
    >>> source.names, source.counts.tolist()
    (['x0', 'x1', 'y'], [2, 1])
    >>> [chunk["y"].tolist() for chunk in source.read(0, 1, 2)]
    [[1]]
    """

    random_access = True

    def __init__(self, data: Any, group_rows: int = 65_536) -> None:
        self.rows = _as_rows(data)
        self.group_rows = group_rows
        self.counts = group_counts(len(self.rows), group_rows)
        self.fingerprint = fingerprint_of_columns(_columns(self.rows), "memory", group_rows)
        self.row_bytes = _row_bytes(self.rows)

    def read(self, group: int, first: int, stop: int) -> Iterator[Chunk]:
        """Yield the rows as one chunk, a view: a frame, or an Arrow table whose tensors are arrays."""
        first, stop = first + group * self.group_rows, stop + group * self.group_rows
        if first < stop:
            rows = self.rows
            yield rows.slice(first, stop - first) if isinstance(rows, pa.Table) else rows.iloc[first:stop]

    def where(self, group: int) -> str:
        """Say which rows these are."""
        return f"{span(self, group)} in memory ({type(self.rows).__name__})"


def group_counts(n_rows: int, group_rows: int) -> npt.NDArray[np.int64]:
    """Rows of each group when ``n_rows`` are cut into groups of ``group_rows``: shape (n_groups,).

    Examples
    --------
    >>> group_counts(5, 2).tolist()
    [2, 2, 1]
    """
    if group_rows < 1:
        raise DataError(f"group_rows must be 1 or more, got {group_rows}: a group is what is read as a piece.")
    return np.diff(np.append(np.arange(0, n_rows, group_rows), n_rows)).astype(np.int64)


def span(source: Any, group: int) -> str:
    """Say which rows a group of ``source.group_rows`` rows holds."""
    first = group * source.group_rows
    return f"rows {first:,} to {first + int(source.counts[group]) - 1:,}"


# -- what the user gave -------------------------------------------------------------------------------------------


def _as_rows(data: Any) -> Any:
    """Give data as something that is cut by rows for nothing: a frame or an Arrow table."""
    if isinstance(data, tuple) and len(data) == 2:
        return _with_label(_as_rows(data[0]), data[1])
    if hasattr(data, "dask"):
        raise DataError(
            f"expected rows in memory, got a lazy {type(data).__name__}. Give Dask frames to the estimator as they "
            "are, or call .compute() first if they fit into memory."
        )
    if not isinstance(data, (pa.Table, Mapping)) and not hasattr(data, "iloc"):
        data = _of_array(np.asarray(data))
    if isinstance(data, Mapping):
        return _of_arrays({str(name): np.asarray(column) for name, column in data.items()})
    if isinstance(data, pd.Series):
        data = data.to_frame(data.name or "x")
    names = [str(name) for name in (data.column_names if isinstance(data, pa.Table) else data.columns)]
    if not names or len(set(names)) < len(names):
        raise DataError(f"expected columns of different names, got {names}. A column is read by its name: rename them.")
    return data


def _of_array(array: npt.NDArray[Any]) -> Any:
    if array.ndim == 2 and array.shape[1]:
        return pd.DataFrame(array, columns=[f"x{i}" for i in range(array.shape[1])], copy=False)
    return {"x": array}


def _of_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> pa.Table:
    lengths = {name: len(array) if array.ndim else None for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise DataError(
            f"expected arrays whose first axis is the rows, all as long, got lengths {lengths}. Which values belong to "
            "one row cannot be told otherwise."
        )
    return pa.table({name: arrow_column(name, array) for name, array in arrays.items()})


def _with_label(rows: Any, y: Any) -> Any:
    names = rows.column_names if isinstance(rows, pa.Table) else list(rows.columns)
    if "y" in names:
        raise DataError("X has a column 'y' already, and y would take its name. Rename it, or give one frame.")
    y = y if hasattr(y, "iloc") else np.asarray(y)
    if len(y) != len(rows):
        raise DataError(f"X has {len(rows):,} rows and y {len(y):,}; each row needs its label. Give y as long as X.")
    if not isinstance(rows, pa.Table) and y.ndim == 1:
        return rows.assign(y=getattr(y, "array", y))
    if not isinstance(rows, pa.Table):
        rows = pa.Table.from_pandas(rows, preserve_index=False)
    return rows.append_column("y", arrow_column("y", np.asarray(y)))


def arrow_column(name: str, array: npt.NDArray[Any]) -> Any:
    """Give an array as an Arrow column, numbers without a copy: ``(n_rows, ...)`` as tensors of a fixed shape.

    Raises
    ------
    DataError
        Arrow has no type for the values, or an axis has length 0.

    Examples
    --------
    >>> arrow_column("image", np.zeros((2, 4, 4), np.uint8)).type.shape
    [4, 4]
    """
    size = math.prod(array.shape[1:])
    try:
        values = pa.array(array if array.ndim == 1 else np.ascontiguousarray(array).reshape(-1), from_pandas=False)
        if array.ndim == 1:
            return values
        storage = pa.FixedSizeListArray.from_arrays(values, size)
        return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(values.type, array.shape[1:]), storage)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"column {name!r}, shape {array.shape} and dtype {array.dtype}, cannot be read: {error}. A column holds "
            "numbers, strings or bytes, and no axis has length 0; give complex numbers as two columns."
        ) from error


def _columns(rows: Any) -> list[tuple[str, Any]]:
    if isinstance(rows, pa.Table):
        return [(f"{name} {rows[name].type}", rows[name]) for name in rows.column_names]
    rows = rows.to_pandas() if type(rows).__module__.startswith("cudf") else rows
    return [(str(name), rows[name]) for name in rows.columns]


def _row_bytes(rows: Any) -> float:
    if isinstance(rows, pa.Table):
        return float(rows.nbytes / max(1, len(rows)))
    some = rows.iloc[:4_096]  # of all rows it would take a look at every string
    return float(some.memory_usage(index=False, deep=True).sum() / max(1, len(some)))
