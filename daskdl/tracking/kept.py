"""A run as the files of its folder, and back: pure."""

from __future__ import annotations

import json
from array import array
from dataclasses import asdict
from typing import Any

from daskdl.tracking.breakdown import Ranks
from daskdl.tracking.record import Curve, RunRecord

FACTS = "run.json"
CURVES = "metrics.json"
EVENTS = "events.jsonl"
RANKS = "ranks.json"
ENVIRONMENT = "environment.json"

_FACTS = [
    *("id", "name", "algorithm", "params", "state", "error", "seed", "total_steps", "num_workers", "started", "ended"),
    *("step", "epoch", "first", "generation"),
]


def facts_text(record: RunRecord) -> bytes:
    """Write what a list of runs shows: everything but curves and events, and the last value of each curve."""
    last = {name: curve.last[1] for name, curve in record.curves.items() if curve.last is not None}
    return _text({**{name: getattr(record, name) for name in _FACTS}, "metrics": last})


def curves_text(record: RunRecord) -> bytes:
    """Write the curves, every bit of them."""
    return _text(
        {
            name: {"steps": c.steps.tolist(), "values": c.values.tolist(), "stride": c.stride}
            | {"last": c.last, "low": c.low, "high": c.high}
            for name, c in record.curves.items()
        }
    )


def events_text(record: RunRecord) -> bytes:
    """Write the events, a line each."""
    return b"".join(_text(event) + b"\n" for event in record.events)


def ranks_text(record: RunRecord) -> bytes:
    """Write where the time of the ranks went."""
    return _text(asdict(record.ranks)) if record.ranks is not None else b"null"


def facts_of(text: bytes | None) -> dict[str, Any] | None:
    """Read back what :func:`facts_text` wrote; None for what is not there or torn."""
    found = _read(text)
    return found if isinstance(found, dict) and "id" in found else None


def record_of(run_id: str, files: dict[str, bytes]) -> RunRecord:
    r"""Put a run together from its files, by their names; what is not there or torn is left out.

    Examples
    --------
    >>> run = RunRecord("a", name="flights", state="finished")
    >>> record_of("a", {FACTS: facts_text(run)}) == run
    True
    >>> record_of("a", {EVENTS: b'{"event": "note", "text": "hello"}\n{"event": "no'}).events
    [{'event': 'note', 'text': 'hello'}]
    """
    record = RunRecord(run_id)
    for name, value in (facts_of(files.get(FACTS)) or {}).items():
        if name in _FACTS and name != "id":
            setattr(record, name, tuple(value) if name == "first" and value is not None else value)
    curves = _read(files.get(CURVES))
    record.curves = {name: _curve(**kept) for name, kept in curves.items()} if isinstance(curves, dict) else {}
    record.events = [event for line in files.get(EVENTS, b"").splitlines() if isinstance(event := _read(line), dict)]
    ranks = _read(files.get(RANKS))
    record.ranks = Ranks(**ranks) if isinstance(ranks, dict) else None
    return record


def environment_text(environment: dict[str, str]) -> bytes:
    """Write versions and platform."""
    return _text(environment)


def environment_of(files: dict[str, bytes]) -> dict[str, str]:
    """Read them back."""
    found = _read(files.get(ENVIRONMENT))
    return found if isinstance(found, dict) else {}


def _curve(steps: list[int], values: list[float], stride: int, **points: list[Any] | None) -> Curve:
    marks = {name: (point[0], point[1]) if point is not None else None for name, point in points.items()}
    return Curve(array("q", steps), array("d", values), stride, **marks)


def _text(value: Any) -> bytes:
    return json.dumps(value).encode()


def _read(text: bytes | None) -> Any:
    try:
        return json.loads(text) if text is not None else None
    except ValueError:  # torn: its process or its machine died while it wrote
        return None
