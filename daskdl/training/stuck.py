"""Ranks that make no progress: found by how long steps took before, and named with the line they are at."""

from __future__ import annotations

import time
from collections.abc import Sequence

from distributed import Client

from daskdl.errors import RankFailed
from daskdl.execution.calls import call_workers
from daskdl.execution.progress import Place, place_of
from daskdl.run import Run

ASK_SECONDS = 5.0  # between two looks


class Stuck:
    """Looks now and then whether the ranks of a run still come to the end of their steps."""

    def __init__(self, client: Client, run: Run) -> None:
        self.client, self.run = client, run
        self._looked_at, self._changes = time.monotonic(), -1

    def check(self, workers: Sequence[str]) -> None:
        """Ask all ranks where they are, if nothing has been heard of them for a while.

        Raises
        ------
        RankFailed
            Each of them has been at its step for far longer than steps took before.
        """
        if time.monotonic() - self._looked_at < ASK_SECONDS:
            return
        self._looked_at, before, self._changes = time.monotonic(), self._changes, self.run.record.changes
        if before != self._changes:
            return
        answers = call_workers(self.client, place_of, self.run.id, workers=workers)
        places = {rank: answers.get(worker) for rank, worker in enumerate(workers)}
        found = {rank: place for rank, place in places.items() if isinstance(place, Place)}
        if len(found) == len(workers) and all(place.seconds > place.allowed for place in found.values()):
            raise stuck_error(found, workers)


def stuck_error(places: dict[int, Place], workers: Sequence[str]) -> RankFailed:
    """Make the error: the ranks that the others wait for, or all of them if each waits for another."""
    guilty = {rank: place for rank, place in places.items() if not place.waiting} or places
    seconds = min(place.seconds for place in places.values())
    lines = "; ".join(f"rank {rank} at step {place.step} in {place.line}" for rank, place in sorted(guilty.items()))
    if len(guilty) < len(places) or len(places) == 1:
        why = "The others wait for it." if len(places) > 1 else ""
    elif all("/xgboost/" in place.line for place in guilty.values()):
        why = "All of them are in XGBoost, which does not tell a rank that computes from one that waits for the others."
    elif any(place.waiting for place in guilty.values()):
        why = "Each waits for the others: all ranks must call the same collectives (context.sum, a backward pass of a "
        why += "prepared model, torch.distributed) equally often and in the same order, whatever their data."
    else:
        why = "All of them are in code of their own."
    rank = min(guilty)
    return RankFailed(
        f"no rank has come to the end of its step for {seconds:.0f} s, far longer than before: {lines}. {why} The "
        "ranks were stopped; the run can be resumed from its last checkpoint.",
        rank,
        len(workers),
        workers[rank],
    )
