"""The state of one run as a fold over its messages: pure, bounded, the same on client and scheduler."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from daskdl.tracking.breakdown import Ranks

TOPIC = "daskdl"  # the Dask event topic every message travels on
MAX_POINTS = 1_500  # per curve; more, and 50 runs of 6 curves do not fit into 50 MiB of the scheduler
MAX_EVENTS = 500


@dataclass
class Curve:
    """One metric over steps, never longer than ``MAX_POINTS``.

    When it is full, every second point is dropped and from then on only every ``stride``-th step is kept, so a
    million steps cost as much memory as two thousand. The last, lowest and highest points are kept whatever happens.
    """

    points: list[tuple[int, float]] = field(default_factory=list)
    stride: int = 1
    last: tuple[int, float] | None = None
    low: tuple[int, float] | None = None
    high: tuple[int, float] | None = None

    def add(self, step: int, value: float) -> None:
        """Add the value of one step; steps may come out of order, and of two values of a step the newer one stays."""
        if self.last is None or step >= self.last[0]:
            self.last = (step, value)
        if not math.isnan(value):
            if self.low is None or value < self.low[1]:
                self.low = (step, value)
            if self.high is None or value > self.high[1]:
                self.high = (step, value)
        if self.points and step % self.stride:
            return
        at = bisect_left(self.points, step, key=lambda point: point[0])
        same = at < len(self.points) and self.points[at][0] == step
        self.points[at : at + same] = [(step, value)]
        if len(self.points) > MAX_POINTS:
            self.points = self.points[::2]
            self.stride *= 2

    def xy(self, limit: int | None = None) -> tuple[list[int], list[float]]:
        """Return steps and values, the last point included, thinned to about ``limit`` of them."""
        points = self.points[:: max(1, -(-len(self.points) // limit))] if limit else self.points
        if self.last is not None and (not points or points[-1][0] < self.last[0]):
            points = [*points, self.last]
        return [s for s, _ in points], [v for _, v in points]


@dataclass
class RunRecord:
    """What is known of one run. Build it by applying messages (see docs/architecture.md)."""

    id: str
    name: str = ""
    algorithm: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    total_steps: int | None = None
    num_workers: int | None = None
    state: str = "waiting"  # waiting, running, finished, failed, stopped
    error: str | None = None
    seed: int | None = None
    started: float | None = None
    ended: float | None = None
    first: tuple[float, int] | None = None  # time and step of the first metrics: the pace is counted from there
    step: int = 0
    epoch: float | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    uses: list[tuple[int, int, int, int]] = field(default_factory=list)  # first step, stop, rows used, digest of them
    ranks: Ranks | None = None  # of the newest gang: where its time goes, and its memory
    generation: int = 0  # gangs before the one that said so
    changes: int = 0  # messages applied; a watcher compares it with the number it drew last

    def apply(self, message: dict[str, Any]) -> None:
        """Fold one message in; an unknown kind is ignored, so an older page can watch a newer run."""
        handler = getattr(self, f"_on_{message.get('kind')}", None)
        if handler is not None:
            handler(message)
            self.changes += 1

    def _on_start(self, m: dict[str, Any]) -> None:
        self.name, self.algorithm = m.get("name", ""), m.get("algorithm", "")
        self.params, self.seed = m.get("params", {}), m.get("seed")
        self.total_steps, self.num_workers = m.get("total_steps"), m.get("num_workers")
        self.started = m["time"]
        if self.state == "waiting":
            self.state = "running"

    def _on_metrics(self, m: dict[str, Any]) -> None:
        if m["points"] and (self.first is None or m["time"] < self.first[0]):
            self.first = (m["time"], max(step for step, _ in m["points"]))
        for step, values in m["points"]:
            self.step = max(self.step, step)
            for name, value in values.items():
                self.curves.setdefault(name, Curve()).add(step, value)
        if m.get("epoch") is not None:
            self.epoch = m["epoch"]
        if m.get("generation", 0) >= self.generation:  # or others have followed this gang since
            self.generation = m.get("generation", 0)
            if m.get("uses") is not None:
                self.uses = [tuple(use) for use in m["uses"]]
            if m.get("ranks") is not None:
                self._add_ranks(m["ranks"])

    def _on_event(self, m: dict[str, Any]) -> None:
        self.events.append({k: m.get(k) for k in ("time", "event", "text", "step")})
        del self.events[:-MAX_EVENTS]

    def _add_ranks(self, said: dict[str, Any]) -> None:
        if self.ranks is None or self.ranks.generation != self.generation:
            self.ranks = Ranks(self.generation)
        self.ranks.add(said)

    def _on_end(self, m: dict[str, Any]) -> None:
        self.state, self.error, self.ended = m["state"], m.get("error"), m["time"]

    @property
    def progress(self) -> float | None:
        """Share of the steps done, 0 to 1, or None when the number of steps is not known."""
        if self.state == "finished":
            return 1.0
        return min(1.0, self.step / self.total_steps) if self.total_steps else None

    def seconds_left(self, now: float) -> float | None:
        """Seconds until the last step at the pace since the first metrics, or None when it cannot be told."""
        if self.state != "running" or not self.total_steps or self.first is None or self.step <= self.first[1]:
            return None
        since, step = self.first
        return max(0.0, (now - since) * (self.total_steps - self.step) / (self.step - step))
