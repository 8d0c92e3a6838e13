"""The state of one run as a fold over its messages: pure, bounded, the same on client and scheduler."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from daskdl.tracking.breakdown import Ranks

TOPIC = "daskdl"  # the Dask event topic every message travels on
MAX_POINTS = 2_000  # per curve; two neighbours are merged into one when a curve grows past it
MAX_EVENTS = 500
ENDED = ("finished", "failed", "stopped")


@dataclass
class Curve:
    """One metric over steps, never longer than ``MAX_POINTS``.

    When it is full, every second point is dropped and from then on only every ``stride``-th step is kept, so a
    million steps cost as much memory as two thousand. The last, lowest and highest points are kept whatever happens.
    """

    steps: array[int] = field(default_factory=lambda: array("q"))  # arrays, as tuples take seven times the memory
    values: array[float] = field(default_factory=lambda: array("d"))
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
        if not self.steps or self.keeps(step):
            self._put(step, value)

    def keeps(self, step: int) -> bool:
        """Say whether the value of a step is among those that are kept, however the curve was thinned."""
        return step % self.stride == 0 or (bool(self.steps) and step == self.steps[0])

    def xy(self, limit: int | None = None) -> tuple[list[int], list[float]]:
        """Return steps and values, the last point included, thinned to about ``limit`` of them."""
        thin = max(1, -(-len(self.steps) // limit)) if limit else 1
        steps, values = self.steps[::thin].tolist(), self.values[::thin].tolist()
        if self.last is not None and (not steps or steps[-1] < self.last[0]):
            return [*steps, self.last[0]], [*values, self.last[1]]
        return steps, values

    def _put(self, step: int, value: float) -> None:
        at = bisect_left(self.steps, step)
        if at < len(self.steps) and self.steps[at] == step:
            self.values[at] = value
            return
        self.steps.insert(at, step)
        self.values.insert(at, value)
        if len(self.steps) > MAX_POINTS:
            self.steps, self.values = self.steps[::2], self.values[::2]
            self.stride *= 2


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


def outcome(error: BaseException | None) -> tuple[str, str | None]:
    """Return state and text of a run that ends with ``error``, or with None."""
    if error is None:
        return "finished", None
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "stopped by KeyboardInterrupt"
    return "failed", f"{type(error).__name__}: {error}"
