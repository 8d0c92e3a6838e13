"""The few calls of MLflow that daskdl makes. MLflow is imported here and nowhere else, and only when called."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from daskdl.errors import MissingExtraError
from daskdl.tracking.plain import shorten, to_text
from daskdl.tracking.record import RunRecord

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

BATCH = 500  # points; 7,000 points a second, against 200 one by one
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_LARGEST = sys.float_info.max  # MLflow writes infinity as this, and NaN as NaN
_lock = threading.Lock()


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep MLflow from phoning home: it decides while it is imported."""
    before = os.environ.get("MLFLOW_DISABLE_TELEMETRY")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_DISABLE_TELEMETRY"]
        else:
            os.environ["MLFLOW_DISABLE_TELEMETRY"] = before


@lru_cache
def _import_client() -> type[MlflowClient]:
    warnings.filterwarnings("ignore", message="IProgress not found")  # MLflow's tqdm, into the cell of a notebook
    try:
        with _without_telemetry():
            from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise MissingExtraError(
            f"Runs are kept with MLflow, which cannot be imported ({error}). "
            "Install it: pip install mlflow-skinny sqlalchemy alembic"
        ) from error
    for name in ("mlflow.store.db.utils", "alembic"):  # they announce every table they make
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient


@lru_cache(maxsize=64)
def _client(db: str) -> MlflowClient:
    os.makedirs(os.path.dirname(db), exist_ok=True)
    with _exclusive(db):
        is_new = not os.path.exists(db)
        try:
            client = _import_client()(tracking_uri=f"sqlite:///{db}")
            client.search_experiments(max_results=1)  # makes the tables
        except Exception:
            if is_new and os.path.exists(db):
                os.remove(db)  # with half of the tables every later attempt would fail over those that are there
            raise
    return client


def open_client(db: str) -> MlflowClient:
    """Return the client of a sqlite file, making the file the first time; any thread may call it."""
    with _lock:
        return _client(db)


@contextmanager
def _exclusive(db: str) -> Iterator[None]:
    """Let one process at a time make the tables: two at once fail over ``table already exists``."""
    with open(f"{db}.lock", "w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):  # Windows, and file systems without locks: the writer tries again
            pass
        yield


def experiment(client: MlflowClient, name: str, artifacts: str) -> str:
    """Return the id of an experiment, made if needed, two processes at once allowed."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def create_run(client: MlflowClient, experiment_id: str, record: RunRecord, tags: dict[str, Any]) -> str:
    """Make the run with its tags and return MLflow's id of it."""
    tags = {f"daskdl.{k}": shorten(str(v)) for k, v in tags.items() if v is not None}
    started = int((record.started or 0) * 1000)
    run = client.create_run(experiment_id, start_time=started, tags=tags, run_name=shorten(record.name, 250))
    return str(run.info.run_id)


def log_params(client: MlflowClient, mlflow_id: str, params: dict[str, Any]) -> None:
    """Write parameters; writing the same ones again changes nothing."""
    from mlflow.entities import Param

    rows = [Param(_key(name), to_text(value)) for name, value in params.items()]
    for first in range(0, len(rows), 100):  # MLflow's limit for one call
        client.log_batch(mlflow_id, params=rows[first : first + 100])


def log_points(client: MlflowClient, mlflow_id: str, points: list[tuple[str, float, int, float]]) -> None:
    """Write points of ``(metric, value, step, seconds since the epoch)``, at most ``BATCH`` of them."""
    from mlflow.entities import Metric

    client.log_batch(mlflow_id, metrics=[Metric(_key(n), value, int(t * 1000), step) for n, value, step, t in points])


def end_run(client: MlflowClient, mlflow_id: str, state: str, error: str | None, time: float) -> None:
    """Write how and when the run ended."""
    client.set_tag(mlflow_id, "daskdl.state", state)
    if error is not None:
        client.set_tag(mlflow_id, "daskdl.error", shorten(error, 5_000))
    client.set_terminated(mlflow_id, STATUS[state], int(time * 1000))


def value_of(number: float) -> float:
    """Read a metric back: MLflow keeps infinity as the largest float."""
    return math.copysign(math.inf, number) if abs(number) == _LARGEST else number


def _key(name: str) -> str:
    """Make a metric's or parameter's name one that MLflow takes."""
    return shorten(re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII), 250).replace("…", "_") or "_"
