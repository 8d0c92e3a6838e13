"""What the Training page shows, as plain data: pure functions of records, no Bokeh."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

from daskdl.tracking import summary
from daskdl.tracking.colors import ALERT, PALETTE, STATE_COLORS
from daskdl.tracking.record import RunRecord

POINTS = 300  # per curve; a pane is seldom wider in pixels than twice that
MARKS = {
    "early_stop": ("square", 9),
    "commit": ("circle", 6),
    "worker_lost": ("x", 11),
    "cause": ("x", 11),
    "failed": ("x", 11),
}
NOISY = 80  # points from which a curve is smoothed

Colored = list[tuple[str, RunRecord]]


def colors(records: Iterable[RunRecord]) -> dict[str, str]:
    """Give each run a color that it keeps while others come: by its place among the runs, from the oldest."""
    return {record.id: PALETTE[i % len(PALETTE)] for i, record in enumerate(records)}


def recent(records: list[RunRecord]) -> Colored:
    """Return the newest runs with their colors, as many as there are colors."""
    color = colors(records)
    return [(color[r.id], r) for r in records[-len(PALETTE) :]]


def losses(record: RunRecord) -> list[str]:
    """Return the curves of one loss, for a run may log several: ``train_loss`` and ``val_loss``."""
    names = summary.loss_names(record)
    if not names:
        return []
    kind = names[0].partition("_")[2]
    return [n for n in names if n.partition("_")[2] == kind]


def common_score(runs: Colored) -> str | None:
    """Return the score most runs have, of a validation set if there is one."""
    found = Counter(name for _, record in runs for name in summary.score_names(record))
    return max(found, key=lambda n: (n.startswith("val"), found[n]), default=None)


def curves(runs: Colored, names: Callable[[RunRecord], list[str]] | None) -> dict[str, list[Any]]:
    """Return the columns of a multi-line source, one row a curve; validation losses are dashed.

    A curve of many points is drawn twice: as it is, pale and thin, and on top the mean of its neighbourhood.
    """
    keys = ("xs", "ys", "color", "dash", "width", "alpha", "run", "metric")
    data: dict[str, list[Any]] = {key: [] for key in keys}
    for color, record in runs:
        for name in names(record) if names else ():
            steps, values = record.curves[name].xy(limit=POINTS)
            values = [v if math.isfinite(v) else math.nan for v in values]
            dash = "dashed" if name.startswith("val") and names is losses else "solid"
            lines = [(values, 2, 1.0)] if len(values) < NOISY else [(values, 1, 0.3), (smooth(values), 2, 1.0)]
            for ys, width, alpha in lines:
                for key, value in zip(keys, (steps, ys, color, dash, width, alpha, record.name, name), strict=True):
                    data[key].append(value)
    return data


def smooth(values: list[float]) -> list[float]:
    """Return the mean around each value, over a twentieth of the curve and always as many values on both sides."""
    half, n = len(values) // 40, len(values)
    means = []
    for i in range(n):
        reach = min(half, i, n - 1 - i)
        near = [v for v in values[i - reach : i + reach + 1] if not math.isnan(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def marks(runs: Colored) -> dict[str, list[Any]]:
    """Return the columns of a scatter source: events, at the height of the loss of their step."""
    data: dict[str, list[Any]] = {key: [] for key in ("x", "y", "marker", "size", "fill", "line", "event", "text")}
    for color, record in runs:
        events = list(record.events)
        if record.state == "failed":
            events.append({"event": "failed", "text": record.error, "step": record.step})
        for event in events:
            y = _loss_at(record, event["step"])
            if event["event"] not in MARKS or y is None:
                continue
            marker, size = MARKS[event["event"]]
            line = ALERT if marker == "x" else "white"  # a cross is all line
            row = (event["step"], y, marker, size, color, line, event["event"], event["text"] or "")
            for key, value in zip(data, row, strict=True):
                data[key].append(value)
    return data


def _loss_at(record: RunRecord, step: int | None) -> float | None:
    names = losses(record)
    if step is None or not names:
        return None
    steps, values = record.curves[names[0]].xy()
    at = max(0, bisect_right(steps, step) - 1)
    return values[at] if math.isfinite(values[at]) else None


def table(records: list[RunRecord], now: float) -> str:
    """Return the runs as an HTML table, newest first; everything a user wrote is escaped."""
    color = colors(records)
    heads = ("Run", "Algorithm", "State", "Progress", "Left", "Step", "Loss", "Best")
    head = "".join(f'<th class="{h.lower()}">{h}</th>' for h in heads)
    rows = "".join(_row(record, color[record.id], now) for record in reversed(records))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _row(record: RunRecord, color: str, now: float) -> str:
    top = summary.best(record)
    cells = {
        "run": f'<i style="background:{color}"></i>{escape(record.name or record.id)}',
        "algorithm": escape(record.algorithm),
        "state": f'<b style="color:{STATE_COLORS.get(record.state, "inherit")}">{escape(record.state)}</b>',
        "progress": _progress(record, color),
        "left": _left(record, now),
        "step": f"{record.step:,}",
        "loss": summary.number(summary.last_loss(record)),
        "best": f"{summary.number(top[2])} <small>{escape(top[0])}</small>" if top else summary.NONE,
    }
    row = "".join(f'<td class="{name}">{html}</td>' for name, html in cells.items())
    error = (
        f'<tr class="error"><td colspan="8">{escape(record.error.splitlines()[0])}</td></tr>' if record.error else ""
    )
    return f'<tr title="{escape(record.id)}">{row}</tr>{error}'


def _progress(record: RunRecord, color: str) -> str:
    done = record.progress
    if done is None:
        return summary.NONE
    return f'<u><s style="width:{done:.1%};background:{color}"></s></u>{done:.0%}'


def _left(record: RunRecord, now: float) -> str:
    if record.state == "running":
        return summary.duration(record.seconds_left(now))
    return f"<small>took {summary.duration(summary.seconds_of(record))}</small>"
