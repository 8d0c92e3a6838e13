"""Rows straight from Parquet files, on anything fsspec reads: row groups, columns and filters pushed down."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from daskdl.data.sources.base import WHOLE_GROUP_BYTES, Source
from daskdl.data.sources.filters import Filters, may_match, normal_form
from daskdl.data.sources.remote import CHANGED, Tries, find_files, resumed, retried, storage, version
from daskdl.data.staging.leases import is_local
from daskdl.errors import DataError

TAIL_BYTES = 1 << 16  # read from the end of a file to get its footer
PAGE_BYTES = 9 << 18  # of a column that is being read: its page, its dictionary and what is decoded of them
PREBUFFER_BYTES = 1 << 26  # a remote row group up to this size is fetched in few large requests
FOOTER_THREADS = 16
CHUNK_BYTES = 6 << 20
MIN_CHUNK_ROWS, MAX_CHUNK_ROWS = 256, 65_536
LOOKED_GROUPS = 64  # row groups whose footers tell how long lists and texts are
OFFSET_BYTES = 4
WIDTHS = {"BOOLEAN": 0.125, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8}  # of a decoded value
SUFFIXES = (".parquet", ".parq", ".pq")


@dataclass(frozen=True)
class DataFile:
    """What was found out about one Parquet file.

    Attributes
    ----------
    path : str
        Without protocol, as its file system names it.
    size : int
        Bytes.
    version : str
        Changes when the file is written again: modification time or entity tag.
    digest : str
        Hash of the footer and what lies just before it.
    constants : dict
        Columns whose value is in the path, as in ``year=2013/part-0.parquet``.
    """

    path: str
    size: int
    version: str
    digest: str
    constants: dict[str, Any]


class ParquetSource(Source):
    """Rows of Parquet files, read where and when they are needed; a group is a row group.

    Making one reads the footers only (and, with ``filters``, the columns they name, to count the rows they leave).

    Parameters
    ----------
    path : str or list of str
        A file, a folder, a glob pattern or a list of these, with the protocol of any fsspec file system.
    columns : list of str, optional
        All by default.
    filters : list of (column, operator, value), or list of lists of these, optional
        As in ``dask.dataframe.read_parquet``: all of an inner list, any of the outer one. Applied row by row; row
        groups that cannot match by their statistics are not read.
    storage_options : dict, optional
        For the file system. They are never logged.

    Raises
    ------
    DataError
        No file is found, a file is no Parquet file, or files have different columns.

    Examples
    --------
    >>> import pandas as pd
    >>> pd.DataFrame({"x": range(6)}).to_parquet("/tmp/daskdl-example.parquet")
    >>> ParquetSource("/tmp/daskdl-example.parquet", filters=[("x", ">", 1)]).n_rows
    4
    """

    def __init__(
        self,
        path: str | Sequence[str],
        columns: Sequence[str] | None = None,
        filters: Filters | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        self._url = path if isinstance(path, str) else next(iter(path), "")
        self._options = storage(self._url, storage_options)
        self._filters = normal_form(filters)
        paths = find_files(path, self._options, SUFFIXES)[1]
        with ThreadPoolExecutor(FOOTER_THREADS, "daskdl-footers") as pool:
            footers = list(pool.map(self._footer, paths))
        self.files = [file for file, _ in footers]
        self._schema, self.columns = self._same_columns([footer for _, footer in footers], columns)
        groups = [(f, g) for f, (_, footer) in enumerate(footers) for g in range(footer.num_row_groups)]
        self._groups = np.array(groups, dtype=np.int64).reshape(-1, 2)
        rows = [footer.row_group(g).num_rows for _, footer in footers for g in range(footer.num_row_groups)]
        self._raw_counts = np.array(rows, dtype=np.int64)
        self.counts = self._raw_counts
        self.row_bytes = _row_bytes(self._schema, self.columns, [footer for _, footer in footers])
        largest = float((self._raw_counts * self.row_bytes).max(initial=0))
        self.open_bytes = largest if largest <= WHOLE_GROUP_BYTES else min(largest, PAGE_BYTES * len(self.columns))
        if self._filters:
            self.counts = self._count([footer for _, footer in footers])
        self.fingerprint = self._fingerprint()

    # -- looking at the files ---------------------------------------------------------------------------------

    @cached_property
    def _fs(self) -> Any:
        return fsspec.core.url_to_fs(self._url, **self._options)[0]

    @property
    def _read_errors(self) -> tuple[type[Exception], ...]:
        """What a file that cannot be read raises; remote file systems raise errors of any class."""
        return (pa.ArrowException, OSError) if is_local(self._fs) else (Exception,)

    @property
    def _filter_columns(self) -> list[str]:
        return list(dict.fromkeys(column for inner in self._filters for column, _, _ in inner))

    def __getstate__(self) -> dict[str, Any]:
        """Leave open connections behind."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_fs", "keep")}

    def _footer(self, path: str) -> tuple[DataFile, pq.FileMetaData]:
        try:
            info, tail = retried(self._fs, partial(self._tail, path))
            footer = pq.read_metadata(pa.BufferReader(tail))
        except FileNotFoundError:
            raise DataError(f"{path} does not exist. Look at the path, and whether all workers can see it.") from None
        except self._read_errors as error:
            raise DataError(
                f"{path} cannot be read as Parquet: {error}. It is damaged, cut short, or no Parquet file: write it "
                "again, or leave it out."
            ) from error
        size = int(info["size"])
        file = DataFile(path, size, version(info), hashlib.blake2b(tail, digest_size=16).hexdigest(), _constants(path))
        return file, footer

    def _tail(self, path: str) -> tuple[dict[str, Any], bytes]:
        """Say what the file system knows of a file, and read its footer and what lies just before it."""
        info = self._fs.info(path)
        size = int(info["size"])
        tail = self._fs.cat_file(path, start=max(0, size - TAIL_BYTES), end=size)
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > len(tail):
            tail = self._fs.cat_file(path, start=max(0, size - length), end=size)
        return info, tail

    def _same_columns(
        self, footers: list[pq.FileMetaData], columns: Sequence[str] | None
    ) -> tuple[pa.Schema, list[str]]:
        """Check that all files have the columns asked for, of one type."""
        first = _first_with_rows(footers).schema.to_arrow_schema()
        constants = {k: pa.scalar(v).type for k, v in self.files[0].constants.items()}
        names = (
            [n for n in [*first.names, *constants] if n != "__index_level_0__"] if columns is None else list(columns)
        )
        absent = [n for n in names if n not in first.names and n not in constants]
        if absent:
            raise DataError(f"columns {absent} are not in {self.files[0].path}; it has {[*first.names, *constants]}.")
        wanted = [n for n in dict.fromkeys([*names, *self._filter_columns]) if n not in constants]
        for file, footer in zip(self.files, footers, strict=True):
            if not footer.num_rows or footer.schema.equals(footers[0].schema):
                continue
            found = footer.schema.to_arrow_schema()
            for name in wanted:
                there = found.field(name).type if name in found.names else "not there"
                if there not in (first.field(name).type, pa.null()):  # a column without any value has no type
                    raise DataError(
                        f"column {name!r} is {there} in {file.path} and {first.field(name).type} in "
                        f"{self.files[0].path}: the files must have the same columns. Write them again with one type, "
                        "or select other columns."
                    )
        return first, names

    def _count(self, footers: list[pq.FileMetaData]) -> np.ndarray:
        """Rows of each group that the filters leave."""
        needed = self._filter_columns

        def count(group: int) -> int:
            f, g = self._groups[group]
            if not self._raw_counts[group] or not may_match(
                footers[f].row_group(int(g)), self._filters, self.files[f].constants
            ):
                return 0
            return sum(len(chunk) for chunk in self._chunks(group, needed))

        with ThreadPoolExecutor(4, "daskdl-count") as pool:
            return np.array(list(pool.map(count, range(len(self._groups)))), dtype=np.int64)

    def _fingerprint(self) -> str:
        seen = hashlib.sha256()
        seen.update(repr([(f.size, f.digest, f.constants) for f in self.files]).encode())
        seen.update(repr((self.columns, self._filters, self.counts.tolist())).encode())
        return seen.hexdigest()

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self.columns)

    # -- reading ----------------------------------------------------------------------------------------------

    def where(self, group: int) -> str:
        """Name the file and the row group."""
        file, row_group = self._groups[group]
        return f"{self.files[file].path}, row group {row_group}"

    def read(self, group: int, first: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield rows of a row group; those before ``first`` are decoded and dropped."""
        at = 0
        for chunk in self._chunks(group, self.columns):
            low, high = max(first - at, 0), min(stop - at, len(chunk))
            at += len(chunk)
            if low < high:
                yield chunk if high - low == len(chunk) else chunk.slice(low, high - low)
            if at >= stop:
                return

    def _chunks(self, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a row group that the filters leave; a remote file is tried again where it broke off."""
        tries = Tries(self._fs)
        try:
            yield from resumed(self._fs, partial(self._open, group, columns), tries)
        except DataError:
            raise
        except self._read_errors as error:
            file = self.files[self._groups[group][0]]
            if is_local(self._fs):  # one that is being written over may be read as anything
                with suppress(OSError):
                    self._check_version(file, self._fs.info(file.path))
            said = " ".join(str(error).split()) or type(error).__name__
            after = f", after {tries.count} tries" if tries.count > 1 else ""
            raise DataError(
                f"{self.where(group)} cannot be read{after}: {said}. "
                "No row was left out silently: training stops here. Repair the file or the connection, and fit again."
            ) from error

    def _open(self, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        f, g = (int(i) for i in self._groups[group])
        file = self.files[f]
        needed = list(dict.fromkeys([*columns, *self._filter_columns]))
        stored = [c for c in needed if c not in file.constants]
        expression = pq.filters_to_expression(self._filters) if self._filters else None
        with self._opened(file) as handle:
            reader = pq.ParquetFile(
                handle,
                buffer_size=0 if self._prebuffer(group) else TAIL_BYTES,
                pre_buffer=self._prebuffer(group),
            )
            seen = 0
            for batch in reader.iter_batches(self._chunk_rows, row_groups=[g], columns=stored, use_threads=False):
                seen += len(batch)
                for name, value in file.constants.items():
                    if name in needed:
                        batch = batch.append_column(name, pa.repeat(value, len(batch)))
                for i in [i for i, column in enumerate(batch.columns) if column.type == pa.null()]:
                    kind = self._schema.field(batch.schema.names[i])
                    batch = batch.set_column(i, kind, pa.nulls(len(batch), kind.type))
                yield (batch.filter(expression) if expression is not None else batch).select(columns)
            if seen != self._raw_counts[group]:
                raise OSError(f"it has {seen:,} rows, {self._raw_counts[group]:,} were counted")

    @property
    def _chunk_rows(self) -> int:
        """Rows decoded at a time: many where they are narrow, as threads wait for the interpreter at each step."""
        return int(min(max(CHUNK_BYTES / self.row_bytes, MIN_CHUNK_ROWS), MAX_CHUNK_ROWS))

    def _prebuffer(self, group: int) -> bool:
        return not is_local(self._fs) and float(self._raw_counts[group]) * self.row_bytes <= PREBUFFER_BYTES

    def _opened(self, file: DataFile) -> Any:
        """Open a file, if it is the one that was looked at."""
        if is_local(self._fs):
            self._check_version(file, self._fs.info(file.path))
            return pa.OSFile(file.path)
        self._fs.invalidate_cache(file.path)  # or it would tell what it was told when the folder was listed
        handle = self._fs.open(file.path, "rb", cache_type="none")
        self._check_version(file, getattr(handle, "details", None) or self._fs.info(file.path))
        return handle

    def _check_version(self, file: DataFile, info: dict[str, Any]) -> None:
        if int(info["size"]) != file.size or version(info) != file.version:
            raise DataError(
                f"{file.path} was replaced after training began: it had {file.size:,} bytes ({file.version}) and has "
                f"{int(info['size']):,} ({version(info)}). {CHANGED}"
            )


def _first_with_rows(footers: list[pq.FileMetaData]) -> pq.FileMetaData:
    """Footer that tells the types of the columns: a file without rows may not know them."""
    return next((footer for footer in footers if footer.num_rows), footers[0])


def _constants(path: str) -> dict[str, Any]:
    """Columns in a path, ``.../year=2013/month=1/...``; whole numbers become numbers."""
    pairs = [part.split("=", 1) for part in path.split("/")[:-1] if "=" in part]
    return {name: int(value) if value.lstrip("-").isdigit() else value for name, value in pairs}


def _row_bytes(schema: pa.Schema, columns: list[str], footers: Sequence[pq.FileMetaData]) -> float:
    """Bytes of a decoded row: the width of its types, and of the others what some footers say of their values."""
    widths = {name: _width(schema.field(name).type) for name in columns if name in schema.names}
    others = tuple(f"{name}." for name, width in widths.items() if width is None)
    fixed = sum(width for width in widths.values() if width is not None)
    return max(1.0, fixed + (_other_bytes(others, footers) if others else 0.0))


def _width(kind: pa.DataType) -> int | None:
    try:
        return max(1, kind.bit_width // 8)
    except ValueError:
        return None


def _other_bytes(columns: tuple[str, ...], footers: Sequence[pq.FileMetaData]) -> float:
    """Bytes per row of columns without a fixed width; each name ends with a point."""
    groups = [(footer, g) for footer in footers for g in range(footer.num_row_groups) if footer.row_group(g).num_rows]
    n_bytes = n_rows = 0.0
    for footer, g in groups[:: -(-len(groups) // LOOKED_GROUPS) or 1]:
        group = footer.row_group(g)
        n_rows += group.num_rows
        for i in range(group.num_columns):
            chunk = group.column(i)
            if f"{chunk.path_in_schema}.".startswith(columns):
                lists = footer.schema.column(i).max_repetition_level
                n_bytes += OFFSET_BYTES * lists * group.num_rows + _value_bytes(chunk)
    return n_bytes / max(1.0, n_rows)


def _value_bytes(chunk: pq.ColumnChunkMetaData) -> float:
    """Bytes of the decoded values of a column chunk, whose dictionary may be far smaller.

    The length of texts is not in the footer. Stored plainly, they take as much as decoded; if they are stored in less
    than half of what the least and the greatest one would take on average, they are in a dictionary.
    """
    if chunk.physical_type in WIDTHS:
        return float(chunk.num_values * WIDTHS[chunk.physical_type])
    about, stored = chunk.statistics, float(chunk.total_uncompressed_size)
    if about is None:
        return stored
    stored += OFFSET_BYTES * (chunk.num_values - about.num_values)  # missing ones are not stored
    if chunk.physical_type != "BYTE_ARRAY" or not about.has_min_max:
        return stored
    length = (len(about.min_raw) + len(about.max_raw)) / 2
    alike = OFFSET_BYTES * chunk.num_values + length * about.num_values
    return stored if stored > alike / 2 else alike
