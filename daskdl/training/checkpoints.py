"""Checkpoints: commits of a run that outlive all of its workers, as files at any path fsspec knows.

A checkpoint is two files. ``step-000000000123.pt`` is a plain dict that ``torch.load(..., weights_only=True)`` reads;
``step-000000000123.json``, written after it, has its size and checksum, and alone makes it exist. So a kill at any
moment leaves the checkpoints before. Nothing is ever unpickled. One process at a time writes; any number may read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from typing import Any

import fsspec
import torch
from fsspec.spec import AbstractBufferedFile

from daskdl.data.staging.leases import files_in, is_local
from daskdl.errors import DaskdlError
from daskdl.tracking.folder import resolve_root
from daskdl.training.checkpoint_format import Tee, plain_state
from daskdl.training.commit import Commit

FORMAT = 1
Metrics = dict[str, float]

_OURS = re.compile(r"step-\d{12,}(-b)?\.(pt|json)(\.[0-9a-f]{32}\.part)?")
_FIELDS: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "path": ((str, os.PathLike), lambda v: bool(os.fspath(v)), "a folder or URL, or None for the folder of the run"),
    "every_steps": (Integral, lambda v: v >= 1, "1 or more steps, or None to go by every_seconds"),
    "every_seconds": (Real, lambda v: v >= 0, "seconds, 0 for every commit"),
    "keep": (Integral, lambda v: v >= 1, "1 or more: without the newest a run cannot go on"),
    "best": (str, bool, "the name of a metric, such as 'val_loss', or None"),
    "storage_options": (dict, lambda v: True, "a dict of fsspec's options, or None"),
}


class DamagedCheckpoint(DaskdlError, ValueError):
    """A checkpoint is not what was written; the message says which one and what is wrong with it."""


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often the commits of a run are written.

    Parameters
    ----------
    path : str, optional
        Folder or fsspec URL; a run's checkpoints lie in ``<path>/<run id>/``. By default in the folder of the run.
    every_steps : int, optional
        Write the first commit at least so many steps after the last write.
    every_seconds : float
        Write the first commit at least so many seconds after the last write, if ``every_steps`` is None.
    keep : int
        How many of the newest are kept.
    best : str, optional
        Metric, such as ``"val_loss"``: of those written, the one where it was best is kept besides. Losses and errors,
        by their name, are better when lower, all else when higher.
    storage_options : dict, optional
        For fsspec; never shown.

    Examples
    --------
    >>> Checkpoints("s3://bucket/runs", every_steps=500, storage_options={"secret": "x"})
    Checkpoints(path='s3://bucket/runs', every_steps=500, every_seconds=60.0, keep=2, best=None)
    """

    path: str | None = None
    every_steps: int | None = None
    every_seconds: float = 60.0
    keep: int = 2
    best: str | None = None
    storage_options: dict[str, Any] | None = field(default=None, repr=False, hash=False)

    def __post_init__(self) -> None:
        for name, (kinds, good, expected) in _FIELDS.items():
            value = getattr(self, name)
            if value is None and name not in ("every_seconds", "keep"):
                continue
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise TypeError(f"Checkpoints({name}=...) takes {expected}; got a {type(value).__name__}")
            if not good(value):
                raise ValueError(f"Checkpoints({name}=...) takes {expected}; got {value!r}")
        if self.path is not None:  # workers have other working directories
            object.__setattr__(self, "path", resolve_root(os.path.expanduser(self.path)))


@dataclass(frozen=True)
class Saved:
    """What the manifest of a checkpoint says: ``name`` is its file, ``time`` is in seconds since the epoch."""

    step: int
    name: str
    n_bytes: int
    sha256: str
    metrics: Metrics
    time: float

    @property
    def manifest(self) -> str:
        """Name of the manifest."""
        return f"step-{self.step:012d}.json"


class CheckpointFolder:
    """The checkpoints of one run.

    Parameters
    ----------
    url : str
        Folder or fsspec URL; made when the first is written.
    storage_options : dict, optional

    Examples
    --------
    >>> folder = CheckpointFolder("memory://doc/brave-finch")
    >>> folder.write(Commit(120, {"model": {"weight": torch.ones(3)}}), {"val_loss": 0.5}).name
    'step-000000000120.pt'
    >>> folder.newest().state
    {'model': {'weight': tensor([1., 1., 1.])}}
    """

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = fsspec.core.url_to_fs(self.url or "/", **(storage_options or {}))
        self._local = is_local(self._fs)

    def write(self, commit: Commit, metrics: Metrics | None = None) -> Saved:
        """Write a checkpoint, in place of one of the same step: it exists, complete, once this returns.

        After an error, which is the storage's own, all is as it was before.

        Raises
        ------
        TypeError
            Something in the state is neither a tensor nor a plain value; the message says where.
        """
        whole = {
            "format": FORMAT,
            "step": int(commit.step),
            "state": plain_state(commit.state),
            "uses": plain_state(commit.uses),
            "gradients": plain_state(commit.gradients),
        }
        before, _ = _parsed(self._manifests())
        old = {one.name for one in before if one.step == commit.step}
        stem = f"step-{commit.step:012d}"
        name = f"{stem}-b.pt" if f"{stem}.pt" in old else f"{stem}.pt"  # what a manifest speaks of stays as it is
        with self._new_file(name) as file:
            tee: Any = Tee(file)
            torch.save(whole, tee)
            if tee.error is not None:
                raise tee.error
        now = max([time.time(), *(one.time + 0.001 for one in before)])  # machines' clocks differ, the order must not
        numbers = {key: float(value) for key, value in (metrics or {}).items()}
        saved = Saved(int(commit.step), name, tee.n_bytes, tee.sha256.hexdigest(), numbers, now)
        strict = {key: value if math.isfinite(value) else str(value) for key, value in numbers.items()}
        try:
            with self._new_file(saved.manifest) as file:
                file.write(json.dumps({"format": FORMAT, **asdict(saved), "metrics": strict}).encode())
        except BaseException:
            if self._local:  # elsewhere the manifest may have arrived all the same
                self._remove(name)
            raise
        for other in old:
            self._remove(other)
        return saved

    def saved(self) -> list[Saved]:
        """List the checkpoints in the order of writing; one whose manifest is damaged is left out, with a warning."""
        found, problems = _parsed(self._manifests())
        for problem in problems:
            warnings.warn(f"{self.url}: {problem}. That checkpoint is left out.", stacklevel=2)
        return found

    def read(self, saved: Saved) -> Commit:
        """Read a checkpoint, after its size and checksum have been compared.

        Raises
        ------
        DamagedCheckpoint
            It is missing, or not what was written.
        """
        whole = self._load(saved.name, saved)
        return Commit(whole["step"], whole["state"], whole["uses"], whole.get("gradients", {}))

    def newest(self) -> Commit | None:
        """Read the one written last, or, with a warning, the last one that is not damaged; None if there are none.

        Raises
        ------
        DamagedCheckpoint
            There are some, and all are damaged.
        """
        manifests, commit = self._manifests(), None
        found, problems = _parsed(manifests)
        while found and commit is None:
            try:
                commit = self.read(found.pop())
            except DamagedCheckpoint as error:
                problems.append(error)
        if (problems or commit is None) and self._manifests() != manifests:  # written and removed meanwhile
            return self.newest()
        told = f"{self.url}: {'; '.join(map(str, problems))}"
        if problems and commit is None:
            raise DamagedCheckpoint(f"{told}. None is left to go on from; to begin anew, use another folder.")
        if problems and commit is not None:
            warnings.warn(f"{told}. The checkpoint of step {commit.step} is used.", stacklevel=2)
        return commit

    def retain(self, keep: int, best: str | None = None) -> None:
        """Remove all but the last ``keep`` written and the best one, also what writers that were killed have left."""
        from daskdl.tracking.summary import lower_is_better

        found = self.saved()
        kept = found[-keep:]
        having = [one for one in found if best is not None and math.isfinite(one.metrics.get(best, math.nan))]
        if best is not None and having:
            kept.append((min if lower_is_better(best) else max)(having, key=lambda one: one.metrics[best]))
        names = {name for one in kept for name in (one.name, one.manifest)}
        others = {path.rpartition("/")[2] for path in files_in(self._fs, self._root)} - names
        for name in sorted(filter(_OURS.fullmatch, others), key=lambda name: ".json" not in name):
            self._remove(name)

    def _load(self, name: str, saved: Saved | None) -> dict[str, Any]:
        """Read a file as the plain dict it is, compared with its manifest if that is given."""
        path = f"{self._root}/{name}"
        try:
            with open(path, "rb") if self._local else io.BytesIO(self._fs.cat_file(path)) as file:
                if saved is not None and (size := file.seek(0, os.SEEK_END)) != saved.n_bytes:
                    raise DamagedCheckpoint(f"{name} has {size:,} bytes where {saved.n_bytes:,} were written")
                file.seek(0)
                if saved is not None and hashlib.file_digest(file, "sha256").hexdigest() != saved.sha256:
                    raise DamagedCheckpoint(f"{name} has other bytes than were written: its checksum differs")
                file.seek(0)
                whole = torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            if saved is None:
                raise
            raise DamagedCheckpoint(f"{name} is missing") from error
        except (OSError, DamagedCheckpoint):
            raise
        except Exception as error:  # of any class, with a page of advice to run what the file says
            told = f"{name} cannot be read as plain tensors ({type(error).__name__}); anything else could run code"
            raise DamagedCheckpoint(told) from error
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            raise DamagedCheckpoint(f"{name} is no checkpoint of format {FORMAT}; a newer daskdl may have written it")
        return whole

    def _manifests(self) -> dict[str, bytes]:
        """The manifests there are, by name."""
        found = {}
        for path in files_in(self._fs, self._root):
            if _OURS.fullmatch(name := path.rpartition("/")[2]) and name.endswith(".json"):
                with contextlib.suppress(FileNotFoundError):  # removed since
                    found[name] = self._fs.cat_file(path)
        return found

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")

    @contextlib.contextmanager
    def _new_file(self, name: str) -> Iterator[Any]:
        """A file that appears complete, or not at all; on a local disk it outlives a power cut."""
        self._fs.makedirs(self._root, exist_ok=True)
        part = f"{name}.{uuid.uuid4().hex}.part" if self._local else name
        path = f"{self._root}/{part}"
        file = open(path, "xb") if self._local else self._fs.open(path, "wb")  # noqa: SIM115 - which would commit it
        try:
            yield file
            if self._local:
                file.flush()
                os.fsync(file.fileno())
            file.close()
            if self._local:
                os.replace(path, f"{self._root}/{name}")
                _sync(self._root, os.path.dirname(self._root))
        except BaseException:
            with contextlib.suppress(Exception):
                if isinstance(file, AbstractBufferedFile):
                    file.closed = True  # or closing would finish the upload
                    file.discard()
                file.close()
            if not part.endswith(".json"):  # elsewhere that is the manifest of before
                with contextlib.suppress(Exception):
                    self._remove(part)
            raise


def load_checkpoint(
    path: str | os.PathLike[str], step: int | None = None, storage_options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Read a checkpoint of a run: ``{"step": ..., "state": {name: state_dict}}``, tensors on the CPU.

    PyTorch alone reads one too, unchecked: ``torch.load("step-000000000120.pt", weights_only=True)["state"]["model"]``

    Parameters
    ----------
    path : str
        Folder or fsspec URL with the checkpoints of one run, or one ``.pt`` file.
    step : int, optional
        Which one of a folder; by default that written last or, with a warning, the last that is not damaged.
    storage_options : dict, optional

    Raises
    ------
    FileNotFoundError
        There is no such checkpoint.
    DamagedCheckpoint
        It is not what was written.

    Examples
    --------
    >>> _ = CheckpointFolder("memory://doc/calm-heron").write(Commit(120, {"model": {"weight": torch.ones(3)}}))
    >>> load_checkpoint("memory://doc/calm-heron")
    {'step': 120, 'state': {'model': {'weight': tensor([1., 1., 1.])}}}
    """
    url = os.fspath(path)
    where, name = os.path.split(url) if url.endswith(".pt") else (url, "")
    folder = CheckpointFolder(where or ".", storage_options)
    if not name and step is None and (commit := folder.newest()) is not None:
        return {"step": commit.step, "state": commit.state}
    found = folder.saved()
    saved = next((one for one in found if (one.name == name if name else one.step == step)), None)
    if saved is None and not name:
        wanted = "a checkpoint" if step is None else f"a checkpoint of step {step}"
        steps = [one.step for one in found]
        raise FileNotFoundError(f"expected {wanted} in {url}, which has those of steps {steps}. Give one run's folder")
    whole = folder._load(name if saved is None else saved.name, saved)
    return {"step": whole["step"], "state": whole["state"]}


def _parsed(manifests: dict[str, bytes]) -> tuple[list[Saved], list[DamagedCheckpoint]]:
    """What manifests say, in the order of writing, and what is wrong with the others."""
    found, problems = [], []
    for name, text in manifests.items():
        try:
            given = json.loads(text)
            if (version := given.pop("format")) != FORMAT:
                raise ValueError(f"it has format {version}")
            saved = Saved(**{**given, "metrics": {key: float(value) for key, value in given["metrics"].items()}})
            stem = saved.manifest.removesuffix(".json")
            if name != saved.manifest or saved.name not in (f"{stem}.pt", f"{stem}-b.pt") or not saved.time > 0:
                raise ValueError("it says what cannot be")
            found.append(saved)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(DamagedCheckpoint(f"{name} is no manifest of format {FORMAT} ({error})"))
    return sorted(found, key=lambda one: one.time), problems


def _sync(*folders: str) -> None:
    """Have the names in local folders outlive a power cut, where the mount can."""
    for folder in folders:
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
