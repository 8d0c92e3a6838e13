"""Where runs are kept: everything in the folder of each, written in the background, and a copy in MLflow's file."""

from __future__ import annotations

import copy
import threading
import time
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from daskdl.tracking import kept
from daskdl.tracking.folder import Folder
from daskdl.tracking.mirror import Mirror
from daskdl.tracking.record import RunRecord
from daskdl.tracking.writer import writer

ATTEMPTS = 4  # a storage may not answer for a moment; waits 0.2, 0.4, 0.8 s between them

Lock = AbstractContextManager[Any]


@dataclass
class Pending:
    """What is still to be written of one run."""

    record: RunRecord
    lock: Lock  # held while the record changes
    kinds: set[str] = field(default_factory=set)  # of the messages since
    files: dict[str, bytes] = field(default_factory=dict)


class Store:
    """The runs under one root. Get it with :func:`store_of`.

    ``create``, ``keep`` and ``end`` note what is to be written and return at once; ``flush`` waits until it is in the
    folder of the run. The copy for MLflow's own pages is made later, and nothing is read from it.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.mirror = Mirror(root)
        self._pending: dict[str, Pending] = {}
        self._lock = threading.Lock()

    def create(self, record: RunRecord, lock: Lock, environment: dict[str, str]) -> None:
        """Note a new run."""
        self.mirror.create(record, environment)
        self._note(record, lock, "start", {kept.ENVIRONMENT: kept.environment_text(environment)})

    def keep(self, record: RunRecord, lock: Lock, message: dict[str, Any]) -> None:
        """Note that a message has changed the record."""
        if message["kind"] == "metrics":
            self.mirror.keep(record, message)
        self._note(record, lock, message["kind"])

    def end(self, record: RunRecord, lock: Lock, files: dict[str, bytes]) -> None:
        """Note the end of a run, and further files of its folder."""
        self.mirror.end(record)
        self._note(record, lock, "end", files)

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything noted is in the folders; False when ``timeout`` seconds did not suffice."""
        return writer.flush(timeout)

    def _note(self, record: RunRecord, lock: Lock, kind: str, files: dict[str, bytes] | None = None) -> None:
        with self._lock:
            pending = self._pending.setdefault(record.id, Pending(record, lock))
            pending.record = record
            pending.kinds.add(kind)
            pending.files |= files or {}
        writer.ask(self._write, hurry=kind == "end")

    def _write(self) -> None:
        """Write what is pending; runs on the writer's thread and never raises: a run outlives its store."""
        with self._lock:
            todo, self._pending = self._pending, {}
        for run_id, pending in todo.items():
            with pending.lock:
                record = copy.deepcopy(pending.record)
            files = {**pending.files, **_files_of(record, pending.kinds)}
            for attempt in range(ATTEMPTS):
                time.sleep(0.1 * 2**attempt if attempt else 0)
                try:
                    for name in list(files):
                        Folder(f"{self.root}/{run_id}").write(name, files[name])
                        del files[name]
                    break
                except Exception as error:  # whatever a network or a disk can raise
                    problem = error
            else:
                text = f"Run {run_id} could not be kept in {self.root}: {problem}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)


def _files_of(record: RunRecord, kinds: set[str]) -> dict[str, bytes]:
    """Return the files that messages of these kinds have changed; the facts come last, for they say how it ended."""
    files = {kept.CURVES: kept.curves_text(record)} if "metrics" in kinds else {}
    files |= {kept.EVENTS: kept.events_text(record)} if "event" in kinds else {}
    files |= {kept.RANKS: kept.ranks_text(record)} if "end" in kinds and record.ranks is not None else {}
    return {**files, kept.FACTS: kept.facts_text(record)}


_stores: dict[str, Store] = {}


def store_of(root: str) -> Store:
    """Return the store of a root (see :func:`daskdl.tracking.folder.resolve_root`); one per process."""
    return _stores.setdefault(root, Store(root))
