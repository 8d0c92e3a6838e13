"""Columns that become a tensor of their own: arrays of one shape, and lists of any length."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from daskdl.data.arrays import Array as Rows
from daskdl.data.arrays import Ragged
from daskdl.data.schema.columns import Column, scale_of
from daskdl.data.schema.kinds import Array, Kind
from daskdl.data.schema.lists import Lists, lists
from daskdl.data.schema.stats import ColumnStats
from daskdl.data.schema.text import ragged
from daskdl.data.schema.values import Values
from daskdl.errors import DataError

MAX_ELEMENTS = 4_096  # of an array that trees read, one column each
EXAMPLE_LENGTH = 16  # of lists and texts in `Schema.example`
Finished = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Field(Column):
    """A column that becomes a field of its own in a block."""

    needs_finish: ClassVar[bool] = False

    @property
    def field(self) -> str:
        """Name of its field."""
        return str(self.name)

    def encode(self, values: Values, refuse: bool) -> Rows:
        """Compact rows as a block keeps them; missing ones are zeros or empty, or refused."""
        raise NotImplementedError

    def finish(self, rows: Rows, pool: Executor | None = None) -> Finished:
        """Return the tensors of a batch: the field, and what belongs to it."""
        assert not isinstance(rows, Ragged)
        return {self.field: rows}

    def example(self, n: int) -> Finished:
        """Zeros in the shapes and types of ``finish``, for ``n`` rows."""
        raise NotImplementedError

    def refuse(self, n_missing: int) -> None:
        """Say that values are missing and may not be."""
        if n_missing:
            raise DataError(
                f"Input contains NaN: column {self.name!r} has {n_missing:,} missing values, and missing='refuse'. "
                "Fill them, or fit with missing='impute'."
            )


@dataclass(frozen=True)
class ArrayColumn(Field):
    """Arrays of one shape, as they are: not standardised, missing ones zero.

    Attributes
    ----------
    shape : tuple of int
        Of a row.
    dtype : str
        float32, or the integers' own.
    mean, scale : float
        Of all numbers in training; ``TabularNet`` standardises with them.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    mean: float = 0.0
    scale: float = 1.0
    kind: ClassVar[str] = "array"
    word: ClassVar[str] = "an array"

    @classmethod
    def learn(cls, name: Any, stats: ColumnStats, kind: Kind | None = None) -> ArrayColumn:
        """Learn from statistics, and the shape from ``kind`` if it says one."""
        shape = _known_shape(name, stats)
        wanted = kind.shape if isinstance(kind, Array) else shape
        if -1 in shape or np.prod(shape) != np.prod(wanted):
            raise DataError(
                f"column {name!r} has rows of shape {show(shape)}, expected arrays of shape {show(wanted)}: rows of "
                "an array have one shape. Pad or cut them, or read them as lists of any length: "
                f"kinds={{{name!r}: 'ragged'}}."
            )
        return cls(name, stats.n_missing, wanted, _element_type(stats), stats.mean, scale_of(stats))

    def summary(self) -> str:
        """Type and shape."""
        return f"{self.dtype} {show(self.shape)}, mean {self.mean:.4g}, std {self.scale:.4g}"

    def encode(self, values: Values, refuse: bool) -> npt.NDArray[Any]:
        """Arrays of shape (n_rows, *shape)."""
        found = lists(values)
        size = int(np.prod(self.shape))
        if found.shape is not None and found.shape != self.shape and found.shape != (size,):
            raise DataError(
                f"column {self.name!r} had rows of shape {show(self.shape)} in fit and has rows of shape "
                f"{show(found.shape)} (-1: they differ) now. A tensor has one shape: pad or cut them."
            )
        x = _elements(self, found, self.dtype, refuse)
        if not found.missing.any():
            return x.reshape(len(found.lengths), *self.shape)
        out = np.zeros((len(found.lengths), *self.shape), dtype=self.dtype)
        out[~found.missing] = x.reshape(-1, *self.shape)
        return out

    def example(self, n: int) -> Finished:
        """Zeros."""
        return {self.field: np.zeros((n, *self.shape), dtype=self.dtype)}

    def table_names(self) -> list[tuple[Any, str]]:
        """One column per element."""
        size = int(np.prod(self.shape))
        if size > MAX_ELEMENTS:
            raise DataError(
                f"column {self.name!r} holds arrays of {size:,} numbers, and trees get one column for each: at most "
                f"{MAX_ELEMENTS:,}. Reduce them first, or use TorchClassifier or TorchRegressor."
            )
        return [(f"{self.name}_{i}", "q") for i in range(size)]

    def table(self, values: Values) -> list[npt.NDArray[Any]]:
        """Each element as it is, NaN in missing rows."""
        x = self.encode(values, refuse=False).reshape(-1, int(np.prod(self.shape))).astype(np.float32)
        missing = lists(values).missing
        if missing.any():
            x[missing] = np.nan
        return list(np.asfortranarray(x).T)


@dataclass(frozen=True)
class RaggedColumn(Field):
    """Lists of any length, padded with zeros to the longest of a batch.

    Attributes
    ----------
    shape : tuple of int
        Of each entry of a list; () for numbers.
    dtype : str
        float32, or the integers' own.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    kind: ClassVar[str] = "ragged"
    word: ClassVar[str] = "a list of any length"
    needs_finish: ClassVar[bool] = True

    @classmethod
    def learn(cls, name: Any, stats: ColumnStats) -> RaggedColumn:
        """Learn from statistics."""
        shape = _known_shape(name, stats)
        if -1 in shape[1:]:
            raise DataError(
                f"column {name!r} has arrays whose shapes differ along more than the first axis: {show(shape)} (-1: "
                "they differ), which cannot be padded as lists. Bring them to one size, or store them as images: "
                "daskdl.data.schema.codecs.encode_images."
            )
        return cls(name, stats.n_missing, shape[1:], _element_type(stats))

    def summary(self) -> str:
        """Type and shape of an entry."""
        return f"lists of {self.dtype}{f' {show(self.shape)}' if self.shape else ''}"

    def encode(self, values: Values, refuse: bool) -> Ragged:
        """Lists, laid end to end."""
        found = lists(values)
        if found.values.size and found.values.shape[1:] != self.shape:
            raise DataError(
                f"column {self.name!r} had lists of {show(self.shape) or 'numbers'} in fit and has lists of "
                f"{show(found.values.shape[1:]) or 'numbers'} now. Give them the shape they had."
            )
        x = _elements(self, found, self.dtype, refuse)
        return ragged(x.reshape(-1, *self.shape) if x.size else np.empty((0, *self.shape), self.dtype), found.lengths)

    def finish(self, rows: Rows, pool: Executor | None = None) -> Finished:
        """Pad, and say how long each row is."""
        return padded(self.field, rows)

    def example(self, n: int) -> Finished:
        """Zeros, all of the same length."""
        return padded_example(self.field, n, self.shape, self.dtype)


# -- shared -------------------------------------------------------------------------------------------------------


def show(shape: tuple[int, ...]) -> str:
    """Write a shape: ``2 x 3``."""
    return " x ".join(map(str, shape))


def _known_shape(name: Any, stats: ColumnStats) -> tuple[int, ...]:
    if stats.shape is None:
        raise DataError(
            f"column {name!r} holds no array or list in {stats.n:,} rows, so the shape of its tensor is not known. "
            "Leave it out, or look at how the rows were selected."
        )
    return stats.shape


def _element_type(stats: ColumnStats) -> str:
    return stats.dtype if stats.dtype and np.dtype(stats.dtype).kind in "iu" else "float32"


def _elements(column: Field, found: Lists, dtype: str, refuse: bool) -> npt.NDArray[Any]:
    """Numbers of all rows in the learned dtype; missing ones are zero."""
    x = found.values
    bad = x.dtype.kind == "f" and not np.isfinite(x).all()
    if refuse:
        column.refuse(int(found.missing.sum()) + (int(np.isnan(x).sum()) if bad else 0))
    if bad:
        x = np.nan_to_num(x.astype(np.float32), nan=0.0)
    if x.dtype == dtype:
        return x
    out = x.astype(dtype)
    if np.dtype(dtype).kind in "iu" and (out != x).any():
        raise DataError(
            f"column {column.name!r} held {dtype} in fit and holds {x.dtype} now, with values {dtype} cannot hold. "
            f"Convert it as it was: to {dtype}."
        )
    return out


def padded(name: str, rows: Rows) -> Finished:
    """Return rows padded with zeros to the longest, and their lengths."""
    if not isinstance(rows, Ragged):  # finished before
        return {name: rows}
    out = rows.padded(0)
    if not out.shape[1]:  # a layer cannot work on rows without any place
        out = np.zeros((len(rows), 1, *out.shape[2:]), dtype=out.dtype)
    return {name: out, f"{name}_length": rows.lengths}


def padded_example(name: str, n: int, shape: tuple[int, ...], dtype: str) -> Finished:
    """Return what ``padded`` gives for rows of zeros."""
    values = np.zeros((n, EXAMPLE_LENGTH, *shape), dtype=dtype)
    return {name: values, f"{name}_length": np.full(n, EXAMPLE_LENGTH, dtype=np.int64)}
