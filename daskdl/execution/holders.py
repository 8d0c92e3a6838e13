"""The scheduler's part of deposits: which processes hold what for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from distributed import Client

from daskdl.execution.deposits import Place, choose, deposited, drop_deposit, end_deposits

if TYPE_CHECKING:
    from distributed import Scheduler

OVERSEER = "daskdl-overseer"
RETRY_SECONDS = 1.0  # until those that did not answer are asked again
END_TRIES = 10  # to have a deposit forgotten by one that is not there; one that is there is asked on and on


class Watch(Protocol):
    """What ``Holders`` need of the ``Overseer``, which has them."""

    scheduler: Scheduler

    def goes_on(self, run: str) -> bool:
        """Whether a run has a client."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do some work as long as the plugin watches."""

    async def ask_all(self, addresses: Iterable[str], function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function in workers or nannies; what they answer, or the error of those that do not."""


class Holders:
    """The workers and nannies that were chosen to hold deposits; a part of the ``Overseer``.

    Attributes
    ----------
    chosen : dict of str to set of str
        By run: addresses of those that hold something for it, or did.
    """

    def __init__(self, overseer: Watch) -> None:
        self._overseer = overseer
        self.chosen: dict[str, set[str]] = {}

    def choose(self, run: str, worker: str, n_bytes: int, room: int, shunned: Sequence[str]) -> str | None:
        """Choose who is to hold the deposit of a run that goes on, for a worker; see ``deposits.choose``."""
        scheduler = self._overseer.scheduler
        ws = scheduler.workers.get(worker)
        if ws is None or not self._overseer.goes_on(run):
            return None
        others = [other for other in scheduler.running if other is not ws and other.address not in shunned]
        places = [Place(o.address, o.host, int(o.metrics.get("memory", 0)), o.memory_limit or 0) for o in others]
        nanny = ws.nanny if ws.nanny not in shunned else None
        holder = choose(places, nanny, ws.host, n_bytes, room)
        if holder is not None:
            self.chosen.setdefault(run, set()).add(holder)
        return holder

    async def deposits(self, run: str) -> dict[str, tuple[int, int]]:
        """Ask who was chosen for a run what they hold: step and number of pieces, by address."""
        return await self._ask(self.chosen.get(run, set()), deposited, run)

    async def drop(self, run: str) -> None:
        """Have what is held for a run forgotten, as it is not needed now."""
        await self._ask(self.chosen.get(run, set()), drop_deposit, run)

    def end(self, run: str) -> None:
        """Have what is held for a run that is over forgotten, also by those that do not answer now."""
        if holders := self.chosen.pop(run, None):
            self._overseer.spawn(self._end(run, holders))

    async def _end(self, run: str, holders: set[str]) -> None:
        workers = self._overseer.scheduler.workers
        for n in count():
            holders -= (await self._ask(holders, end_deposits, run)).keys()
            if n >= END_TRIES:  # until then, the worker of a nanny may just be starting again
                holders &= {*workers, *(ws.nanny for ws in workers.values())}
            if not holders:
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _ask(self, holders: set[str], function: Callable[..., Any], run: str) -> dict[str, Any]:
        """Call a function in workers and nannies; the answers of those that gave one."""
        asked = sorted(holders)
        answers = await self._overseer.ask_all(asked, function, run)
        return {h: answer for h, answer in zip(asked, answers, strict=True) if not isinstance(answer, BaseException)}


def _holders_of(scheduler: Scheduler) -> Holders | None:
    overseer: Any = scheduler.plugins.get(OVERSEER)
    return overseer.holders if overseer is not None else None


def holder_for(run: str, worker: str, n_bytes: int, room: int, shunned: list[str], dask_scheduler: Any) -> str | None:
    """Choose who is to hold the deposit of a run; runs on the scheduler."""
    holders = _holders_of(dask_scheduler)
    return holders.choose(run, worker, n_bytes, room, shunned) if holders is not None else None


def deposits_of(client: Client, run: str) -> dict[str, tuple[int, int]]:
    """Say who holds something for a run: step and number of pieces, by address."""
    found: dict[str, tuple[int, int]] = client.run_on_scheduler(_deposits_of, run)
    return found


async def _deposits_of(run: str, dask_scheduler: Any) -> dict[str, tuple[int, int]]:
    holders = _holders_of(dask_scheduler)
    return await holders.deposits(run) if holders is not None else {}


def drop_deposits(client: Client, run: str) -> None:
    """Have what is held for a run forgotten, as it is not needed now."""
    client.run_on_scheduler(_drop_deposits, run)


async def _drop_deposits(run: str, dask_scheduler: Any) -> None:
    holders = _holders_of(dask_scheduler)
    if holders is not None:
        await holders.drop(run)
