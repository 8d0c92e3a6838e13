"""Columns of rows in memory: numpy arrays, and rows of different lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

JOINED_BYTES = 1 << 16  # copied without letting other threads run


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
        at = np.repeat(self.offsets[:-1][index] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.values[at], offsets)

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


def scatter(parts: Sequence[Array], places: Ints, out: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Write the rows of several arrays, laid end to end, to rows ``places`` of ``out``.

    Examples
    --------
    >>> scatter([np.array([[1, 2]]), np.array([[3, 4], [5, 6]])], np.array([2, 0, 1]), np.empty((3, 2), int)).tolist()
    [[3, 4], [5, 6], [1, 2]]
    """
    at = 0
    rows = _as_items(out)
    for part in parts:
        assert not isinstance(part, Ragged)
        rows[places[at : at + len(part)]] = _as_items(np.ascontiguousarray(part))
        at += len(part)
    return out


def _as_items(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows as items of their size in bytes, which numpy copies as a whole."""
    size = array.dtype.itemsize * math.prod(array.shape[1:])
    return array if array.ndim == 1 or not size else array.reshape(len(array), -1).view(f"V{size}")[:, 0]


def join(parts: Sequence[Array]) -> Array:
    """Lay the rows of several arrays end to end; always a copy.

    Numpy lets another thread run at each array of more than 500 items, and this one waits until it may go on. Many
    pieces of some hundred small rows are therefore joined as items that are whole rows.
    """
    if isinstance(parts[0], Ragged):
        return Ragged.concat(parts)  # type: ignore[arg-type]
    if parts[0].dtype == object or parts[0].nbytes > JOINED_BYTES or not all(p.flags.c_contiguous for p in parts):
        return np.concatenate(parts)  # type: ignore[arg-type]
    items = np.concatenate([_as_items(part) for part in parts])
    return items.view(parts[0].dtype).reshape(-1, *parts[0].shape[1:])


def concat(blocks: Sequence[Block]) -> dict[str, Array]:
    """Lay the rows of several blocks of the same fields end to end; always a copy of one block's arrays."""
    return {name: join([block[name] for block in blocks]) for name in blocks[0]}


def n_rows(block: Block) -> int:
    """Rows of a block."""
    return len(next(iter(block.values())))
