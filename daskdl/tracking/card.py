"""A run as a small piece of HTML that needs no script, in light and dark notebooks."""

from __future__ import annotations

import math
from html import escape

from daskdl.tracking import summary
from daskdl.tracking.breakdown import verdict
from daskdl.tracking.colors import STATE_COLORS, TRAIN, VALIDATION
from daskdl.tracking.record import RunRecord

MAX_PARAMS = 24


def html_card(record: RunRecord, folder: str = "") -> str:
    """Return the run as HTML: state, progress, metrics, parameters, and the loss as an inline SVG."""
    return (
        '<div style="font:13px/1.5 system-ui,sans-serif;color:inherit;background:transparent;max-width:46em;'
        'border:1px solid color-mix(in srgb,currentColor 22%,transparent);border-radius:6px;padding:.6em .9em">'
        f"{_head(record)}{_bar(record)}{_error(record)}"
        f'<div style="display:flex;flex-wrap:wrap;gap:0 1.6em;align-items:center">{loss_svg(record)}{_facts(record)}'
        f"</div>{_verdict(record)}{_news(record)}{_params(record)}{_foot(record, folder)}</div>"
    )


def loss_svg(record: RunRecord, width: int = 300, height: int = 84) -> str:
    """Return training loss (solid) and validation loss (dashed) as an SVG, or nothing while there is none."""
    curves = {name: _finite(*record.curves[name].xy(limit=300)) for name in summary.loss_names(record)[:2]}
    points = [p for curve in curves.values() for p in curve]
    if len(points) < 2:
        return ""
    steps, values = [p[0] for p in points], [p[1] for p in points]
    (x0, x1), (y0, y1) = (min(steps), max(steps)), (min(values), max(values))

    def place(step: int, value: float) -> str:
        x = 2 + (step - x0) / ((x1 - x0) or 1) * (width - 4)
        y = height - 3 - (value - y0) / ((y1 - y0) or 1) * (height - 6)
        return f"{x:.1f},{y:.1f}"

    lines = "".join(
        f'<polyline fill="none" stroke-width="1.8" stroke-linejoin="round" {_stroke(name)} '
        f'points="{" ".join(place(*p) for p in curve)}"/>'
        for name, curve in curves.items()
    )
    base = f'<path d="M1 1V{height - 1}H{width}" fill="none" stroke="currentColor" stroke-opacity=".3"/>'
    names = ", ".join(curves)
    return (
        f'<svg role="img" aria-label="{escape(names)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="flex:none;margin:.4em 0">{base}{lines}</svg>'
    )


def _stroke(name: str) -> str:
    return f'stroke="{VALIDATION}" stroke-dasharray="5 3"' if name.startswith("val") else f'stroke="{TRAIN}"'


def _finite(steps: list[int], values: list[float]) -> list[tuple[int, float]]:
    return [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]


def _head(record: RunRecord) -> str:
    color = STATE_COLORS.get(record.state, "currentColor")
    name = f"<b>{escape(record.name or record.id)}</b> {_dim(escape(record.algorithm))}"
    time = summary.duration(summary.seconds_of(record))
    return (
        f'<div style="display:flex;gap:.7em;align-items:baseline"><span>{name}</span>'
        f'<span style="color:{color};font-weight:600">{escape(record.state)}</span>'
        f'<span style="margin-left:auto">{_dim(time)}</span></div>'
    )


def _bar(record: RunRecord) -> str:
    done = record.progress
    if done is None or record.state == "finished":
        return ""
    color = STATE_COLORS.get(record.state, "currentColor")
    return (
        '<div style="height:4px;margin:.35em 0;border-radius:2px;'
        'background:color-mix(in srgb,currentColor 15%,transparent)">'
        f'<div style="height:4px;width:{done:.1%};border-radius:2px;background:{color}"></div></div>'
    )


def _error(record: RunRecord) -> str:
    if not record.error:
        return ""
    color = STATE_COLORS.get(record.state, STATE_COLORS["failed"])
    style = f"white-space:pre-wrap;border-left:3px solid {color};padding-left:.7em;margin:.4em 0;max-height:12em"
    return f'<div style="{style};overflow:auto">{escape(record.error)}</div>'


def _news(record: RunRecord) -> str:
    """What happened on the way: workers lost, why, resized."""
    color = STATE_COLORS["failed"]
    lines = [
        f'<div style="padding-left:.7em;border-left:3px solid {color if kind == "worker_lost" else "transparent"}">'
        f"{escape(text)}</div>"
        for kind, text in summary.news(record)
    ]
    return f'<div style="margin:.3em 0;font-size:12px">{"".join(lines)}</div>' if lines else ""


def _verdict(record: RunRecord) -> str:
    """What limited a training that has ended, in a line."""
    if record.ranks is None or record.state == "running":
        return ""
    text = verdict(record.ranks.per_step())
    return f'<div style="margin:.3em 0;font-size:12px">{escape(text)}</div>' if text else ""


def _facts(record: RunRecord) -> str:
    """Step and newest values; what only tells how training goes comes last."""
    rows = []
    if record.step:
        rows.append(("step", f"{record.step:,}" + (f" of {record.total_steps:,}" if record.total_steps else "")))
    for name, curve in sorted(record.curves.items(), key=lambda item: summary.is_signal(item[0]))[:8]:
        if curve.last is None:
            continue
        if summary.is_speed(name):
            rows.append((name, summary.count(curve.last[1])))
            continue
        top = curve.low if summary.lower_is_better(name) else curve.high
        note = f" {_dim(f'best {summary.number(top[1])} at {top[0]:,}')}" if top and top != curve.last else ""
        rows.append((name, summary.number(curve.last[1]) + note))
    cells = "".join(f"<span>{_dim(escape(name))}</span><span>{value}</span>" for name, value in rows)
    return f'<div style="display:grid;grid-template-columns:auto auto;gap:0 .9em">{cells}</div>'


def _params(record: RunRecord) -> str:
    shown = list(record.params.items())[:MAX_PARAMS]
    text = ", ".join(f"{_dim(escape(str(k)))} {escape(str(v)[:60])}" for k, v in shown)
    more = f" and {len(record.params) - MAX_PARAMS} more" if len(record.params) > MAX_PARAMS else ""
    return f'<div style="margin-top:.3em">{text}{more}</div>' if text else ""


def _foot(record: RunRecord, folder: str) -> str:
    return f'<div style="margin-top:.3em;font-size:11px">{_dim(escape(folder or record.id))}</div>'


def _dim(html: str) -> str:
    return f'<span style="opacity:.65">{html}</span>'
