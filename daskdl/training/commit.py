"""What a training can go on from: the state after a step, held in the memory of every rank's process.

Data-parallel ranks are replicas: after a step all have the same state. So each keeps its own copy, no storage and no
network is needed, and any one survivor is enough.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Use = tuple[int, int, int, int]  # first step, stop step, rows used by all ranks, digest of them


@dataclass
class Commit:
    """The state of a run after a number of steps.

    Attributes
    ----------
    step : int
        Steps done.
    state : dict
        ``state_dict`` of everything kept, by name, on the CPU.
    uses : dict of int to Use
        What was used until then, by the first step of each stretch; for the audit.
    """

    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    uses: dict[int, Use] = field(default_factory=dict)


_commits: dict[str, Commit] = {}  # of this process, by run


def put_commit(run: str, commit: Commit) -> None:
    """Keep a commit of a run in place of the one before."""
    _commits[run] = commit


def commit_step(run: str) -> int:
    """Steps of the commit of a run that this process has; 0 if it has none."""
    return _commits[run].step if run in _commits else 0


def take_commit(run: str) -> Commit:
    """Return the commit of a run that this process has."""
    return _commits.get(run, Commit())


def forget_commit(run: str) -> None:
    """Free the memory of a run's commit."""
    _commits.pop(run, None)
