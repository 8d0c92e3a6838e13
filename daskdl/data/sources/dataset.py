"""Map-style datasets, torch's and whatever has ``len`` and ``[i]``, as a source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa

from daskdl.data.sources.base import Chunk, Source
from daskdl.data.sources.fingerprint import fingerprint
from daskdl.data.sources.memory import arrow_column, group_counts, span
from daskdl.errors import DataError


class DatasetSource(Source):
    """Rows of a map-style dataset: an object with ``len(dataset)`` and ``dataset[i]``.

    Parameters
    ----------
    dataset
        ``dataset[i]`` returns one value, a tuple of values or a dict of values; a value is a number, a string, bytes,
        an array, a tensor or a PIL image (which becomes an array of shape ``(height, width, bands)``). The dataset is
        pickled and goes to every worker, so it should hold paths and open files in ``__getitem__``.
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
        self.dataset, self.group_rows, self.ragged = dataset, group_rows, tuple(ragged)
        self.counts = group_counts(_length(dataset), group_rows)
        content = _pickled_digest(dataset)
        self.fingerprint = fingerprint("dataset", _class_name(dataset), self.n_rows, group_rows, content)
        self.columns, self.row_bytes = list(names or ()), 8.0
        if self.n_rows:
            first = self._row(0)
            self.columns = _names(first, names)
            self.row_bytes = float(self._table([first], 0).nbytes)

    def read(self, group: int, first: int, stop: int) -> Iterator[Chunk]:
        """Yield the rows as one Arrow table: arrays of equal shapes as tensors, of different lengths as lists."""
        start = group * self.group_rows
        if first < stop:
            rows = range(start + first, start + stop)
            yield self._table([self._row(i) for i in rows], rows.start)

    def where(self, group: int) -> str:
        """Say which rows these are, and of what."""
        return f"{span(self, group)} of {_class_name(self.dataset)}"

    def _row(self, i: int) -> Any:
        try:
            return self.dataset[i]
        except Exception as error:
            raise DataError(
                f"row {i:,} of {_class_name(self.dataset)} cannot be read: {type(error).__name__}: {error}. Every "
                f"index below len() = {self.n_rows:,} is read on some worker; files must be reachable there."
            ) from error

    def _table(self, rows: list[Any], start: int) -> pa.Table:
        parts = [_values(row) for row in rows]
        odd = next((i for i, part in enumerate(parts) if len(part) != len(self.columns)), None)
        if odd is not None:
            raise DataError(
                f"row {start + odd:,} of {_class_name(self.dataset)} has {len(parts[odd])} values; expected "
                f"{len(self.columns)} ({self.columns}), as in the first row. Return as many for every row."
            )
        columns = dict(zip(self.columns, zip(*parts, strict=True), strict=True))
        return pa.table({name: _column(name, values, start, name in self.ragged) for name, values in columns.items()})


def _class_name(dataset: Any) -> str:
    return type(dataset).__qualname__


def _length(dataset: Any) -> int:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"expected a map-style dataset with len() and [i], got {_class_name(dataset)}. Without them rows can be "
            "neither shuffled nor shared among workers; write the rows as Parquet and read those."
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
        value = value.detach().cpu().numpy()
    elif type(value).__module__.startswith("PIL."):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        return value if value.ndim else value.item()
    return value.item() if isinstance(value, np.generic) else value


def _column(name: str, values: Sequence[Any], start: int, ragged: bool) -> Any:
    values = [_plain(value) for value in values]
    if isinstance(values[0], np.ndarray) and not ragged:
        return arrow_column(name, _stacked(name, values, start))
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError) as error:
        kinds = sorted({type(value).__name__ for value in values})
        raise DataError(
            f"{name!r} of rows {start:,} to {start + len(values) - 1:,} is of kinds {kinds}, which no column can "
            f"hold: {error}. Return numbers, strings, bytes, arrays or tensors of one kind."
        ) from error


def _stacked(name: str, values: list[Any], start: int) -> Any:
    odd = next((i for i, value in enumerate(values) if np.shape(value) != values[0].shape), None)
    if odd is not None:
        raise DataError(
            f"{name!r} of row {start + odd:,} has shape {np.shape(values[odd])}; expected {values[0].shape}, as in row "
            f"{start:,}. Rows of a batch are stacked: resize or pad them in the dataset, or say ragged=[{name!r}] if "
            "they are sequences."
        )
    return np.stack(values)


# -- fingerprint --------------------------------------------------------------------------------------------------


class _Digest:
    """A file that keeps nothing of what is written but its digest."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return len(data)


def _stands_for(*facts: Any) -> None:
    """Be called where something is left out of a pickle that is never loaded."""


class _Pickler(cloudpickle.Pickler):
    """Pickles for the digest only: alike in every process, which tensors and classes of a notebook are not."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type):
            return _stands_for, (f"{obj.__module__}.{obj.__qualname__}",)
        if hasattr(obj, "detach") and hasattr(obj, "numpy"):  # torch writes the address of a tensor's storage
            values = obj.detach().cpu()
            values = values.float() if "bfloat16" in str(values.dtype) else values  # numpy has none
            return _stands_for, (str(obj.dtype), values.numpy())
        return super().reducer_override(obj)


def _pickled_digest(dataset: Any) -> str:
    out = _Digest()
    try:
        _Pickler(out, protocol=5).dump(dataset)
    except Exception as error:
        raise DataError(
            f"{_class_name(dataset)} cannot be pickled: {error}. It goes to the workers, one copy each; keep paths in "
            "it, and open files, connections and generators in __getitem__."
        ) from error
    return out.digest.hexdigest()
