"""Rows as people give them: arrays, tables of other libraries, dicts, lists; each becomes a frame or is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from daskdl.errors import DataError

NAMELESS = "__nameless__"  # name of the columns of a frame whose names the user has not given
FROM_DASK = {
    "Series": "a frame of one column is X.to_frame()",
    "Bag": "a frame of it is X.to_dataframe()",
    "Delayed": "a frame of several is dask.dataframe.from_delayed([...])",
    "Scalar": "give the frame it was computed of",
    "Dataset": "a frame of it is X.to_dask_dataframe()",
    "DataArray": "an array of it is X.data",
}


def rows_as_frame(X: Any) -> Any:
    """Give rows as a pandas, cudf or Dask frame.

    Raises
    ------
    DataError, TypeError, ValueError
        They are none, with the remedy.

    Examples
    --------
    >>> rows_as_frame({"a": [1, 2], "b": ["x", "y"]}).shape, rows_as_frame([[1, 2], [3, 4]]).columns.tolist()
    ((2, 2), ['x0', 'x1'])
    """
    if isinstance(X, (dd.DataFrame, pd.DataFrame)) or is_cudf(X):
        return X
    refuse_paths(X)
    if isinstance(X, da.Array):
        return _of_dask_array(X)
    if dask.is_dask_collection(X):
        name = "Delayed" if isinstance(X, Delayed) else type(X).__name__
        remedy = FROM_DASK.get(name, "turn it into a dask.dataframe or a dask.array first")
        raise DataError(f"X is a Dask {name}; expected a Dask DataFrame, or a Dask Array of two axes: {remedy}.")
    frame = _of_named(X)
    return _of_array(X) if frame is None else frame


def is_cudf(x: Any) -> bool:
    """Whether an object is one of cudf's."""
    return type(x).__module__.partition(".")[0] == "cudf"


def refuse_paths(X: Any) -> None:
    """Refuse a path, or a list of them, where rows are expected."""
    first = X[0] if isinstance(X, (list, tuple)) and X else X
    if isinstance(first, (str, os.PathLike)):
        path = os.fspath(first)[:1_000]
        raise DataError(
            f"X is the text {path!r}, not rows. If it is a path, say what lies there: daskdl.ParquetSource({path!r}), "
            "TextSource or ImageFolderSource, or read it with dask.dataframe."
        )


# -- with names ---------------------------------------------------------------------------------------------------


def _of_named(X: Any) -> pd.DataFrame | None:
    """Return tables of other libraries as a frame; None for what has no names."""
    if hasattr(X, "tocsr"):  # a sparse matrix of scipy, of which some are dicts
        return None
    if isinstance(X, Mapping):
        return _of_columns({name: np.asarray(column) for name, column in X.items()})
    if isinstance(X, (list, tuple)) and X and isinstance(X[0], Mapping):
        return pd.DataFrame(list(X))
    if isinstance(X, np.ndarray):
        return pd.DataFrame(X) if X.dtype.names else None
    if isinstance(X, (pd.Series, pd.Index)):
        return None
    if isinstance(X, pa.RecordBatch):
        X = pa.Table.from_batches([X])
    if not isinstance(X, pa.Table) and hasattr(X, "__arrow_c_stream__"):  # Polars and others
        try:
            X = pa.table(X)
        except (TypeError, pa.ArrowException):
            return None
    if isinstance(X, pa.Table):
        return X.to_pandas(types_mapper=pd.ArrowDtype)
    made = X.to_pandas() if callable(getattr(X, "to_pandas", None)) else None
    return made if isinstance(made, pd.DataFrame) else None


def _of_columns(columns: dict[Any, Any]) -> pd.DataFrame:
    shapes = {name: column.shape for name, column in columns.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        raise DataError(
            f"X is a dict of arrays of shapes {shapes}; expected one value for each row in all of them. Rows that are "
            "arrays themselves are read by daskdl.MemorySource."
        )
    return pd.DataFrame(columns)


# -- without names ------------------------------------------------------------------------------------------------


def _of_array(X: Any) -> pd.DataFrame:
    """Return an array, or what numpy and scikit-learn take for one, as a frame of columns ``x0``, ``x1``, ..."""
    if hasattr(X, "detach"):  # a tensor
        X = X.detach().cpu().numpy()
    if isinstance(X, (list, tuple)) and X and isinstance(X[0], (list, tuple)) and np.asarray(X).dtype.kind in "US":
        frame = pd.DataFrame(list(X))  # numpy would make text of every number beside one
    elif _has_text(X):
        frame = pd.DataFrame(X)
    else:
        from sklearn.utils import check_array

        frame = pd.DataFrame(check_array(X, dtype="numeric", ensure_all_finite=False, ensure_min_samples=0))
    frame.columns = _names(frame.shape[1])
    return frame


def _has_text(X: Any) -> bool:
    """Whether an array of objects has rows of numbers and text."""
    objects = isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 2
    return objects and any(isinstance(value, str) for value in X.ravel())


def _of_dask_array(X: da.Array) -> dd.DataFrame:
    if X.ndim != 2:
        raise DataError(
            f"X is a Dask Array of shape {X.shape}; expected two axes, rows and features. Reshape it, "
            "X.reshape(n_rows, -1), or write rows that are arrays to Parquet and read them with daskdl.ParquetSource."
        )
    if np.isnan(X.shape[1]):
        raise DataError(
            "X is a Dask Array whose number of columns is not known, and a model needs it. Say it: "
            "X = X.map_blocks(lambda block: block, chunks=(X.chunks[0], (n_columns,)))."
        )
    frame = dd.from_dask_array(X.rechunk({1: -1}), columns=list(_names(X.shape[1])))
    frame.columns = _names(X.shape[1])
    return frame


def _names(n: int) -> pd.Index:
    return pd.Index([f"x{i}" for i in range(n)], name=NAMELESS)
