"""A look at one partition, where it lies: what its columns are, and what is wrong with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from daskdl.data.frame import LABEL, to_pandas
from daskdl.data.looking import label_among_features
from daskdl.data.schema import Schema
from daskdl.data.schema.encoding import learn_column
from daskdl.data.schema.stats import MAX_CATEGORIES, ColumnStats, describe
from daskdl.data.schema.target import Target, describe_target
from daskdl.data.schema.values import numbers, plain
from daskdl.data.sources.base import to_frame
from daskdl.errors import DataError
from daskdl.preflight.facts import FEW_ROWS, is_identifier

LOOK_ROWS, LOOK_CELLS = 100_000, 4_000_000  # of a partition that are looked at, at most
PAIR_ROWS = 20_000  # whose columns are compared with the label
MANY_CLASSES = 100  # a label of whole numbers with more values is taken for a number


@dataclass
class Seen:
    """What was seen of one piece; attributes as of ``Facts``.

    Attributes
    ----------
    rows, looked : int
        Rows of the piece, and how many of them were looked at.
    bytes : float
        Of the piece, in memory.
    per_second : float
        Rows whose statistics were gathered.
    """

    rows: int = 0
    looked: int = 0
    bytes: float = 0.0
    per_second: float = 0.0
    columns: dict[Any, ColumnStats] = field(default_factory=dict)
    refused: dict[Any, str] = field(default_factory=dict)
    identifiers: list[Any] = field(default_factory=list)
    leaks: dict[Any, str] = field(default_factory=dict)
    label: ColumnStats | None = None
    label_refused: str = ""
    task: str = ""


def look(piece: Any, label: Any = LABEL, label_name: Any = None, seconds: float = 2.0) -> Seen:
    """Look at a frame, or at the first rows of a group: (source, group), or at the last: (source, group, True).

    Parameters
    ----------
    piece : frame or tuple
    label : hashable
        Column of the label.
    label_name : hashable
        What messages call it.
    seconds : float
        After which the columns that are left are not compared with the label.

    Examples
    --------
    >>> seen = look(pd.DataFrame({"row": range(60), "y": [0, 1] * 30}), "y")
    >>> seen.rows, seen.task, seen.identifiers
    (60, 'classes', ['row'])
    """
    deadline = time.perf_counter() + seconds
    frame, n_rows = rows_of(piece)
    if isinstance(piece, tuple):
        frame = frame.drop(columns=[name for name in piece[0].provenance if name in frame and name != label])
    sample = frame.iloc[:: max(1, -(-len(frame) // most_rows(frame.shape[1])))]
    per_row = sample.memory_usage(deep=True, index=False).sum() / max(1, len(sample))
    seen = Seen(n_rows, len(sample), float(per_row) * n_rows)
    if not n_rows:
        return seen
    _see_label(seen, frame[label], label_name)
    _see_columns(seen, sample.drop(columns=[label]), partial(_place, piece, sample))
    seen.identifiers = [n for n in seen.columns if _all_differ(sample[n], seen.columns[n])]
    known = sample[sample[label].notna()].iloc[:PAIR_ROWS]
    seen.leaks = leaks(known[list(seen.columns)], known[label], seen.task, deadline)
    twin = str(label_name)
    if twin != label and "identical" in seen.leaks.get(twin, ""):
        seen.refused[twin] = label_among_features(twin)
    return seen


def most_rows(n_columns: int) -> int:
    """Rows to look at: fewer of a wide frame."""
    return max(1_000, min(LOOK_ROWS, LOOK_CELLS // max(1, n_columns)))


def rows_of(piece: Any) -> tuple[pd.DataFrame, int]:
    """Return the rows of a piece that are looked at, and how many it has."""
    if not isinstance(piece, tuple):
        frame = to_pandas(piece)
        return frame, len(frame)
    source, group, *end = piece
    n = int(source.counts[group])
    most = min(n, most_rows(round(source.row_bytes / 8)))
    first = n - most if end else 0
    chunks = [to_frame(chunk) for chunk in source.read(group, first, first + most)]
    frame = pd.concat(chunks, ignore_index=True) if chunks else source.head(0)
    return frame.set_axis(pd.RangeIndex(first, first + len(frame))), n


def _place(piece: Any, sample: pd.DataFrame, row: int) -> str:
    """Say where a row that was looked at comes from."""
    index = sample.index[row]
    return piece[0].where_row(piece[1], int(index)) if isinstance(piece, tuple) else f"the row of index {index!r}"


def _see_columns(seen: Seen, sample: pd.DataFrame, place: Callable[[int], str]) -> None:
    began = time.perf_counter()
    for name in sample.columns:
        try:
            stats = describe(sample[name])
            learn_column(name, stats, "impute", None)
        except DataError as error:
            seen.refused[name] = str(error.named(place))
        else:
            seen.columns[name] = stats
    seen.per_second = len(sample) / max(1e-6, time.perf_counter() - began)


def _see_label(seen: Seen, y: pd.Series, name: Any) -> None:
    y = y.rename(name)
    seen.task = task_of(y)
    try:
        seen.label = describe_target(y, seen.task == "classes")
    except DataError as error:
        seen.label_refused = str(error)
    else:
        seen.label_refused = label_refused(name, seen.label, seen.task)


def label_refused(name: Any, label: ColumnStats, task: str) -> str:
    """What fit says of labels that it refuses; nothing of others."""
    try:
        Target.from_stats(name, label, task == "classes")
    except DataError as error:
        return str(error)
    return ""


def task_of(y: pd.Series) -> str:
    """Say what a label is: ``"classes"``, or ``"number"`` if it has fractions or very many values.

    Examples
    --------
    >>> task_of(pd.Series([0, 1, 1])), task_of(pd.Series([0.5, 1.0]))
    ('classes', 'number')
    """
    found = plain(y)
    if isinstance(found, pa.Array):
        kind = found.type
        real = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    else:
        real = found.dtype.kind in "iuf"
    if not real:
        return "classes"
    values = numbers(found).astype(np.float64)
    values = values[np.isfinite(values)]
    whole = bool((values % 1 == 0).all())
    return "classes" if whole and len(np.unique(values)) <= MANY_CLASSES else "number"


def _all_differ(column: pd.Series, stats: ColumnStats) -> bool:
    """Whether whole numbers, or categories, are as many as rows; that fractions are is no surprise."""
    if stats.n_missing or len(column) < FEW_ROWS:
        return False
    if stats.kind == "category":
        return is_identifier(stats)
    return stats.kind == "number" and pd.api.types.is_integer_dtype(column.dtype) and bool(column.is_unique)


# -- columns that give the label away -----------------------------------------------------------------------------


def leaks(frame: pd.DataFrame, y: pd.Series, task: str, deadline: float) -> dict[Any, str]:
    """Find columns that are the label in disguise, until time is up.

    Examples
    --------
    >>> y = pd.Series([0, 1] * 30)
    >>> leaks(pd.DataFrame({"answer": y.map({0: "no", 1: "yes"})}), y, "classes", float("inf"))
    {'answer': 'maps one to one to the label'}
    """
    if len(y) < FEW_ROWS:
        return {}
    compare = _tells_class if task == "classes" else _tells_number
    found: dict[Any, str] = {}
    for name in frame.columns:
        if time.perf_counter() > deadline:
            break
        try:
            how = compare(frame[name], y)
        except (TypeError, ValueError):  # lists and images have no order and are no dictionary keys
            continue
        if how:
            found[name] = how
    return found


def _tells_class(x: pd.Series, y: pd.Series) -> str:
    classes, names = pd.factorize(y)
    values, different = pd.factorize(x, use_na_sentinel=False)
    if len(names) < 2:
        return ""
    if len(different) == len(names):
        if len(np.unique(values * len(names) + classes)) == len(names):
            same = x.dtype == y.dtype and bool((x.array == y.array).all())
            return "is identical to the label" if same else "maps one to one to the label"
        return ""
    if len(names) == 2 and pd.api.types.is_numeric_dtype(x.dtype) and len(different) > 2:
        return _tells_by_threshold(x, classes == 0)
    return ""


def _tells_by_threshold(x: pd.Series, first: np.ndarray[Any, Any]) -> str:
    a, b = x[first].dropna(), x[~first].dropna()
    if min(len(a), len(b)) < FEW_ROWS // 5 or not (a.max() < b.min() or b.max() < a.min()):
        return ""
    return "separates the two classes by one threshold"


def _tells_number(x: pd.Series, y: pd.Series) -> str:
    if not pd.api.types.is_numeric_dtype(x.dtype) or x.isna().any():
        return ""
    a, b = x.to_numpy(dtype=np.float64), y.to_numpy(dtype=np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all() and a.std() and b.std()):
        return ""
    if (a == b).all():
        return "is identical to the label"
    return "is a linear function of the label" if abs(np.corrcoef(a, b)[0, 1]) > 1 - 1e-9 else ""


# -- a second piece, and how fast one is encoded ------------------------------------------------------------------


def other_categories(
    first: Mapping[Any, ColumnStats], last: Mapping[Any, ColumnStats], fixed: Sequence[Any] = ()
) -> dict[Any, tuple[float, list[Any]]]:
    """Categories of the last piece that the first has not: the share of its rows that has them, and which they are."""
    found = {}
    for name in first.keys() & last.keys() - set(fixed):
        one, other = first[name], last[name]
        new = [v for v in other.values if v not in one.values] if one.kind == other.kind == "category" else []
        if new and len(one.values) <= MAX_CATEGORIES:
            found[name] = sum(other.values[v] for v in new) / other.n, new
    return dict(sorted(found.items(), key=lambda pair: -pair[1][0]))


def encode_rate(piece: Any, columns: Mapping[Any, ColumnStats]) -> tuple[float, float]:
    """Encode the rows that are looked at; return rows per second and bytes per encoded row."""
    frame, _ = rows_of(piece)
    frame = frame.iloc[: most_rows(len(columns))]
    schema = Schema.from_stats(columns)
    began = time.perf_counter()
    block = schema.encode(frame)
    seconds = time.perf_counter() - began
    n_bytes = sum(getattr(array, "nbytes", 0) for array in block.values())
    return len(frame) / max(1e-6, seconds), n_bytes / max(1, len(frame)) + 8
