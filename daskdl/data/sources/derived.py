"""A source made of another: its rows changed by a function, or some of them left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd

from daskdl.data.sources.base import Chunk, Source, to_frame
from daskdl.errors import DataError

COUNT_THREADS = 2


class MappedSource(Source):
    """Rows of a source after ``function(frame)``, which gives a frame of as many rows for each frame of some rows.

    Make it with ``source.map(function)``. The function is called on chunks of any size, so that what it makes of a row
    must depend on that row alone.
    """

    def __init__(self, source: Source, function: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        self.source, self.function = source, function
        self.counts, self.row_bytes, self.open_bytes = source.counts, source.row_bytes, source.open_bytes
        self.random_access = source.random_access
        self.fingerprint = derived_fingerprint(source, "map", function)

    def where(self, group: int) -> str:
        """Name the group of the source."""
        return self.source.where(group)

    def read(self, group: int, first: int, stop: int) -> Iterator[Chunk]:
        """Yield the rows of a group, changed."""
        for chunk in self.source.read(group, first, stop):
            made = self.function(to_frame(chunk))
            if not hasattr(made, "columns") or len(made) != len(chunk):
                found = f"{len(made):,} rows" if hasattr(made, "columns") else f"a {type(made).__name__}"
                raise DataError(
                    f"the function given to map() must return a frame of as many rows as it gets: it got "
                    f"{len(chunk):,} rows of {self.where(group)} and returned {found}. Use filter() to leave rows out."
                )
            yield made


class FilteredSource(Source):
    """Rows of a source for which ``predicate(frame)`` is true: a boolean for each row.

    Make it with ``source.filter(predicate)``; that reads all rows once, to count. Filters on columns of Parquet files
    are better given to ``ParquetSource``, which need not read what cannot match.
    """

    def __init__(self, source: Source, predicate: Callable[[pd.DataFrame], Any]) -> None:
        self.source, self.predicate = source, predicate
        self.row_bytes, self.open_bytes = source.row_bytes, source.open_bytes
        with ThreadPoolExecutor(COUNT_THREADS, "daskdl-count") as pool:
            kept = pool.map(self._count, range(len(source.counts)))
            self.counts = np.array(list(kept), dtype=np.int64)
        self.fingerprint = derived_fingerprint(source, "filter", predicate)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return self.source.names

    def where(self, group: int) -> str:
        """Name the group of the source."""
        return self.source.where(group)

    def read(self, group: int, first: int, stop: int) -> Iterator[pd.DataFrame]:
        """Yield the rows of a group that are kept."""
        at = 0
        for frame in self._kept(group):
            part = frame.iloc[max(first - at, 0) : max(stop - at, 0)]
            at += len(frame)
            if len(part):
                yield part
            if at >= stop:
                return

    def _kept(self, group: int) -> Iterator[pd.DataFrame]:
        for chunk in self.source.read(group, 0, int(self.source.counts[group])):
            frame = to_frame(chunk)
            keep = np.asarray(self.predicate(frame))
            if keep.shape != (len(frame),) or keep.dtype != bool:
                raise DataError(
                    f"the predicate given to filter() must return one boolean per row; it got {len(frame):,} rows of "
                    f"{self.where(group)} and returned shape {keep.shape}, {keep.dtype}. For example "
                    "lambda df: df.x > 0, or .fillna(False) where values are missing."
                )
            yield frame[keep]

    def _count(self, group: int) -> int:
        return sum(len(frame) for frame in self._kept(group))


def derived_fingerprint(source: Source, what: str, function: Any) -> str:
    """Fingerprint of a source and a function, by the function's code and what it closes over."""
    return hashlib.sha256(repr((source.fingerprint, what)).encode() + cloudpickle.dumps(function)).hexdigest()
