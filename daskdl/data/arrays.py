"""Columns of rows in memory: numpy arrays, and rows of different lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

TAKEN_ROWS = 1_024  # of different lengths, at a time
HELD_COPY_BYTES = 1 << 16  # copied without letting other threads run


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths, laid end to end.

    Attributes
    ----------
    values : array of shape (n_values, ...)
    offsets : array of shape (n_rows + 1,)
        Row ``i`` is ``values[offsets[i]:offsets[i + 1]]``.

    Examples
    --------
    >>> words = Ragged(np.array([7, 8, 9]), np.array([0, 2, 2, 3]))
    >>> [row.tolist() for row in words.take(np.array([2, 0]))]
    [[9], [7, 8]]
    >>> words.padded(0).tolist()
    [[7, 8], [0, 0], [9, 0]]
    """

    values: npt.NDArray[Any]
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            first, stop, _ = at.indices(len(self))
            offsets = self.offsets[first : max(first, stop) + 1]
            return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])
        if not 0 <= at < len(self):
            raise IndexError(f"row {at} of {len(self)}")
        return self.values[self.offsets[at] : self.offsets[at + 1]]

    @property
    def lengths(self) -> Ints:
        """Values in each row: shape (n_rows,)."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of values and offsets."""
        return self.values.nbytes + self.offsets.nbytes

    def take(self, index: Ints) -> Ragged:
        """Rows ``index``, in that order."""
        lengths = self.lengths[index]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        shift = self.offsets[:-1][index] - offsets[:-1]
        values = np.empty((offsets[-1], *self.values.shape[1:]), self.values.dtype)
        for first in range(0, len(index), TAKEN_ROWS):  # the places of all values take more memory than the values
            rows = slice(first, first + TAKEN_ROWS)
            start, stop = offsets[first], offsets[min(first + TAKEN_ROWS, len(index))]
            at = np.repeat(shift[rows], lengths[rows]) + np.arange(start, stop)
            np.take(self.values, at, axis=0, out=values[start:stop], mode="clip")
        return Ragged(values, offsets)

    def padded(self, fill: Any) -> npt.NDArray[Any]:
        """Rows as one array as wide as the longest: shape (n_rows, longest, ...)."""
        lengths = self.lengths
        longest = int(lengths.max(initial=0))
        out = np.full((len(self), longest, *self.values.shape[1:]), fill, dtype=self.values.dtype)
        out[np.arange(longest) < lengths[:, None]] = self.values
        return out

    @staticmethod
    def concat(parts: Sequence[Ragged]) -> Ragged:
        """Lay the rows of several end to end."""
        lengths = np.concatenate([part.lengths for part in parts])
        return Ragged(np.concatenate([part.values for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))


Array = npt.NDArray[Any] | Ragged
Block = Mapping[str, Array]  # field name -> array whose first axis is rows; every field has as many rows


def take(array: Array, index: Ints) -> Array:
    """Rows ``index`` of an array of either kind."""
    if isinstance(array, Ragged):
        return array.take(index)
    return np.take(array, index, axis=0, mode="clip")  # clip: without it numpy copies to a buffer first


def inverse(permutation: Ints) -> Ints:
    """Where each row goes: row ``permutation[i]`` goes to place ``i``."""
    places = np.empty_like(permutation)
    places[permutation] = np.arange(len(permutation))
    return places


def scatter(parts: Sequence[npt.NDArray[Any]], places: Ints, out: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Write the rows of several arrays of one type, laid end to end, to rows ``places`` of ``out``, and return it.

    Examples
    --------
    >>> scatter([np.array([[1, 2]]), np.array([[3, 4], [5, 6]])], np.array([2, 0, 1]), np.empty((3, 2), int)).tolist()
    [[3, 4], [5, 6], [1, 2]]
    """
    at, items = 0, _as_items(out)
    for part in parts:
        items[places[at : at + len(part)]] = _as_items(np.ascontiguousarray(part))
        at += len(part)
    return out


def _as_items(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows as items of their size in bytes, which numpy copies as a whole."""
    width = math.prod(array.shape[1:])
    if array.ndim == 1 or not width:
        return array
    return array.reshape(len(array), width).view(f"V{array.dtype.itemsize * width}")[:, 0]


def alike(parts: Sequence[Array]) -> bool:
    """Whether arrays hold plain values of one type and rows of one shape."""
    first = parts[0]
    return all(
        isinstance(part, np.ndarray)
        and part.dtype == first.dtype != object  # type: ignore[union-attr]
        and part.shape[1:] == first.shape[1:]  # type: ignore[union-attr]
        for part in parts
    )


def join(parts: Sequence[Array]) -> Array:
    """Lay the rows of several arrays end to end; always a copy.

    Numpy lets other threads run while it copies more than 500 items, and then has to wait for its turn again. So many
    pieces of some hundred rows are joined as items that are whole rows.
    """
    if isinstance(parts[0], Ragged):
        return Ragged.concat(parts)  # type: ignore[arg-type]
    arrays: Sequence[npt.NDArray[Any]] = parts  # type: ignore[assignment]
    small = 0 < arrays[0].nbytes <= HELD_COPY_BYTES
    if not small or not alike(arrays) or not all(a.flags.c_contiguous for a in arrays):
        return np.concatenate(arrays)
    items = np.concatenate([_as_items(a) for a in arrays])
    return items.view(arrays[0].dtype).reshape(-1, *arrays[0].shape[1:])


def concat(blocks: Sequence[Block]) -> dict[str, Array]:
    """Lay the rows of several blocks of the same fields end to end; always a copy of one block's arrays."""
    return {name: join([block[name] for block in blocks]) for name in blocks[0]}


def n_rows(block: Block) -> int:
    """Rows of a block."""
    return len(next(iter(block.values())))
