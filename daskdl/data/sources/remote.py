"""Reading small things from file systems that fail now and then, and telling when a file has changed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import fsspec
import pyarrow as pa

from daskdl.data.staging.leases import is_local
from daskdl.errors import DataError

TRIES = 4
FIRST_WAIT_SECONDS = 0.25
PATIENCE_SECONDS = 60.0  # no further try is begun after so long without success
S3_ATTEMPTS = 2  # of botocore, in each of our tries: its own five take as long as all of ours
HOPELESS = (DataError, FileNotFoundError, PermissionError, pa.ArrowInvalid)
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "version_id", "mtime", "LastModified", "last_modified", "updated")

CHANGED = (
    "Rows would be used twice or never, so nothing is read from it. Keep files as they are while they are trained on; "
    "make the source again to train on what is there now."
)

_MAGIC = re.compile(r"[*?\[]")
T = TypeVar("T")
Piece = TypeVar("Piece", bytes, pa.RecordBatch)


def version(info: dict[str, Any]) -> str:
    """Say which writing of a file this is, by what its file system tells; empty when it tells nothing.

    Examples
    --------
    >>> version({"name": "a", "size": 3, "mtime": 12.5})
    'mtime=12.5'
    """
    return next((f"{key}={info[key]}" for key in _VERSIONS if info.get(key) is not None), "")


def storage(url: str, options: dict[str, Any] | None) -> dict[str, Any]:
    """Options for a file system, which keep its own tries few if the user has not said how many.

    Examples
    --------
    >>> storage("s3://bucket/rows", {"anon": True})["config_kwargs"]
    {'retries': {'mode': 'standard', 'total_max_attempts': 2}}
    """
    options = dict(options or {})
    if url.startswith(("s3://", "s3a://")):
        options.setdefault("config_kwargs", {"retries": {"mode": "standard", "total_max_attempts": S3_ATTEMPTS}})
    return options


class Tries:
    """Counts failures in a row, and waits longer after each: half a second, one second, two."""

    def __init__(self, fs: Any) -> None:
        self.most = 1 if is_local(fs) else TRIES
        self.count, self.began = 0, time.monotonic()

    def again(self, error: Exception) -> bool:
        """Wait and say yes, unless there is no hope."""
        self.count += 1
        late = time.monotonic() - self.began > PATIENCE_SECONDS
        if self.count >= self.most or late or isinstance(error, HOPELESS):
            return False
        time.sleep(FIRST_WAIT_SECONDS * 2**self.count)
        return True

    def succeeded(self) -> None:
        """Count from the beginning."""
        self.count, self.began = 0, time.monotonic()


def retried(fs: Any, call: Callable[[], T]) -> T:
    """Call; on a remote file system, whose errors are of any class, again after errors."""
    tries = Tries(fs)
    while True:
        try:
            return call()
        except Exception as error:
            if not tries.again(error):
                raise


def resumed(fs: Any, begin: Callable[[], Iterator[Piece]], tries: Tries | None = None) -> Iterator[Piece]:
    """Yield the pieces of ``begin()``; on a remote file system again after errors, without what was given already."""
    tries, done = tries or Tries(fs), 0
    while True:
        at = 0
        try:
            for piece in begin():
                at += len(piece)
                if at > done:
                    new, done = piece[len(piece) - (at - done) :], at
                    tries.succeeded()
                    yield new
            return
        except Exception as error:
            if not tries.again(error):
                raise


def find_files(
    path: str | Sequence[str], options: dict[str, Any], suffixes: tuple[str, ...] = ("",)
) -> tuple[Any, list[str]]:
    """Return the file system and the sorted files of a path, a folder, a glob pattern or a list of these.

    Of folders, only names with one of ``suffixes`` are taken, and none that begins with a dot or an underscore (which
    is what Spark and Hive call what they keep beside the data).

    Raises
    ------
    DataError
        There are none.
    """
    given = [path] if isinstance(path, str) else list(path)
    fs = fsspec.core.url_to_fs(given[0] if given else ".", **options)[0]
    fs.invalidate_cache()  # what was listed earlier in this process may be gone
    found = [
        name for one in given for name in listed(fs, one, partial(_files_at, fs, fs._strip_protocol(one), suffixes))
    ]
    if not found:
        raise DataError(
            f"no files found at {path!r}. Give a file, a folder, or a pattern such as 'data/*{suffixes[0] or '.txt'}'."
        )
    return fs, found


def listed(fs: Any, path: str, look: Callable[[], T]) -> T:
    """Call what looks at a path, again after errors of a remote file system; what is left of them is a DataError."""
    try:
        return retried(fs, look)
    except Exception as error:
        if is_local(fs):
            raise
        raise DataError(
            f"{path} cannot be listed: {' '.join(str(error).split())} ({type(error).__name__}). Look at the address, "
            "the network, and the keys in storage_options."
        ) from error


def _pattern(fs: Any, one: str) -> str:
    """Return a glob pattern that takes the folders that are there, such as ``/data [2013]``, letter by letter."""
    parts = one.split("/")
    for n in range(len(parts) - 1, 0, -1):
        folder = "/".join(parts[:n])
        if _MAGIC.search(folder) and fs.isdir(folder):
            return re.sub(_MAGIC, r"[\g<0>]", folder) + one[len(folder) :]
    return one


def _files_at(fs: Any, one: str, suffixes: tuple[str, ...]) -> list[str]:
    if _MAGIC.search(one) and not fs.exists(one):  # what is there under that very name is no pattern
        return sorted(name for name in fs.glob(_pattern(fs, one)) if not fs.isdir(name))
    if fs.isdir(one):
        return sorted(n for n in fs.find(one) if n.endswith(suffixes) and not _is_hidden(n[len(one) :]))
    return [one]


def _is_hidden(inside: str) -> bool:
    return any(part[:1] in "._" for part in inside.strip("/").split("/") if "=" not in part)
