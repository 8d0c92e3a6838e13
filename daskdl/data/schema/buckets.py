"""Hashes of single values, alike in every process and for every type that holds them: for categories without a code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from daskdl.data.schema.values import Values

Hashes = npt.NDArray[np.uint64]
SKETCH = 1_024  # smallest hashes kept: the number of different values is known to some 3 %


def hash_of(value: Any) -> int:
    """Hash one value to 64 bits; what is equal in Python has one hash, such as ``1``, ``1.0`` and ``True``.

    Examples
    --------
    >>> hash_of(1) == hash_of(True) == hash_of(np.float32(1.0)), hash_of(1) == hash_of("1")
    (True, False)
    """
    if isinstance(value, str):
        data = b"s" + value.encode("utf-8", "surrogatepass")
    elif isinstance(value, (int, np.integer, np.bool_)) or (
        isinstance(value, (float, np.floating)) and float(value).is_integer()
    ):
        data = b"i%d" % int(value)
    elif isinstance(value, (float, np.floating)):
        data = b"f" + repr(float(value)).encode()
    else:
        data = b"o" + str(value).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def hashes(values: Iterable[Any]) -> Hashes:
    """Hash single values: shape (n_values,)."""
    return np.array([hash_of(value) for value in values], dtype=np.uint64)


def is_there(values: Values) -> npt.NDArray[np.bool_]:
    """Which values are not missing."""
    if isinstance(values, pa.Array):
        if isinstance(values, pa.DictionaryArray):
            values = values.dictionary_decode()
        return pc.is_valid(values).to_numpy(zero_copy_only=False) & ~pd.isna(
            values.to_numpy(zero_copy_only=False) if pa.types.is_floating(values.type) else np.zeros(len(values))
        )
    return np.asarray(~pd.isna(values))


def bucket(values: Values, mask: npt.NDArray[np.bool_], n: int) -> npt.NDArray[np.int32]:
    """Buckets from 0 to ``n - 1`` of the values where ``mask`` is true; each different value is hashed once.

    Examples
    --------
    >>> mask = np.array([True, False, True])
    >>> bucket(pa.array(["a", "b", "a"]), mask, 100).tolist() == bucket(np.array(["a", "b", "a"]), mask, 100).tolist()
    True
    """
    if isinstance(values, pa.Array):
        values = values.cast(pa.large_string()) if pa.types.is_string_view(values.type) else values
        values = values.filter(pa.array(mask))
        values = values if isinstance(values, pa.DictionaryArray) else values.dictionary_encode()
        codes, known = values.indices.to_numpy(zero_copy_only=False), values.dictionary.to_pylist()
    else:
        codes, known = pd.factorize(values[mask])
    return (hashes(known) % np.uint64(n)).astype(np.int32)[codes]


def merged(one: Hashes, other: Hashes) -> Hashes:
    """Return the sketch of all values of two: the smallest hashes of both."""
    return np.union1d(one, other)[:SKETCH]


def different(sketch: Hashes) -> int:
    """Estimate how many values a sketch is of, from how close to 0 the smallest hashes lie.

    Bar-Yossef, Jayram, Kumar, Sivakumar, Trevisan, "Counting Distinct Elements in a Data Stream" (2002).

    Examples
    --------
    >>> 90_000 < different(merged(hashes(range(100_000)), hashes(range(50_000)))) < 110_000
    True
    """
    if len(sketch) < SKETCH:
        return len(sketch)
    return round((SKETCH - 1) * 2.0**64 / float(sketch[-1]))
