"""Images in folders named by class, on anything fsspec reads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from daskdl.data.sources.base import Chunk, Source
from daskdl.data.sources.fingerprint import fingerprint_of_columns
from daskdl.data.sources.memory import group_counts
from daskdl.data.sources.remote import CHANGED, listed, retried, storage, version
from daskdl.errors import DataError

READ_THREADS = 16
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")


class ImageFolderSource(Source):
    """PNG and JPEG files in folders named by class: ``root/cat/1.png``, ``root/dog/a/b.jpg``, as torchvision has them.

    Columns are ``image``, the bytes of the file, ``label``, the name of the folder, and ``file``, the path below the
    root. Rows are sorted by path. Files of other kinds, files beside the folders and hidden ones are left out.

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

    def __init__(self, path: str, storage_options: dict[str, Any] | None = None, group_rows: int = 256) -> None:
        self._url, self._options, self.group_rows = path, storage(path, storage_options), group_rows
        self._fs, root = fsspec.core.url_to_fs(path, **self._options)
        self._root = root.rstrip("/")
        self._fs.invalidate_cache()  # what was listed earlier in this process may be gone
        found = listed(self._fs, path, self._list)
        files = sorted((name[len(self._root) + 1 :], info) for name, info in found.items() if self._is_image(name))
        if not files:
            raise DataError(
                f"no images found at {path!r}: expected folders named by class with {', '.join(IMAGE_ENDINGS)} files, "
                f"such as {path}/cat/1.png; found {len(found):,} other files."
            )
        self._names = pa.array([name for name, _ in files], pa.large_string())
        self._sizes = np.array([info["size"] for _, info in files], np.int64)
        self.counts = group_counts(len(files), group_rows)
        self.row_bytes = float(self._sizes.mean()) + 64
        self.open_bytes = self.row_bytes * group_rows
        versions = pa.array([version(info) for _, info in files])
        columns = [("name", self._names), ("size", self._sizes), ("version", versions)]
        self.fingerprint = fingerprint_of_columns(columns, "images", group_rows)

    def _list(self) -> dict[str, Any]:
        found: dict[str, Any] = self._fs.find(self._root, detail=True) if self._fs.isdir(self._root) else {}
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_fs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fs = fsspec.core.url_to_fs(self._url, **self._options)[0]

    def _is_image(self, name: str) -> bool:
        inside = name[len(self._root) + 1 :].split("/")
        return len(inside) > 1 and inside[-1].lower().endswith(IMAGE_ENDINGS) and all(p[:1] != "." for p in inside)

    def read(self, group: int, first: int, stop: int) -> Iterator[Chunk]:
        """Yield the files as one Arrow table; nothing is decoded."""
        first, stop = first + group * self.group_rows, stop + group * self.group_rows
        if first < stop:
            with ThreadPoolExecutor(min(READ_THREADS, stop - first), "daskdl-images") as pool:
                images = pa.array(list(pool.map(self._read_file, range(first, stop))), pa.large_binary())
            names = self._names[first:stop]
            labels = pc.list_element(pc.split_pattern(names, "/", max_splits=1), 0)
            yield pa.table({"image": images, "label": labels, "file": names})

    def where(self, group: int) -> str:
        """Say between which files it lies."""
        first = group * self.group_rows
        last = first + int(self.counts[group]) - 1
        return f"images {self._names[first]} to {self._names[last]} of {self._url}"

    def _read_file(self, i: int) -> bytes:
        name = str(self._names[i])
        try:
            data = retried(self._fs, partial(self._fs.cat_file, f"{self._root}/{name}"))
        except Exception as error:  # remote file systems raise errors of any class
            raise DataError(f"image {name} of {self._url} cannot be read: {error}. {CHANGED}") from error
        if len(data) != self._sizes[i]:
            raise DataError(f"image {name} of {self._url} had {self._sizes[i]:,} bytes, now {len(data):,}. {CHANGED}")
        return bytes(data)
