"""Arrays and images as columns of Parquet files, and back."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import Executor
from itertools import repeat
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image as Pillow

from daskdl.data.schema.lists import lists
from daskdl.data.schema.objects import is_missing
from daskdl.data.schema.pictures import Pixels, decode_image, image_shape
from daskdl.data.schema.values import blobs, plain
from daskdl.errors import DataError

Arrays = npt.NDArray[Any] | Sequence[Any]

# -- arrays -------------------------------------------------------------------------------------------------------


def to_array_column(arrays: Arrays) -> pa.Array:
    """Return arrays, one per row, as a column that Parquet keeps with their shape.

    Parameters
    ----------
    arrays : array of shape (n_rows, ...), or sequence of arrays
        Of one dtype and as many dimensions each; None is a missing row.

    Returns
    -------
    pyarrow.Array
        Of Arrow's type ``fixed_shape_tensor`` for arrays of one shape, without a copy of an array in C order. Else a
        struct of ``data`` and ``shape``, which is how Arrow lays out tensors of variable shape.

    Raises
    ------
    DataError
        The arrays are not of one dtype and as many dimensions, or hold no numbers.

    Examples
    --------
    >>> column = to_array_column(np.zeros((5, 2, 3), dtype=np.float32))
    >>> column.type.shape, len(column)
    ([2, 3], 5)
    >>> read_arrays(to_array_column([np.ones((2, 2)), np.ones((1, 2))]))[1]
    array([[1., 1.]])
    """
    if isinstance(arrays, np.ndarray) and arrays.dtype != object:
        return _fixed(_checked(arrays, 2), None)
    rows = [None if is_missing(row) else _checked(np.asarray(row), 1) for row in arrays]
    found = [row for row in rows if row is not None]
    if not found:
        raise DataError("to_array_column got no array: their dtype and shape cannot be told. Give at least one.")
    types = {(row.dtype, row.ndim) for row in found}
    if len(types) > 1:
        raise DataError(
            f"arrays of a column must have one dtype and as many dimensions, got {sorted(map(str, types))[:4]}. A "
            "column has one type: convert them."
        )
    missing = np.array([row is None for row in rows])
    if len({row.shape for row in found}) > 1:
        return _varying(found, missing)
    out = np.zeros((len(rows), *found[0].shape), found[0].dtype)
    out[~missing] = found
    return _fixed(out, missing if missing.any() else None)


def _checked(array: npt.NDArray[Any], ndim: int) -> npt.NDArray[Any]:
    if array.dtype.kind not in "iuf" or array.ndim < ndim:
        raise DataError(
            f"to_array_column takes arrays of integers or floats with at least one axis per row, got {array.dtype} of "
            f"shape {array.shape}. Convert them: array.astype('float32')."
        )
    return array


def _fixed(array: npt.NDArray[Any], missing: npt.NDArray[np.bool_] | None) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    shape = array.shape[1:]
    mask = None if missing is None else pa.array(missing)
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape)), mask=mask)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(flat.type, shape), storage)


def _varying(found: list[npt.NDArray[Any]], missing: npt.NDArray[np.bool_]) -> pa.Array:
    sizes = np.zeros(len(missing), dtype=np.int64)
    sizes[~missing] = [row.size for row in found]
    shapes = np.zeros((len(missing), found[0].ndim), dtype=np.int32)
    shapes[~missing] = [row.shape for row in found]
    flat = pa.array(np.concatenate([row.reshape(-1) for row in found]))
    data = pa.LargeListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(sizes)])), flat)
    shape = pa.FixedSizeListArray.from_arrays(pa.array(shapes.reshape(-1)), shapes.shape[1])
    return pa.StructArray.from_arrays([data, shape], names=["data", "shape"], mask=pa.array(missing))


def read_arrays(column: Any) -> npt.NDArray[Any] | list[npt.NDArray[Any] | None]:
    """Undo ``to_array_column``, also for a column of lists; works on what Parquet gives back.

    Parameters
    ----------
    column : pyarrow.Array, pyarrow.ChunkedArray or pandas.Series

    Returns
    -------
    array of shape (n_rows, ...), or list of arrays
        The array is a view of the column where it can be, and read-only then. A list if rows differ in shape or some
        are missing (None).

    Raises
    ------
    DataError
        The column holds no arrays.

    Examples
    --------
    >>> read_arrays(to_array_column(np.arange(4).reshape(2, 2))).tolist()
    [[0, 1], [2, 3]]
    """
    values = plain(column)
    if isinstance(values, pa.StructArray):
        return _read_varying(values)
    try:
        found = lists(values)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"read_arrays takes a column of arrays or of lists of numbers, and this one is none: {error}. Write it "
            "with to_array_column."
        ) from error
    if not found.missing.any() and found.shape is not None and found.shape[0] >= 0:
        return found.values.reshape(len(found.lengths), *found.shape)
    stops = np.cumsum(found.lengths)
    rows = zip(stops - found.lengths, stops, found.missing, strict=True)
    return [None if missing else found.values[first:stop] for first, stop, missing in rows]


def _read_varying(column: pa.StructArray) -> list[npt.NDArray[Any] | None]:
    rows = zip(column.field("data"), column.field("shape"), column.is_valid(), strict=True)
    return [
        data.values.to_numpy(zero_copy_only=False).reshape(shape.as_py()) if valid.as_py() else None
        for data, shape, valid in rows
    ]


# -- images -------------------------------------------------------------------------------------------------------


def encode_images(
    arrays: Arrays, format: Literal["png", "jpeg"] = "png", quality: int = 90, pool: Executor | None = None
) -> pa.Array:
    """Compress images, one per row, into a column of bytes that any program can read.

    Parameters
    ----------
    arrays : uint8 array of shape (n_rows, height, width) or (n_rows, height, width, 3), or sequence of such images
        Grey or red, green, blue; None is a missing row.
    format : {"png", "jpeg"}
        PNG keeps every pixel, JPEG is smaller.
    quality : int
        Of JPEG, from 1 to 95.
    pool : concurrent.futures.Executor, optional
        Threads to work on several images at a time.

    Returns
    -------
    pyarrow.Array
        Of type ``binary``.

    Raises
    ------
    DataError
        A row is no such image.

    Examples
    --------
    >>> column = encode_images(np.zeros((2, 8, 6), dtype=np.uint8))
    >>> [image.shape for image in read_images(column)]
    [(8, 6), (8, 6)]
    """
    if format not in ("png", "jpeg"):
        raise ValueError(f"format must be 'png' or 'jpeg', got {format!r}")
    work = pool.map if pool else map
    return pa.array(work(_encode_image, arrays, repeat(format), repeat(quality)), type=pa.binary())


def _encode_image(pixels: Any, format: str, quality: int) -> bytes | None:
    if is_missing(pixels):
        return None
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)):
        raise DataError(
            f"an image must be uint8 of shape (height, width) or (height, width, 3), got {pixels.dtype} of shape "
            f"{pixels.shape}. Scale it to 0..255 and put its channels last: x.transpose(1, 2, 0)."
        )
    file = io.BytesIO()
    image = Pillow.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    image.save(file, format, **({"quality": quality} if format == "jpeg" else {}))
    return file.getvalue()


def read_images(column: Any, pool: Executor | None = None) -> list[Pixels | None]:
    """Decode a column of compressed images, each in its own size; see ``decode_image`` of ``schema.pictures``.

    Parameters
    ----------
    column : pyarrow.Array, pyarrow.ChunkedArray or pandas.Series
    pool : concurrent.futures.Executor, optional
        Threads to work on several images at a time.

    Returns
    -------
    list of uint8 array of shape (height, width) or (height, width, 3)
        None where a row is missing.

    Raises
    ------
    DataError
        Bytes that are no image.

    Examples
    --------
    >>> read_images(encode_images([np.full((2, 2), 7, dtype=np.uint8)]))[0].tolist()
    [[7, 7], [7, 7]]
    """
    return list((pool.map if pool else map)(_decode_own_size, blobs(plain(column))))


def _decode_own_size(data: bytes | None) -> Pixels | None:
    if data is None:
        return None
    channels, height, width = image_shape(data)
    pixels = decode_image(data, height, width, channels)
    return pixels[0] if channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
