"""What one pass over the rows tells about a column: gathered per partition, merged into what the whole has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from daskdl.data.schema.buckets import Hashes, different, hashes, merged
from daskdl.data.schema.kinds import MAX_TOP, Kind, kind_name, kind_of
from daskdl.data.schema.lists import Lists, lists
from daskdl.data.schema.objects import is_missing
from daskdl.data.schema.pictures import check_whole, image_shape
from daskdl.data.schema.values import Values, blobs, categories, days, numbers, plain, strings
from daskdl.errors import DataError

MAX_CATEGORIES = 10_000  # with a code of their own, unless the user says otherwise
LOOKED_AT, CROWD = 1_024, 128  # values of a piece that are looked at, and kept, to see if float32 tells them apart
LARGEST = float(np.finfo(np.float32).max)  # what is beyond is infinite for the model
Shape = tuple[int, ...]


@dataclass
class ColumnStats:
    """What one pass over some rows of a column tells; two of them merge into one.

    Attributes
    ----------
    kind : str
        One of the kinds of ``daskdl.data.schema.kinds``.
    n, n_missing, n_infinite : int
        Rows; rows that are missing (of lists: or hold a missing number); infinite numbers.
    mean, m2, low, high : float
        Mean, sum of squared differences from it, and range: of numbers, of days since 1970, or of all numbers in
        arrays of one shape (``m2`` is then that of a row divided by its size, so that ``m2 / n`` is the variance).
    values : dict
        Category -> rows: of all, or of about the ``MAX_TOP`` most frequent ones; or class -> rows.
    sketch : array of uint64, optional
        Smallest hashes of all categories, where ``values`` are not all.
    shape : tuple of int, optional
        Of a row of arrays or lists, or (channels, height, width) of images; -1 where rows differ.
    dtype : str
        Of the numbers in arrays or lists.
    crowd : tuple
        Of numbers and dates: some of the values, in order, if float32 does not tell near ones apart. Else empty.
    """

    kind: str
    n: int = 0
    n_missing: int = 0
    n_infinite: int = 0
    mean: float = 0.0
    m2: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    values: dict[Any, int] = field(default_factory=dict)
    shape: Shape | None = None
    dtype: str = ""
    sketch: Hashes | None = None
    crowd: tuple[float, ...] = ()

    @property
    def n_different(self) -> int:
        """Different categories or classes; an estimate where not all were counted."""
        return len(self.values) if self.sketch is None else max(len(self.values), different(self.sketch))

    @property
    def n_seen(self) -> int:
        """Rows that are not missing."""
        return self.n - self.n_missing

    def merge(self, other: ColumnStats) -> ColumnStats:
        """Combine with the statistics of other rows.

        Mean and variance by the pairwise update of Chan, Golub and LeVeque, "Updating formulae and a pairwise
        algorithm for computing sample variances" (1979).

        Raises
        ------
        TypeError
            The rows are of different kinds, or arrays of different dimensions.
        """
        kind, shape = self._merged_kind(other), _merged_shape(self.shape, other.shape)
        total = max(1, self.n_seen + other.n_seen)
        delta = other.mean - self.mean
        varies = shape is not None and -1 in shape  # then rows have different sizes, and no common mean
        return ColumnStats(
            kind=kind if kind not in ("array", "ragged") or shape is None else _list_kind(shape),
            n=self.n + other.n,
            n_missing=self.n_missing + other.n_missing,
            n_infinite=self.n_infinite + other.n_infinite,
            mean=0.0 if varies else self.mean + delta * other.n_seen / total,
            m2=0.0 if varies else self.m2 + other.m2 + delta * delta * self.n_seen * other.n_seen / total,
            low=math.inf if varies else min(self.low, other.low),
            high=-math.inf if varies else max(self.high, other.high),
            **self._merged_values(other),
            shape=shape,
            dtype=str(np.result_type(self.dtype, other.dtype))
            if self.dtype and other.dtype
            else self.dtype or other.dtype,
            crowd=thinned([*self.crowd, *other.crowd]),
        )

    def _merged_values(self, other: ColumnStats) -> dict[str, Any]:
        """Counts of both; classes are counted however many there are."""
        values, sketch = dict(self.values), None
        for value, count in other.values.items():
            values[value] = values.get(value, 0) + count
        if self.kind == "label":
            return {"values": values}
        if self.sketch is not None or other.sketch is not None:
            one, two = (hashes(part.values) if part.sketch is None else part.sketch for part in (self, other))
            sketch = merged(one, two)
        return counted(values, sketch)

    def _merged_kind(self, other: ColumnStats) -> str:
        """Kind of both; a part that holds nothing but missing values may be of any."""
        if self.kind == other.kind or not other.n_seen:
            return self.kind if self.n_seen or not other.n_seen else other.kind
        if not self.n_seen or {self.kind, other.kind} == {"array", "ragged"}:
            return other.kind
        raise TypeError(f"{self.kind} in some partitions, {other.kind} in others")


def counted(values: dict[Any, int], sketch: Hashes | None = None) -> dict[str, Any]:
    """Keep of counted categories the most frequent ones, if they are many: an identifier would fill the memory."""
    if len(values) <= MAX_TOP:
        return {"values": values, "sketch": sketch}
    sketch = merged(hashes(values), np.empty(0, np.uint64)) if sketch is None else sketch
    kept = sorted(values, key=lambda v: (-values[v], str(v)))[:MAX_TOP]
    return {"values": {value: values[value] for value in kept}, "sketch": sketch}


def thinned(values: Sequence[float]) -> tuple[float, ...]:
    """At most ``CROWD`` of the values, in order, the lowest and the highest among them."""
    ordered = sorted(values)
    if len(ordered) <= CROWD:
        return tuple(ordered)
    return tuple(ordered[round(i * (len(ordered) - 1) / (CROWD - 1))] for i in range(CROWD))


def crowded(ordered: npt.NDArray[Any], single: npt.NDArray[Any]) -> bool:
    """Whether float32 makes one of more than a hundredth of the values that differ; both in order.

    Examples
    --------
    >>> dates = np.arange(20240101, 20240131)
    >>> crowded(dates, dates.astype(np.float32)), crowded(dates, (dates - 20240101).astype(np.float32))
    (True, False)
    """
    differ = np.count_nonzero(ordered[1:] != ordered[:-1])
    return bool(np.count_nonzero(single[1:] != single[:-1]) < 0.99 * differ)


def _crowd(values: npt.NDArray[Any]) -> tuple[float, ...]:
    """Some of the values if float32 does not tell near ones apart, judged by neighbours from a regular sample."""
    if values.dtype.itemsize < 4 or values.dtype == np.float32 or not len(values):
        return ()
    some = np.sort(values[:: max(1, len(values) // LOOKED_AT)])
    return thinned(np.unique(some).tolist()) if crowded(some, some.astype(np.float32)) else ()


def _merged_shape(a: Shape | None, b: Shape | None) -> Shape | None:
    if a is None or b is None:
        return b if a is None else a
    if len(a) != len(b):
        raise TypeError(f"rows of {len(a)} dimensions in some partitions, of {len(b)} in others")
    return tuple(x if x == y else -1 for x, y in zip(a, b, strict=True))


def _list_kind(shape: Shape) -> str:
    return "ragged" if -1 in shape else "array"


# -- describe -----------------------------------------------------------------------------------------------------


def describe(column: Any, moments: bool = True, kind: Kind | None = None, name: Any = None) -> ColumnStats:
    """Gather the statistics of a column of one partition; runs where the partition is.

    Parameters
    ----------
    column : pandas.Series, pyarrow.Array or pyarrow.ChunkedArray
    moments : bool
        Whether mean and variance are gathered; trees do not need them.
    kind : str, Array, Image or Text, optional
        How the column shall be read; by default as its type and its values say.
    name : hashable, optional
        Of a pyarrow column, for messages.

    Raises
    ------
    DataError
        The column cannot be read that way.

    Examples
    --------
    >>> stats = describe(pd.Series([1.0, 3.0, None], name="x"))
    >>> stats.n, stats.n_missing, stats.mean
    (3, 1, 2.0)
    >>> describe(pa.array([[1, 2], [3]]), name="visits").shape
    (-1,)
    """
    name = getattr(column, "name", name)
    dtype = column.dtype if isinstance(column, pd.Series) else getattr(column, "type", None)
    values = plain(column)
    found = kind_of(name, values.dtype if dtype is None else dtype, values) if kind is None else kind_name(kind)
    try:
        return _DESCRIBE[found](values, moments, kind)
    except DataError as error:
        raise DataError(f"column {name!r}: {error}", error.rows) from error
    except (TypeError, ValueError, pa.ArrowNotImplementedError) as error:
        raise _unreadable(name, dtype, values, found, kind, error) from error


def _unreadable(name: Any, dtype: Any, values: Values, found: str, kind: Kind | None, error: Exception) -> DataError:
    rows = getattr(error, "rows", ())
    if kind is None and found == "array" and not isinstance(values, pa.Array):
        odd = next((v for v in values if not isinstance(v, (str, bool, int, float, np.generic, type(None)))), None)
        return DataError(
            f"column {name!r} is an object column that is no category: it holds {type(odd).__name__} values such as "
            f"{str(odd)[:60]!r}, and they are no arrays of numbers: {error}. Turn it into numbers, strings or lists of "
            "numbers, or leave it out.",
            rows,
        )
    return DataError(
        f"column {name!r} of dtype {dtype} cannot be read as kind {found!r}: {error}. Convert its values, say another "
        f"kind, kinds={{{name!r}: ...}}, or leave it out.",
        rows,
    )


def _describe_category(values: Values, moments: bool, kind: Kind | None) -> ColumnStats:
    values = categories(values)
    if isinstance(values, pa.Array):
        return _arrow_categories(values)
    series = pd.Series(values)
    counts = series.value_counts(dropna=True)
    found = {v.item() if isinstance(v, np.generic) else v: int(n) for v, n in counts.items()}
    return ColumnStats("category", len(series), int(series.isna().sum()), **counted(found))


def _arrow_categories(array: pa.Array) -> ColumnStats:
    missing = pc.sum(pc.is_null(array, nan_is_null=pa.types.is_floating(array.type))).as_py() or 0
    if pa.types.is_null(array.type):
        return ColumnStats("category", len(array), len(array))
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.large_string())
    pairs = array.value_counts().flatten()
    found = {v: n for v, n in zip(pairs[0].to_pylist(), pairs[1].to_pylist(), strict=True) if not is_missing(v)}
    return ColumnStats("category", len(array), int(missing), **counted(found))


def _describe_number(values: Values, moments: bool, kind: Kind | None) -> ColumnStats:
    x = numbers(values)
    with np.errstate(invalid="ignore"):
        finite = np.abs(x) <= LARGEST if x.dtype.kind == "f" else np.ones(len(x), dtype=bool)
    n_missing = 0 if finite.all() else int(np.isnan(x).sum())
    stats = ColumnStats("number", len(x), n_missing, len(x) - n_missing - int(np.count_nonzero(finite)))
    known = x if finite.all() else x[finite]
    stats.crowd = _crowd(known)
    return _with_moments(stats, known) if moments else stats


def _with_moments(stats: ColumnStats, known: npt.NDArray[Any], size: int = 1) -> ColumnStats:
    """Add mean, variance and range of the known numbers; each row has ``size`` of them."""
    if known.size:
        known = known.astype(np.float64)
        stats.mean = float(known.mean())
        stats.m2 = float(((known - stats.mean) ** 2).sum()) / size
        stats.low, stats.high = float(known.min()), float(known.max())
    return stats


def _describe_time(values: Values, moments: bool, kind: Kind | None) -> ColumnStats:
    day, rest, missing = days(values)
    stats = ColumnStats("time", len(day), int(missing.sum()))
    stats.crowd = _crowd(rest[~missing] * 24)
    return _with_moments(stats, (day + rest)[~missing]) if moments else stats


def _describe_lists(values: Values, moments: bool, kind: Kind | None) -> ColumnStats:
    found = lists(values)
    shape = found.shape
    dtype = str(found.values.dtype) if found.values.size else ""
    stats = ColumnStats("array" if shape is None else _list_kind(shape), len(found.lengths), shape=shape, dtype=dtype)
    stats.n_missing = int(found.missing.sum())
    if found.values.dtype.kind == "f":
        stats.n_infinite = int(np.isinf(found.values).sum())
    if shape is not None and -1 not in shape:
        return _describe_arrays(stats, found, moments)
    if found.values.dtype.kind == "f":
        stats.n_missing += _rows_with_nan(found)
    return stats


def _describe_arrays(stats: ColumnStats, found: Lists, moments: bool) -> ColumnStats:
    rows = found.values.reshape(stats.n_seen, -1) if found.values.size else np.empty((0, 1))
    if rows.dtype.kind == "f":
        whole = ~np.isnan(rows).any(axis=1)
        stats.n_missing += len(rows) - int(whole.sum())
        rows = rows[whole & np.isfinite(rows).all(axis=1)]
    return _with_moments(stats, rows, max(1, rows.shape[1])) if moments else stats


def _rows_with_nan(found: Lists) -> int:
    bad = np.isnan(found.values).reshape(len(found.values), -1).any(axis=1) if found.values.size else np.zeros(0)
    row = np.repeat(np.arange(len(found.lengths)), found.lengths)
    return len(np.unique(row[bad.astype(bool)]))


def _describe_image(values: Values, moments: bool, kind: Kind | None) -> ColumnStats:
    """Open the head of every image, so that one that cannot be read is named before anything is launched."""
    images = blobs(values)
    shape: Shape | None = None
    broken: dict[int, DataError] = {}
    for row, data in enumerate(images):
        try:
            if data is not None:
                shape = _merged_shape(shape, image_shape(data))
                check_whole(data)
        except DataError as error:
            broken[row] = error
    if broken:
        raise DataError(str(next(iter(broken.values()))), list(broken))
    missing = sum(data is None for data in images)
    return ColumnStats("image", len(values), missing, shape=shape, dtype="uint8")


def _describe_text(values: Values, moments: bool, kind: Kind | None) -> ColumnStats:
    found = strings(values)
    return ColumnStats("text", len(found), found.null_count)


_DESCRIBE = {
    "number": _describe_number,
    "category": _describe_category,
    "time": _describe_time,
    "array": _describe_lists,
    "ragged": _describe_lists,
    "image": _describe_image,
    "text": _describe_text,
}
