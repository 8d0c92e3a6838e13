"""Which workers a cluster has now, and what to do when one is lost in the middle of something."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from distributed import Client

TRIES = 4

T = TypeVar("T")


def workers_of(client: Client) -> dict[str, Any]:
    """What the scheduler knows of each worker there is now, by address.

    ``Client.scheduler_info`` may answer with no workers at all: it returns what the client's clock, which asks every
    two seconds for the rest only, may just have put in its place.
    """
    found: dict[str, Any] = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
    return found


def again_if_lost(work: Callable[[], T]) -> T:
    """Do some work on the workers, and again if one is lost with data that only this process can give out again.

    Dask cancels what depends on such data; a worker that dies while it is given some closes the scheduler's answer.
    """
    from distributed.comm import CommClosedError

    for _ in range(TRIES - 1):
        try:
            return work()
        except (
            CancelledError,
            CommClosedError,
        ) as error:  # the client keeps it, and its traceback would keep our futures
            error.__traceback__ = None
    return work()
