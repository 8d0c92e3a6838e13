"""Who holds which worker, decided on the scheduler: a pure decision, and the plugin around it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from distributed.diagnostics.plugin import SchedulerPlugin

if TYPE_CHECKING:
    from distributed import Scheduler

NAME = "daskdl-queue"
MOST_ENDED = 1_000  # requests that are remembered as given back, in case a question of theirs is still on its way


@dataclass(frozen=True)
class Request:
    """What a run asks for: all of some workers at once.

    Attributes
    ----------
    id : str
    owner : str
        The run, for those who wait for it.
    client : str
        Id of the Dask client that asks.
    workers : tuple of str
        Addresses.
    """

    id: str
    owner: str
    client: str
    workers: tuple[str, ...]


def decide(waiting: Sequence[Request], held: Collection[str], present: Collection[str]) -> list[Request]:
    """Say who of those that wait gets all that they ask for now.

    Nobody gets a part, so nobody holds a worker while waiting for another. Who asked earlier comes first: later ones do
    not take what an earlier one waits for, so everyone's turn comes. Workers that are gone are not waited for.

    Parameters
    ----------
    waiting : sequence of Request
        In the order of asking.
    held, present : collection of str
        Workers that are held, and those that the cluster has.

    Examples
    --------
    >>> first, second = Request("1", "a", "c", ("x", "y")), Request("2", "b", "c", ("y",))
    >>> [r.id for r in decide([first, second], held=["x"], present=["x", "y"])]
    []
    >>> [r.id for r in decide([first, second], held=[], present=["x", "y"])]
    ['1']
    """
    taken, granted = set(held), []
    for request in waiting:
        wanted = set(request.workers) & set(present)
        if not wanted & taken:
            granted.append(request)
        taken |= wanted
    return granted


class QueuePlugin(SchedulerPlugin):
    """Knows on the scheduler who holds which worker, and who waits.

    Attributes
    ----------
    held : dict of str to Request
        By worker.
    waiting : dict of str to Request
        By id, in the order of asking.
    """

    name = NAME

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.held: dict[str, Request] = {}
        self.waiting: dict[str, Request] = {}
        self._changed = asyncio.Event()
        self._ended: deque[str] = deque(maxlen=MOST_ENDED)

    def ask(self, request: Request) -> None:
        """Stand in line; a second time changes nothing, nor does a question that arrives after it was given up."""
        if request.id not in (*self.waiting, *self._ended) and request not in self.held.values():
            self.waiting[request.id] = request
            self._serve()

    async def granted(self, request: Request, seconds: float) -> bool:
        """Wait some seconds until a request is granted; one whose client was thought to be gone is asked anew."""
        self.ask(request)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while request.id in self.waiting and (left := deadline - loop.time()) > 0:
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), left)
            except TimeoutError:
                break
        return request.id not in self.waiting

    def take_free(self, request: Request, most: int) -> list[str]:
        """Give at once up to ``most`` of the workers that nobody holds, whoever waits for them.

        A run that has lost a worker needs another one to go on, and those that wait may wait for what it holds.
        """
        free = [worker for worker in request.workers if worker in self.scheduler.workers and worker not in self.held]
        self.held |= dict.fromkeys(free[:most], request)
        return free[:most]

    def give_back(self, ids: Collection[str]) -> None:
        """End requests: what they hold is free, and they wait no more."""
        self._ended.extend(ids)
        self.waiting = {i: request for i, request in self.waiting.items() if i not in ids}
        self.held = {worker: request for worker, request in self.held.items() if request.id not in ids}
        self._serve()

    def held_by(self, client: str) -> list[str]:
        """Workers that a client holds."""
        return [worker for worker, request in self.held.items() if request.client == client]

    def end_client(self, client: str) -> None:
        """End all requests of a client that has left."""
        requests = [*self.waiting.values(), *self.held.values()]
        self.give_back({request.id for request in requests if request.client == client})

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Forget what a client that leaves is waiting for. What it holds is the overseer's to give back."""
        self.waiting = {i: request for i, request in self.waiting.items() if request.client != client}
        self._serve()

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """See whether somebody waits for it."""
        self._serve()

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """A worker that is lost is nobody's, and is not waited for."""
        self.held.pop(worker, None)
        self._serve()

    def _serve(self) -> None:
        """Give workers to those whose turn it is."""
        workers = self.scheduler.workers
        for request in decide(list(self.waiting.values()), self.held, workers):
            del self.waiting[request.id]
            self.held |= {worker: request for worker in request.workers if worker in workers}
        self._changed.set()
        self._changed = asyncio.Event()


def queue_of(scheduler: Scheduler) -> QueuePlugin:
    """Return the queue of a scheduler; one is started where there is none."""
    if NAME not in scheduler.plugins:
        scheduler.add_plugin(QueuePlugin(scheduler))
    return cast(QueuePlugin, scheduler.plugins[NAME])
