"""A short name for the content of columns: the same rows have the same name, sliced or not, in any process."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

DIGEST_BYTES = 16
STEP_BYTES = 16 << 20  # hashed at a time: what is copied to lie in one piece stays small
STEP_ROWS = 1 << 18


def fingerprint(*parts: str | bytes | int) -> str:
    """Return one name for several facts, in their order: 32 hexadecimal digits.

    Examples
    --------
    >>> fingerprint("a", 1) == fingerprint("a", 1), fingerprint("a", 1) == fingerprint("a1")
    (True, False)
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        _add(digest, part if isinstance(part, bytes) else str(part).encode())
    return digest.hexdigest()


def fingerprint_of_columns(columns: Iterable[tuple[Any, Any]], *more: str | int) -> str:
    """Return a name for the content of named columns, and of what else matters.

    Parameters
    ----------
    columns : pairs of name and column
        A column is a numpy array of any shape, a pandas Series, or a pyarrow Array or ChunkedArray. The order of the
        rows and of the columns counts; how the rows are cut into chunks does not.
    *more : str or int

    Examples
    --------
    >>> x = np.arange(6)
    >>> fingerprint_of_columns([("x", x[2:])]) == fingerprint_of_columns([("x", np.array([2, 3, 4, 5]))])
    True
    """
    digests = [part for name, column in columns for part in (str(name), _of_column(column))]
    return fingerprint(len(digests), *digests, *more)


def _of_column(column: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    if isinstance(column, pd.Series):
        column = column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array
    if isinstance(column, pa.Array):
        column = pa.chunked_array([column])
    if isinstance(column, np.ndarray) and column.dtype != object:
        _add_numpy(digest, column)
    else:
        for first in range(0, len(column), STEP_ROWS):
            _add_other(digest, column[first : first + STEP_ROWS])
    _add(digest, str(len(column)).encode())
    return digest.digest()


def _add(digest: Any, data: bytes) -> None:
    """Add bytes with their length, so that what follows each other cannot be taken for something else."""
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)


def _add_numpy(digest: Any, array: npt.NDArray[Any]) -> None:
    _add(digest, f"{array.dtype.str} {array.shape[1:]}".encode())
    rows = max(1, STEP_BYTES // max(1, array[:1].nbytes))
    for first in range(0, len(array), rows):
        piece = np.ascontiguousarray(array[first : first + rows])
        digest.update(piece.reshape(-1).view(np.uint8))


def _add_other(digest: Any, rows: Any) -> None:
    """Add some rows of a column that is not a plain numpy array: in Arrow's form, which has no Python objects."""
    try:
        array = rows.combine_chunks() if isinstance(rows, pa.ChunkedArray) else pa.array(rows, from_pandas=True)
    except (pa.ArrowException, TypeError):  # objects of several kinds
        _add(digest, pickle.dumps(list(rows), protocol=5))
        return
    for data in _buffers(array):
        digest.update(data)


def _buffers(array: Any) -> Iterator[Any]:
    """Yield the bytes of an Arrow array that say what it holds: nothing of its neighbours, nothing under a null."""
    if isinstance(array, pa.ChunkedArray):  # combine_chunks gives these back for more than 2 GiB of strings
        array = pa.concat_arrays(array.chunks)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    yield f"{array.type} {len(array)} {array.null_count};".encode()
    if array.null_count:
        yield np.packbits(pc.is_null(array).to_numpy(zero_copy_only=False))
    yield from _values(array)


def _values(array: Any) -> Iterator[Any]:
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        array, kind = array.cast(pa.large_string()).cast(pa.large_binary()), pa.large_binary()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        known = pc.fill_null(array.cast(pa.large_binary()), b"")
        yield pc.binary_length(known).to_numpy(zero_copy_only=False)
        offsets = np.frombuffer(known.buffers()[1], np.int64)[known.offset : known.offset + len(known) + 1]
        yield memoryview(known.buffers()[2] or b"")[offsets[0] : offsets[-1]] if len(offsets) else b""
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        yield from _buffers(array.flatten())
    elif pa.types.is_struct(kind):
        for field in array.flatten():
            yield from _buffers(field)
    elif pa.types.is_primitive(kind):
        yield _numbers(array)
    elif not pa.types.is_null(kind):
        yield repr(array.to_pylist()).encode()  # decimals, maps, unions: rare, and slow here


def _numbers(array: Any) -> npt.NDArray[Any]:
    """Return fixed-width values as bytes, zero where null."""
    if pa.types.is_boolean(array.type):
        return np.packbits(pc.fill_null(array, False).to_numpy(zero_copy_only=False))
    width = array.type.bit_width // 8
    data = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    data = data[array.offset * width : (array.offset + len(array)) * width]
    if not array.null_count:
        return data
    rows = data.reshape(len(array), width).copy()
    rows[pc.is_null(array).to_numpy(zero_copy_only=False)] = 0
    return rows
