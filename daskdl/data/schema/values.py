"""Columns of chunks, pandas or pyarrow, as numpy arrays: the same ones, bit by bit, whatever the chunk is made of."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from daskdl.errors import DataError

Values = Any  # what `plain` gives: a numpy array, or a pyarrow.Array for everything numpy has no type for
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

TICKS_PER_DAY = {"D": 1, "h": 24, "m": 1_440, "s": 86_400}
TICKS_PER_DAY |= {"ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
TIMES = (datetime.date, datetime.timedelta, np.datetime64, np.timedelta64)  # a datetime is a date, too
NOT_A_TIME = np.iinfo(np.int64).min  # how numpy writes a missing date


def names_of(chunk: Any) -> list[Any]:
    """Names of the columns of a pandas frame, a pyarrow Table or a RecordBatch."""
    return list(chunk.columns) if isinstance(chunk, pd.DataFrame) else list(chunk.schema.names)


def column_of(chunk: Any, name: Any) -> Values:
    """Take a column out of a chunk; one that is not there is named.

    Examples
    --------
    >>> column_of(pd.DataFrame({"x": [1, 2]}), "x").tolist()
    [1, 2]
    """
    try:
        return plain(chunk[name if isinstance(chunk, pd.DataFrame) else str(name)])
    except KeyError as error:
        have = names_of(chunk)
        raise DataError(
            f"The feature names should match those that were passed during fit. missing: [{name!r}]. The rows have "
            f"{len(have)} columns: {have[:20]}. A model needs every column it was trained with, once: add it."
        ) from error


def plain(column: Any) -> Values:
    """Return a pandas Series or a pyarrow column as one numpy or pyarrow array, without a copy where it can be."""
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(column, pa.Array):
        return column
    if isinstance(column, pd.Series):
        if isinstance(column.dtype, pd.DatetimeTZDtype):
            column = column.dt.tz_localize(None)  # the time on the wall is what has an hour and a weekday
        if isinstance(column.dtype, np.dtype):
            return column.to_numpy()
        return plain(pa.array(column.array, from_pandas=True))
    return np.asarray(column)


def type_name(values: Values) -> str:
    """Return the type of values in words."""
    return str(values.type if isinstance(values, pa.Array) else values.dtype)


def is_missing(value: Any) -> bool:
    """Whether one value of an object column stands for none."""
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


# -- numbers ------------------------------------------------------------------------------------------------------


def numbers(values: Values) -> npt.NDArray[Any]:
    """Read numbers in their own dtype, without a copy where none is missing; missing ones are NaN.

    Booleans count as 0 and 1; durations are seconds, dates seconds since 1970; numbers written as text are read.

    Raises
    ------
    TypeError, ValueError
        The values are no numbers.

    Examples
    --------
    >>> numbers(pa.array([1, None])).tolist()
    [1.0, nan]
    """
    x = _arrow_numbers(values) if isinstance(values, pa.Array) else values
    if x.dtype.kind in "OUST":
        if isinstance(next((v for v in x if not is_missing(v)), None), TIMES):
            return seconds(x)
        x = pd.to_numeric(pd.Series(x)).to_numpy(dtype=np.float64, na_value=np.nan)
    if x.dtype.kind in "mM":
        return seconds(values)
    if x.dtype.kind not in "biuf":
        raise TypeError(f"{x.dtype} is no type of numbers")
    return x if x.dtype != np.float16 else x.astype(np.float32)


def _arrow_numbers(array: pa.Array) -> npt.NDArray[Any]:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _arrow_numbers(array.dictionary_decode())
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan)
    if pa.types.is_temporal(kind):
        return seconds(array)
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif pa.types.is_decimal(kind):
        array = array.cast(pa.float64())
    elif pa.types.is_float16(kind):
        array = array.cast(pa.float32())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or _is_string(kind)):
        raise TypeError(f"{kind} is no type of numbers")
    return array.to_numpy(zero_copy_only=False)


# -- dates and durations ------------------------------------------------------------------------------------------


def _ticks(values: Values) -> tuple[npt.NDArray[np.int64], int, Mask]:
    """Whole ticks since 1970 (or of a duration), how many of them make a day, and which rows are missing."""
    if isinstance(values, pa.Array):
        if not pa.types.is_temporal(values.type) or pa.types.is_time(values.type):
            return _ticks(_parsed(values.to_numpy(zero_copy_only=False)))
        if pa.types.is_timestamp(values.type) and values.type.tz:
            return _ticks(plain(values.to_pandas()))
        missing = values.is_null().to_numpy(zero_copy_only=False)
        unit = "D" if pa.types.is_date32(values.type) else getattr(values.type, "unit", "ms")  # date64 has no unit
        whole = values.cast(pa.int32()) if unit == "D" else values
        return whole.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False), TICKS_PER_DAY[unit], missing
    if values.dtype.kind not in "mM":
        values = _parsed(values)
    unit, count = np.datetime_data(values.dtype)
    ticks = values.view(np.int64)
    missing = ticks == NOT_A_TIME
    return np.where(missing, 0, ticks) * count, TICKS_PER_DAY[unit], missing


def _parsed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Dates as Python objects or as text in ISO 8601."""
    if values.dtype.kind not in "OUT":
        raise TypeError(f"{values.dtype} is no type of dates")
    found = next((v for v in values if not is_missing(v)), None)
    if isinstance(found, (datetime.timedelta, np.timedelta64)):
        return plain(pd.to_timedelta(pd.Series(values)))
    return plain(pd.to_datetime(pd.Series(values), format="ISO8601" if isinstance(found, str) else None))


def days(values: Values) -> tuple[Floats, Floats, Mask]:
    """Split dates into whole days since 1970 and the rest of the day from 0 to 1, and say which are missing.

    The split is done on integers, so that it does not depend on whether dates come in seconds or in nanoseconds.

    Examples
    --------
    >>> day, rest, missing = days(np.array(["1970-01-03T06", "NaT"], dtype="M8[s]"))
    >>> day.tolist(), rest.tolist(), missing.tolist()
    ([2.0, 0.0], [0.25, 0.0], [False, True])
    """
    ticks, per_day, missing = _ticks(values)
    day = ticks // per_day
    return day.astype(np.float64), (ticks - day * per_day) / per_day, missing


def seconds(values: Values) -> Floats:
    """Read durations, or dates since 1970, as seconds; missing ones are NaN."""
    ticks, per_day, missing = _ticks(values)
    per_second = max(1, per_day // 86_400)
    whole = ticks // per_second
    found = whole * (86_400 * per_second / per_day) + (ticks - whole * per_second) / per_second
    found[missing] = np.nan
    return found


# -- text and bytes -----------------------------------------------------------------------------------------------


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def strings(values: Values) -> pa.Array:
    """Read text as an array of strings, null where it is missing.

    Raises
    ------
    TypeError, ValueError
        The values are no text.
    """
    if not isinstance(values, pa.Array):
        if values.dtype.kind not in "OUT":
            raise TypeError(f"{values.dtype} is no type of text")
        return pa.array(values, type=pa.large_string(), from_pandas=True)
    if pa.types.is_dictionary(values.type):
        return strings(values.dictionary_decode())
    if not (_is_string(values.type) or pa.types.is_null(values.type)):
        raise TypeError(f"{values.type} is no type of text")
    return values.cast(pa.large_string())


def blobs(values: Values) -> npt.NDArray[np.object_]:
    """Read bytes as an array of ``bytes`` objects, None where they are missing.

    Raises
    ------
    TypeError
        The values are no bytes.
    """
    found = values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values
    out = np.empty(len(found), dtype=object)
    for i, value in enumerate(found):
        if is_missing(value):
            continue
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise TypeError(f"{type(value).__name__} values are no bytes")
        out[i] = bytes(value) if not isinstance(value, bytes) else value
    return out


# -- lists --------------------------------------------------------------------------------------------------------


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
        raise ValueError("rows vary in shape along more than their first axis")
    return Lists(inner.values.reshape(len(flat), *shape), lengths, _missing(array))


def _elements(flat: pa.Array) -> npt.NDArray[Any]:
    if _is_string(flat.type):
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
    if (axes[:, 1:] != axes[0, 1:]).any():
        raise ValueError("rows vary in shape along more than their first axis")
    lengths = np.zeros(len(array), dtype=np.int64)
    lengths[~missing] = axes[:, 0]
    return Lists(data.values.reshape(lengths.sum(), *axes[0, 1:]), lengths, missing)


def _object_lists(values: npt.NDArray[Any]) -> Lists:
    missing = np.fromiter((is_missing(v) for v in values), dtype=bool, count=len(values))
    rows = [_row(v) for v in values[~missing]]
    lengths = np.zeros(len(values), dtype=np.int64)
    lengths[~missing] = [len(row) for row in rows]
    full = [row for row in rows if row.size] or rows[:1]  # an empty list has no type
    if len({row.shape[1:] for row in full}) > 1:
        raise ValueError("rows vary in shape along more than their first axis")
    return Lists(np.concatenate(full) if full else np.empty(0), lengths, missing)


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
