"""Images in folders named by class, on anything fsspec reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from daskdl.data.schema.pictures import ENDINGS
from daskdl.data.sources.base import Chunk, Source
from daskdl.data.sources.fingerprint import fingerprint_of_columns
from daskdl.data.sources.memory import group_counts
from daskdl.data.sources.remote import CHANGED, listed, retried, storage, version
from daskdl.data.staging.leases import is_local
from daskdl.errors import DataError

READ_THREADS = 16
GROUP_ROWS = 32  # few, so that groups, which the order permutes, mix the classes well
UNREAD = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".psd", ".svg", ".dcm", ".dng", ".cr2", ".nef", ".exr", ".hdr")
SHOWN = 3  # files left out, in a note


class ImageFolderSource(Source):
    """Images in folders named by class: ``root/cat/1.png``, ``root/dog/a/b.jpg``, as torchvision has them.

    Columns are ``image``, the bytes of the file, ``label``, the name of the folder, and ``file``, the path below the
    root, which says where an image comes from and is no feature. Rows are sorted by path. If no image lies in a folder
    there is no ``label``: such a source can be predicted. Read are PNG, JPEG, WebP, TIFF, BMP, GIF and PPM, by their
    endings; other files and hidden ones are left out, and a note of the run says so where these are images too.

    Parameters
    ----------
    path : str
        The root, with the protocol of any fsspec file system.
    storage_options : dict, optional
        For the file system.
    group_rows : int
        Files of a group; they are read in parallel.

    Raises
    ------
    DataError
        There are no such files.

    Notes
    -----
    The fingerprint is made of the files' paths below the root, their sizes, and the times of change or entity tags
    that their file system keeps. A copy of the files has another one unless it keeps the times.

    Examples
    --------
    >>> import fsspec
    >>> fsspec.filesystem("memory").pipe({"/pets/cat/1.png": b"...", "/pets/dog/1.png": b"...."})
    >>> ImageFolderSource("memory://pets").head().label.tolist()
    ['cat', 'dog']
    """

    random_access = True
    provenance = ("file",)

    def __init__(self, path: str, storage_options: dict[str, Any] | None = None, group_rows: int = GROUP_ROWS) -> None:
        self._url, self._options, self.group_rows = path, storage(path, storage_options), group_rows
        self._fs, root = fsspec.core.url_to_fs(path, **self._options)
        self._root = root.rstrip("/")
        self._fs.invalidate_cache()  # what was listed earlier in this process may be gone
        found = listed(self._fs, path, self._list)
        seen = {name: info for name, info in sorted(found.items()) if not _is_hidden(name)}
        images = {name: info for name, info in seen.items() if name.lower().endswith(ENDINGS)}
        dangling = [name for name, info in images.items() if info["size"] is None]
        images = {name: info for name, info in images.items() if info["size"] is not None}
        files = {name: info for name, info in images.items() if "/" in name}
        self._has_labels = bool(files)
        files = files or images
        if not files:
            raise DataError(
                f"no images found at {path!r}: expected folders named by class with {', '.join(ENDINGS[:3])}, ... "
                f"files, such as {path}/cat/1.png; found {len(found):,} other files."
            )
        self.notes = tuple(_notes(path, list(seen), files, images))
        if dangling:
            self.notes += (f"{_count(dangling)} of {path} left out, links to nothing: {_some(dangling)}",)
        self._names = self._texts(list(files))
        self._sizes = np.array([info["size"] for info in files.values()], np.int64)
        self.counts = group_counts(len(files), group_rows)
        self.row_bytes = float(self._sizes.mean()) + 64
        self.open_bytes = self.row_bytes * group_rows
        versions = pa.array([version(info) for info in files.values()])
        columns = [("name", self._names), ("size", self._sizes), ("version", versions)]
        self.fingerprint = fingerprint_of_columns(columns, "images", group_rows)

    def _list(self) -> dict[str, Any]:
        """Files below the root, by their paths there."""
        if not self._fs.isdir(self._root):
            return {}
        if is_local(self._fs):  # whose find() leaves out folders that are links
            names = list(_files_below(self._root))
            found = {name: self._fs.info(name) if os.path.isfile(name) else {"size": None} for name in names}
        else:
            found = self._fs.find(self._root, detail=True)
        return {name[len(self._root) + 1 :]: info for name, info in found.items()}

    def _texts(self, names: list[str]) -> pa.Array:
        try:
            return pa.array(names, pa.large_string())
        except UnicodeEncodeError as error:
            raise DataError(
                f"a file of {self._url!r} has a name that is no text ({error.object!r}). Rename it: names go to the "
                "workers, and into messages."
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_fs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fs = fsspec.core.url_to_fs(self._url, **self._options)[0]

    def read(self, group: int, first: int, stop: int) -> Iterator[Chunk]:
        """Yield the files as one Arrow table; nothing is decoded."""
        first, stop = first + group * self.group_rows, stop + group * self.group_rows
        if first < stop:
            with ThreadPoolExecutor(min(READ_THREADS, stop - first), "daskdl-images") as pool:
                images = pa.array(list(pool.map(self._read_file, range(first, stop))), pa.large_binary())
            names = self._names[first:stop]
            labels = pc.list_element(pc.split_pattern(names, "/", max_splits=1), 0)
            yield pa.table({"image": images} | ({"label": labels} if self._has_labels else {}) | {"file": names})

    def where(self, group: int) -> str:
        """Say between which files it lies."""
        first = group * self.group_rows
        last = first + int(self.counts[group]) - 1
        return f"images {self._names[first]} to {self._names[last]} of {self._url}"

    def where_row(self, group: int, row: int) -> str:
        """Name the file."""
        return f"image {self._names[group * self.group_rows + row]} of {self._url}"

    def _read_file(self, i: int) -> bytes:
        name = str(self._names[i])
        try:
            data = retried(self._fs, partial(self._fs.cat_file, f"{self._root}/{name}"))
        except Exception as error:  # remote file systems raise errors of any class
            raise DataError(f"image {name} of {self._url} cannot be read: {error}. {CHANGED}") from error
        if len(data) != self._sizes[i]:
            raise DataError(f"image {name} of {self._url} had {self._sizes[i]:,} bytes, now {len(data):,}. {CHANGED}")
        return bytes(data)


def _files_below(root: str) -> Iterator[str]:
    """Paths of files, also in folders that are links, unless these lead back to where they lie."""
    for folder, folders, files in os.walk(root, followlinks=True):
        above = {os.path.realpath(parent) for parent in Path(folder).parents}
        if os.path.realpath(folder) in above:
            folders.clear()
            continue
        yield from (f"{folder}/{name}" for name in files)


def _is_hidden(name: str) -> bool:
    return any(part[:1] == "." for part in name.split("/"))


def _notes(path: str, seen: list[str], files: dict[str, Any], images: dict[str, Any]) -> Iterator[str]:
    """Say which images were left out."""
    beside = [name for name in images if name not in files]
    if beside:
        yield f"{_count(beside)} of {path} left out, beside the folders that name the classes: {_some(beside)}"
    other = [name for name in seen if name.lower().endswith(UNREAD)]
    if other:
        yield f"{_count(other)} of {path} left out, in formats that are not read: {_some(other)}"


def _count(names: list[str]) -> str:
    return "1 image" if len(names) == 1 else f"{len(names):,} images"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
