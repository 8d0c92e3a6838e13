"""What to say of a run in a line: pure functions of a record, shared by repr, live display and Training page."""

from __future__ import annotations

import math
import re
import time

from daskdl.tracking.record import RunRecord

_LOWER_IS_BETTER = {"loss", "logloss", "error", "merror", "rmse", "rmsle", "mae", "mape", "mse", "mphe"}
_NEWS = {"worker_lost", "cause", "resize", "waiting", "resumed", "early_stop", "warning"}
NONE = "-"  # what a table shows where there is no number
_SIGNALS = ("grad_norm", "learning_rate")  # tell how training goes, not how good the model is
_SPEED = re.compile(r"_per_(s|second)$")


def lower_is_better(metric: str) -> bool:
    """Say whether a metric is a loss or an error, by its name."""
    return not _LOWER_IS_BETTER.isdisjoint(metric.split("_"))


def is_speed(metric: str) -> bool:
    """Say whether a metric is a rate such as ``rows_per_s``, which nobody tunes a model for."""
    return _SPEED.search(metric) is not None


def is_signal(metric: str) -> bool:
    """Say whether a metric is the norm of the gradients or the learning rate."""
    return metric in _SIGNALS


def loss_names(record: RunRecord) -> list[str]:
    """Return the curves of the loss, training before validation: ``train_loss``, ``val_loss``."""
    return sorted(name for name in record.curves if lower_is_better(name))


def score_names(record: RunRecord) -> list[str]:
    """Return the curves that are neither loss nor speed nor signal, such as ``val_auc``."""
    return [n for n in record.curves if not (lower_is_better(n) or is_speed(n) or is_signal(n))]


def news(record: RunRecord, n: int = 4) -> list[tuple[str, str]]:
    """Return kind and text, with its step, of the last events that whoever watches wants to know of."""
    found = [event for event in record.events if event["event"] in _NEWS][-n:]
    places = [f"step {event['step']:,}: " if event["step"] is not None else "" for event in found]
    return [(event["event"], place + event["text"]) for event, place in zip(found, places, strict=True)]


def headline(record: RunRecord) -> str | None:
    """Return the metric a run is judged by: a validation score, else a validation loss, else whatever there is."""
    names = [*score_names(record), *loss_names(record)]
    return next((n for n in names if n.startswith("val")), names[0] if names else None)


def best(record: RunRecord) -> tuple[str, int, float] | None:
    """Return name, step and value of the headline metric at its best."""
    name = headline(record)
    if name is None:
        return None
    curve = record.curves[name]
    point = curve.low if lower_is_better(name) else curve.high
    return (name, *point) if point is not None else None


def last_loss(record: RunRecord) -> float | None:
    """Return the newest training loss."""
    names = loss_names(record)
    curve = record.curves[names[0]] if names else None
    return curve.last[1] if curve is not None and curve.last is not None else None


def rows_per_second(record: RunRecord) -> float | None:
    """Return the newest speed."""
    curve = record.curves.get("rows_per_s")
    return curve.last[1] if curve is not None and curve.last is not None else None


def seconds_of(record: RunRecord) -> float | None:
    """Return how long the run has taken so far."""
    return None if record.started is None else (record.ended or time.time()) - record.started


def number(value: float | None) -> str:
    """Write a metric with four digits: ``0.6931``, ``12.3``, ``1.2e-05``; a dash when there is none."""
    return NONE if value is None else f"{value:.4g}"


def count(value: float | None) -> str:
    """Write a large number for people: ``3.2 M``, ``812 k``, ``96``."""
    if value is None or not math.isfinite(value):
        return NONE
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Write a duration: ``0.8 s``, ``42 s``, ``3 min 07 s``, ``2 h 05 min``."""
    if seconds is None:
        return NONE
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def one_line(record: RunRecord) -> str:
    """Describe a run: state, step, loss, best metric, duration, and the error if there is one."""
    parts = [f"{record.name} ({record.algorithm})", record.state]
    if record.step:
        parts.append(f"step {record.step}" + (f" of {record.total_steps}" if record.total_steps else ""))
    if (loss := last_loss(record)) is not None:
        parts.append(f"loss {number(loss)}")
    if (top := best(record)) is not None and not lower_is_better(top[0]):
        parts.append(f"best {top[0]} {number(top[2])}")
    if (seconds := seconds_of(record)) is not None:
        parts.append(duration(seconds))
    if record.error:
        parts.append(record.error.splitlines()[0])
    return ", ".join(parts)
