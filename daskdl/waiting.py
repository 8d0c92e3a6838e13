"""Waiting for what workers do, without waiting for ever in silence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from daskdl.errors import ConnectionFailed, NotEnoughWorkers

if TYPE_CHECKING:
    from distributed import Client, Future

SAY_SECONDS = 5.0  # of waiting, before it is said what for
LOOK_SECONDS = 1.0  # between two looks
GIVE_UP_SECONDS = 120.0  # without any worker

logger = logging.getLogger("daskdl")


class Waiting:
    """Looks, while somebody waits for tasks, whether they can still come, and says what keeps them from beginning.

    Parameters
    ----------
    client : distributed.Client
    what : str
        What is waited for.
    say : callable, optional
        Takes a sentence; by default it is logged as a warning.
    """

    def __init__(self, client: Client, what: str, say: Callable[[str], None] | None = None) -> None:
        self.client, self.what = client, what
        self._say: Callable[[str], None] = say or logger.warning
        self._since = self._looked_at = self._seen_worker = time.monotonic()
        self._said = ""

    def look(self, futures: Iterable[Future]) -> bool:
        """Look, if the last time was a while ago; whether nothing was found that keeps them.

        Raises
        ------
        ConnectionFailed
            The client was closed.
        NotEnoughWorkers
            There has been no worker for two minutes.
        """
        if self.client.status in ("closing", "closed"):
            raise ConnectionFailed(f"the client was closed while {self.what} was waited for.")
        now = time.monotonic()
        if now - self._since < SAY_SECONDS or now - self._looked_at < LOOK_SECONDS:
            return False
        self._looked_at = now
        keys = [future.key for future in futures]
        n_workers, why = self.client.run_on_scheduler(hindrance, keys)
        self._seen_worker = now if n_workers else self._seen_worker
        if now - self._seen_worker > GIVE_UP_SECONDS:
            raise NotEnoughWorkers(
                f"the cluster at {self.client.scheduler.address} has had no worker for {GIVE_UP_SECONDS:.0f} s, so "
                f"{self.what} cannot come. Add workers: client.cluster.scale(n)."
            )
        if why and why != self._said:
            self._said = why
            self._say(f"waiting for {self.what}: {why}")
        return not why


def as_they_come(
    client: Client, futures: Iterable[Future], what: str, say: Callable[[str], None] | None = None
) -> Iterator[Future]:
    """Yield futures as they are done, in whatever way; see ``Waiting``."""
    from distributed import wait

    pending, waiting = list(futures), Waiting(client, what, say)
    while pending:
        with suppress(TimeoutError, CancelledError):
            wait(pending, timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED")
        done = [future for future in pending if future.status != "pending"]
        pending = [future for future in pending if future.status == "pending"]
        yield from done
        if pending and not done:
            waiting.look(pending)


def hindrance(keys: list[Any], dask_scheduler: Any) -> tuple[int, str]:
    """Number of workers, and what keeps tasks from beginning, if anything does; runs on the scheduler.

    That is other tasks that hold all threads, workers that are paused, or that there is no worker which may run them.
    """
    from distributed.core import Status

    workers = dask_scheduler.workers
    if not workers:
        return 0, "the cluster has no workers."
    ours, ahead = set(), [dask_scheduler.tasks[key] for key in keys if key in dask_scheduler.tasks]
    while ahead:
        task = ahead.pop()
        if task not in ours and task.state not in ("memory", "released"):
            ours.add(task)
            ahead += task.dependencies
    homeless = [task for task in ours if task.state == "no-worker"]
    if homeless:
        return len(workers), f"no worker may run {homeless[0].key!r}; {len(workers)} are there."
    at = {task.processing_on for task in ours if task.processing_on} or set(workers.values())
    if paused := sorted(ws.address for ws in at if ws.status == Status.paused):
        return len(workers), f"{', '.join(paused)} is paused, as its memory is nearly full."
    held = [ws for ws in at if ws.executing and ours.isdisjoint(ws.executing)]
    others = sorted((str(task.key), ws.address) for ws in held for task in ws.executing)
    said = ", ".join(f"{key} on {address}" for key, address in others[:3])
    return len(workers), f"other tasks hold the threads: {said}. It goes on when these end." if others else ""
