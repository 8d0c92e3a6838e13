"""Sending the state of a run of one rank to another process, and bringing it back from there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
from distributed.comm import connect
from distributed.protocol import to_serialize
from distributed.protocol.pickle import dumps
from distributed.utils import offload

from daskdl.execution.deposits import GIVE, HELD, HOLD, accept_deposits
from daskdl.execution.holders import holder_for

ANSWER_SECONDS = 5.0  # for another process to answer; a piece of a deposit is small
CONNECT_SECONDS = 2.0  # to connect to it
LOOK_SECONDS = 2.0  # between two looks whether a deposit is still there
REST_SECONDS = 5.0  # when nobody takes it
TRIES = 3  # to find somebody who takes it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deposited:
    """Where a deposit lies.

    Attributes
    ----------
    holder : str
        Address of a worker or a nanny.
    step, n_pieces : int
    """

    holder: str
    step: int
    n_pieces: int


class Depositor:
    """Keeps the newest of what it is offered in another process, too; runs in a worker, on its event loop.

    One is on its way at a time; those that come meanwhile but the newest are never sent. Who holds it is chosen again
    when it leaves, or does not answer.

    Parameters
    ----------
    worker : distributed.Worker
    run : str
    pack : callable
        Makes pieces of bytes of what is offered; called in a thread.
    """

    def __init__(self, worker: Any, run: str, pack: Callable[[Any], list[bytes]]) -> None:
        self._worker, self._run, self._pack = worker, run, pack
        self._newest: tuple[int, Any] | None = None
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._holder = ""
        self._comm: Any = None
        self._shunned: set[str] = set()  # that did not answer
        worker.loop.add_callback(self._begin)

    def offer(self, step: int, thing: Any) -> None:
        """Have it sent soon. Returns at once; it must not be changed afterwards."""
        self._newest = step, thing
        self._worker.loop.add_callback(self._news.set)

    def close(self) -> None:
        """Send nothing more. Returns at once."""
        self._worker.loop.add_callback(self._end)

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._work())

    def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        sent = None  # step of what the holder has
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._news.wait()
                self._news.clear()
                if self._newest is not None and not (self._newest[0] == sent and await self._is_there(sent)):
                    sent = await self._send()
                    await asyncio.sleep(0 if sent is not None else REST_SECONDS)
        except Exception as error:  # of any class: what is to be packed is the user's own
            text = "commits of this run are in the memory of its one rank only: %s: %s"
            logger.warning(text, type(error).__name__, error)
        finally:
            self._hang_up()

    async def _send(self) -> int | None:
        """Send the newest to who holds deposits of this run, or else to another one; return its step if that worked."""
        assert self._newest is not None
        step, pieces = self._newest[0], await offload(self._pack, self._newest[1])
        about = {"run": self._run, "step": step, "n_pieces": len(pieces)}
        for _ in range(TRIES):
            if self._comm is None and not await self._find(sum(map(len, pieces))):
                return None
            for number, piece in enumerate(pieces):
                if not await self._ask(HOLD, **about, number=number, piece=to_serialize(piece)):
                    self._hang_up()
                    break
            else:
                return step
        return None

    async def _is_there(self, step: int) -> bool:
        """Whether the holder still has the deposit of a step."""
        answer = await self._ask(HELD, run=self._run)
        return answer is not None and answer[0] == step

    async def _find(self, n_bytes: int) -> bool:
        """Have the scheduler choose a holder, and call it."""
        room = psutil.virtual_memory().available
        about = dumps((self._run, self._worker.address, n_bytes, room, sorted(self._shunned)))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                call = self._worker.scheduler.run_function(function=dumps(holder_for), args=about)
                holder = (await call).get("result")
            if holder is None:
                self._shunned.clear()  # perhaps they are well when it is tried again
                return False
            self._holder = holder
            self._comm = await connect(holder, CONNECT_SECONDS, **self._worker.connection_args)
        except OSError:  # a time-out too
            self._shunned.add(self._holder)
            return False
        return await self._ask("run", function=dumps(accept_deposits)) is not None

    async def _ask(self, op: str, **message: Any) -> Any:
        """Ask the holder; None if it does not answer."""
        if self._comm is None:
            return None
        answer = await ask(self._comm, op, **message)
        if answer is None:
            self._shunned.add(self._holder)
            self._hang_up()
        return answer

    def _hang_up(self) -> None:
        if self._comm is not None:
            self._comm.abort()
            self._comm = None


async def ask(comm: Any, op: str, **message: Any) -> Any:
    """Ask a server something; None if it does not answer in time, or with an error."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await comm.write({"op": op, "reply": True, **message})
            answer = await comm.read()
    except OSError:  # a time-out too
        return None
    failed = isinstance(answer, dict) and answer.get("status") in ("error", "uncaught-error")
    return None if failed else answer


async def fetch(worker: Any, run: str, where: Deposited) -> list[bytes]:
    """Bring a deposit to this worker.

    Raises
    ------
    OSError
        Who holds it does not answer, or has it no more.
    """
    comm = await connect(where.holder, ANSWER_SECONDS, **worker.connection_args)
    try:
        pieces = []
        for number in range(where.n_pieces):
            piece = await ask(comm, GIVE, run=run, step=where.step, number=number)
            if piece is None:
                raise OSError(f"{where.holder} does not give the commit of step {where.step}")
            pieces.append(piece)
        return pieces
    finally:
        comm.abort()
