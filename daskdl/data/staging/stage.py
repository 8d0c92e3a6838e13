"""A lazy frame that does not fit into memory: written once as Parquet into a cache, and read from there."""

from __future__ import annotations

import shutil
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pyarrow as pa
import pyarrow.parquet as pq
from dask.delayed import delayed
from distributed import Client, as_completed

from daskdl.clients import check_lies_here, needed_client
from daskdl.data.sources.fingerprint import fingerprint, fingerprint_of_columns
from daskdl.data.sources.tables import table_of
from daskdl.data.staging.cache import Entry, bound, entries
from daskdl.data.staging.frame_token import frame_token
from daskdl.data.staging.leases import Lease, is_local
from daskdl.data.staging.place import Place, check_shared
from daskdl.errors import DataError

FORMAT = 1  # of the files and of what the key is made of
MAX_BYTES = 50e9
NAME_DIGITS = 5


@dataclass(frozen=True, eq=False)
class Staged:
    """A frame in the staging cache, kept there until ``release`` or the end of the process.

    Attributes
    ----------
    path : str
        Folder of Parquet files, one for each partition of the frame, in its order: a path, or a URL for fsspec.
    fingerprint : str
        Made of the rows and of how they are cut into files and row groups.
    n_rows, n_bytes : int
        Rows, and bytes of the files.
    columns : tuple of str
    reused : bool
        Whether the files were there already.
    lease : Lease
        Says that the files are in use. ``lease.renew()`` once a week keeps them from being removed by other hosts.
    """

    path: str
    fingerprint: str
    n_rows: int
    n_bytes: int
    columns: tuple[str, ...]
    reused: bool
    lease: Lease

    def release(self) -> None:
        """Let the cache remove the files when it needs the room."""
        self.lease.release()

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def stage(
    frame: dd.DataFrame,
    cache: str | None = None,
    client: Client | None = None,
    max_bytes: float | None = None,
    row_group_rows: int = 65_536,
    storage_options: dict[str, Any] | None = None,
) -> Staged:
    """Write a lazy frame into the cache, or find it there. Computes the frame on the workers, one partition at a time.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
        Its index is not kept; ``reset_index()`` makes it a column.
    cache : str, optional
        Folder or fsspec URL that the client and every worker can write to; by default ``~/.cache/daskdl/staged``
        (on macOS ``~/Library/Caches/daskdl/staged``), which serves workers of this machine.
    client : distributed.Client, optional
        The current one by default.
    max_bytes : float, optional
        The least recently used frames are removed until the cache is no larger; frames in use stay. A single frame
        that is larger is refused. By default 50 GB or a tenth of the disk that is free or the cache's, whichever is
        less, and a frame is refused that takes more than half of what is free.
    row_group_rows : int
        Rows of a row group, the unit of shuffling and of sharing rows among ranks.
    storage_options : dict, optional
        Passed to the fsspec file system of ``cache``.

    Returns
    -------
    Staged
        Use it as a context manager, or call ``release()`` when the rows have been read.

    Raises
    ------
    DataError
        A worker does not see the cache, which is found out before anything is computed; the partitions differ in their
        columns; the frame is too large, or cannot be written.
    ValueError
        There is no client.

    Notes
    -----
    A frame is found again by ``frame_token``, which says what it can tell and what not. A frame with random parts
    (``dask.delayed`` functions that are not pure, a sample without ``random_state``) is new each time it is made.

    A killed run leaves nothing that later runs would take for a frame, and the next call removes its files. When two
    runs write the same frame, the one that ends first counts and the other's files are removed.

    Examples
    --------
    >>> with stage(frame, client=client) as staged:  # doctest: +SKIP
    ...     source = ParquetSource(staged.path)
    """
    _check(frame)
    client = needed_client(client, "staging computes a Dask DataFrame")
    check_lies_here(client, frame)
    place = Place(cache or default_cache(), storage_options or {})
    check_shared(place, client)
    fs, root = place.open()
    keep, most = limits(fs, root, max_bytes)
    entry = Entry(fs, root, f"v{FORMAT}-{frame_token(frame)}-{row_group_rows}")
    found = entry.open()
    reused = found is not None
    if found is None:
        bound(fs, root, keep)
        found = _build(frame, entry, place, client, row_group_rows, most)
    bound(fs, root, keep)
    manifest, lease = found
    path = f"{entry.folder}/{manifest['build']}"
    return Staged(
        path if is_local(fs) else fs.unstrip_protocol(path),
        manifest["fingerprint"],
        manifest["rows"],
        manifest["bytes"],
        tuple(manifest["columns"]),
        reused,
        lease,
    )


def default_cache() -> str:
    """Return the folder that staged frames are kept in unless another is given."""
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return str(Path.home() / caches / "daskdl" / "staged")


def limits(fs: Any, root: str, max_bytes: float | None) -> tuple[float, float]:
    """Bytes that the cache may keep, and bytes that one frame may take."""
    if max_bytes is not None:
        return max_bytes, max_bytes
    if not is_local(fs):
        return MAX_BYTES, float("inf")
    free = shutil.disk_usage(root).free
    cached = sum((entry.current() or {"bytes": 0})["bytes"] for entry in entries(fs, root))
    return min(MAX_BYTES, (free + cached) / 10), free / 2


def _check(frame: Any) -> None:
    if not isinstance(frame, dd.DataFrame):
        raise DataError(
            f"expected a Dask DataFrame to stage, got {type(frame).__name__}. Rows in memory need no cache: give them "
            "as they are."
        )
    if len(set(map(str, frame.columns))) < len(frame.columns) or not len(frame.columns):
        raise DataError(
            f"expected columns of different names, got {list(frame.columns)}. A Parquet file finds its columns by "
            "name: rename them."
        )


# -- writing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What one partition has become: file name, rows, bytes, and a digest of the rows."""

    name: str
    rows: int
    bytes: int
    digest: str


def _build(frame: Any, entry: Entry, place: Place, client: Any, row_group_rows: int, most: float) -> Any:
    """Write all partitions, then name the build; whatever goes wrong, nothing is named and the files go."""
    build = uuid.uuid4().hex
    lease = entry.lease(build)  # before the folder: a sweep of another run must not take it for rubbish
    try:
        entry.fs.makedirs(f"{entry.folder}/{build}", exist_ok=True)
        target = (place, f"{entry.folder}/{build}", row_group_rows)
        done = _write_all(frame, target, client, most)
        parts = _with_one_schema(done, target, client)
        return entry.publish(_manifest(build, parts, row_group_rows, list(map(str, frame.columns))), lease)
    except BaseException:
        entry.drop(build)
        lease.release()
        raise


def _manifest(build: str, parts: list[Part], row_group_rows: int, columns: list[str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "build": build,
        "fingerprint": fingerprint("staged", FORMAT, row_group_rows, *(part.digest for part in parts)),
        "rows": sum(part.rows for part in parts),
        "bytes": sum(part.bytes for part in parts),
        "columns": columns,
        "made": time.time(),
        "parts": [asdict(part) for part in parts],
    }


def _write_all(frame: Any, target: Any, client: Any, most: float) -> list[tuple[Part, pa.Schema]]:
    write = delayed(write_part, pure=False)
    pieces = frame.to_delayed(optimize_graph=True)
    digits = max(NAME_DIGITS, len(str(len(pieces))))
    futures = client.compute([write(p, *target, f"part-{i:0{digits}}.parquet") for i, p in enumerate(pieces)])
    try:
        total = 0
        for future in as_completed(futures):
            total += future.result()[0].bytes
            if total > most:
                raise DataError(
                    f"the frame takes more than {most:,.0f} bytes as Parquet, {total:,} so far, and the cache may not "
                    "grow over that. Give more room, max_bytes=..., or a cache on another disk, cache=..."
                )
        return [future.result() for future in futures]
    finally:
        client.cancel([future for future in futures if not future.done()])


def write_part(
    rows: Any, place: Any, folder: str, row_group_rows: int, name: str, schema: pa.Schema | None = None
) -> tuple[Part, pa.Schema]:
    """Write one partition as a Parquet file; runs on a worker. An empty partition becomes a file of no rows."""
    table = rows if isinstance(rows, pa.Table) else _table(rows)
    if schema is not None:
        table = table.cast(schema)
    path, fs = f"{folder}/{name}", place.open()[0]
    try:
        with fs.open(path, "wb") as file:
            words = [field.name for field in table.schema if _repeats(field.type)]
            pq.write_table(table, file, row_group_rows, use_dictionary=words or False, compression="lz4")
        fs.invalidate_cache(folder)
        size = int(fs.size(path))
    except OSError as error:
        raise DataError(
            f"a partition of {len(table):,} rows cannot be written to {path}: {error}. A lazy frame is written there "
            "before training; make room, or give another place: cache=..."
        ) from error
    columns = ((n, table[n]) for n in table.column_names)
    return Part(name, len(table), size, fingerprint_of_columns(columns)), table.schema


def _repeats(kind: pa.DataType) -> bool:
    """Whether a dictionary may pay; tried on numbers it makes writing and reading several times slower."""
    return bool(pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _table(rows: Any) -> pa.Table:
    """Give a partition, pandas or cudf, as an Arrow table without its index."""
    try:
        table = table_of(rows)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(
            f"a partition cannot be written as Parquet: {error}. Each column holds values of one kind; convert it "
            "before, or leave it out."
        ) from error
    wide = pa.schema([_wide(field) for field in table.schema])
    return table if wide == table.schema else table.cast(wide)


def _wide(field: pa.Field) -> pa.Field:
    """Give categories codes of one width; pandas chooses it by their number, in each partition."""
    if not pa.types.is_dictionary(field.type):
        return field.with_nullable(True)
    return pa.field(field.name, pa.dictionary(pa.int32(), field.type.value_type, field.type.ordered))


def _with_one_schema(done: list[tuple[Part, pa.Schema]], target: Any, client: Any) -> list[Part]:
    """Write the parts again whose types are narrower than the others': all missing, or whole numbers by chance."""
    schema = _unified([schema for _, schema in done])
    odd = [i for i, (_, own) in enumerate(done) if own != schema]
    parts = [part for part, _ in done]
    futures = client.map(_rewrite, [parts[i].name for i in odd], target=target, schema=schema, pure=False)
    for i, part in zip(odd, client.gather(futures), strict=True):
        parts[i] = part
    return parts


def _rewrite(name: str, target: Any, schema: pa.Schema) -> Part:
    place, folder, row_group_rows = target
    with place.open()[0].open(f"{folder}/{name}", "rb") as file:
        table = pq.read_table(file)
    return write_part(table, place, folder, row_group_rows, name, schema)[0]


def _unified(schemas: list[pa.Schema]) -> pa.Schema:
    first = schemas[0]
    odd = next((schema for schema in schemas if schema.names != first.names), None)
    if odd is not None:
        raise DataError(
            f"the partitions have different columns: {first.names} and {odd.names}. Each row needs them all; check the "
            "function that makes the partitions."
        )
    try:
        return pa.unify_schemas(list(dict.fromkeys(schemas)), promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"a column has different types in different partitions: {error}. Convert it to one type before: "
            "df[column].astype(...)."
        ) from error
