"""What the engine reads rows from: groups of rows that any process can open, and what functions make of them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import numpy.typing as npt
import pandas as pd

from daskdl.data.lanes import layout
from daskdl.errors import DataError
from daskdl.travel import Packed, pack

if TYPE_CHECKING:
    import dask.dataframe as dd

Chunk = Any  # a pyarrow Table or RecordBatch, or a pandas or cudf frame: has len() and chunk[name]

CHUNK_ROWS = 16_384  # of tables read from files: fewer take longer, threads then wait for the interpreter at each step
WHOLE_GROUP_BYTES = 16 << 20  # groups up to this size are read at once and the file is closed
COUNT_THREADS = 2


class Source(ABC):
    """Rows in groups (a Parquet row group, a block of lines, a slice of an array) that any process can read.

    A source is small and can be pickled: it says where rows are, it does not hold them (sources in memory excepted).

    Attributes
    ----------
    counts : array of shape (n_groups,)
        Rows of each group. Groups may be empty.
    fingerprint : str
        The same for the same rows in the same groups; the order of training belongs to it.
    row_bytes : float
        Bytes of a row once read, about; decides how many rows are held at a time.
    open_bytes : float
        Bytes that a group takes while it is being read, beside the rows read.
    random_access : bool
        Whether rows in the middle of a group cost no more than those at its beginning.
    provenance : tuple of str
        Columns that say where a row comes from. They are shown, and no features: they often give the label away.
    notes : tuple of str
        What the user should know of how it reads.
    """

    counts: npt.NDArray[np.int64]
    fingerprint: str
    row_bytes: float
    open_bytes: float = 0.0
    random_access: bool = False
    provenance: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    keep: Any = None  # something that must live as long as the source

    @abstractmethod
    def read(self, group: int, first: int, stop: int) -> Iterator[Chunk]:
        """Yield rows ``first`` to ``stop`` of a group in their order, in chunks of any size.

        Raises
        ------
        DataError
            The rows are not what they were when the source was made, or cannot be read. Names the file and the group.
        """

    @abstractmethod
    def where(self, group: int) -> str:
        """Say in words where a group lies, for messages: ``"flights-03.parquet, row group 2"``."""

    def where_row(self, group: int, row: int) -> str:
        """Say in words where a row of a group lies, for messages."""
        return f"row {row:,} of {self.where(group)}"

    @property
    def n_rows(self) -> int:
        """Rows of all groups."""
        return int(self.counts.sum())

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [str(name) for name in self.head(1).columns]

    def head(self, rows: int = 5) -> pd.DataFrame:
        """Return the first rows as a pandas frame; reads no more than the group they are in."""
        for group in np.flatnonzero(self.counts):
            some = min(max(rows, 1), int(self.counts[group]))
            chunks = [to_frame(chunk) for chunk in self.read(int(group), 0, some)]
            return pd.concat(chunks, ignore_index=True).head(rows)
        return pd.DataFrame()

    def to_dask(self) -> dd.DataFrame:
        """Return the rows as a lazy Dask frame, one partition per group that has rows.

        Bytes, lists and arrays stay what they are, whatever ``dataframe.convert-string`` of Dask says: as text they
        could be neither shown nor predicted.
        """
        import dask
        import dask.dataframe as dd
        from dask.dataframe.utils import clear_known_categories

        groups = [int(group) for group in np.flatnonzero(self.counts)]
        with dask.config.set({"dataframe.convert-string": False}):
            if not groups:
                return dd.from_pandas(self.head(0), npartitions=1)
            meta = clear_known_categories(self.head(0))  # other groups may have others
            # one copy per worker, not one per partition: a source may hold its rows
            once = dask.delayed(pack(self, "the source"), name=f"source-{self.fingerprint}")
            numbers = dd.from_map(_number, groups, meta=_number(0))
            frame: dd.DataFrame = numbers.map_partitions(_read_group, once, meta=meta)
        return frame

    def layout(self, batch_size: int) -> dict[str, Any]:
        """Lanes and window of a sample order over this source, where the place of its rows decides them."""
        about = (self.row_bytes, self.open_bytes, self.random_access)
        lanes, window_rows = layout(self.counts, batch_size, *about)
        return {"lanes": lanes, "window_rows": window_rows}

    def map(self, function: Callable[[pd.DataFrame], pd.DataFrame]) -> Source:
        """Change the rows as they are read: ``function`` gives a frame of as many rows for each frame of some rows.

        Examples
        --------
        >>> from daskdl.data.sources.memory import MemorySource
        >>> source = MemorySource(pd.DataFrame({"x": [1, 2, 3]}))
        >>> source.map(lambda df: df.assign(y=df.x > 1)).head(2).y.tolist()
        [False, True]
        """
        return MappedSource(self, function)

    def filter(self, predicate: Callable[[pd.DataFrame], Any]) -> Source:
        """Leave out rows for which ``predicate`` is false; reads all rows once, to count those that are left.

        Examples
        --------
        >>> from daskdl.data.sources.memory import MemorySource
        >>> MemorySource(pd.DataFrame({"x": [1, 2, 3]})).filter(lambda df: df.x > 1).n_rows
        2
        """
        return FilteredSource(self, predicate)

    def __repr__(self) -> str:
        rows, groups = f"{self.n_rows:,} rows", f"{len(self.counts):,} groups"
        return f"<{type(self).__name__}: {rows} in {groups}, {self.fingerprint[:12]}>"


def _number(group: int) -> pd.DataFrame:
    return pd.DataFrame({"group": [group]})


def _read_group(numbers: pd.DataFrame, source: Packed) -> pd.DataFrame:
    group = int(numbers["group"].iloc[0])
    chunks = source.value.read(group, 0, int(source.value.counts[group]))
    return pd.concat([to_frame(chunk) for chunk in chunks], ignore_index=True)


def to_frame(chunk: Chunk) -> pd.DataFrame:
    """Return a chunk as a pandas frame; cudf frames are copied to the host."""
    return chunk if isinstance(chunk, pd.DataFrame) else chunk.to_pandas()


# -- made of another source ---------------------------------------------------------------------------------------


class MappedSource(Source):
    """Rows of a source after ``function(frame)``, which gives a frame of as many rows for each frame of some rows.

    Make it with ``source.map(function)``. The function is called on chunks of any size, so that what it makes of a row
    must depend on that row alone.
    """

    def __init__(self, source: Source, function: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        self.source, self.function = source, function
        self.counts, self.row_bytes, self.open_bytes = source.counts, source.row_bytes, source.open_bytes
        self.random_access, self.provenance, self.notes = source.random_access, source.provenance, source.notes
        self.fingerprint = derived_fingerprint(source, "map", function)

    def where(self, group: int) -> str:
        """Name the group of the source."""
        return self.source.where(group)

    def where_row(self, group: int, row: int) -> str:
        """Name the row of the source."""
        return self.source.where_row(group, row)

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
        self.provenance, self.notes = source.provenance, source.notes
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
