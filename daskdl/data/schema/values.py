"""Columns of chunks, pandas or pyarrow, as numpy arrays: the same ones, bit by bit, whatever the chunk is made of."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from daskdl.data.schema.objects import PLAIN, TIMES, as_text, is_missing, plain_categories, typed
from daskdl.errors import DataError

Values = Any  # what `plain` gives: a numpy array, or a pyarrow.Array for everything numpy has no type for
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

TICKS_PER_DAY = {"D": 1, "h": 24, "m": 1_440, "s": 86_400}
TICKS_PER_DAY |= {"ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
NOT_A_TIME = np.iinfo(np.int64).min  # how numpy writes a missing date


def names_of(chunk: Any) -> list[str]:
    """Names of the columns of a pandas frame, a pyarrow Table or a RecordBatch: always text, as in a Parquet file.

    Examples
    --------
    >>> names_of(pd.DataFrame({0: [1], ("a", "mean"): [2]}))
    ['0', "('a', 'mean')"]
    """
    return list(map(str, chunk.columns if isinstance(chunk, pd.DataFrame) else chunk.schema.names))


def raw_column(chunk: Any, name: Any) -> Any:
    """Take a column out of a chunk by the text of its name: a Series, or an Arrow array.

    Raises
    ------
    DataError
        It is not there.
    """
    try:
        found = chunk[str(name)]
        if not isinstance(found, pd.DataFrame):
            return found
        raise DataError(f"the rows have several columns named {name!r}. Rename them.")
    except KeyError:
        names = names_of(chunk)
        if str(name) in names and isinstance(chunk, pd.DataFrame):
            return chunk.iloc[:, names.index(str(name))]
        raise DataError(
            f"The feature names should match those that were passed during fit. missing: [{name!r}]. The rows have "
            f"{len(names)} columns: {names[:20]}. A model needs every column it was trained with, once: add it."
        ) from None


def column_of(chunk: Any, name: Any) -> Values:
    """Read a column of a chunk; one that is not there is named.

    Examples
    --------
    >>> column_of(pd.DataFrame({"x": [1, 2]}), "x").tolist()
    [1, 2]
    """
    return plain(raw_column(chunk, name))


def plain(column: Any) -> Values:
    """Return a pandas Series or a pyarrow column as one numpy or pyarrow array, without a copy where it can be.

    Numbers that are held as Python objects become numbers, whatever kind of objects; see ``objects.typed``.
    """
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(column, pa.Array):
        return column
    if not isinstance(column, pd.Series):
        return typed(np.asarray(column))
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.dt.tz_localize(None)  # the time on the wall is what has an hour and a weekday
    elif isinstance(column.dtype, pd.SparseDtype):
        column = column.sparse.to_dense()
    if isinstance(column.dtype, np.dtype):
        return typed(column.to_numpy())
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = plain_categories(column)
    return plain(pa.array(column.array, from_pandas=True))


def type_name(values: Values) -> str:
    """Return the type of values in words."""
    return str(values.type if isinstance(values, pa.Array) else values.dtype)


# -- numbers ------------------------------------------------------------------------------------------------------


def numbers(values: Values) -> npt.NDArray[Any]:
    """Read numbers in their own dtype, without a copy where none is missing; missing ones are NaN.

    Booleans count as 0 and 1; durations are seconds, times of day seconds since midnight, dates seconds since 1970;
    numbers written as text are read.

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
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or is_string(kind)):
        raise TypeError(f"{kind} is no type of numbers")
    return array.to_numpy(zero_copy_only=False)


# -- categories ---------------------------------------------------------------------------------------------------


def categories(values: Values) -> Values:
    """Give values as text, whole numbers, fractions or booleans: dates and the like by their text.

    Such categories are the same however a column comes, and can be written to a file of JSON.

    Raises
    ------
    TypeError
        A value is no single value, or bytes.

    Examples
    --------
    >>> categories(np.array(["2020-01-01", "NaT"], dtype="M8[s]")).to_pylist()
    ['2020-01-01T00:00:00', None]
    """
    if isinstance(values, pa.DictionaryArray):
        known = categories(values.dictionary)
        return pa.DictionaryArray.from_arrays(values.indices, known if isinstance(known, pa.Array) else pa.array(known))
    if isinstance(values, pa.Array):
        kind = values.type
        if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
            return numbers(values)
        if pa.types.is_temporal(kind):
            return _as_text(plain(values.to_pandas()))
        if not (is_string(kind) or pa.types.is_primitive(kind) or pa.types.is_null(kind)):
            raise TypeError(f"{kind} values are no categories")
        return values
    if values.dtype == object:
        odd = next((v for v in values if not is_missing(v) and not isinstance(v, PLAIN)), None)
        if odd is not None and (not pd.api.types.is_scalar(odd) or isinstance(odd, bytes)):
            raise TypeError(f"a {type(odd).__name__} is no single value")
    return _as_text(values) if values.dtype.kind in "mM" or (values.dtype == object and odd is not None) else values


def _as_text(values: npt.NDArray[Any]) -> pa.Array:
    codes, found = pd.factorize(pd.Series(values))
    return pa.array([*map(as_text, found), None]).take(pa.array(np.where(codes < 0, len(found), codes)))


# -- dates and durations ------------------------------------------------------------------------------------------


def _ticks(values: Values) -> tuple[npt.NDArray[np.int64], int, Mask]:
    """Whole ticks since 1970 (or of a duration), how many of them make a day, and which rows are missing."""
    if isinstance(values, pa.Array):
        if not pa.types.is_temporal(values.type):
            return _ticks(_parsed(values.to_numpy(zero_copy_only=False)))
        if pa.types.is_timestamp(values.type) and values.type.tz:
            return _ticks(plain(values.to_pandas()))
        missing = values.is_null().to_numpy(zero_copy_only=False)
        unit = "D" if pa.types.is_date32(values.type) else getattr(values.type, "unit", "ms")  # date64 has no unit
        narrow = pa.types.is_date32(values.type) or pa.types.is_time32(values.type)
        whole = values.cast(pa.int32()) if narrow else values
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


def is_string(kind: pa.DataType) -> bool:
    """Whether a pyarrow type is one of its strings."""
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
    if not (is_string(values.type) or pa.types.is_null(values.type)):
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
