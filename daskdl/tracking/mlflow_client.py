"""The few calls of MLflow that daskdl makes. MLflow is imported here and nowhere else, and only when called."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from daskdl.errors import MissingExtraError
from daskdl.tracking.plain import shorten, to_text
from daskdl.tracking.record import RunRecord

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

BATCH = 500  # points; 7,000 points a second, against 200 one by one
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_lock = threading.Lock()


@contextlib.contextmanager
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


def uri_of(db: str) -> str:
    """Return the address of a sqlite file, as MLflow takes it."""
    return f"sqlite:///{db}"


def trouble(db: str) -> str | None:
    """Say in a sentence why MLflow cannot use a file, where waiting does not help; None if it can, or none is there.

    MLflow itself would try for seconds, or make another file.
    """
    if re.search(r"\?|%[0-9a-fA-F]{2}", db):
        return f"MLflow cannot be told of a file whose path has a question mark or a percent escape, {db}."
    if not os.path.exists(db):
        return None
    if not os.access(db, os.W_OK) or not os.access(os.path.dirname(db), os.W_OK):
        return f"MLflow's file {db} cannot be written to."
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(db)}?mode=ro", uri=True, timeout=5.0)) as connection:
            tables = connection.execute("select name from sqlite_master where name = 'alembic_version'").fetchall()
            versions = connection.execute("select version_num from alembic_version").fetchall() if tables else []
    except sqlite3.OperationalError:  # locked, which goes by
        return None
    except sqlite3.DatabaseError as error:
        return (
            f"MLflow's file {db} is damaged ({error}). Put it aside, and a new one is made: "
            f"mv {shlex.quote(db)} {shlex.quote(db + '.damaged')}"
        )
    return _of_version(db, versions[0][0]) if versions else None


def _of_version(db: str, version: str) -> str | None:
    """Say that the tables are of another MLflow, and what brings both together."""
    _import_client()
    import mlflow
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    script = ScriptDirectory.from_config(_get_alembic_config(""))
    known = {revision.revision for revision in script.walk_revisions()}
    if version in script.get_heads():
        return None
    if version not in known:
        return (
            f"MLflow's file {db} was made by a newer MLflow than {mlflow.__version__}, which is installed here "
            f"(its tables have the version {version}). To use it: pip install --upgrade mlflow-skinny."
        )
    safe = shlex.quote(db + ".before-upgrade")
    return (
        f"MLflow's file {db} was made by an older MLflow than {mlflow.__version__}, which is installed here. To use "
        f"it, keep a copy and upgrade it: cp {shlex.quote(db)} {safe} && mlflow db upgrade {shlex.quote(uri_of(db))}"
    )


@lru_cache(maxsize=64)
def _client(db: str) -> MlflowClient:
    os.makedirs(os.path.dirname(db), exist_ok=True)
    with _exclusive(db):
        is_new = not os.path.exists(db)
        try:
            client = _import_client()(tracking_uri=uri_of(db))
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


@contextlib.contextmanager
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


def _key(name: str) -> str:
    """Make a metric's or parameter's name one that MLflow takes."""
    return shorten(re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII), 250).replace("…", "_") or "_"
