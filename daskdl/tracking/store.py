"""MLflow as the store of runs: an embedded sqlite file, written in the background, without a server."""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from daskdl.tracking import mlflow_client
from daskdl.tracking.folder import DEFAULT_ROOT, Folder, is_remote, resolve_root
from daskdl.tracking.record import RunRecord
from daskdl.tracking.writer import writer

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ATTEMPTS = 6  # another process may hold the file; waits 0.2, 0.4, ... 3.2 s between them
Point = tuple[str, float, int, float]  # metric, value, step, seconds since the epoch


@dataclass
class Pending:
    """What is still to be written of one run."""

    created: dict[str, Any] | None = None
    points: list[Point] = field(default_factory=list)
    events: list[dict[str, Any]] | None = None
    ended: dict[str, Any] | None = None
    files: dict[str, bytes] | None = None


class Store:
    """The runs under one root. Get it with :func:`store_of`.

    ``create``, ``keep`` and ``end`` note what is to be written and return at once; ``flush`` waits until it is.
    A remote root has its files there and its MLflow file in the local default root.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.db = f"{_local_root(root)}/mlflow.db"
        self._pending: dict[str, Pending] = {}
        self._mlflow_ids: dict[str, str] = {}
        self._lock = threading.Lock()

    def create(self, record: RunRecord, environment: dict[str, str]) -> None:
        """Note a new run."""
        tags = {"id": record.id, "algorithm": record.algorithm, "seed": record.seed, "state": record.state}
        tags |= {"total_steps": record.total_steps, "num_workers": record.num_workers}
        tags |= {f"env.{k}": v for k, v in environment.items()}
        self._note(record.id, created={"record": record, "tags": tags})

    def keep(self, record: RunRecord, message: dict[str, Any]) -> None:
        """Note what a message brought: the points that the record's curves keep, and the events."""
        if message["kind"] == "metrics":
            points = [
                (name, value, step, message["time"])
                for step, values in message["points"]
                for name, value in values.items()
                if record.curves[name].keeps(step)
            ]
            self._note(record.id, points=points)
        elif message["kind"] == "event":
            self._note(record.id, events=list(record.events))

    def end(self, record: RunRecord, files: dict[str, bytes]) -> None:
        """Note the end of a run: files of its folder, and the last and extreme points, which thinning may have left."""
        when = record.ended or time.time()
        marks = [(name, p) for name, c in record.curves.items() for p in (c.low, c.high, c.last) if p is not None]
        points = [(name, value, step, when) for name, (step, value) in marks]
        ended = {"state": record.state, "error": record.error, "time": when}
        self._note(record.id, hurry=True, points=points, events=list(record.events), ended=ended, files=files)

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything noted is written; False when ``timeout`` seconds did not suffice."""
        return writer.flush(timeout)

    def client(self) -> MlflowClient:
        """Return the MLflow client of the sqlite file, which is made if it is not there."""
        return mlflow_client.open_client(self.db)

    def experiment_id(self) -> str:
        """Return the id of the MLflow experiment that holds the runs of this root."""
        return mlflow_client.experiment(self.client(), self.root if is_remote(self.root) else "daskdl", self.root)

    def _note(self, run_id: str, hurry: bool = False, points: list[Point] | None = None, **parts: Any) -> None:
        with self._lock:
            pending = self._pending.setdefault(run_id, Pending())
            pending.points.extend(points or ())
            for name, part in parts.items():
                setattr(pending, name, part)
        writer.ask(self._write, hurry)

    def _write(self) -> None:
        """Write what is pending; runs on the writer's thread and never raises: a run outlives its store."""
        with self._lock:
            todo, self._pending = self._pending, {}
        for run_id, pending in todo.items():
            for attempt in range(ATTEMPTS):
                time.sleep(0.1 * 2**attempt if attempt else 0)
                try:
                    self._write_run(run_id, pending)
                    break
                except Exception as error:  # whatever a database, a network or a disk can raise
                    problem = error
            else:
                warnings.warn(f"Run {run_id} could not be kept in {self.db}: {problem}", RuntimeWarning, stacklevel=2)

    def _write_run(self, run_id: str, pending: Pending) -> None:
        """Write one run; a second attempt goes on where the first one failed."""
        folder = Folder(f"{self.root}/{run_id}")
        if pending.events is not None:
            folder.write("events.jsonl", "".join(json.dumps(event) + "\n" for event in pending.events).encode())
            pending.events = None
        for name, data in (pending.files or {}).items():
            folder.write(name, data)
        client = self.client()
        if pending.created is not None:
            if run_id not in self._mlflow_ids:
                self._mlflow_ids[run_id] = mlflow_client.create_run(client, self.experiment_id(), **pending.created)
            mlflow_client.log_params(client, self._mlflow_ids[run_id], pending.created["record"].params)
            pending.created = None
        mlflow_id = self._mlflow_ids[run_id]
        while pending.points:
            mlflow_client.log_points(client, mlflow_id, pending.points[: mlflow_client.BATCH])
            del pending.points[: mlflow_client.BATCH]
        if pending.ended is not None:
            mlflow_client.end_run(client, mlflow_id, **pending.ended)


_stores: dict[str, Store] = {}


def store_of(root: str) -> Store:
    """Return the store of a root (see :func:`daskdl.tracking.folder.resolve_root`); one per process."""
    return _stores.setdefault(root, Store(root))


def _local_root(root: str) -> str:
    """Return where the sqlite file of a root lies, which no remote file system can hold."""
    if is_remote(root):
        root = resolve_root()
    return os.path.abspath(DEFAULT_ROOT) if is_remote(root) else root
