"""What a user gives as data: frames lazy or in memory, arrays, sources; refused here if nothing can be learned."""

from __future__ import annotations

import difflib
import os
from typing import Any

import dask.dataframe as dd
import pandas as pd

from daskdl.data.schema import Kinds, column_kind
from daskdl.data.sources.base import Source
from daskdl.errors import DataError

LABEL = "__label__"
NO_TARGET = "requires y to be passed, but the target y is None. Give a Series as long as X, or the name of a column."

Frame = Any  # a pandas, cudf or Dask DataFrame


def is_lazy(x: Any) -> bool:
    """Whether ``x`` is a Dask DataFrame."""
    return isinstance(x, dd.DataFrame)


def as_frame(X: Any, kinds: Kinds | None = None) -> Frame:
    """Give features as a frame: Dask, pandas and cudf frames as they are, arrays with columns ``x0``, ``x1``, ...

    Raises
    ------
    DataError
        A column that is neither number nor category, known from the types alone.
    """
    _refuse_paths(X)
    if not is_lazy(X) and not isinstance(X, pd.DataFrame) and not _is_cudf(X):
        from sklearn.utils import check_array

        values = check_array(X, dtype="numeric", ensure_all_finite=False, ensure_min_samples=0)
        X = pd.DataFrame(values, columns=[f"x{i}" for i in range(values.shape[1])])
    if not len(X.columns):
        raise DataError("X has no columns (0 feature(s)); a model needs at least one feature.")
    if len(set(X.columns)) < len(X.columns):
        raise DataError(f"X has columns of the same name: {sorted(X.columns[X.columns.duplicated()])}. Rename them.")
    for name, dtype in X.dtypes.items():
        if name not in (kinds or {}):
            column_kind(name, dtype)
    return X


def _refuse_paths(X: Any) -> None:
    """Refuse a path, or a list of them, where rows are expected."""
    first = X[0] if isinstance(X, (list, tuple)) and X else X
    if isinstance(first, (str, os.PathLike)):
        path = os.fspath(first)[:1_000]
        raise DataError(
            f"X is the text {path!r}, not rows. If it is a path, say what lies there: daskdl.ParquetSource({path!r}), "
            "TextSource or ImageFolderSource, or read it with dask.dataframe."
        )


def _is_cudf(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] == "cudf"


def to_pandas(frame: Any) -> Any:
    """Return a pandas frame or series; cudf ones are copied to the host."""
    return frame.to_pandas() if _is_cudf(frame) else frame


def source_label(X: Source, y: Any) -> Any:
    """Return the name of a source's label column, or refuse it."""
    if not isinstance(y, str):
        raise DataError(
            f"X is a {type(X).__name__}, so y must be the name of one of its columns, got {type(y).__name__}. The "
            f"columns are {X.names[:20]}."
        )
    if y not in X.names:
        raise DataError(no_such_column("label column", y, X.names, "y"))
    return y


def no_such_column(what: str, name: Any, columns: list[Any], word: str) -> str:
    """Say that a column is not there, and which are."""
    near = difflib.get_close_matches(str(name), [str(c) for c in columns], n=3)
    return (
        f"{what} {name!r} is not in X. {f'Did you mean {near}? ' if near else ''}X has {len(columns)} "
        f"columns: {columns[:20]}. Give {word} as a column of X or as a Series."
    )


def label_column(X: Any, name: Any) -> tuple[Any, Any]:
    """Split a frame into features and the label column called ``name``."""
    _refuse_paths(X)
    columns = list(getattr(X, "columns", ()))
    if name not in columns:
        raise DataError(no_such_column("label column", name, columns, "y"))
    return X.drop(columns=[name]), X[name]
