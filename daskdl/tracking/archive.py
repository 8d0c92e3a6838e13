"""Reading runs back from their folders, which hold all there is."""

from __future__ import annotations

import difflib
import re
import time
import warnings
from typing import TYPE_CHECKING, Any

from daskdl.tracking import kept
from daskdl.tracking.folder import Folder, Root, resolve_root
from daskdl.tracking.record import RunRecord
from daskdl.tracking.recording import Recording
from daskdl.tracking.store import store_of

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "name", "algorithm", "state", "started", "seconds")
_ID = re.compile(r"\d{8}-\d{6}-[a-z]+-[a-z]+")


def list_runs(root: str) -> pd.DataFrame:
    """Return one row a run, newest first (see :func:`daskdl.run.runs`)."""
    import pandas as pd

    _flush(root)
    texts = Root(root).read(kept.FACTS)
    found = {run_id: kept.facts_of(text) for run_id, text in texts.items()}
    rows = [_row(run_id, facts) for run_id, facts in found.items() if facts or _ID.fullmatch(run_id)]
    rows.sort(key=lambda row: str(row["id"]), reverse=True)
    frame = pd.DataFrame(rows, columns=None if rows else list(COLUMNS))
    frame["started"] = pd.to_datetime(frame["started"].astype("float64"), unit="s", utc=True)
    rest = sorted((c for c in frame if c not in COLUMNS), key=lambda c: (c.startswith("metrics."), c))
    return frame[[*COLUMNS, *rest]]


def read_run(run_id: str, root: str) -> tuple[RunRecord, str, dict[str, str]]:
    """Return record, folder and environment of a run; of one whose files are gone in part, what is left.

    Raises
    ------
    ValueError
        No such run under ``root``.
    """
    _flush(root)
    folder = Folder(f"{root}/{run_id}")
    if not run_id or not folder.names():
        known = [name for name in Root(root).names() if _ID.fullmatch(name)]
        near = difflib.get_close_matches(run_id, known, n=3, cutoff=0.0)
        hint = f"The nearest are: {', '.join(near)}." if near else "There are no runs under it."
        raise ValueError(f"No run {run_id!r} under {root}. {hint} daskdl.runs() lists them.")
    names = (kept.FACTS, kept.CURVES, kept.EVENTS, kept.RANKS, kept.ENVIRONMENT)
    files = {name: text for name in names if (text := folder.read(name)) is not None}
    return kept.record_of(run_id, files), folder.url, kept.environment_of(files)


def recorded(run: Recording | str) -> Recording:
    """Return a run, read back if its id is given."""
    return Recording(*read_run(run, resolve_root())) if isinstance(run, str) else run


def _flush(root: str) -> None:
    if not store_of(root).flush():
        warnings.warn(
            f"Runs are still being written to {root}: what is missing here, or not up to date, comes in a moment.",
            RuntimeWarning,
            stacklevel=4,
        )


def _row(run_id: str, facts: dict[str, Any] | None) -> dict[str, Any]:
    """Return the line of a run; of one whose facts are gone, what its name says."""
    if facts is None:
        began = time.mktime(time.strptime(run_id[:15], "%Y%m%d-%H%M%S"))
        return {"id": run_id, "name": "", "algorithm": "", "state": "unknown", "started": began, "seconds": None}
    started, ended = facts.get("started"), facts.get("ended")
    fixed = {name: facts.get(name) for name in ("name", "algorithm", "state", "started")}
    seconds = max(0.0, ended - started) if started is not None and ended is not None else None
    params = {f"params.{k}": v for k, v in facts.get("params", {}).items()}
    metrics = {f"metrics.{k}": v for k, v in facts.get("metrics", {}).items()}
    return {"id": run_id, **fixed, "seconds": seconds, **params, **metrics}
