"""Map-style datasets, torch's and whatever has ``len`` and ``[i]``, as a source."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from daskdl.data.schema.pictures import eight_bits
from daskdl.data.sources.base import CHUNK_ROWS, WHOLE_GROUP_BYTES, Chunk, Source
from daskdl.data.sources.fingerprint import fingerprint
from daskdl.data.sources.frozen import Frozen, content_of
from daskdl.data.sources.memory import arrow_column, group_counts, span
from daskdl.errors import DataError


class DatasetSource(Source):
    """Rows of a map-style dataset: an object with ``len(dataset)`` and ``dataset[i]``.

    Parameters
    ----------
    dataset
        ``dataset[i]`` returns one value, a tuple of values or a dict of values; a value is a number, a string, bytes,
        an array, a tensor or a PIL image (which is an image like one from a file: ``Image(224, 224)`` resizes it).
        The dataset goes to every worker as it is when the source is made, so it may open files at its first read.
        Rows are read in several threads, each from a copy of its own.
    group_rows : int
        Rows of each group.
    names : sequence of str, optional
        Names of the values; by default the keys of a dict, the fields of a named tuple, ``x`` and ``y`` of a pair,
        ``x`` of a single value, else ``x0``, ``x1``, ...
    ragged : sequence of str
        Names of values whose arrays are as long as they like, of one axis; they become lists. Arrays of other values
        have one shape.

    Raises
    ------
    DataError
        The dataset has no length, cannot be pickled, or a row is not like the first one.

    Notes
    -----
    The fingerprint is made of the class's name, the length and the pickled attributes. It notices other paths, other
    parameters and other data in memory. It does not notice that files behind the paths have changed, that the code of
    the dataset has changed, or that ``__getitem__`` returns something else each time; random augmentation changes what
    a row shows and not which row comes when. Attributes that pickle differently in each process (sets of strings)
    make a fingerprint that no later process finds again.

    Examples
    --------
    >>> class Squares:
    ...     def __len__(self):
    ...         return 5
    ...
    ...     def __getitem__(self, i):
    ...         return np.full((2, 2), i), i * i
    >>> source = DatasetSource(Squares(), group_rows=2)
    >>> [chunk["y"].to_pylist() for chunk in source.read(1, 0, 2)]
    [[4, 9]]
    """

    random_access = True

    def __init__(
        self,
        dataset: Any,
        group_rows: int = 256,
        names: Sequence[str] | None = None,
        ragged: Sequence[str] = (),
    ) -> None:
        self.group_rows, self.ragged, self._name = group_rows, tuple(ragged), type(dataset).__qualname__
        self.counts = group_counts(_length(dataset), group_rows)
        self.fingerprint = fingerprint("dataset", self._name, self.n_rows, group_rows, content_of(dataset))
        self._frozen = Frozen.of(dataset)  # before a row is read
        self._idle = [dataset]  # copies that no thread reads from
        self.columns, self.row_bytes = list(names or ()), 8.0
        self._keys: list[Any] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        if self.n_rows:
            with self._copy() as copy:
                first = self._row(copy, 0)
            self.columns = _names(first, names)
            self._keys = list(first) if isinstance(first, Mapping) else None
            table = self._table([first], 0)
            self._shapes = {n: _shape(v) for n, v in zip(self.columns, _values(first), strict=True)}
            self.row_bytes = float(table.nbytes)

    @contextmanager
    def _copy(self) -> Iterator[Any]:
        """Lend a copy of the dataset to this thread: two that read from one open file would lose their places."""
        try:
            copy = self._idle.pop()
        except IndexError:
            copy = self._frozen.thaw()
        try:
            yield copy
        finally:
            self._idle.append(copy)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": []}

    def read(self, group: int, first: int, stop: int) -> Iterator[Chunk]:
        """Yield the rows as Arrow tables: arrays of equal shapes as tensors, of different lengths as lists."""
        start = group * self.group_rows
        size = max(1, min(CHUNK_ROWS, int(WHOLE_GROUP_BYTES / self.row_bytes)))
        for at in range(first, stop, size):
            rows = range(start + at, start + min(stop, at + size))
            with self._copy() as copy:
                found = [self._row(copy, i) for i in rows]
            yield self._table(found, rows.start)

    def where(self, group: int) -> str:
        """Say which rows these are, and of what."""
        return f"{span(self, group)} of {self._name}"

    def where_row(self, group: int, row: int) -> str:
        """Say which row it is, and of what."""
        return f"row {group * self.group_rows + row:,} of {self._name}"

    def _row(self, copy: Any, i: int) -> Any:
        try:
            return copy[i]
        except Exception as error:
            raise DataError(
                f"row {i:,} of {self._name} cannot be read: {type(error).__name__}: {error}. Every "
                f"index below len() = {self.n_rows:,} is read on some worker; files must be reachable there."
            ) from error

    def _table(self, rows: list[Any], start: int) -> pa.Table:
        parts = [self._parts(row, start + i) for i, row in enumerate(rows)]
        columns = dict(zip(self.columns, zip(*parts, strict=True), strict=True))
        made = {
            name: _column(name, values, start, name in self.ragged, self._shapes.get(name))
            for name, values in columns.items()
        }
        return pa.table(made)

    def _parts(self, row: Any, i: int) -> list[Any]:
        """Values of a row, in the order of the columns."""
        keys = list(row) if isinstance(row, Mapping) else None
        if (keys is None) != (self._keys is None) or set(keys or ()) != set(self._keys or ()):
            what = f"has the names {keys}" if keys is not None else f"is a {type(row).__name__}"
            raise DataError(
                f"row {i:,} of {self._name} {what}; expected {self._keys or 'values without names'}, as in the first "
                "row. Return the same names for every row."
            )
        parts = _values(row) if self._keys is None else [row[key] for key in self._keys]
        if len(parts) != len(self.columns):
            raise DataError(
                f"row {i:,} of {self._name} has {len(parts)} values; expected {len(self.columns)} ({self.columns}), as "
                "in the first row. Return as many for every row."
            )
        return parts


def _length(dataset: Any) -> int:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"expected a map-style dataset with len() and [i], got {type(dataset).__qualname__}. Without them rows can "
            "be neither shuffled nor shared among workers; write the rows as Parquet and read those."
        )
    return len(dataset)


def _names(row: Any, names: Sequence[str] | None) -> list[str]:
    size = len(_values(row))
    if names is None and isinstance(row, Mapping):
        return [str(name) for name in row]
    if names is None and isinstance(row, tuple) and hasattr(row, "_fields"):
        return list(row._fields)
    if names is None:
        return [["x"], ["x", "y"]][size - 1] if size in (1, 2) else [f"x{i}" for i in range(size)]
    if len(names) != size or len(set(names)) < size:
        raise DataError(f"expected {size} different names, one for each value of a row, got {list(names)}.")
    return list(names)


def _values(row: Any) -> list[Any]:
    if isinstance(row, Mapping):
        return list(row.values())
    return list(row) if isinstance(row, (tuple, list)) else [row]


def _plain(value: Any) -> Any:
    """Give a value as an array, a number, a string or bytes."""
    if hasattr(value, "detach"):  # a tensor
        value = value.detach().cpu()
        value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()  # numpy has no bfloat16
    elif type(value).__module__.startswith("PIL."):
        return _compressed(value)
    if isinstance(value, np.ndarray):
        return value if value.ndim else value.item()
    return value.item() if isinstance(value, np.generic) else value


def _compressed(image: Any) -> bytes:
    """Bytes of a picture, in a format that takes no time."""
    out = io.BytesIO()
    eight_bits(image).save(out, "PPM")
    return out.getvalue()


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(np.shape(_plain(value))) if hasattr(value, "shape") else ()


def _column(name: str, values: Sequence[Any], start: int, ragged: bool, shape: tuple[int, ...] | None) -> Any:
    values = [_plain(value) for value in values]
    if isinstance(values[0], np.ndarray) and not ragged:
        return arrow_column(name, _stacked(name, values, start, values[0].shape if shape is None else shape))
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError) as error:
        kinds = sorted({type(value).__name__ for value in values})
        raise DataError(
            f"{name!r} of rows {start:,} to {start + len(values) - 1:,} is of kinds {kinds}, which no column can "
            f"hold: {error}. Return numbers, strings, bytes, arrays or tensors of one kind."
        ) from error


def _stacked(name: str, values: list[Any], start: int, shape: tuple[int, ...]) -> Any:
    odd = next((i for i, value in enumerate(values) if np.shape(value) != shape), None)
    if odd is not None:
        raise DataError(
            f"{name!r} of row {start + odd:,} has shape {np.shape(values[odd])}; expected {shape}, as in the first "
            f"row. Rows of a batch are stacked: resize or pad them in the dataset, or say ragged=[{name!r}] if "
            "they are sequences."
        )
    return np.stack(values)
