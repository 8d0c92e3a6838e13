"""What the Training page shows of runs, as plain data: pure functions of records, no Bokeh."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from daskdl.tracking import summary
from daskdl.tracking.colors import ALERT, PALETTE, STATE_COLORS
from daskdl.tracking.record import RunRecord

POINTS = 300  # per curve; a pane is seldom wider in pixels than twice that
NOISY = 80  # points from which a curve is smoothed
LINE = ("xs", "ys", "color", "dash", "width", "alpha", "run", "metric")
MARK = ("x", "y", "marker", "size", "fill", "line", "event", "text")
MARKS = {
    "best": ("star", 15, "★", "best"),
    "commit": ("circle", 7, "●", "commit"),
    "resize": ("triangle", 9, "▲", "joined"),
    "resumed": ("inverted_triangle", 9, "▼", "resumed"),
    "early_stop": ("square", 8, "■", "early stop"),
    "stopped": ("square_x", 10, "☒", "stopped"),
    "worker_lost": ("x", 11, "✕", "lost"),
    "cause": ("x", 11, "✕", "lost"),
    "failed": ("x", 11, "✕", "failed"),
}
"""Event -> marker of Bokeh, its size, the same as a letter, and what it means."""
LINE_COLORS = {"x": ALERT, "square_x": STATE_COLORS["stopped"]}  # of those that are all line
OUTLINE = "#767c86"  # of the others: to be seen on a curve of their color, on white and on black

Colored = list[tuple[str, RunRecord]]


@dataclass(frozen=True)
class Scene:
    """What there is to be seen, and how it is wanted.

    Attributes
    ----------
    runs : list of (str, RunRecord)
        Color and record of the runs whose curves are drawn, oldest first.
    records : list of RunRecord
        All runs, oldest first.
    now : float
        Seconds since the epoch.
    smooth, log : bool
        Whether curves are smoothed, and whether the loss has a logarithmic axis.
    """

    runs: Colored
    records: list[RunRecord]
    now: float
    smooth: bool = True
    log: bool = False


def scene(records: list[RunRecord], now: float, chosen: Collection[str] = (), **how: bool) -> Scene:
    """Return the scene of the chosen runs, or of the newest ones, as many as there are colors."""
    color = colors(records)
    drawn = [r for r in records if r.id in chosen] or records[-len(PALETTE) :]
    return Scene([(color[r.id], r) for r in drawn], records, now, **how)


def colors(records: Iterable[RunRecord]) -> dict[str, str]:
    """Give each run a color that it keeps while others come: by its place among the runs, from the oldest."""
    return {record.id: PALETTE[i % len(PALETTE)] for i, record in enumerate(records)}


def columns(keys: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> dict[str, list[Any]]:
    """Return rows as the columns of a source."""
    data: dict[str, list[Any]] = {key: [] for key in keys}
    for row in rows:
        for key, value in zip(keys, row, strict=True):
            data[key].append(value)
    return data


# curves


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


def metrics(runs: Colored) -> list[str]:
    """Return everything the runs have said, first the scores, then the losses; of each kind validation first."""

    def place(name: str) -> tuple[int, bool, str]:
        kind = int(summary.lower_is_better(name)) if has_best(name) else 2
        return kind, not name.startswith("val"), name

    return sorted({name for _, record in runs for name in record.curves}, key=place)


def default_metric(runs: Colored) -> str | None:
    """Return the metric that is shown until one is chosen: the common score, else what no other chart shows."""
    drawn = {name for _, record in runs for name in losses(record)}
    others = [n for n in metrics(runs) if n not in drawn and summary.lower_is_better(n)]
    return common_score(runs) or next(iter(others), None)


def lines(color: str, record: RunRecord, names: Iterable[str], smoothed: bool = True) -> list[tuple[Any, ...]]:
    """Return a row of ``LINE`` for each curve of a run; validation losses are dashed.

    A curve of many points is drawn twice: as it is, pale and thin, and on top the mean of its neighbourhood.
    """
    rows: list[tuple[Any, ...]] = []
    for name in names:
        steps, values = map(np.asarray, record.curves[name].xy(limit=POINTS))
        values = np.where(np.isfinite(values), values, math.nan)
        dash = "dashed" if name.startswith("val") and summary.lower_is_better(name) else "solid"
        noisy = smoothed and len(values) >= NOISY
        drawn = [(values, 1, 0.3), (smooth(values), 2, 1.0)] if noisy else [(values, 2, 1.0)]
        rows += [(steps, ys, color, dash, width, alpha, record.name, name) for ys, width, alpha in drawn]
    return rows


def smooth(values: Sequence[float] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the mean around each value, over a twentieth of the curve and always as many values on both sides.

    The last values, which have too few after them, lie on the straight line that fits the last twentieth best: one
    batch that happens to be small or hard does not bend the end.
    """
    there = np.isfinite(values)
    filled = np.where(there, values, 0.0)
    n, half = len(filled), len(filled) // 40
    sums, counts = filled.copy(), there.astype(float)
    inside = slice(half, n - half)
    sums[inside], counts[inside] = (_windows(data, half).sum(axis=1) for data in (filled, there))
    for i in range(half):
        sums[i], counts[i] = filled[: 2 * i + 1].sum(), there[: 2 * i + 1].sum()
    means = np.divide(sums, counts, out=np.full(n, math.nan), where=counts > 0)
    last = np.arange(n - 2 * half - 1, n)[there[n - 2 * half - 1 :]]
    if half and len(last) > 1:
        means[n - half :] = np.polyval(np.polyfit(last, filled[last], 1), np.arange(n - half, n))
    return means


def _windows(data: np.ndarray[Any, Any], half: int) -> np.ndarray[Any, Any]:
    return np.lib.stride_tricks.sliding_window_view(data, 2 * half + 1)


# marks


def best_marks(color: str, record: RunRecord, names: Iterable[str]) -> list[tuple[Any, ...]]:
    """Return a row of ``MARK`` at the best step of each curve; speeds and signals have none."""
    rows = []
    for name in names:
        curve = record.curves[name]
        point = curve.low if summary.lower_is_better(name) else curve.high
        if has_best(name) and point is not None and math.isfinite(point[1]):
            rows.append(_mark("best", *point, color, f"{name} {summary.number(point[1])}"))
    return rows


def validations(names: Iterable[str]) -> list[str]:
    """Return the names of validation curves."""
    return [name for name in names if name.startswith("val")]


def has_best(metric: str) -> bool:
    """Say whether a metric tells how good a model is, so that one of its steps is the best."""
    return not (summary.is_speed(metric) or summary.is_signal(metric))


def event_marks(color: str, record: RunRecord) -> list[tuple[Any, ...]]:
    """Return a row of ``MARK`` for each event that names a step, at the height of the loss there."""
    events = [e for e in record.events if e["event"] in MARKS and e["step"] is not None]
    if record.state in ("failed", "stopped"):
        events.append({"event": record.state, "text": record.error, "step": record.step})
    names = losses(record)
    if not events or not names:
        return []
    steps, values = record.curves[names[0]].xy()
    heights = [values[max(0, bisect_right(steps, event["step"]) - 1)] for event in events]
    found = [(event, y) for event, y in zip(events, heights, strict=True) if math.isfinite(y)]
    return [_mark(event["event"], event["step"], y, color, event["text"] or "") for event, y in found]


def _mark(event: str, step: int, y: float, color: str, text: str) -> tuple[Any, ...]:
    marker, size, _, words = MARKS[event]
    return (step, y, marker, size, color, LINE_COLORS.get(marker, OUTLINE), words, text)


def key_of_marks(rows: Iterable[tuple[Any, ...]]) -> str:
    """Return what the marks in use mean: ``★ best  ✕ lost``."""
    used = {row[MARK.index("event")] for row in rows}
    found = {words: f"{letter} {words}" for _, _, letter, words in MARKS.values() if words in used}
    return "  ".join(found.values())


def key_of_metric(metric: str) -> str:
    """Return what the best step of a metric is, as HTML; nothing where no step is the best."""
    if not has_best(metric):
        return ""
    return f"<small>{MARKS['best'][2]} best: {'lowest' if summary.lower_is_better(metric) else 'highest'}</small>"


def lacking(metric: str) -> str:
    """Return that no run has a metric, as HTML."""
    return f"<span>None of the runs that are shown has said <code>{escape(metric)}</code>.</span>"


# the table of runs


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
        "state": f'<b class="{escape(record.state)}">{escape(record.state)}</b>',
        "progress": _progress(record, color),
        "left": _left(record, now),
        "step": f"{record.step:,}",
        "loss": summary.number(summary.last_loss(record)),
        "best": f"{summary.number(top[2])} <small>{escape(top[0])}</small>" if top else summary.NONE,
    }
    row = "".join(f'<td class="{name}">{html}</td>' for name, html in cells.items())
    return f'<tr title="{escape(f"{record.name} ({record.id})")}">{row}</tr>{_remark(record)}'


def _remark(record: RunRecord) -> str:
    """Return a row for the error, for why a run was stopped, or for the last news of one that goes on."""
    kind = "error" if record.error and record.state != "stopped" else "news"
    text = record.error or _last_news(record)
    if not text:
        return ""
    line = escape(text.splitlines()[0])
    return f'<tr class="{kind}" title="{escape(text)}"><td colspan="8">{line}</td></tr>'


def _last_news(record: RunRecord) -> str:
    if record.state != "running":
        return ""
    told = summary.news(record, 1)
    return told[0][1] if told else ""


def _progress(record: RunRecord, color: str) -> str:
    if record.state == "running" and not record.step:
        return "<small>preparing</small>"
    done = record.progress
    if done is None:
        return summary.NONE
    return f'<u><s style="width:{done:.1%};background:{color}"></s></u>{done:.0%}'


def _left(record: RunRecord, now: float) -> str:
    if record.state == "running":
        return summary.duration(record.seconds_left(now))
    return f"<small>took {summary.duration(summary.seconds_of(record))}</small>"


# words


def key_of_runs(runs: Colored) -> str:
    """Return the names of runs with their colors, as HTML, newest first."""
    names = (
        f'<span><i style="background:{color}"></i>{escape(record.name or record.id)}</span>'
        for color, record in reversed(runs)
    )
    return f'<div class="key">{"".join(names)}</div>'


def preparing(runs: Colored) -> str:
    """Return what the newest run does before its first step, as HTML; nothing if there are curves."""
    if not runs or any(record.curves for _, record in runs):
        return ""
    record = runs[-1][1]
    name = f"<b>{escape(record.name or record.id)}</b>"
    if record.state != "running":
        return f"<span>{name} is {escape(record.state)}; it said nothing of a loss.</span>"
    last = escape(record.events[-1]["text"] or "") if record.events else "its data is brought to the workers"
    return f"<em></em><span>{name} prepares for its first step</span><small>{last}</small>"
