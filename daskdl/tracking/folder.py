"""Where runs are kept: the root, the name and the folder of a run, local or remote through fsspec."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from typing import IO, Any

import fsspec

DEFAULT_ROOT = "daskdl-runs"

_ADJECTIVES = (
    "amber bold brave brisk bright calm clever coral crisp deft eager early fair fleet fond gentle glad golden "
    "happy hardy jolly keen kind lively lucid lucky merry mild neat nimble noble patient plain proud quick quiet "
    "ready rosy silver smart snug solid steady stout sunny swift tidy warm wise witty"
)
_BIRDS = (
    "avocet bittern bunting curlew dipper dove dunlin eagle egret falcon finch gannet godwit goose grebe gull hawk "
    "heron hobby ibis jackdaw jay kestrel kite lapwing lark linnet magpie martin merlin nuthatch oriole osprey owl "
    "pipit plover puffin quail raven robin rook shrike siskin skua starling stilt stork swallow swan swift tern "
    "thrush wagtail warbler whinchat wren"
)

_root: str | None = None


def set_root(root: str | os.PathLike[str] | None) -> None:
    """Keep the runs of this process under ``root``, a directory or an fsspec URL; None means the default again."""
    global _root
    _root = None if root is None else os.fspath(root)


def resolve_root(root: str | os.PathLike[str] | None = None) -> str:
    """Return ``root``, else what :func:`set_root` set, else ``daskdl-runs`` here: absolute or a URL, no last slash."""
    chosen = os.fspath(root) if root is not None else (_root or DEFAULT_ROOT)
    return chosen.rstrip("/") if is_remote(chosen) else os.path.abspath(chosen.removeprefix("file://"))


def is_remote(root: str) -> bool:
    """Say whether ``root`` is a URL of something else than the local disk."""
    return "://" in root and not root.startswith("file://")


def new_id(root: str) -> str:
    """Name a new run, such as ``20261121-093012-brave-finch``, and make its folder if ``root`` is local.

    Names sort by time. The words are drawn without touching the random state of the caller.
    """
    while True:
        words = f"{secrets.choice(_ADJECTIVES.split())}-{secrets.choice(_BIRDS.split())}"
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{words}"
        if is_remote(root):
            return run_id
        try:
            os.makedirs(f"{root}/{run_id}")
        except FileExistsError:  # taken within the same second
            continue
        return run_id


class Folder:
    """The folder of one run.

    Parameters
    ----------
    url : str
        Local path, taken letter by letter, or fsspec URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def open(self, path: str, mode: str = "rb") -> IO[Any]:
        """Open a file of the folder; writing makes the directories on the way."""
        writes = not set(mode).isdisjoint("wax")
        encoding = None if "b" in mode else "utf-8"
        if not is_remote(self.url):
            full = f"{self.url}/{path}"
            if writes:
                os.makedirs(os.path.dirname(full), exist_ok=True)
            return open(full, mode, encoding=encoding)
        fs, root = fsspec.core.url_to_fs(self.url)
        full = f"{root}/{path}"
        if writes:
            fs.makedirs(full.rpartition("/")[0], exist_ok=True)
        return fs.open(full, mode, **({"encoding": encoding} if encoding else {}))

    def read(self, path: str) -> bytes | None:
        """Return what a file of the folder holds, or None if it is not there."""
        try:
            with self.open(path) as file:
                return bytes(file.read())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, data: bytes) -> None:
        """Write a file of the folder whole: who reads it meanwhile gets what was there before."""
        remote = is_remote(self.url)  # where a file appears when it is closed
        part = path if remote else f"{path}.part"
        with self.open(part, "wb") as file:
            file.write(data)
        if not remote:
            os.replace(f"{self.url}/{part}", f"{self.url}/{path}")

    def remove(self, path: str) -> None:
        """Remove a file of the folder."""
        if not is_remote(self.url):
            return os.remove(f"{self.url}/{path}")
        fs, root = fsspec.core.url_to_fs(self.url)
        fs.rm(f"{root}/{path}")

    def names(self) -> list[str]:
        """List the files, by their path inside the folder."""
        if not is_remote(self.url):
            found = (os.path.join(at, name) for at, _, names in os.walk(self.url) for name in names)
            return sorted(os.path.relpath(path, self.url) for path in found if not path.endswith(".part"))
        fs, root = fsspec.core.url_to_fs(self.url)
        root = root.rstrip("/")
        return sorted(name[len(root) + 1 :] for name in fs.find(root)) if fs.exists(root) else []


class Root:
    """All runs under one root."""

    def __init__(self, root: str) -> None:
        self.root = root

    def names(self) -> list[str]:
        """List the folders; none where there is no such root."""
        if not is_remote(self.root):
            try:
                with os.scandir(self.root) as entries:
                    return sorted(entry.name for entry in entries if entry.is_dir())
            except (FileNotFoundError, NotADirectoryError):
                return []
        fs, root = fsspec.core.url_to_fs(self.root)
        fs.invalidate_cache()  # others add runs
        try:
            found = fs.ls(root, detail=True)
        except FileNotFoundError:
            return []
        return sorted(e["name"].rstrip("/").rpartition("/")[2] for e in found if e["type"] == "directory")

    def read(self, path: str) -> dict[str, bytes | None]:
        """Return what this file holds in each folder, None where it is not there; remote ones all at once."""
        if not is_remote(self.root):
            return {name: Folder(f"{self.root}/{name}").read(path) for name in self.names()}
        fs, root = fsspec.core.url_to_fs(self.root)
        places = {name: f"{root.rstrip('/')}/{name}/{path}" for name in self.names()}
        texts = fs.cat(list(places.values()), recursive=False, on_error="omit") if places else {}
        texts = texts if isinstance(texts, dict) else {next(iter(places.values())): texts}
        return {name: texts.get(place) for name, place in places.items()}


def check_writable(root: str) -> None:
    """Refuse a root that nothing can be written to, before anything is computed for a run that could not be kept.

    Raises
    ------
    OSError
        With what the system says, and where else runs can go. A remote root is not asked: it may answer late.
    """
    if is_remote(root):
        return
    try:
        os.makedirs(root, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as probe:
            probe.write(b"daskdl")
            probe.flush()
    except OSError as error:
        problem = error.strerror or str(error)
        raise type(error)(
            error.errno,
            f"runs cannot be kept in {root} ({problem}). Every training is kept there; give a folder that can be "
            "written to: daskdl.connect(runs='/path/to/runs'), or start from another working directory",
        ) from error
