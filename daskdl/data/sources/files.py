"""Lines of text files, plain or compressed, on anything fsspec reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import IO, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.utils import infer_compression

from daskdl.data.sources.base import CHUNK_ROWS, Chunk, Source
from daskdl.data.sources.fingerprint import fingerprint
from daskdl.data.sources.remote import CHANGED, find_files, resumed, retried, storage, version
from daskdl.errors import DataError

BLOCK_BYTES = 4 << 20
PACKAGES = {"zstd": "zstandard", "lz4": "lz4", "snappy": "python-snappy"}


@dataclass(frozen=True, eq=False)
class TextFile:
    """What one pass over a text file has found: where its blocks of lines lie.

    Attributes
    ----------
    path : str
        Without protocol, as its file system names it.
    size : int
        Bytes, as they are stored.
    version : str
        Changes when the file is written again, if its file system says so.
    digest : str
        Hash of the text.
    starts : array of shape (n_blocks + 1,)
        Where in the text each block begins, in bytes, and where the last one ends.
    counts : array of shape (n_blocks,)
        Lines that begin in each block.
    """

    path: str
    size: int
    version: str
    digest: str
    starts: Any
    counts: Any


def index_file(path: str, options: dict[str, Any], block_bytes: int) -> TextFile:
    r"""Read one file and find where its blocks of lines lie; a pure function, for any executor's ``map``.

    A line belongs to the block in which it begins, and a block begins with a line. Compressed files are one block.

    Parameters
    ----------
    path : str
        With its protocol.
    options : dict
        For the file system.
    block_bytes : int

    Examples
    --------
    >>> import fsspec
    >>> fsspec.filesystem("memory").pipe_file("/lines.txt", b"one\ntwo\nthree")
    >>> found = index_file("memory://lines.txt", {}, 5)
    >>> found.starts.tolist(), found.counts.tolist()
    ([0, 8, 13], [2, 1])
    """
    fs, plain = fsspec.core.url_to_fs(path, **options)
    packed = infer_compression(plain)
    try:
        info, digest, starts, counts = retried(fs, partial(_look, fs, plain, packed, block_bytes))
    except Exception as error:  # remote file systems and decompressors raise errors of any class
        if packed and isinstance(error, ValueError) and "not supported" in str(error):
            raise DataError(
                f"{path} is packed with {packed}, for which a package is missing here. Install it, also where the "
                f"workers are: pip install {PACKAGES.get(packed, packed)}. Or unpack the file."
            ) from error
        raise DataError(
            f"{path} cannot be read{f' as {packed}' if packed else ''}: {error}. Look at the path, and whether all "
            "workers can see it; repair the file or leave it out."
        ) from error
    if packed and counts:  # nothing in the middle of a compressed file can be reached without what is before it
        starts, counts = [0, starts[-1]], [sum(counts)]
    return TextFile(
        plain, int(info["size"]), version(info), digest, np.array(starts, np.int64), np.array(counts, np.int64)
    )


def _look(
    fs: Any, plain: str, packed: str | None, block_bytes: int
) -> tuple[dict[str, Any], str, list[int], list[int]]:
    """Read a file once: what is known of it, the digest of its text, ``starts`` and ``counts`` of a ``TextFile``."""
    digest, starts, counts, at, open_line = hashlib.blake2b(digest_size=16), [], [], 0, True
    info = fs.info(plain)
    with fs.open(plain, "rb", compression=packed) as file:
        while block := _full_read(file, block_bytes):
            digest.update(block)
            first = at if open_line else at + block.find(b"\n", 0, len(block) - 1) + 1
            lines = open_line + block.count(b"\n", 0, len(block) - 1)
            if lines:
                starts.append(first)
                counts.append(lines)
            at, open_line = at + len(block), block.endswith(b"\n")
    return info, digest.hexdigest(), [*starts, at], counts


def _full_read(file: IO[bytes], size: int) -> bytes:
    """Read ``size`` bytes: decompressors give less than they are asked for long before the end."""
    parts: list[bytes] = []
    while size > 0 and (data := file.read(size)):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


class TextSource(Source):
    r"""Lines of text files in UTF-8; a group is a block of lines that is read by its byte range.

    Lines end with ``\n`` or ``\r\n``, which are not part of them; the last one need not end. An empty line is a row.
    Making a source reads all text once; what is in memory afterwards are positions.

    Parameters
    ----------
    path : str or list of str
        A file, a folder, a glob pattern or a list of these, with the protocol of any fsspec file system. Compressed
        files (``.gz``, ``.bz2``, ``.xz``, ``.zst``) are one group each, read from the beginning every time.
    storage_options : dict, optional
        For the file system.
    block_bytes : int
        Bytes of a group, about; a longer line is a group of its own.
    file : bool
        Whether there is a column ``file`` beside ``text``; it says where a line comes from, and is no feature.
    map : callable
        Maps a function over the files: ``map``, an executor's, or ``client.map`` of Dask, whose workers then look at
        the files in parallel.

    Raises
    ------
    DataError
        There are no files, or one cannot be read.

    Examples
    --------
    >>> import fsspec
    >>> fsspec.filesystem("memory").pipe_file("/poem.txt", b"one\r\n\r\nthree")
    >>> TextSource("memory://poem.txt").head().text.tolist()
    ['one', '', 'three']
    """

    provenance = ("file",)

    def __init__(
        self,
        path: str | Sequence[str],
        storage_options: dict[str, Any] | None = None,
        block_bytes: int = BLOCK_BYTES,
        file: bool = False,
        map: Callable[..., Any] = map,
    ) -> None:
        self._options = storage(path if isinstance(path, str) else next(iter(path), ""), storage_options)
        self._file = file
        fs, paths = find_files(path, self._options)
        self._url = fs.unstrip_protocol(paths[0])
        self.files = self.index([fs.unstrip_protocol(one) for one in paths], self._options, block_bytes, map)
        self.counts = np.concatenate([one.counts for one in self.files])
        places = [(f, b) for f, one in enumerate(self.files) for b in range(len(one.counts))]
        self._places = np.array(places, np.int64).reshape(-1, 2)
        n_bytes = sum(int(one.starts[-1]) for one in self.files)
        self.row_bytes = n_bytes / max(1, self.n_rows) + 8
        self.open_bytes = 3.0 * max((np.diff(one.starts).max(initial=0) for one in self.files), default=0)
        facts = [fact for one in self.files for fact in (one.digest, *one.starts.tolist())]
        self.fingerprint = fingerprint("text", *facts)

    @staticmethod
    def index(
        paths: Sequence[str],
        storage_options: dict[str, Any] | None = None,
        block_bytes: int = BLOCK_BYTES,
        map: Callable[..., Any] = map,
    ) -> list[TextFile]:
        """Look at files, through any ``map``; futures are waited for."""
        if block_bytes < 1:
            raise DataError(f"block_bytes must be 1 or more, got {block_bytes}: a group is a block of lines.")
        look = partial(index_file, options=dict(storage_options or {}), block_bytes=block_bytes)
        return [found.result() if hasattr(found, "result") else found for found in map(look, list(paths))]

    @cached_property
    def _fs(self) -> Any:
        return fsspec.core.url_to_fs(self._url, **self._options)[0]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_fs"}

    def read(self, group: int, first: int, stop: int) -> Iterator[Chunk]:
        """Yield Arrow tables of a column ``text``; reads the byte range of the group and nothing else."""
        if first >= stop:
            return
        at, table = 0, None
        for table in self._lines(group):
            piece = table.slice(max(0, first - at), max(0, min(stop, at + len(table)) - max(first, at)))
            for row in range(0, len(piece), CHUNK_ROWS):
                yield piece.slice(row, CHUNK_ROWS)
            at += len(table)
            if at >= stop:
                break
        if at < stop or (stop == self.counts[group] and at != stop):
            raise DataError(f"{self.where(group)} now has {at:,} lines. {CHANGED}")

    def where(self, group: int) -> str:
        """Say which lines of which file these are."""
        f, block = self._places[group]
        file = self.files[f]
        before, count = int(file.counts[:block].sum()), int(file.counts[block])
        return f"{file.path}, lines {before + 1:,} to {before + count:,}"

    def _lines(self, group: int) -> Iterator[pa.Table]:
        f, block = self._places[group]
        file = self.files[f]
        rest, begins = b"", block == 0
        for data in self._bytes(group, file, int(file.starts[block]), int(file.starts[block + 1])):
            data = data[3:] if begins and data.startswith(b"\xef\xbb\xbf") else data  # what Windows begins files with
            begins = False
            whole, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                yield self._table(group, whole, file)
        if rest:
            yield self._table(group, rest, file)

    def _bytes(self, group: int, file: TextFile, start: int, stop: int) -> Iterator[bytes]:
        packed = infer_compression(file.path)
        try:
            info = retried(self._fs, partial(self._info, file.path))
            if int(info["size"]) != file.size or version(info) != file.version:
                raise DataError(f"{self.where(group)}: the file was written again since. {CHANGED}")
            if packed is None:
                yield _ended(retried(self._fs, partial(self._fs.cat_file, file.path, start=start, end=stop)))
            else:
                yield from resumed(self._fs, partial(self._unpacked, file.path, packed))
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{self.where(group)} cannot be read: {error}. {CHANGED}") from error

    def _info(self, path: str) -> dict[str, Any]:
        self._fs.invalidate_cache(path)  # or it would tell what it was told when the folder was listed
        info: dict[str, Any] = self._fs.info(path)
        return info

    def _unpacked(self, path: str, packed: str) -> Iterator[bytes]:
        with self._fs.open(path, "rb", compression=packed) as file:
            while data := _full_read(file, BLOCK_BYTES):
                yield data if len(data) == BLOCK_BYTES else _ended(data)

    def _table(self, group: int, data: bytes, file: TextFile) -> pa.Table:
        lines = pc.split_pattern(pa.array([data], pa.large_binary()), b"\n").values
        try:
            lines = lines.cast(pa.large_string())
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{self.where(group)}: not all is UTF-8 text, such as {_no_text(data)!r}. Write it again in UTF-8 "
                "(iconv -f LATIN1 -t UTF-8, or -f UTF-16), or leave it out."
            ) from error
        if b"\r" in data:
            lines = pc.replace_substring_regex(lines, "\r\\z", "")
        columns = {"text": lines}
        if self._file:
            columns["file"] = pa.array([file.path] * len(lines), pa.large_string())
        return pa.table(columns)


def _no_text(data: bytes) -> bytes:
    """The beginning of the first line that is not UTF-8."""
    for line in data.split(b"\n"):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            return line[max(0, error.start - 20) : error.start + 20]
    return b""


def _ended(data: bytes) -> bytes:
    """End the last line of a text that does not, so that it comes with the lines before it."""
    return data if data.endswith(b"\n") else data + b"\n"
