"""The workers that a run holds from its first gang to its last, so that runs side by side never mix."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from distributed import Client, MultiLock

SAY_SECONDS = 1.0  # of waiting, before it is said what for
SEPARATOR = "|"


class Seats:
    """Locks on workers, one per address, held by a run. Leaving it as a context gives all of them back.

    The locks are Dask's ``MultiLock``. All that a run needs to begin is asked for at once and in the order of asking,
    and more are only taken if they are free, so no two runs ever wait for each other.

    Parameters
    ----------
    client : distributed.Client
    owner : str
        Who holds them, for those who wait; no ``|`` in it.
    """

    def __init__(self, client: Client, owner: str) -> None:
        self.client, self.owner = client, owner
        self._locks: list[MultiLock] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        locks, self._locks = self._locks, []
        for lock in locks:
            if self.client.status == "running":
                lock.release()

    def take(self, addresses: Sequence[str], say: Callable[[str], None] | None = None) -> None:
        """Wait until all of them are free and hold them; after a second ``say`` what is waited for."""
        lock = self._lock(addresses)
        if not lock.acquire(timeout=SAY_SECONDS if say else None):
            held = {a: owner for a, owner in holders(self.client).items() if a in addresses}
            if say is not None:
                who = ", ".join(sorted(set(held.values()))) or "another run"
                say(f"waiting for {len(held)} of {len(addresses)} workers, held by {who}")
            lock = self._lock(addresses)
            lock.acquire()
        self._locks.append(lock)

    def take_free(self, addresses: Sequence[str], most: int) -> list[str]:
        """Hold up to ``most`` of them without waiting; return those."""
        got: list[str] = []
        for address in addresses:
            if len(got) == most:
                break
            lock = self._lock([address])
            if lock.acquire(blocking=False):
                self._locks.append(lock)
                got.append(address)
        return got

    def _lock(self, addresses: Sequence[str]) -> MultiLock:
        lock = MultiLock(list(addresses), self.client)
        lock.id = SEPARATOR.join((self.owner, self.client.id, uuid.uuid4().hex))
        return lock


def holders(client: Client) -> dict[str, str]:
    """Who holds each worker, by address; workers that nobody holds are left out."""
    found: dict[str, str] = client.run_on_scheduler(_holders)
    return found


def _holders(dask_scheduler: Any) -> dict[str, str]:
    locks = dask_scheduler.extensions["multi_locks"].locks
    return {str(name): str(users[0]).split(SEPARATOR)[0] for name, users in locks.items() if users}


def seats_of_client(dask_scheduler: Any, client: str) -> list[str]:
    """Give back what a client that has left was holding or waiting for; return the addresses it held.

    Runs on the scheduler, whose ``MultiLock`` knows nothing of clients.
    """
    extension = dask_scheduler.extensions["multi_locks"]
    held: list[str] = []
    for owner in [owner for owner in extension.requests if f"{SEPARATOR}{client}{SEPARATOR}" in str(owner)]:
        names = list(extension.requests[owner])
        held += [name for name in names if extension.locks[name] and extension.locks[name][0] == owner]
        extension._retain_locks(names, owner)
    return held
