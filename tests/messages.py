"""Messages as runs say them, and records made of them."""

from __future__ import annotations

from typing import Any

from daskdl.tracking.breakdown import PHASES
from daskdl.tracking.record import RunRecord


def start(run_id: str, name: str = "flights", algorithm: str = "torch", steps: int | None = 100, when: float = 0.0):
    said = {"name": name, "algorithm": algorithm, "params": {}, "total_steps": steps, "num_workers": 1}
    return {"run": run_id, "kind": "start", "time": when, **said}


def metrics(run_id: str, *points: Any, when: float = 1.0, **keys: Any) -> dict[str, Any]:
    return {"run": run_id, "kind": "metrics", "time": when, "points": list(points), "epoch": None, **keys}


def event(run_id: str, kind: str, step: int | None = None, text: str | None = None, when: float = 3.0):
    text = text if text is not None else f"{kind} happened"
    return {"run": run_id, "kind": "event", "time": when, "event": kind, "text": text, "step": step}


def end(run_id: str, state: str = "finished", error: str | None = None, when: float = 61.0) -> dict[str, Any]:
    return {"run": run_id, "kind": "end", "time": when, "state": state, "error": error}


def ranks(*seconds: dict[str, float], steps: int = 10, host: int = 2**30, gpu: int = 0) -> dict[str, Any]:
    """What ranks say of `steps` steps: seconds of a step by phase, and their memory in bytes."""
    lines = [[steps * rank.get(phase, 0.0) for phase in PHASES] for rank in seconds]
    n = len(seconds)
    return {"steps": steps, "seconds": lines, "host": [host * (1 + i) for i in range(n)], "gpu": [gpu] * n}


def record_of(*messages: dict[str, Any]) -> RunRecord:
    record = RunRecord(messages[0]["run"])
    for message in messages:
        record.apply(message)
    return record


def curve(run_id: str = "r", n: int = 5, **keys: Any) -> RunRecord:
    """A run of `n` steps with training loss, speed, and at its end a validation."""
    points = [[s, {"train_loss": 1.0 / (s + 1), "rows_per_s": 100.0}] for s in range(n)]
    points.append([n, {"val_loss": 0.5, "val_auc": 0.6}])
    return record_of(start(run_id, **keys), metrics(run_id, *points))
