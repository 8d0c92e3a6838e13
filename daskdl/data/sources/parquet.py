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
from daskdl.data.sources.hive import Keys, keys_in_paths, root_of
from daskdl.data.sources.parquet_columns import common_types, file_schemas, index_columns, row_bytes
from daskdl.data.sources.remote import CHANGED, Tries, find_files, resumed, retried, storage, version
from daskdl.data.staging.leases import is_local
from daskdl.errors import DataError

TAIL_BYTES = 1 << 16  # read from the end of a file to get its footer
PAGE_BYTES = 9 << 18  # of a column that is being read: its page, its dictionary and what is decoded of them
PREBUFFER_BYTES = 1 << 26  # a remote row group up to this size is fetched in few large requests
FOOTER_THREADS = 16
CHUNK_BYTES = 6 << 20
MIN_CHUNK_ROWS, MAX_CHUNK_ROWS = 256, 65_536
MIN_WIDE_ROWS, WIDE = 1_024, 8  # a row for each eight columns, to this number: every column costs time in each chunk
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
    """

    path: str
    size: int
    version: str
    digest: str


class ParquetSource(Source):
    """Rows of Parquet files, read where and when they are needed; a group is a row group.

    Making one reads the footers only (and, with ``filters``, the columns they name, to count the rows they leave).
    Files may have their columns in any order and lack some, whose values are then missing there; a column that is a
    whole number in one file and a fraction in another is one of fractions. Keys in the path below what was given,
    ``year=2013/part-0.parquet``, are categories, as pandas and Dask read them.

    Parameters
    ----------
    path : str or list of str
        A file, a folder, a glob pattern or a list of these, with the protocol of any fsspec file system.
    columns : list of str, optional
        All by default, but for the index that pandas or Dask has written: name it here to have it as a column.
    filters : list of (column, operator, value), or list of lists of these, optional
        As in ``dask.dataframe.read_parquet``: all of an inner list, any of the outer one. Applied row by row; row
        groups that cannot match by their statistics are not read.
    storage_options : dict, optional
        For the file system. They are never logged.

    Raises
    ------
    DataError
        No file is found, a file is no Parquet file, or a column has types in two files that do not go together.

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
        fs, paths = find_files(path, self._options, SUFFIXES)
        with ThreadPoolExecutor(FOOTER_THREADS, "daskdl-footers") as pool:
            found = list(pool.map(self._footer, paths))
        self.files, footers = [file for file, _ in found], [footer for _, footer in found]
        given = [fs._strip_protocol(one) for one in ([path] if isinstance(path, str) else path)]
        self._keys = keys_in_paths([root_of(one, paths) for one in given], paths)
        self._key_values = _key_values(self._keys)
        self._types, self.columns = self._columns_of(footers, columns)
        groups = [(f, g) for f, footer in enumerate(footers) for g in range(footer.num_row_groups)]
        self._groups = np.array(groups, dtype=np.int64).reshape(-1, 2)
        self._raw_counts = np.array([footers[f].row_group(g).num_rows for f, g in groups], dtype=np.int64)
        self.counts = self._raw_counts
        self.row_bytes = row_bytes({name: self._types[name] for name in self.columns}, footers)
        largest = float((self._raw_counts * self.row_bytes).max(initial=0))
        self.open_bytes = largest if largest <= WHOLE_GROUP_BYTES else min(largest, PAGE_BYTES * len(self.columns))
        if self._filters:
            self.counts = self._count(footers)
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
        file = DataFile(path, size, version(info), hashlib.blake2b(tail, digest_size=16).hexdigest())
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

    def _columns_of(
        self, footers: list[pq.FileMetaData], columns: Sequence[str] | None
    ) -> tuple[dict[str, pa.DataType], list[str]]:
        """Return the columns to be read, with the type they have in all files, and those of them that are asked for."""
        paths = [file.path for file in self.files]
        schemas, self._which = file_schemas(paths, footers)
        self._stored = [schema.types for schema in schemas]
        told = [schemas[w] for w, footer in zip(self._which, footers, strict=True) if footer.num_rows]
        told = list({id(schema): schema for schema in told}.values()) or schemas  # no rows: the types may be none
        keys = {name: pa.dictionary(pa.int32(), values.type) for name, values in self._key_values.items()}
        have = {name: None for schema in told for name in schema.types} | keys
        index = index_columns(told)
        names = [name for name in have if name not in index] if columns is None else list(map(str, columns))
        needed = list(dict.fromkeys([*names, *self._filter_columns]))
        absent = [name for name in needed if name not in have]
        if absent:
            raise DataError(f"columns {absent} are not in {paths[0]} or its like; they have {list(have)[:50]}.")
        if not names:
            raise DataError(
                f"{paths[0]} has no columns but its index, {sorted(index)}, which is no feature. Name it to have it: "
                f"columns={sorted(index)}."
            )
        stored = set(needed) - keys.keys()
        types = common_types([schema.only(stored) for schema in told]) | keys
        return {name: types[name] for name in needed}, names

    def _count(self, footers: list[pq.FileMetaData]) -> np.ndarray:
        """Rows of each group that the filters leave."""
        needed = self._filter_columns

        def count(group: int) -> int:
            f, g = self._groups[group]
            if not self._raw_counts[group] or not may_match(footers[f].row_group(int(g)), self._filters, self._keys[f]):
                return 0
            return sum(len(chunk) for chunk in self._chunks(group, needed))

        with ThreadPoolExecutor(4, "daskdl-count") as pool:
            return np.array(list(pool.map(count, range(len(self._groups)))), dtype=np.int64)

    def _fingerprint(self) -> str:
        seen = hashlib.sha256()
        seen.update(repr([(f.size, f.digest, k) for f, k in zip(self.files, self._keys, strict=True)]).encode())
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
        needed = list(dict.fromkeys([*columns, *self._filter_columns]))
        stored = [c for c in needed if c not in self._key_values and c in self._stored[self._which[f]]]
        expression = pq.filters_to_expression(self._filters) if self._filters else None
        with self._opened(self.files[f]) as handle:
            reader = pq.ParquetFile(
                handle,
                buffer_size=0 if self._prebuffer(group) else TAIL_BYTES,
                pre_buffer=self._prebuffer(group),
            )
            seen = 0
            for batch in reader.iter_batches(self._chunk_rows, row_groups=[g], columns=stored, use_threads=False):
                seen += len(batch)
                whole = self._whole(batch, f, needed)
                yield (whole.filter(expression) if expression is not None else whole).select(columns)
            if seen != self._raw_counts[group]:
                raise OSError(f"it has {seen:,} rows, {self._raw_counts[group]:,} were counted")

    def _whole(self, batch: pa.RecordBatch, file: int, names: list[str]) -> pa.RecordBatch:
        """Give a batch every column, in the type that it has in all files."""
        batch = batch.replace_schema_metadata(None)  # the notes of pandas: they would make columns an index
        stored = self._stored[self._which[file]]
        if all(stored.get(name) == self._types[name] for name in names):
            return batch if batch.schema.names == names else batch.select(names)
        at = {name: i for i, name in enumerate(batch.schema.names)}
        arrays = []
        for name in names:
            kind = self._types[name]
            if name in self._key_values:
                found = _key_column(self._key_values[name], self._keys[file].get(name), len(batch))
            elif name not in at:
                found = pa.nulls(len(batch), kind)
            else:
                found = batch.column(at[name])
            arrays.append(found if found.type == kind else _cast(found, kind))
        return pa.RecordBatch.from_arrays(arrays, names)

    @property
    def _chunk_rows(self) -> int:
        """Rows decoded at a time: many where they are narrow, as threads wait for the interpreter at each step."""
        least = max(MIN_CHUNK_ROWS, min(MIN_WIDE_ROWS, len(self.columns) // WIDE))
        return int(min(max(CHUNK_BYTES / self.row_bytes, least), MAX_CHUNK_ROWS))

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


def _key_values(keys: list[Keys]) -> dict[str, pa.Array]:
    """Return the values of each key in the paths, sorted: its categories."""
    names = dict.fromkeys(name for one in keys for name in one)
    found = {name: sorted({one[name] for one in keys if one.get(name) is not None}) for name in names}
    return {name: pa.array(values) for name, values in found.items()}


def _key_column(values: pa.Array, value: Any, n_rows: int) -> pa.DictionaryArray:
    code = pa.scalar(None if value is None else values.index(value).as_py(), pa.int32())
    return pa.DictionaryArray.from_arrays(pa.repeat(code, n_rows), values)


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(column.type) and not pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
    return column.cast(kind, safe=not pa.types.is_floating(kind))  # of whole numbers above 2 ** 53 the nearest is taken
