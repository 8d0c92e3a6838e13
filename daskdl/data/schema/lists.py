"""Columns of lists, arrays and tensors, pandas or pyarrow, as their numbers laid end to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from daskdl.data.schema.values import Mask, Values, is_missing, is_string, numbers


@dataclass(frozen=True, eq=False)
class Lists:
    """Rows that are lists of numbers, or of arrays of one shape, laid end to end.

    Attributes
    ----------
    values : array of shape (n_values, *inner)
        In their own dtype; missing numbers are NaN.
    lengths : array of shape (n_rows,)
        Values of each row; 0 for a missing one.
    missing : array of shape (n_rows,)
    """

    values: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    missing: Mask

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape all rows have, -1 where they differ; None if there are no rows."""
        lengths = self.lengths[~self.missing] if self.missing.any() else self.lengths
        if not len(lengths):
            return None
        same = lengths.min() == lengths.max()
        return (int(lengths[0]) if same else -1, *self.values.shape[1:])


def lists(values: Values) -> Lists:
    """Read rows of lists, of arrays or of tensors; without a copy from pyarrow where no row is missing.

    Raises
    ------
    TypeError, ValueError
        The rows hold something else than numbers, or vary in shape along more than their first axis.

    Examples
    --------
    >>> found = lists(pa.array([[1, 2], None, [3]]))
    >>> found.values.tolist(), found.lengths.tolist(), found.shape
    ([1, 2, 3], [2, 0, 1], (-1,))
    """
    if not isinstance(values, pa.Array):
        return _object_lists(values)
    kind = values.type
    if isinstance(kind, pa.FixedShapeTensorType):
        return _tensor_lists(values)
    if isinstance(kind, pa.BaseExtensionType):
        return lists(values.storage)
    if pa.types.is_struct(kind):
        return _struct_lists(values)
    if pa.types.is_null(kind):
        return Lists(np.empty(0), np.zeros(len(values), dtype=np.int64), np.ones(len(values), dtype=bool))
    if not is_list(kind):
        raise TypeError(f"{kind} is no type of lists")
    return _arrow_lists(values)


VARY = "rows vary in shape along more than their first axis"


class OddRow(ValueError):
    """A row that is not like the others; ``rows`` says which."""

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.rows = (row,)


def is_list(kind: pa.DataType) -> bool:
    """Whether a pyarrow type is one of its lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _missing(array: pa.Array) -> Mask:
    if not array.null_count:
        return np.zeros(len(array), dtype=bool)
    return array.is_null().to_numpy(zero_copy_only=False)


def _arrow_lists(array: pa.Array) -> Lists:
    lengths = pc.list_value_length(array).cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    flat = array.flatten()  # leaves out what lies under missing rows
    if not is_list(flat.type):
        return Lists(_elements(flat), lengths, _missing(array))
    inner = _arrow_lists(flat)
    shape = inner.shape or (0, *inner.values.shape[1:])
    if inner.missing.any() or shape[0] < 0:
        odd = int(np.argmax(inner.missing | (inner.lengths != inner.lengths[0])))
        raise OddRow(VARY, int(np.searchsorted(np.cumsum(lengths), odd, side="right")))
    return Lists(inner.values.reshape(len(flat), *shape), lengths, _missing(array))


def _elements(flat: pa.Array) -> npt.NDArray[Any]:
    if is_string(flat.type):
        raise TypeError("lists of strings are no numbers")
    return numbers(flat)


def _tensor_lists(array: pa.Array) -> Lists:
    shape, order = tuple(array.type.shape), array.type.permutation
    missing = _missing(array)
    x = _elements(array.storage.flatten()).reshape(len(array) - int(missing.sum()), *shape)
    if order is not None:
        x = x.transpose(0, *(axis + 1 for axis in order))
        shape = x.shape[1:]
    return Lists(x.reshape(len(x) * shape[0], *shape[1:]), np.where(missing, 0, shape[0]), missing)


def _struct_lists(array: pa.Array) -> Lists:
    """Tensors of varying shape: a struct of ``data`` and ``shape``, the storage of Arrow's variable shape tensor."""
    missing = _missing(array)
    present = array.drop_null() if missing.any() else array
    data, shapes = (_arrow_lists(pc.struct_field(present, name)) for name in ("data", "shape"))
    if not len(present):
        return Lists(data.values, np.zeros(len(array), dtype=np.int64), missing)
    axes = shapes.values.reshape(len(present), -1)
    odd = (axes[:, 1:] != axes[0, 1:]).any(axis=1)
    if odd.any():
        raise OddRow(VARY, int(np.flatnonzero(~missing)[odd.argmax()]))
    lengths = np.zeros(len(array), dtype=np.int64)
    lengths[~missing] = axes[:, 0]
    return Lists(data.values.reshape(lengths.sum(), *axes[0, 1:]), lengths, missing)


def _object_lists(values: npt.NDArray[Any]) -> Lists:
    missing = np.fromiter((is_missing(v) for v in values), dtype=bool, count=len(values))
    there = np.flatnonzero(~missing)
    rows = [_row_at(values, int(i)) for i in there]
    lengths = np.zeros(len(values), dtype=np.int64)
    lengths[~missing] = [len(row) for row in rows]
    full = [row for row in rows if row.size] or rows[:1]  # an empty list has no type
    odd = next((i for i, row in zip(there, rows, strict=True) if row.size and row.shape[1:] != full[0].shape[1:]), None)
    if odd is not None:
        raise OddRow(VARY, int(odd))
    return Lists(np.concatenate(full) if full else np.empty(0), lengths, missing)


def _row_at(values: npt.NDArray[Any], i: int) -> npt.NDArray[Any]:
    try:
        return _row(values[i])
    except (TypeError, ValueError) as error:
        raise OddRow(str(error), i) from error


def _row(value: Any) -> npt.NDArray[Any]:
    """One row of an object column as an array of numbers."""
    if isinstance(value, dict) and {"data", "shape"} <= value.keys():
        return _row(value["data"]).reshape(tuple(value["shape"]))
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise TypeError(f"{type(value).__name__} values are no lists")
    try:
        x = np.asarray(value)
    except ValueError:  # numpy refuses nested lists of unequal length
        x = np.empty(0, dtype=object)
    if x.dtype == object:
        x = _nested_row(value)
    if x.dtype.kind not in "biuf" or not x.ndim:
        raise TypeError(f"{type(value).__name__} values of {x.dtype} are no lists of numbers")
    return x if x.dtype.kind != "b" else x.astype(np.uint8)


def _nested_row(value: Any) -> npt.NDArray[Any]:
    if any(isinstance(v, (list, tuple, np.ndarray)) for v in value):
        return np.stack([_row(v) for v in value])
    if any(not is_missing(v) and not isinstance(v, (bool, int, float, np.number, np.bool_)) for v in value):
        raise TypeError(f"{type(value).__name__} values hold something else than numbers")
    return np.array([np.nan if is_missing(v) else v for v in value], dtype=np.float64)
