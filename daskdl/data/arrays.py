"""Columns of rows in memory: numpy arrays, and rows of different lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


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


def concat(blocks: Sequence[Block]) -> dict[str, Array]:
    """Lay the rows of several blocks of the same fields end to end; always a copy of one block's arrays."""
    fields = {name: [block[name] for block in blocks] for name in blocks[0]}
    return {
        name: Ragged.concat(parts) if isinstance(parts[0], Ragged) else np.concatenate(parts)  # type: ignore[arg-type]
        for name, parts in fields.items()
    }


def n_rows(block: Block) -> int:
    """Rows of a block."""
    return len(next(iter(block.values())))
