"""Finding values in a list of known ones, whatever type holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from daskdl.data.schema.values import Values

Ints = npt.NDArray[np.int32]


class Lookup:
    """Find values in a list of known ones: 1 for the first, 0 for one that is missing or not there.

    Values are equal as Python has it: ``1``, ``1.0`` and ``True`` are.

    Examples
    --------
    >>> Lookup(["Rome", "Oslo"])(pa.array(["Oslo", None, "Mars"])).tolist()
    [2, 0, 0]
    """

    def __init__(self, known: Any) -> None:
        self.known = known
        self.array = _as_arrow(np.array([*known, None], dtype=object)[:-1])

    def __call__(self, values: Values) -> Ints:
        """Positions of values: shape (n_rows,)."""
        array = values if isinstance(values, pa.Array) else _as_arrow(values)
        if isinstance(array, pa.DictionaryArray):
            codes = np.append(self(array.dictionary), np.int32(0))
            return codes[array.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)]
        pair = None if array is None or self.array is None else _comparable(array, self.array)
        if pair is not None:
            found = pc.index_in(pair[0], value_set=pair[1])
            return found.fill_null(-1).to_numpy(zero_copy_only=False) + np.int32(1)
        objects = np.array([*array.to_pylist(), None], dtype=object)[:-1] if array is not None else values
        return (pd.Index(self.known, dtype=object).get_indexer(objects) + 1).astype(np.int32)


def _as_arrow(values: npt.NDArray[Any]) -> pa.Array | None:
    """Return values of one type as an Arrow array; None for a mixture."""
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return None


def _comparable(array: pa.Array, known: pa.Array) -> tuple[pa.Array, pa.Array] | None:
    """Both arrays in one type that keeps every value; None if there is none."""
    t = pa.types
    if pa.types.is_null(array.type) or pa.types.is_null(known.type):
        return None
    if t.is_boolean(array.type) and t.is_boolean(known.type):
        return array, known
    if _is_text(array.type) and _is_text(known.type):
        return (array, known.cast(array.type)) if not t.is_string_view(array.type) else (array.cast(known.type), known)
    if not (_is_real(array.type) and _is_real(known.type)):
        return None
    common = pa.int64() if t.is_integer(array.type) and t.is_integer(known.type) else pa.float64()
    try:
        return array.cast(common), known.cast(common)
    except pa.ArrowInvalid:  # an integer that float64, or int64, cannot hold
        return None


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_real(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)
