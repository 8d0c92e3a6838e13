"""What the Training page shows of the ranks of a run, as plain data: pure functions of records, no Bokeh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from dask.utils import format_bytes

from daskdl.dashboard.view import Colored
from daskdl.tracking.breakdown import PHASES, WAITING, verdict
from daskdl.tracking.colors import GPU, HOST, PEAK, PHASE_COLORS
from daskdl.tracking.record import RunRecord

MOST = 8  # ranks that are drawn: more would not be told apart in a low pane
BAR = ("rank", "left", "right", "color", "what", "text")
MEMORY = ("rank", "now", "peak", "color", "what", "text")

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Bars:
    """Bars by rank.

    Attributes
    ----------
    factors : list of str
        Names of the ranks, from the top.
    rows : list of tuple
        ``BAR`` or ``MEMORY``.
    words : str
        What stands above them, as HTML.
    """

    factors: list[str]
    rows: list[Row]
    words: str


NOTHING = Bars([], [], "")


def watched(runs: Colored) -> RunRecord | None:
    """Return the run whose ranks are shown: the newest that is running, else the newest, of those that have any."""
    found = [record for _, record in runs if record.ranks is not None and record.ranks.seconds]
    running = [record for record in found if record.state == "running"]
    return next(reversed(running or found), None)


def breakdown(record: RunRecord | None) -> Bars:
    """Return the phases of a step of each rank, end to end, in milliseconds; of about now while the run is running."""
    if record is None or record.ranks is None:
        return NOTHING
    recent = record.state == "running"
    n_steps = record.ranks.recent_steps if recent else record.ranks.steps
    ranks = record.ranks.per_step(recent)
    shown, which = _busiest_and_idlest(ranks)
    rows = [row for rank in shown for row in _phases(rank, ranks[rank])]
    used = [phase for phase in PHASES if any(phase in rank for rank in ranks)]
    key = "".join(f'<span><i style="background:{PHASE_COLORS[phase]}"></i>{phase}</span>' for phase in used)
    steps = f"the last {n_steps:,} steps" if recent else f"all {n_steps:,} steps"
    about = f"{escape(record.name or record.id)}, mean of {steps}{which}"
    said = escape(verdict(ranks)).replace(" %", "&nbsp;%")
    words = f"{_title('Time of a step', about)}<p>{said}</p><div class='key'>{key}</div>"
    return Bars([_name(rank) for rank in shown], rows, words)


def memory(record: RunRecord | None) -> Bars:
    """Return the memory of each rank, now and at its peak, in bytes: of the host, and of the GPU where one is used."""
    if record is None or record.ranks is None:
        return NOTHING
    ranks = record.ranks
    on_gpu = any(ranks.gpu_peak)
    most = sorted(range(len(ranks.host)), key=lambda i: (-ranks.gpu_peak[i], -ranks.host_peak[i]))
    shown = sorted(most[:MOST])
    kinds = [("host", HOST, ranks.host, ranks.host_peak)]
    kinds += [("GPU", GPU, ranks.gpu, ranks.gpu_peak)] if on_gpu else []
    rows = [
        ((_name(rank), _offset(i, len(kinds))), now[rank], peak[rank], color, what, _amount(now[rank], peak[rank]))
        for rank in shown
        for i, (what, color, now, peak) in enumerate(kinds)
    ]
    key = "".join(f'<span><i style="background:{color}"></i>{what}</span>' for what, color, _, _ in kinds)
    key += f'<span><i style="border:1.5px solid {PEAK}"></i>peak</span>'
    which = f"{MOST} of {len(most)} ranks, those with the most" if len(most) > MOST else ""
    name = ", ".join(filter(None, [escape(record.name or record.id), which]))
    return Bars([_name(rank) for rank in shown], rows, f"{_title('Memory', name)}<div class='key'>{key}</div>")


def _busiest_and_idlest(ranks: Sequence[dict[str, float]]) -> tuple[list[int], str]:
    """Return the ranks to draw and, if they are not all, which they are."""
    if len(ranks) <= MOST:
        return list(range(len(ranks))), ""
    busy = [sum(seconds for phase, seconds in rank.items() if phase != WAITING) for rank in ranks]
    order = sorted(range(len(ranks)), key=lambda i: -busy[i])
    half = MOST // 2
    return order[:half] + order[-half:], f"; the {half} busiest and the {half} least busy of {len(ranks)} ranks"


def _phases(rank: int, seconds: dict[str, float]) -> list[Row]:
    left, total = 0.0, sum(seconds.values()) or 1.0
    rows = []
    for phase, length in seconds.items():
        text = f"{milliseconds(1_000 * length)}, {length / total:.0%} of the step".replace("%", " %")
        rows.append((_name(rank), left, left + 1_000 * length, PHASE_COLORS[phase], phase, text))
        left += 1_000 * length
    return rows


def milliseconds(value: float) -> str:
    """Write a time for people: ``0.42 ms``, ``31 ms``, ``1.3 s``."""
    return f"{value / 1_000:.3g} s" if value >= 1_000 else f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


def _title(what: str, about: str) -> str:
    return f"<div class='title'>{what} <small>{about}</small></div>"


def _name(rank: int) -> str:
    return f"rank {rank}"


def _offset(i: int, n: int) -> float:
    """Return where a bar of several of one rank lies, from -0.5 to 0.5."""
    return (i - (n - 1) / 2) * 0.4


def _amount(now: int, peak: int) -> str:
    return f"{format_bytes(now)} now, {format_bytes(peak)} at its peak"
