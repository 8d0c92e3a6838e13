"""The workers that a run holds from its first gang to its last, so that runs side by side never mix."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from distributed import Client, MultiLock

SAY_SECONDS = 1.0  # of waiting, before it is said what for
TRY_SECONDS = 0.1
QUEUE = "daskdl-queue"  # the lock that is held by the run whose turn it is to wait for workers
SEPARATOR = "|"


class Seats:
    """Locks on workers, one per address, held by a run. Leaving it as a context gives all of them back.

    The locks are Dask's ``MultiLock``. Nobody holds a worker while waiting for another: a run that begins takes all it
    needs at once, or none, and those that have to wait do so in the order of asking. One that runs already takes more
    only if they are free. So no two runs ever wait for each other.

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
        if self._try(addresses):
            return
        asked, said = time.monotonic(), False
        with self._turn():
            while not self._try(addresses):
                if say is not None and not said and time.monotonic() - asked > SAY_SECONDS:
                    held = {a: owner for a, owner in holders(self.client).items() if a in addresses}
                    who = ", ".join(sorted(set(held.values()))) or "another run"
                    say(f"waiting for {len(held)} of {len(addresses)} workers, held by {who}")
                    said = True
                time.sleep(TRY_SECONDS)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for one's turn among those that wait; an interrupt gives it up."""
        lock = self._lock([QUEUE])
        try:
            lock.acquire()
            yield
        finally:
            if self.client.status == "running":
                with suppress(KeyError):  # interrupted before it was asked for
                    self.client.sync(self.client.scheduler.multi_lock_release, id=lock.id)

    def _try(self, addresses: Sequence[str]) -> bool:
        """Hold all of them if all are free."""
        lock = self._lock(addresses)
        got = bool(lock.acquire(blocking=False))
        if got:
            self._locks.append(lock)
        return got

    def take_free(self, addresses: Sequence[str], most: int) -> list[str]:
        """Hold up to ``most`` of them without waiting; return those."""
        got: list[str] = []
        for address in addresses:
            if len(got) == most:
                break
            if self._try([address]):
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
    return {str(name): str(users[0]).split(SEPARATOR)[0] for name, users in locks.items() if users and name != QUEUE}


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
