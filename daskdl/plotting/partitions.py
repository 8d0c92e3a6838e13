"""Aggregates of rows, made where the rows are: a function of every partition, and a tree that merges what it gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from daskdl.errors import DataError

S = TypeVar("S")
Rows = npt.NDArray[Any]


def fold(chunk: Callable[..., S], merge: Callable[[S, S], S], **rows: Any) -> S:
    """Reduce the rows of paired collections to one value; computes.

    Parameters
    ----------
    chunk : callable
        Called with one array per collection, all of the same length: of a partition on a worker, or of all rows in
        memory. It must take 0 rows.
    merge : callable
        Makes one of two results, whatever their order.
    **rows : Dask, pandas, cudf or numpy collection
        By the names that errors use.

    Raises
    ------
    TypeError, ValueError, DataError
        The collections cannot be paired row by row.
    """
    lazy = [hasattr(values, "__dask_graph__") for values in rows.values()]
    if not any(lazy):
        return _chunk(chunk, tuple(rows), *rows.values())
    if not all(lazy):
        raise TypeError(
            f"{' and '.join(rows)} must both be Dask collections or both be in memory; call .compute() on the Dask one."
        )
    first, *rest = (_as_dask_frame(values) for values in rows.values())
    for name, frame in zip(list(rows)[1:], rest, strict=True):
        if frame.npartitions != first.npartitions:
            raise ValueError(
                f"{next(iter(rows))} has {first.npartitions} partitions and {name} {frame.npartitions}, so their rows "
                "cannot be paired without moving them. Make both from the same frame, such as y = frame['late'] and "
                "p = clf.predict_proba(frame[features])."
            )
    meta = _box(None)
    parts = first.map_partitions(partial(_boxed, chunk, tuple(rows)), *rest, meta=meta, align_dataframes=False)
    merged = parts.reduction(_same, aggregate=partial(_merged, merge), meta=meta)
    found: S = merged.compute().iloc[0, 0]
    return found


def _as_dask_frame(values: Any) -> Any:
    import dask.dataframe as dd

    if hasattr(values, "map_partitions"):
        return values
    return dd.from_dask_array(values.rechunk({1: -1}) if values.ndim == 2 else values)


def _chunk(chunk: Callable[..., S], names: tuple[str, ...], *parts: Any) -> S:
    arrays = [on_host(part) for part in parts]
    for name, array in zip(names[1:], arrays[1:], strict=True):
        if len(array) != len(arrays[0]):
            raise DataError(
                f"{names[0]} has {len(arrays[0]):,} rows and {name} {len(array):,}: expected the same rows in both."
            )
    return chunk(*arrays)


def _boxed(chunk: Callable[..., Any], names: tuple[str, ...], *parts: Any) -> pd.DataFrame:
    return _box(_chunk(chunk, names, *parts))


def _box(value: Any) -> pd.DataFrame:
    """Put anything into a frame of one cell, which Dask can concatenate."""
    box = np.empty(1, dtype=object)  # a list of one array would become rows
    box[0] = value
    return pd.DataFrame({"found": box})


def _same(boxes: pd.DataFrame) -> pd.DataFrame:
    return boxes


def _merged(merge: Callable[[Any, Any], Any], boxes: pd.DataFrame) -> pd.DataFrame:
    return _box(reduce(merge, boxes["found"]))


def on_host(values: Any) -> Rows:
    """Return a numpy array of a pandas, cudf, cupy or numpy collection."""
    for method in ("to_pandas", "to_numpy", "get"):  # of cudf, of pandas, of cupy
        if hasattr(values, method) and not isinstance(values, np.ndarray):
            values = getattr(values, method)()
    return np.asarray(values)


def column(values: Rows, name: str) -> Rows:
    """Return an array of shape (n_rows,), also of one column; refuse more."""
    if values.ndim > 1 and values.size != len(values):
        raise DataError(
            f"{name} must be one column, and has the shape {values.shape}. Take one: {name}[column] of a frame."
        )
    return values.reshape(-1)


def floats(values: Rows, name: str) -> npt.NDArray[np.float64]:
    """Return finite float64 numbers, or refuse the values."""
    try:
        found = values.astype(np.float64)
    except (TypeError, ValueError):
        found = None
    if found is None:
        some = values.reshape(-1)[:1].tolist()[0]
        raise DataError(f"{name} must hold numbers; it holds such as {some!r}. Select columns of numbers.")
    if not np.isfinite(found).all():
        bad = found[~np.isfinite(found)]
        raise DataError(
            f"{name} holds {len(bad):,} values that are missing or infinite, such as {bad[0]}, and means of "
            "them mean nothing. Fill them, or leave their rows out: frame.dropna()."
        )
    return found
