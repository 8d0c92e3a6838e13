"""The workers that a run holds from its first gang to its last, so that runs side by side never mix."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from distributed import Client

from daskdl.execution.queue import Request, queue_of

if TYPE_CHECKING:
    from distributed import Scheduler

SAY_SECONDS = 1.0  # of waiting, before it is said what for
ASK_SECONDS = 0.5  # between two questions of one that waits


class Seats:
    """Workers that a run holds. Leaving it as a context gives all of them back.

    Who gets which is decided on the scheduler, see ``queue.decide``. Nobody holds a worker while waiting for another: a
    run that begins takes all it needs at once, or none, and those that have to wait do so in the order of asking. One
    that runs already takes more only if they are free. So no two runs ever wait for each other.

    Parameters
    ----------
    client : distributed.Client
    owner : str
        Who holds them, for those who wait.
    """

    def __init__(self, client: Client, owner: str) -> None:
        self.client, self.owner = client, owner
        self._ids: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ids, self._ids = self._ids, []
        if ids and self.client.status == "running":
            with suppress(OSError):  # the scheduler is gone, or does what it does for clients that are
                self.client.run_on_scheduler(_give_back, ids)

    def take(self, addresses: Sequence[str], say: Callable[[str], None] | None = None) -> None:
        """Wait until all of them are free and hold them; after a second ``say`` what is waited for."""
        request, began, said = self._request(addresses), time.monotonic(), False
        while not self.client.run_on_scheduler(_granted, request, ASK_SECONDS):
            if say is not None and not said and time.monotonic() - began > SAY_SECONDS:
                held = {a: owner for a, owner in holders(self.client).items() if a in addresses}
                who = ", ".join(sorted(set(held.values()))) or "a run that asked earlier"
                say(f"waiting for {len(held)} of {len(addresses)} workers, held by {who}")
                said = True

    def take_free(self, addresses: Sequence[str], most: int) -> list[str]:
        """Hold up to ``most`` of them without waiting; return those."""
        got: list[str] = self.client.run_on_scheduler(_take_free, self._request(addresses), most)
        return got

    def _request(self, addresses: Sequence[str]) -> Request:
        request = Request(uuid.uuid4().hex, self.owner, self.client.id, tuple(addresses))
        self._ids.append(request.id)  # before it is asked for, so that an interrupt gives it back
        return request


def holders(client: Client) -> dict[str, str]:
    """Who holds each worker, by address; workers that nobody holds are left out."""
    found: dict[str, str] = client.run_on_scheduler(_holders)
    return found


# -- on the scheduler ---------------------------------------------------------------------------------------------


async def _granted(request: Request, seconds: float, dask_scheduler: Scheduler) -> bool:
    return await queue_of(dask_scheduler).granted(request, seconds)


def _take_free(request: Request, most: int, dask_scheduler: Scheduler) -> list[str]:
    return queue_of(dask_scheduler).take_free(request, most)


def _give_back(ids: list[str], dask_scheduler: Scheduler) -> None:
    queue_of(dask_scheduler).give_back(ids)


def _holders(dask_scheduler: Any) -> dict[str, str]:
    return {worker: request.owner for worker, request in queue_of(dask_scheduler).held.items()}
