"""What the staging cache keeps, on any fsspec file system: no locks, no renames, nothing but files written once.

    <cache>/<key>/current.json              which build counts; written last
    <cache>/<key>/used.json                 when it was used
    <cache>/<key>/leases/<build>-*.json     who writes or reads a build
    <cache>/<key>/<build>/part-*.parquet    the rows

A build is written under a lease of its own and named by ``current.json`` once it is whole, so a builder that is killed
at any moment leaves the cache as it was, and a folder that nobody leases or names is rubbish. Whoever removes and
whoever reads write first and look second: a reader leases and then looks whether the build is still current; a remover
takes ``current.json`` away and then looks for leases. One of them sees the other.
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import Any

from daskdl.data.staging.leases import Lease, files_in, leased, read_json, write_json

_BUILD = re.compile(r"[0-9a-f]{32}")
Manifest = dict[str, Any]


class Entry:
    """All builds of one key.

    Parameters
    ----------
    fs : fsspec.AbstractFileSystem
    root : str
        The cache, on ``fs``.
    key : str
    """

    def __init__(self, fs: Any, root: str, key: str) -> None:
        self.fs, self.folder, self.key = fs, f"{root}/{key}", key

    def current(self) -> Manifest | None:
        """Return the manifest of the build that counts, or None."""
        manifest = read_json(self.fs, f"{self.folder}/current.json")
        return manifest if isinstance(manifest, dict) and "build" in manifest else None

    def lease(self, build: str) -> Lease:
        """Take a lease on a build."""
        return Lease(self.fs, f"{self.folder}/leases", build)

    def leased(self) -> set[str]:
        """Builds that somebody writes or reads."""
        return leased(self.fs, f"{self.folder}/leases")

    def open(self) -> tuple[Manifest, Lease] | None:
        """Lease the build that counts; None when there is none, or when its files are not as they were written."""
        manifest = self.current()
        if manifest is None:
            return None
        lease = self.lease(manifest["build"])
        if self.current() == manifest and self._is_whole(manifest):
            write_json(self.fs, f"{self.folder}/used.json", {"time": time.time()})
            return manifest, lease
        lease.release()
        return None

    def _is_whole(self, manifest: Manifest) -> bool:
        folder = f"{self.folder}/{manifest['build']}"
        self.fs.invalidate_cache(folder)
        found = {path.rpartition("/")[2]: info["size"] for path, info in self.fs.find(folder, detail=True).items()}
        return found == {part["name"]: part["bytes"] for part in manifest["parts"]}

    def publish(self, manifest: Manifest, lease: Lease) -> tuple[Manifest, Lease]:
        """Make a build the one that counts, unless another run was first: then its build is given, and ours removed."""
        first = self.open()
        if first is None:
            write_json(self.fs, f"{self.folder}/current.json", manifest)
            first = self.open()  # a third run may have written at the same time
        if first is None or first[0]["build"] == manifest["build"]:
            if first is not None:
                first[1].release()  # there is one already
            return manifest, lease
        self.drop(manifest["build"])
        lease.release()
        return first

    def drop(self, build: str) -> None:
        """Remove the files of a build; what a task that still runs writes meanwhile goes too, here or in a sweep."""
        folder = f"{self.folder}/{build}"
        for _ in range(5):
            with contextlib.suppress(OSError):  # never begun, or a file has come while others were removed
                self.fs.rm(folder, recursive=True)
            self.fs.invalidate_cache(self.folder)
            if not self.fs.exists(folder):
                break

    def sweep(self) -> None:
        """Remove builds that nobody leases or names: what a killed run has left."""
        builds = [name for name in map(_last, files_in(self.fs, self.folder)) if _BUILD.fullmatch(name)]
        keep = self.leased()  # after the builds are listed: each was leased before it was begun
        current = self.current()  # after the leases: a build is named before its lease is released
        for build in builds:
            if build not in keep and (current is None or current["build"] != build):
                self.drop(build)
        if current is None and not keep:
            self._remove_empty()

    def evict(self) -> bool:
        """Remove the entry unless somebody uses it; say whether it is gone."""
        if self.leased():
            return False
        _remove_file(self.fs, f"{self.folder}/current.json")
        if self.leased():  # somebody came in between: let the files be until that lease ends
            return False
        self.sweep()
        return True

    def _remove_empty(self) -> None:
        for name in ("used.json", "current.json"):
            _remove_file(self.fs, f"{self.folder}/{name}")
        for folder in (f"{self.folder}/leases", self.folder):
            try:
                self.fs.rmdir(folder)  # refuses when a lease has come
            except OSError:
                return


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _remove_file(fs: Any, path: str) -> None:
    with contextlib.suppress(OSError):
        fs.rm_file(path)


def entries(fs: Any, root: str) -> list[Entry]:
    """Entries of a cache, by key."""
    return [Entry(fs, root, _last(path)) for path in files_in(fs, root) if _last(path).startswith("v")]


def bound(fs: Any, root: str, max_bytes: float) -> None:
    """Remove rubbish, then the least recently used entries until the cache holds at most ``max_bytes`` bytes.

    Entries in use stay, also when the cache is larger then.
    """
    known = []
    for entry in entries(fs, root):
        entry.sweep()
        current = entry.current()
        if current is not None:
            used = read_json(fs, f"{entry.folder}/used.json") or {"time": 0.0}
            known.append((used["time"], current["bytes"], entry))
    total = sum(size for _, size, _ in known)
    for _, size, entry in sorted(known, key=lambda item: item[0]):
        if total > max_bytes and entry.evict():
            total -= size
