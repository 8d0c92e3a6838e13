"""Of which kind a column is: as its type tells, or as the user says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from daskdl.data.schema.lists import is_list
from daskdl.data.schema.objects import TIMES, holds_text_only, is_missing
from daskdl.data.schema.values import Values
from daskdl.errors import DataError

MAX_TOP = 20_000  # values that are counted, and may have a code of their own
KINDS = ("number", "category", "time", "array", "ragged", "image", "text")


@dataclass(frozen=True, init=False)
class Array:
    """Arrays of a shape that the column does not say itself: rows of that many numbers are reshaped.

    Parameters
    ----------
    *shape : int

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from daskdl import Schema
    >>> frame = pd.DataFrame({"pixels": [np.arange(6), np.arange(6)]})
    >>> Schema.learn(frame, kinds={"pixels": Array(2, 3)}).encode(frame)["pixels"].shape
    (2, 2, 3)
    """

    shape: tuple[int, ...]

    def __init__(self, *shape: int) -> None:
        if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
            raise ValueError(f"Array takes the length of each axis, such as Array(28, 28); got {shape}")
        object.__setattr__(self, "shape", shape)


@dataclass(frozen=True)
class Image:
    """Compressed images, decoded and resized once per batch to uint8 of shape (channels, height, width).

    They are PNG, JPEG, WebP, TIFF, BMP, GIF or PPM. Of 16 bits the higher eight are kept.

    Parameters
    ----------
    height, width : int, optional
        In pixels. By default the size of the images, which must then have one size.
    channels : int, optional
        1 (grey) or 3 (red, green, blue). By default 1 if all images are grey, else 3.

    Examples
    --------
    >>> Image(224, 224)
    Image(height=224, width=224, channels=None)
    """

    height: int | None = None
    width: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if (self.height is None) != (self.width is None) or any(
            n is not None and n < 1 for n in (self.height, self.width)
        ):
            raise ValueError(f"Image takes a height and a width in pixels, got {self.height} and {self.width}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {self.channels!r}")


@dataclass(frozen=True)
class Text:
    """Text, split into tokens once; a batch is padded with 0 to its longest row.

    Parameters
    ----------
    tokenizer : callable or tokenizers.Tokenizer, optional
        ``tokenizer(text)`` gives the token numbers of one text. By default words are hashed, see ``HashingTokenizer``.
    max_length : int, optional
        Tokens of a row at most; the rest is left out.

    Examples
    --------
    >>> Text(lambda text: [ord(letter) for letter in text], max_length=100).max_length
    100
    """

    tokenizer: Callable[[str], Sequence[int]] | Any = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be at least 1 token, got {self.max_length}")


@dataclass(frozen=True)
class Category:
    """Values of a set: the most frequent ones get a code each, all others share some, by a hash.

    A column of at most 10,000 different values needs none of this: each has its code. The hash is the same everywhere
    ("hashing trick", Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", 2009), also for values
    that training did not see.

    Parameters
    ----------
    top : int, optional
        Values with a code of their own, at most; by default 10,000.
    buckets : int, optional
        Codes that the others share; 0 makes them one with missing values. By default as many as there are others, from
        256 to 32,768.

    Examples
    --------
    >>> Category(top=100, buckets=64)
    Category(top=100, buckets=64)
    """

    top: int | None = None
    buckets: int | None = None

    def __post_init__(self) -> None:
        for name, most in (("top", MAX_TOP), ("buckets", 2**20)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= most:
                raise ValueError(f"{name} must be from 0 to {most:,}, got {value!r}")
        if self.top == 0 and self.buckets == 0:
            raise ValueError("top=0 and buckets=0 leave no category; give one of them")


Kind = str | Array | Image | Text | Category


def kind_name(kind: Kind) -> str:
    """Return the name of a kind.

    Raises
    ------
    ValueError
        There is no such kind.

    Examples
    --------
    >>> kind_name(Image(32, 32)), kind_name("number")
    ('image', 'number')
    """
    name = kind if isinstance(kind, str) else type(kind).__name__.lower()
    if name not in KINDS or not isinstance(kind, (str, Array, Image, Text, Category)):
        raise ValueError(
            f"a kind must be one of {', '.join(map(repr, KINDS))}, Array, Image, Text or Category; got {kind!r}"
        )
    return name


# -- the kind of a column -----------------------------------------------------------------------------------------


def column_kind(name: Any, dtype: Any) -> str:
    """Say how a column of this pandas or pyarrow type is read, as far as the type tells.

    Object columns count as categories here: their values are looked at in ``kind_of``.

    Raises
    ------
    DataError
        The type is none a model can read: complex numbers, periods, lists of strings.

    Examples
    --------
    >>> column_kind("x", np.dtype("float64")), column_kind("x", pa.list_(pa.float32(), 3))
    ('number', 'array')
    """
    if isinstance(dtype, pd.ArrowDtype):
        dtype = dtype.pyarrow_dtype
    if isinstance(dtype, pd.SparseDtype):
        dtype = dtype.subtype
    if not isinstance(dtype, pa.DataType) and pd.api.types.is_complex_dtype(dtype):
        raise DataError(
            f"Complex data not supported: column {name!r} has dtype {dtype}. Give its real and imaginary parts as two "
            "columns."
        )
    kind = _arrow_kind(dtype) if isinstance(dtype, pa.DataType) else _pandas_kind(dtype)
    if kind is None:
        raise DataError(
            f"column {name!r} has dtype {dtype}; a feature must be a number, a boolean, a category (strings are read "
            "as categories), a date, a duration, a time of day, a list or an array of numbers, or an encoded image. "
            "Turn it into one of these, or leave the column out."
        )
    return kind


def kind_of(name: Any, dtype: Any, values: Values) -> str:
    """Say how a column is read: by its type, and by its values if they are Python objects.

    Parameters
    ----------
    name : hashable
        For messages.
    dtype : pandas or pyarrow type
    values : array
        What ``values.plain`` made of the column.

    Raises
    ------
    DataError
        Nothing a model can read, or text and something else.
    """
    if not _is_object(dtype):
        return column_kind(name, dtype)
    kind = values.type if isinstance(values, pa.Array) else values.dtype
    return object_kind(name, values) if _is_object(kind) else column_kind(name, kind)


def _is_object(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind == "O"


def _pandas_kind(dtype: Any) -> str | None:
    types = pd.api.types
    if isinstance(dtype, pd.CategoricalDtype) or (types.is_string_dtype(dtype) and not _is_period(dtype)):
        return "category"
    if types.is_numeric_dtype(dtype) or types.is_bool_dtype(dtype) or types.is_timedelta64_dtype(dtype):
        return "number"
    return "time" if types.is_datetime64_any_dtype(dtype) else None


def _is_period(dtype: Any) -> bool:
    return isinstance(dtype, (pd.PeriodDtype, pd.IntervalDtype))


def _arrow_kind(kind: pa.DataType) -> str | None:
    t = pa.types
    if isinstance(kind, pa.FixedShapeTensorType):
        return "array"
    if isinstance(kind, pa.BaseExtensionType):
        return _arrow_kind(kind.storage_type)
    if t.is_dictionary(kind) or t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind):
        return "category"
    if t.is_null(kind):
        return "category"
    if t.is_boolean(kind) or t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind):
        return "number"
    if t.is_duration(kind) or t.is_time(kind):
        return "number"
    if t.is_timestamp(kind) or t.is_date(kind):
        return "time"
    if t.is_binary(kind) or t.is_large_binary(kind) or t.is_binary_view(kind):
        return "image"
    if t.is_struct(kind) and {"data", "shape"} <= {kind.field(i).name for i in range(kind.num_fields)}:
        return "array"
    return _arrow_list_kind(kind) if is_list(kind) else None


def _arrow_list_kind(kind: pa.DataType) -> str | None:
    inner = kind.value_type
    if is_list(inner) and _arrow_list_kind(inner) is None:
        return None
    if not is_list(inner) and _arrow_kind(inner) != "number" and not pa.types.is_null(inner):  # all lists are empty
        return None
    return "array" if pa.types.is_fixed_size_list(kind) else "ragged"


def object_kind(name: Any, values: npt.NDArray[np.object_]) -> str:
    """Kind of objects that are no numbers, by the first value that is there; all must be text if that one is.

    Raises
    ------
    DataError
        There is text, and something else.
    """
    found = next((v for v in values if not is_missing(v)), None)
    if isinstance(found, (list, tuple, np.ndarray, dict)):
        return "array"
    if isinstance(found, (bytes, bytearray, memoryview)):
        return "image"
    if isinstance(found, TIMES):
        return "number" if hasattr(found, "total_seconds") or isinstance(found, np.timedelta64) else "time"
    if found is not None and not holds_text_only(values):
        odd = next((v for v in values if not isinstance(v, str) and not is_missing(v)), found)
        text = next((v for v in values if isinstance(v, str)), None)
        raise DataError(
            f"column {name!r} is an object column that is no category: it holds {type(odd).__name__} values such as "
            f"{str(odd)[:60]!r}{'' if text is None else f' beside text such as {text[:60]!r}'}, which cannot be read "
            "as one kind. Turn all into numbers, pd.to_numeric(column, errors='coerce'), or all into text, "
            "column.astype(str), or leave it out."
        )
    return "category"
