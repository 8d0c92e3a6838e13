"""Features, labels and extras put into one frame, row by row: what does not belong together row by row is refused."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.dataframe.dask_expr._expr import are_co_aligned

from daskdl.data.extras import ROLES, Columns, Extras, column_names
from daskdl.data.frame import (
    Frame,
    as_frame,
    has_column,
    is_lazy,
    is_name,
    names_column,
    taken_column,
    to_pandas,
    with_text_names,
)
from daskdl.data.given import rows_as_frame
from daskdl.data.lazy_objects import with_objects
from daskdl.data.schema import Kinds
from daskdl.errors import DataError

LABEL_ROLE = "label"


@dataclass(frozen=True)
class Part:
    """One thing that goes beside the features.

    Attributes
    ----------
    values : array, Series or DataFrame, lazy or not
    width : int
        Values of a row.
    by_index : bool
        Whether the index says which row is which, as well as the place.
    """

    values: Any
    width: int = 1
    by_index: bool = False


def joined(
    X: Any, y: Any, kinds: Kinds | None = None, extras: Extras | None = None, several: bool = False
) -> tuple[Frame, Any, Columns]:
    """Put features, extras and labels into one frame: row by row, the labels last.

    Parameters
    ----------
    X, y
        Features and labels, or the name of their column in ``X``; or several labels (a frame, an array of shape
        ``(n_rows, n_targets)``, a list of names) if ``several``. There need be no labels.
    extras : dict, optional
        What else each row has, by its role, see ``daskdl.data.extras``. The name of a column takes it out of ``X``.

    Returns
    -------
    (frame, label, columns)
        The name of the label's column, or a list of several, or None; and the columns of each extra.

    Raises
    ------
    DataError
        Rows that do not belong together, as far as that is known before they are computed.
    """
    parts: dict[str, Any] = {}
    cut = X.chunks[0] if isinstance(X, da.Array) else None
    X = rows_as_frame(X)
    taken: list[str] = []
    for role, values in {**(extras or {}), LABEL_ROLE: y}.items():
        if values is not None:
            parts[role], names = _taken(X, role, values)
            taken += names
    if taken:
        X = with_text_names(X).drop(columns=list(dict.fromkeys(taken)))
    X = as_frame(X, kinds)
    if cut is not None:
        parts = {role: _cut_alike(values, cut) for role, values in parts.items()}
    X = X if is_lazy(X) else to_pandas(X)
    part_of = _lazy_part if is_lazy(X) else _part
    many = {role for role in parts if (several if role == LABEL_ROLE else ROLES[role].several)}
    found = {role: part_of(X, role, values, role in many) for role, values in parts.items()}
    columns = {role: tuple(column_names(role, part.width)) for role, part in found.items()}
    frame = _beside_lazy(X, found, columns) if is_lazy(X) else _beside(X, found, columns)
    label = columns.pop(LABEL_ROLE, (None,))
    return frame, label[0] if len(label) == 1 else list(label), columns


def _taken(X: Any, role: str, values: Any) -> tuple[Any, list[str]]:
    """Return what has a role, and the columns of ``X`` that it is: one that is given by its name, or some."""
    if names_column(X, values):
        found = taken_column(f"{role} column", X, values, _word(role))[1]
        return found, [found.name]
    if isinstance(values, list) and values and all(has_column(X, v) for v in values):
        names = list(map(str, values))
        return with_text_names(X)[names], names
    return values, []


def _cut_alike(values: Any, cut: tuple[Any, ...]) -> Any:
    """Cut a Dask array into the pieces of another, as far as both are known."""
    known = isinstance(values, da.Array) and not np.isnan([*cut, *values.chunks[0]]).any()
    return values.rechunk({0: cut}) if known and sum(cut) == values.shape[0] else values


def label_names(y: Any) -> Any:
    """Return the name of what was given as ``y``, or a list of several, or None; for messages."""
    if hasattr(y, "columns") and y.ndim == 2:
        return list(y.columns) if len(y.columns) > 1 else y.columns[0]
    return y if isinstance(y, list) or is_name(y) else getattr(y, "name", None)


def label_twin(y: Any, names: Sequence[Any]) -> str | None:
    """Return the feature that is called as the label is, if there is one."""
    name = None if is_name(y) or getattr(y, "ndim", 1) != 1 else getattr(y, "name", None)
    return str(name) if isinstance(name, Hashable) and name is not None and str(name) in list(names) else None


def _word(role: str) -> str:
    return "y" if role == LABEL_ROLE else role


# -- in memory ----------------------------------------------------------------------------------------------------


def _part(X: pd.DataFrame, role: str, values: Any, several: bool) -> Part:
    word = _word(role)
    if hasattr(values, "dask"):
        raise DataError(f"X is in memory and {word} is lazy. Give both as Dask collections, or compute {word} first.")
    values = to_pandas(values)
    width = values.shape[1] if getattr(values, "ndim", 1) == 2 else 1
    if isinstance(values, pd.DataFrame) and (width == 1 or several):
        values = values.iloc[:, 0] if width == 1 else values.to_numpy()
    if isinstance(values, pd.Series):
        values = values.array
    else:
        values = np.asarray(values)
        width = values.shape[1] if values.ndim == 2 else 1
        if not several or values.ndim != 2 or width < 2:
            from sklearn.utils import column_or_1d

            values, width = column_or_1d(values, warn=True), 1
    if len(values) != len(X):
        raise DataError(
            f"Found input variables with inconsistent numbers of samples: X has {len(X):,} rows and {word} "
            f"{len(values):,}."
        )
    return Part(values, width)


def _beside(X: pd.DataFrame, parts: dict[str, Part], columns: Columns) -> pd.DataFrame:
    made: dict[str, Any] = {}
    for role, part in parts.items():
        names = columns[role]
        made |= {names[0]: part.values} if part.width == 1 else {n: part.values[:, i] for i, n in enumerate(names)}
    return X.assign(**made)


# -- lazy ---------------------------------------------------------------------------------------------------------


def _lazy_part(X: dd.DataFrame, role: str, values: Any, several: bool) -> Part:
    word = _word(role)
    by_index = not isinstance(values, da.Array)
    if not by_index and values.ndim <= 2:
        values = dd.from_dask_array(values if values.ndim == 1 else values.rechunk({1: -1}))
    elif isinstance(values, (dd.Series, dd.DataFrame)):
        values = with_objects(values)
    if not isinstance(values, (dd.Series, dd.DataFrame)):
        raise DataError(
            f"X is a Dask DataFrame, so {word} must be a Dask Series or the name of a column of X; got "
            f"{type(values).__name__}. Keep it in the frame, and pass df[features], df[{_word(role)!r}]."
        )
    width = len(values.columns) if isinstance(values, dd.DataFrame) else 1
    if width == 1 and isinstance(values, dd.DataFrame):
        values = values[values.columns[0]]
    if width > 1 and not several:
        raise DataError(f"{word} should be a 1d array, got a frame of {width} columns: {list(values.columns)[:10]}.")
    if by_index:
        values = _partitioned_alike(X, word, values)
    if values.npartitions != X.npartitions:
        raise DataError(
            f"X has {X.npartitions} partitions and {word} {values.npartitions}, so which value belongs to which row "
            f"cannot be told. Take both from one frame: X = df[features], {word} = df[{word!r}]."
        )
    return Part(values, width, by_index)


def _partitioned_alike(X: dd.DataFrame, word: str, values: Any) -> Any:
    if are_co_aligned(X.expr, values.expr) or X is values:
        return values
    if X.known_divisions and values.known_divisions:
        ends = [(part.divisions[0], part.divisions[-1]) for part in (X, values)]
        if ends[0] != ends[1]:
            raise DataError(
                f"the index of X goes from {ends[0][0]} to {ends[0][1]} and that of {word} from {ends[1][0]} to "
                f"{ends[1][1]}: they are not of the same rows. Take both from one frame."
            )
        return values if X.divisions == values.divisions else values.repartition(divisions=X.divisions)
    # Dask would shuffle by index, and pair rows by chance
    raise DataError(
        f"X ({X.npartitions} partitions) and {word} ({values.npartitions}) come from different frames of unknown "
        f"divisions, so which value belongs to which row cannot be told. Take both from one frame: X = df[features], "
        f"{word} = df[{word!r}]."
    )


def _beside_lazy(X: dd.DataFrame, parts: dict[str, Part], columns: Columns) -> dd.DataFrame:
    if not parts:
        return X
    layout = [(_word(role), tuple(columns[role]), part.by_index) for role, part in parts.items()]
    values = [part.values for part in parts.values()]
    meta = _put_beside(X._meta, *(v._meta for v in values), layout=layout)
    return X.map_partitions(_put_beside, *values, layout=layout, meta=meta, align_dataframes=False)


def _put_beside(rows: Any, *values: Any, layout: list[tuple[str, tuple[str, ...], bool]]) -> Any:
    """Put the parts of one partition side by side; runs on a worker."""
    made: dict[str, Any] = {}
    for part, (word, names, by_index) in zip(values, layout, strict=True):
        if len(part) != len(rows):
            raise DataError(
                f"Found input variables with inconsistent numbers of samples: a partition of X has {len(rows):,} rows "
                f"and that of {word} {len(part):,}. Take both from one frame."
            )
        if by_index and not rows.index.equals(part.index):
            raise DataError(
                f"the index of {word} is not that of X in a partition: {list(rows.index[:3])} and "
                f"{list(part.index[:3])}. Rows would be paired by chance: take both from one frame."
            )
        made |= {n: (part if part.ndim == 1 else part.iloc[:, i]).array for i, n in enumerate(names)}
    return rows.assign(**made)
