"""Leases: small files that say who uses a folder, so that nobody removes it meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
import weakref
from typing import Any

import psutil

LEASE_SECONDS = 7 * 24 * 3600.0  # a lease of another host is believed this long


class Lease:
    """A file ``<folder>/<name>-<random>.json`` with host, process and time; removed at the end of the process.

    Works on every fsspec file system: it needs files to be seen once they are written, and nothing like a lock.

    Parameters
    ----------
    fs : fsspec.AbstractFileSystem
    folder : str
        Folder of leases, on ``fs``.
    name : str
        What is leased: no slash.

    Examples
    --------
    >>> import fsspec
    >>> fs = fsspec.filesystem("memory")
    >>> with Lease(fs, "/leases", "part"):
    ...     leased(fs, "/leases")
    {'part'}
    >>> leased(fs, "/leases")
    set()
    """

    def __init__(self, fs: Any, folder: str, name: str) -> None:
        self.path = f"{folder}/{name}-{uuid.uuid4().hex}.json"
        self._fs = fs
        self.renew()
        self._finalizer = weakref.finalize(self, _remove, fs, self.path, os.getpid())

    def renew(self) -> None:
        """Write the time again; for work of more than seven days that other hosts should respect."""
        write_json(self._fs, self.path, {"time": time.time(), **_me()})

    def release(self) -> None:
        """Remove the file; done already is fine."""
        self._finalizer()

    @property
    def live(self) -> bool:
        """Whether it has not been released."""
        return self._finalizer.alive

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def leased(fs: Any, folder: str) -> set[str]:
    """Names of what is leased in a folder of leases.

    A lease of this host counts while its process lives; one of another host for ``LEASE_SECONDS`` seconds. Files of
    dead leases are removed.
    """
    names = set()
    for path in files_in(fs, folder):
        if not path.endswith(".json"):
            continue
        lease = read_json(fs, path)
        if lease is None or _is_live(lease):  # one that cannot be read is being written
            names.add(path.rpartition("/")[2].rpartition("-")[0])
        else:
            _remove(fs, path, os.getpid())
    return names


def _is_live(lease: dict[str, Any]) -> bool:
    if lease["host"] != socket.gethostname():
        return bool(time.time() - lease["time"] < LEASE_SECONDS)
    try:
        process = psutil.Process(lease["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - lease["born"]) < 2
    except psutil.NoSuchProcess:
        return False


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": psutil.Process().create_time()}


def _remove(fs: Any, path: str, pid: int) -> None:
    if pid != os.getpid():  # a forked child holds a copy of its parent's lease
        return
    with contextlib.suppress(Exception):  # gone already; or at the end of the program a remote file system is
        fs.rm_file(path)


# -- small files --------------------------------------------------------------------------------------------------


def write_json(fs: Any, path: str, value: Any) -> None:
    """Write a small file and the folders on the way; on a local disk nobody sees it half written."""
    part = f"{path}.{uuid.uuid4().hex}.part" if is_local(fs) else path
    for last in (False, False, True):
        try:
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(part, json.dumps(value).encode())
            break
        except FileNotFoundError:  # somebody has just removed the empty folder
            if last:
                raise
    if part != path:
        os.replace(part, path)


def read_json(fs: Any, path: str) -> Any:
    """Return what a small file says, or None when there is none or it is half written."""
    try:
        return json.loads(fs.cat_file(path))
    except (OSError, ValueError):
        return None


def files_in(fs: Any, folder: str) -> list[str]:
    """Names of files and folders in a folder, sorted; none when there is no such folder."""
    fs.invalidate_cache(folder)
    try:
        return sorted(str(path).rstrip("/") for path in fs.ls(folder, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_local(fs: Any) -> bool:
    """Whether a file system is this machine's own, as far as fsspec knows."""
    protocol = fs.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)
