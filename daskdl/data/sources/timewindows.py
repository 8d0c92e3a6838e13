"""Windows of consecutive rows, for models of time series: a source made of another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from daskdl.data.sources.base import CHUNK_ROWS, Chunk, Source
from daskdl.data.sources.fingerprint import fingerprint
from daskdl.data.sources.tables import table_of
from daskdl.errors import DataError

CHUNK_VALUES = 1 << 18  # of one column, in the windows that are made at a time


@dataclass(frozen=True)
class Cut:
    """How rows are cut into windows.

    Attributes
    ----------
    length, step, ahead : int
        Rows of a window, rows from one window's beginning to the next one's, rows from a window to its label.
    by : str
        The column of time.
    max_gap : number or Timedelta, optional
        The largest step in time within a window.
    groupby : tuple of str
        Columns that say what a row is about.
    """

    length: int
    by: str
    step: int = 1
    max_gap: Any = None
    groupby: tuple[str, ...] = ()
    ahead: int = 0

    @property
    def span(self) -> int:
        """Rows from a window's first to its label's."""
        return self.length + self.ahead

    @property
    def plain(self) -> bool:
        """Whether the number of windows follows from the number of rows."""
        return self.max_gap is None and not self.groupby

    def count(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Windows in stretches of so many rows: shape (n_stretches,).

        Examples
        --------
        >>> Cut(length=3, by="t", step=2).count(np.array([2, 3, 4, 5])).tolist()
        [0, 1, 1, 2]
        """
        return np.maximum(0, (rows - self.span) // self.step + 1)


class TimeWindows(Source):
    """Windows of ``length`` consecutive rows of another source, in the order of time.

    A group of windows is made of the rows of one group of `source`, which are sorted by time first. A window does not
    go over the end of a group, so groups should hold many windows, and the rows of one thing should lie in one group.

    Parameters
    ----------
    source : Source
    length : int
        Rows of a window. Each column becomes one of fixed-length lists, ``(length,)`` a row; arrays of shape
        ``(...)`` become ``(length, ...)``.
    by : str
        Column of time, numbers or timestamps; rows are sorted by it. It keeps its value in a window's last row.
    step : int
        Rows from the beginning of one window to that of the next, counted anew in each stretch of rows that windows
        may lie in.
    max_gap : number, pandas.Timedelta or str, optional
        No window holds neighbours that lie further apart in time: a number in the unit of a column of numbers, a
        Timedelta or ``"1h"`` for timestamps.
    groupby : str or sequence of str, optional
        Columns that say what a row is about, such as a sensor. No window holds rows of two. They keep one value.
    last : sequence of str, or dict of str to str
        Columns that keep one value, the label's: that of the window's last row, or of the row `ahead` after it. A dict
        names new columns, ``{"target": "load"}``, and keeps the windows of ``load``.
    ahead : int
        Rows from a window's last to that of its label; they are subject to `max_gap` and `groupby` too.
    map : callable
        Maps a function over groups when windows must be counted, which takes one pass over the rows: ``map``, an
        executor's, or ``client.map`` of Dask. Without `max_gap` and `groupby` nothing is read.

    Raises
    ------
    DataError
        A column is not there, or a number is out of range. While reading: times are missing or are no times.

    Examples
    --------
    >>> from daskdl.data.sources.memory import MemorySource
    >>> rows = MemorySource({"t": np.array([3, 1, 2, 4]), "x": np.array([30.0, 10.0, 20.0, 40.0])})
    >>> windows = TimeWindows(rows, 2, by="t", last={"next": "x"}, ahead=1)
    >>> [chunk.select(["x", "next"]).to_pylist() for chunk in windows.read(0, 0, 2)]
    [[{'x': [10.0, 20.0], 'next': 30.0}, {'x': [20.0, 30.0], 'next': 40.0}]]
    """

    def __init__(
        self,
        source: Source,
        length: int,
        by: str,
        step: int = 1,
        max_gap: Any = None,
        groupby: str | Sequence[str] | None = None,
        last: Sequence[str] | Mapping[str, str] = (),
        ahead: int = 0,
        map: Callable[..., Any] = map,
    ) -> None:
        groups = (groupby,) if isinstance(groupby, str) else tuple(groupby or ())
        last = [last] if isinstance(last, str) else last
        self.source, self.cut = source, Cut(length, by, step, max_gap, groups, ahead)
        self.last = dict(last) if isinstance(last, Mapping) else {name: name for name in last}
        self.provenance, self.notes = source.provenance, source.notes
        self._check()
        self.counts = self._count(map)
        self.row_bytes = source.row_bytes * length
        self.open_bytes = source.open_bytes + source.row_bytes * float(source.counts.max(initial=0))
        self.fingerprint = fingerprint("windows", source.fingerprint, repr(self.cut), repr(sorted(self.last.items())))

    def _check(self) -> None:
        cut = self.cut
        for name, value, low in (("length", cut.length, 1), ("step", cut.step, 1), ("ahead", cut.ahead, 0)):
            if value < low:
                raise DataError(f"{name} must be {low} or more, got {value}: it counts rows.")
        names = self.source.names if self.source.n_rows else None
        for name in (cut.by, *cut.groupby, *self.last.values()):
            if names is not None and name not in names:
                raise DataError(f"column {name!r} is not among the columns {names}. Windows are made by it.")
        taken = [new for new, old in self.last.items() if new != old and names is not None and new in names]
        if taken:
            raise DataError(f"last= gives a new column the name of another one: {taken}. Choose names that are free.")

    def _count(self, map: Callable[..., Any]) -> npt.NDArray[np.int64]:
        if self.cut.plain:
            return self.cut.count(self.source.counts)
        found = map(partial(count_group, self.source, self.cut), range(len(self.source.counts)))
        counts = [one.result() if hasattr(one, "result") else one for one in found]
        return np.array(counts, np.int64)

    def read(self, group: int, first: int, stop: int) -> Iterator[Chunk]:
        """Yield windows as Arrow tables; reads the group's rows, all of them, at each call."""
        if first >= stop:
            return
        rows, starts = _sorted_rows(self.source, self.cut, group)
        if len(starts) != self.counts[group]:
            raise DataError(
                f"{self.where(group)}: {len(starts):,} where {self.counts[group]:,} were counted. The rows have "
                "changed since; make the source again."
            )
        size = max(1, min(CHUNK_ROWS, CHUNK_VALUES // self.cut.length))
        for at in range(first, stop, size):
            yield self._windows(rows, starts[at : min(stop, at + size)])

    def where(self, group: int) -> str:
        """Say which rows the windows are made of."""
        return f"windows of {self.source.where(group)}"

    def _windows(self, rows: pa.Table, starts: npt.NDArray[np.int64]) -> pa.Table:
        cut, ends = self.cut, pa.array(starts + self.cut.length - 1)
        within = pa.array((starts[:, None] + np.arange(cut.length)).reshape(-1))
        columns = {}
        for name in rows.column_names:
            if name == cut.by or name in cut.groupby or name in self.provenance:
                columns[name] = rows[name].take(ends)
            elif name not in self.last:
                columns[name] = _lists(rows[name], within, cut.length)
        labels = pa.array(starts + cut.span - 1)
        return pa.table(columns | {new: rows[old].take(labels) for new, old in self.last.items()})


def count_group(source: Source, cut: Cut, group: int) -> int:
    """Count the windows in one group; a pure function, for any executor's ``map``."""
    return len(_sorted_rows(source, cut, group)[1])


def _lists(column: pa.ChunkedArray, index: pa.Array, length: int) -> pa.Array:
    """Lay rows of a column side by side, ``length`` in each list; tensors get one more axis."""
    column = column.combine_chunks()
    if isinstance(column.type, pa.FixedShapeTensorType):
        values = column.storage.take(index).flatten()
        shape = [length, *column.type.shape]
        storage = pa.FixedSizeListArray.from_arrays(values, int(np.prod(shape)))
        return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(values.type, shape), storage)
    return pa.FixedSizeListArray.from_arrays(column.take(index), length)


# -- rows in order ------------------------------------------------------------------------------------------------


def _sorted_rows(source: Source, cut: Cut, group: int) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Read a group, sort it by what its rows are about and by time, and find where windows begin."""
    chunks = [_to_table(chunk) for chunk in source.read(group, 0, int(source.counts[group]))]
    if not chunks:
        return pa.table({}), np.zeros(0, np.int64)
    rows = pa.concat_tables(chunks, promote_options="permissive").combine_chunks()
    if rows[cut.by].null_count:
        raise DataError(
            f"{source.where(group)}: column {cut.by!r} has {rows[cut.by].null_count:,} missing values. A row without a "
            "time has no place in a window; fill them or leave those rows out."
        )
    order = pc.sort_indices(rows, [(name, "ascending") for name in (*cut.groupby, cut.by)])
    if not np.array_equal(order, np.arange(len(rows))):
        rows = rows.take(order).combine_chunks()
    return rows, _starts(_stretches(rows, cut), cut)


def _stretches(rows: pa.Table, cut: Cut) -> npt.NDArray[np.int64]:
    """Rows of each stretch that windows may lie in: of one thing, and without a gap: shape (n_stretches,)."""
    ends = np.zeros(max(0, len(rows) - 1), bool)
    for name in cut.groupby:
        codes = _one(rows[name]).dictionary_encode("encode").indices.to_numpy()
        ends |= codes[1:] != codes[:-1]
    if cut.max_gap is not None:
        ends |= _is_gap(rows, cut)
    return np.diff([0, *(np.flatnonzero(ends) + 1), len(rows)])


def _is_gap(rows: pa.Table, cut: Cut) -> npt.NDArray[np.bool_]:
    kind = rows[cut.by].type
    timed = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    number = isinstance(cut.max_gap, (int, float, np.number))
    if timed == number or not (timed or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(
            f"max_gap={cut.max_gap!r} does not measure column {cut.by!r} of type {kind}. Give a number for a column of "
            "numbers, and a pandas.Timedelta or a string such as '1h' for timestamps."
        )
    steps = np.diff(rows[cut.by].to_numpy())
    return np.asarray(steps > (cut.max_gap if number else pd.Timedelta(cut.max_gap).to_timedelta64()))


def _starts(stretches: npt.NDArray[np.int64], cut: Cut) -> npt.NDArray[np.int64]:
    """Rows at which windows begin: ``step`` apart from the beginning of each stretch."""
    counts = cut.count(stretches)
    begins = np.cumsum(stretches) - stretches
    before = np.cumsum(counts) - counts
    return np.repeat(begins, counts) + cut.step * (np.arange(counts.sum()) - np.repeat(before, counts))


def _one(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _to_table(chunk: Chunk) -> pa.Table:
    if isinstance(chunk, pa.Table):
        return chunk
    if isinstance(chunk, pa.RecordBatch):
        return pa.Table.from_batches([chunk])
    return table_of(chunk)
