"""Reading runs back from MLflow and their folders."""

from __future__ import annotations

import difflib
import json
import os
import warnings
from typing import TYPE_CHECKING, Any

from daskdl.tracking import mlflow_client
from daskdl.tracking.breakdown import Ranks
from daskdl.tracking.folder import Folder
from daskdl.tracking.plain import from_text
from daskdl.tracking.record import RunRecord
from daskdl.tracking.store import Store, store_of

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

COLUMNS = ("id", "name", "algorithm", "state", "started", "seconds")


def list_runs(root: str) -> pd.DataFrame:
    """Return one row a run, newest first (see :func:`daskdl.tracking.run.runs`)."""
    import pandas as pd

    rows = sorted((_row(run) for run in _stored(store_of(root))), key=lambda row: str(row["id"]), reverse=True)
    frame = pd.DataFrame(rows, columns=None if rows else list(COLUMNS))
    frame["started"] = pd.to_datetime(frame["started"].astype("float64"), unit="s", utc=True)
    rest = sorted((c for c in frame if c not in COLUMNS), key=lambda c: (c.startswith("metrics."), c))
    return frame[[*COLUMNS, *rest]]


def read_run(run_id: str, root: str) -> tuple[RunRecord, str, dict[str, str]]:
    """Return record, folder and environment of a run, by folding the messages it would have sent.

    Raises
    ------
    ValueError
        No such run under ``root``.
    """
    store = store_of(root)
    stored = {_tag(run, "id"): run for run in _stored(store)}
    if run_id not in stored and run_id and Folder(f"{root}/{run_id}").names():
        return RunRecord(run_id), f"{root}/{run_id}", {}  # its session died before it came to MLflow
    if run_id not in stored:
        near = difflib.get_close_matches(run_id, stored, n=3, cutoff=0.0)
        hint = f"The nearest are: {', '.join(near)}." if near else "There are no runs under it."
        raise ValueError(f"No run {run_id!r} under {root}. {hint} daskdl.runs() lists them.")
    run = stored[run_id]
    record = RunRecord(run_id)
    folder = f"{root}/{run_id}"
    for message in (_start_of(run), *_metrics_of(store.client(), run), *_events_in(folder), *_end_of(run)):
        record.apply(message)
    record.ranks = _ranks_in(folder)
    environment = {k.removeprefix("daskdl.env."): v for k, v in run.data.tags.items() if k.startswith("daskdl.env.")}
    return record, folder, environment


def _stored(store: Store) -> list[MlflowRun]:
    if not store.flush():
        warnings.warn(
            f"Runs are still being written to {store.db}: what is missing here, or not up to date, comes in a moment.",
            RuntimeWarning,
            stacklevel=4,
        )
    if not os.path.exists(store.db):  # asking makes no file
        return []
    client, experiment_id = store.client(), store.experiment_id()
    found: list[MlflowRun] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found


def _row(run: MlflowRun) -> dict[str, Any]:
    started, ended = run.info.start_time / 1000, run.info.end_time
    fixed = {
        "id": _tag(run, "id"),
        "name": run.info.run_name,
        "algorithm": _tag(run, "algorithm"),
        "state": _tag(run, "state"),
        "started": started,
        "seconds": ended / 1000 - started if ended else None,
    }
    params = {f"params.{k}": from_text(v) for k, v in run.data.params.items()}
    metrics = {f"metrics.{k}": mlflow_client.value_of(v) for k, v in run.data.metrics.items()}
    return {**fixed, **params, **metrics}


def _tag(run: MlflowRun, name: str) -> str:
    return str(run.data.tags.get(f"daskdl.{name}", ""))


def _start_of(run: MlflowRun) -> dict[str, Any]:
    numbers = {k: from_text(_tag(run, k) or "None") for k in ("seed", "total_steps", "num_workers")}
    params = {k: from_text(v) for k, v in run.data.params.items()}
    said = {"name": run.info.run_name, "algorithm": _tag(run, "algorithm"), "params": params}
    return {"kind": "start", "time": run.info.start_time / 1000, **said, **numbers}


def _metrics_of(client: MlflowClient, run: MlflowRun) -> list[dict[str, Any]]:
    messages = []
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        points = [[m.step, {name: mlflow_client.value_of(m.value)}] for m in history]
        messages.append({"kind": "metrics", "time": history[0].timestamp / 1000, "points": points})
    return messages


def _events_in(folder: str) -> list[dict[str, Any]]:
    try:
        with Folder(folder).open("events.jsonl", "r") as file:
            return [{"kind": "event", **json.loads(line)} for line in file]
    except FileNotFoundError:
        return []


def _ranks_in(folder: str) -> Ranks | None:
    try:
        with Folder(folder).open("ranks.json") as file:
            return Ranks(**json.load(file))
    except FileNotFoundError:
        return None


def _end_of(run: MlflowRun) -> list[dict[str, Any]]:
    if not run.info.end_time:
        return []
    ended = {"state": _tag(run, "state"), "error": _tag(run, "error") or None, "time": run.info.end_time / 1000}
    return [{"kind": "end", **ended}]
