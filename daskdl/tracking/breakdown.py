"""Where the time of each rank goes, and what that says: pure functions of what the ranks reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

# What ranks do in a step, in its order; "boost" and "evaluate" are of trees. The last one is whatever else a loop does.
PHASES = (
    "data",
    "to device",
    "forward",
    "backward",
    "boost",
    "all-reduce",
    "optimizer",
    "validation",
    "commit",
    "other",
)
SAYING = {
    "data": "waiting for data",
    "to device": "copying to its device",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "boost": "growing trees",
    "optimizer": "in the optimizer",
    "validation": "validating",
    "commit": "committing",
    "all-reduce": "in the all-reduce of the gradients",
    "other": "in the loop's own code",
}
COMPUTING = ("forward", "backward", "boost", "optimizer")
WAITING = "all-reduce"
WORTH = 0.1  # share of a step from which a rank that is waited for is worth a word
RECENT_SECONDS = 2.0  # about, that "now" is


@dataclass
class Ranks:
    """What the ranks of one gang did since it began.

    Attributes
    ----------
    generation : int
        Of the gang.
    steps : int
        Added up.
    seconds : list of list of float
        By rank, then by phase (``PHASES``): of all these steps.
    recent : list of list of float
        The same for the newest ``recent_steps`` steps.
    host, gpu : list of int
        Memory by rank, in bytes: of the process, and of the device for the process.
    host_peak, gpu_peak : list of int
        The most of it that was seen.
    """

    generation: int = 0
    steps: int = 0
    seconds: list[list[float]] = field(default_factory=list)
    recent_steps: int = 0
    recent: list[list[float]] = field(default_factory=list)
    host: list[int] = field(default_factory=list)
    gpu: list[int] = field(default_factory=list)
    host_peak: list[int] = field(default_factory=list)
    gpu_peak: list[int] = field(default_factory=list)

    def add(self, said: dict[str, Any]) -> None:
        """Fold in ``steps``, and ``seconds``, ``host`` and ``gpu`` by rank, of the steps since the last time."""
        n = len(said["seconds"])
        zeros = [[0.0] * len(PHASES) for _ in range(n)]
        self.seconds = _sum(self.seconds or zeros, said["seconds"])
        self.steps += said["steps"]
        long_enough = sum(map(sum, self.recent)) >= RECENT_SECONDS * n
        old = (zeros, 0) if long_enough or not self.recent else (self.recent, self.recent_steps)
        self.recent, self.recent_steps = _sum(old[0], said["seconds"]), old[1] + said["steps"]
        self.host, self.gpu = list(said["host"]), list(said["gpu"])
        self.host_peak = [max(pair) for pair in zip(self.host_peak or [0] * n, self.host, strict=True)]
        self.gpu_peak = [max(pair) for pair in zip(self.gpu_peak or [0] * n, self.gpu, strict=True)]

    def per_step(self, recent: bool = False) -> list[dict[str, float]]:
        """Return, by rank, the seconds of a step by phase; phases that took no time in any rank are left out."""
        seconds, steps = (self.recent, self.recent_steps) if recent else (self.seconds, self.steps)
        used = [i for i in range(len(PHASES)) if any(line[i] for line in seconds)]
        return [{PHASES[i]: line[i] / max(1, steps) for i in used} for line in seconds]


def _sum(one: list[list[float]], other: list[list[float]]) -> list[list[float]]:
    return [[a + b for a, b in zip(*lines, strict=True)] for lines in zip(one, other, strict=True)]


def verdict(ranks: list[dict[str, float]]) -> str:
    """Say in words what limits a training, from the seconds of a step by phase of each rank.

    Gradients are summed when the last rank has them, so all ranks take the same time for a step. The one that the
    others wait for is that which waits least; what it does for longer than the others is why.

    Examples
    --------
    >>> verdict([{"data": 0.01, "backward": 0.02, "all-reduce": 0.05}, {"data": 0.06, "backward": 0.02}])
    'Rank 1 is the straggler: 75 % of its step is waiting for data. The others wait 62 % of a step for it.'
    """
    steps = [sum(rank.values()) for rank in ranks]
    if not any(steps):
        return ""
    slow, waited = _straggler([rank.get(WAITING, 0.0) for rank in ranks])
    if waited > WORTH * fmean(steps):
        phase = _what_takes_longer(ranks, slow)
        share = ranks[slow][phase] / steps[slow]
        text = f"Rank {slow} is the straggler: {share:.0%} of its step is {SAYING[phase]}. The others wait "
        return f"{text}{waited / fmean(steps):.0%} of a step for it.".replace("%", " %")
    shares = {phase: fmean(rank.get(phase, 0.0) for rank in ranks) / fmean(steps) for phase in PHASES}
    computing = sum(shares[phase] for phase in COMPUTING)
    longest = max(PHASES, key=lambda phase: shares[phase] if phase not in COMPUTING else 0.0)
    text = f"{computing:.0%} of a step is computing, {shares[longest]:.0%} {SAYING[longest]}."
    return f"{'The ranks are even: ' if len(ranks) > 1 else ''}{text}".replace("%", " %")


def _straggler(waits: list[float]) -> tuple[int, float]:
    """Return the rank that waits least for the others, and how much longer half of the others wait."""
    slow = min(range(len(waits)), key=lambda rank: waits[rank])
    others = [wait for rank, wait in enumerate(waits) if rank != slow]
    return slow, median(others) - waits[slow] if others else 0.0


def _what_takes_longer(ranks: list[dict[str, float]], slow: int) -> str:
    """Return what a rank does for longer than the others."""
    others = [rank for i, rank in enumerate(ranks) if i != slow]
    phases = [phase for phase in ranks[slow] if phase != WAITING]
    return max(phases, key=lambda name: ranks[slow][name] - fmean(rank.get(name, 0.0) for rank in others))
