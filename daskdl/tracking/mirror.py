"""A copy of the runs for MLflow's own pages: an embedded sqlite file, written in the background, that nothing reads."""

from __future__ import annotations

import os
import threading
import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from daskdl.tracking import mlflow_client
from daskdl.tracking.folder import DEFAULT_ROOT, is_remote, resolve_root
from daskdl.tracking.record import RunRecord
from daskdl.tracking.writer import Writer

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ATTEMPTS = 6  # another process may hold the file; waits 0.2, 0.4, ... 3.2 s between them
SECONDS_TO_FIRST_WRITE = 20.0  # opening the file costs seconds of a core that a training can use, unless it has ended

Point = tuple[str, float, int, float]  # metric, value, step, seconds since the epoch

copier = Writer("daskdl-mlflow", SECONDS_TO_FIRST_WRITE)


@dataclass
class Pending:
    """What is still to be copied of one run."""

    created: dict[str, Any] | None = None
    points: list[Point] = field(default_factory=list)
    ended: dict[str, Any] | None = None


class Mirror:
    """The copy of the runs under one root. Where MLflow's file cannot be used, it says so once and makes none.

    A remote root has its MLflow file in the local default root.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.db = f"{_local_root(root)}/mlflow.db"
        self.broken = False
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
        """Note the points of a message that the record's curves keep."""
        points = [
            (name, value, step, message["time"])
            for step, values in message["points"]
            for name, value in values.items()
            if record.curves[name].keeps(step)
        ]
        self._note(record.id, points=points)

    def end(self, record: RunRecord) -> None:
        """Note the end of a run, and the last and extreme points, which thinning may have left out."""
        when = record.ended or time.time()
        marks = [(name, p) for name, c in record.curves.items() for p in (c.low, c.high, c.last) if p is not None]
        points = [(name, value, step, when) for name, (step, value) in marks]
        ended = {"state": record.state, "error": record.error, "time": when}
        self._note(record.id, hurry=True, points=points, ended=ended)

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything noted is copied; False when ``timeout`` seconds did not suffice."""
        return copier.flush(timeout)

    def client(self) -> MlflowClient:
        """Return the MLflow client of the sqlite file, which is made if it is not there."""
        return mlflow_client.open_client(self.db)

    def experiment_id(self) -> str:
        """Return the id of the MLflow experiment that holds the runs of this root."""
        return mlflow_client.experiment(self.client(), self.root if is_remote(self.root) else "daskdl", self.root)

    def _note(self, run_id: str, hurry: bool = False, points: list[Point] | None = None, **parts: Any) -> None:
        if self.broken:
            return
        with self._lock:
            pending = self._pending.setdefault(run_id, Pending())
            pending.points.extend(points or ())
            for name, part in parts.items():
                setattr(pending, name, part)
        copier.ask(self._write, hurry)

    def _write(self) -> None:
        """Copy what is pending; runs on the copier's thread and never raises."""
        with self._lock:
            todo, self._pending = self._pending, {}
        for run_id, pending in todo.items():
            problem = None if self.broken else self._try(run_id, pending)
            if problem is not None:
                self.broken = True
                warnings.warn(
                    f"{problem} Runs are kept in their folders below {self.root} and read from there all the same; "
                    "only MLflow's own pages lack those of this session.",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def _try(self, run_id: str, pending: Pending) -> str | None:
        """Copy one run; return what is wrong where that does not go by waiting."""
        problem: Exception | None = None
        for attempt in range(ATTEMPTS):
            time.sleep(0.1 * 2**attempt if attempt else 0)
            try:
                if (trouble := mlflow_client.trouble(self.db)) is not None:
                    return trouble
                self._write_run(run_id, pending)
                return None
            except Exception as error:  # whatever a database, a network or a disk can raise
                problem = error
        return f"MLflow's file {self.db} could not be written ({problem})."

    def _write_run(self, run_id: str, pending: Pending) -> None:
        """Copy one run; a second attempt goes on where the first one failed."""
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


def _local_root(root: str) -> str:
    """Return where the sqlite file of a root lies, which no remote file system can hold."""
    if is_remote(root):
        root = resolve_root()
    return os.path.abspath(DEFAULT_ROOT) if is_remote(root) else root
