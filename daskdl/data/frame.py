"""What a user gives as data: frames lazy or in memory, arrays, sources; refused here if nothing can be learned."""

from __future__ import annotations

import datetime
import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pyarrow as pa

from daskdl.data.extras import ROLES
from daskdl.data.given import NAMELESS, is_cudf, rows_as_frame
from daskdl.data.lazy_objects import with_objects
from daskdl.data.schema import Kinds, column_kind
from daskdl.data.sources.base import Source
from daskdl.errors import DataError

LABEL = "__label__"
RESERVED_NAME = re.compile(rf"__({'|'.join(('label', *ROLES))})(_\d+)?__")
NO_TARGET = "requires y to be passed, but the target y is None. Give a Series as long as X, or the name of a column."

Frame = Any  # a pandas, cudf or Dask DataFrame


def is_lazy(x: Any) -> bool:
    """Whether ``x`` is a Dask DataFrame."""
    return isinstance(x, dd.DataFrame)


def as_frame(X: Any, kinds: Kinds | None = None) -> Frame:
    """Give features as a frame whose columns are named by text; see ``read_frame``."""
    return read_frame(X, kinds)[0]


def read_frame(X: Any, kinds: Kinds | None = None) -> tuple[Frame, list[Any] | None]:
    """Give features as a frame whose columns are named by text, and the names that the user gave them, if any.

    Dask, pandas and cudf frames stay what they are, Dask arrays become lazy frames, all else becomes a pandas frame.
    Arrays get columns ``x0``, ``x1``, ...; names that are numbers, dates or tuples become their text, as in a Parquet
    file.

    Raises
    ------
    DataError
        A column that is neither number nor category, known from the types alone; names that are there twice, or that
        daskdl needs itself.
    """
    X = rows_as_frame(X)
    names = list(X.columns)
    given = None if X.columns.name == NAMELESS else names
    if not names:
        raise DataError("X has no columns (0 feature(s)); a model needs at least one feature.")
    X = with_text_names(X)
    taken = [name for name in X.columns if RESERVED_NAME.fullmatch(name)]
    if taken:
        raise DataError(
            f"X has columns named {taken}, which daskdl calls the label and what goes beside it. Rename them."
        )
    X = with_objects(X) if is_lazy(X) else X
    known = {str(name) for name in kinds or {}}
    for name, dtype in X.dtypes.items():
        if name not in known:
            column_kind(name, dtype)
    return X, given


def array_like(X: Any, found: Any) -> Any:
    """Give a lazy series or frame as the kind of collection that ``X`` is: a Dask array for an array."""
    if not isinstance(X, da.Array):
        return found
    known = not np.isnan(X.chunks[0]).any()
    return found.to_dask_array(lengths=list(X.chunks[0]) if known else None)


def with_text_names(X: Frame) -> Frame:
    """Name the columns of a frame by text, in the way in which a Parquet file does.

    Raises
    ------
    DataError
        Two columns have one name.

    Examples
    --------
    >>> import pandas as pd
    >>> with_text_names(pd.DataFrame([[1, 2]], columns=[0, ("a", "mean")])).columns.tolist()
    ['0', "('a', 'mean')"]
    """
    names = list(map(str, X.columns))
    if len(set(names)) < len(names):
        raise DataError(f"X has columns of the same name: {doubles(names)}. Rename them.")
    if X.columns.nlevels == 1 and all(isinstance(name, str) for name in X.columns) and X.columns.name is None:
        return X
    X = X.copy() if is_lazy(X) else X.copy(deep=False)
    X.columns = names
    return X


def doubles(names: Sequence[Any]) -> list[Any]:
    """Return names that are there more than once."""
    return [name for name, n in Counter(names).items() if n > 1]


def to_pandas(frame: Any) -> Any:
    """Return a pandas frame or series; cudf ones are copied to the host."""
    return frame.to_pandas() if is_cudf(frame) else frame


def source_label(X: Source, y: Any) -> Any:
    """Return the name of a source's label column, or refuse it."""
    names = X.names
    if not is_name(y):
        raise DataError(
            f"X is a {type(X).__name__}, so y must be the name of one of its columns, got {type(y).__name__}. The "
            f"columns are {names[:20]}."
        )
    return _found("label column", y, names, "y")


def is_name(y: Any) -> bool:
    """Whether ``y`` may be the name of a column, and is no array."""
    return isinstance(y, (str, int, tuple, datetime.date)) or (isinstance(y, np.generic) and y.ndim == 0)


def has_column(X: Any, name: Any) -> bool:
    """Whether a frame has a column of that name; a number may be a label instead, so it must be a name as it is."""
    names = list(getattr(X, "columns", ()))
    return is_name(name) and (name in names or (isinstance(name, (str, tuple)) and str(name) in map(str, names)))


def names_column(X: Any, y: Any) -> bool:
    """Whether ``y`` stands for a column; a tuple that is none of its names is a sequence of values."""
    return is_name(y) and (not isinstance(y, tuple) or has_column(X, y))


def has_text_names(X: Any) -> bool:
    """Whether the user has named all columns by text; arrays have no names."""
    if isinstance(X, (Source, pa.Table, pa.RecordBatch)):
        return True
    if isinstance(X, (list, tuple)) and len(X) and isinstance(X[0], Mapping):
        X = X[0]
    names = list(X) if isinstance(X, Mapping) else getattr(X, "columns", None)
    return names is not None and all(isinstance(name, str) for name in names)


def _found(what: str, name: Any, columns: Sequence[str], word: str) -> str:
    """Return the text of the column called ``name``; of two levels, the first one does if the others are empty."""
    text = str(name)
    if text not in columns:
        below = [c for c in columns if c.startswith(f"({text!r}, ") and not c.removeprefix(f"({text!r}").strip(" ,')")]
        if len(below) != 1:
            raise DataError(no_such_column(what, name, list(columns), word))
        text = below[0]
    return text


def no_such_column(what: str, name: Any, columns: list[Any], word: str) -> str:
    """Say that a column is not there, and which are."""
    near = difflib.get_close_matches(str(name), [str(c) for c in columns], n=3)
    return (
        f"{what} {name!r} is not in X. {f'Did you mean {near}? ' if near else ''}X has {len(columns)} "
        f"columns: {columns[:20]}. Give {word} as a column of X or as a Series."
    )


def taken_column(what: str, X: Any, name: Any, word: str) -> tuple[Any, Any]:
    """Split a frame into the other columns, and the one called ``name``."""
    X = with_text_names(rows_as_frame(X))
    text = _found(what, name, list(X.columns), word)
    return X.drop(columns=[text]), X[text]


def label_column(X: Any, name: Any) -> tuple[Any, Any]:
    """Split a frame into features and the label column called ``name``."""
    return taken_column("label column", X, name, "y")
