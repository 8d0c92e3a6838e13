"""The scheduler's eye on runs: who was lost and why, who has fallen silent, and whose client has gone."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit
from weakref import WeakSet

import psutil
from distributed import Client
from distributed.core import rpc
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps
from distributed.scheduler import heartbeat_interval
from tornado.ioloop import PeriodicCallback

from daskdl.errors import WorkerLost
from daskdl.execution.holders import OVERSEER, Holders
from daskdl.execution.obituary import BLOCKED, STOPPED, UNREACHABLE, Death, told
from daskdl.execution.queue import queue_of
from daskdl.execution.ranks import end_gangs, gangs_of, stop_gangs
from daskdl.execution.witness import EXITS, Witness, kill_worker, look_at_worker
from daskdl.execution.words import STOP, put_word
from daskdl.tracking.record import TOPIC

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import WorkerState

TICK_SECONDS = 0.25
MAX_DEATHS = 200
MEMORY_SAMPLES = 120  # per worker: about the last minute
EXPLAIN_SECONDS = 2.0  # for the nanny of a worker that was lost to say how it ended
ASK_SECONDS = 1.0  # for the machine of a silent worker to answer
ANSWER_SECONDS = 10.0  # for a process to answer that is thought to be well, on a machine that may be very busy
MUTE = "mute"  # its machine answers, its nanny does not
IDLE_SECONDS = 0.05  # of computing, between two looks: threads that wait for Python's lock wake up all the time
RETURN_SECONDS = 2.0  # for a client to reconnect
OBEY_SECONDS = 3.0  # for ranks without a client to commit and stop
WAKE_SECONDS = 10.0  # for those that did not to stop when they are woken, before their process is ended


@dataclass(frozen=True)
class Patience:
    """How long a worker with a rank may be silent. Heartbeats come every half second, up to ten workers.

    Attributes
    ----------
    suspect : float
        Heartbeat intervals until its nanny is asked what it does. A false alarm costs nothing but that question.
    lost, lost_intervals : float
        Seconds, and heartbeat intervals, until it is given up if its machine does not answer either.
    blocked : float
        Seconds until it is given up if its nanny sees it, but sees it compute nothing, or says nothing itself. One that
        computes is busy, however long it holds Python's lock.
    """

    suspect: float = 2.0
    lost: float = 2.5
    lost_intervals: float = 4.0
    blocked: float = 15.0

    def give_up(self, interval: float) -> float:
        """Seconds until a worker that cannot be reached at all is given up."""
        return max(self.lost, self.lost_intervals * interval)


class Silence:
    """For how long workers have said nothing, counted only while the scheduler was there to hear it.

    A scheduler whose process was busy, stopped or suspended hears nobody; that is no sign of anything.
    """

    def __init__(self) -> None:
        self._at: float | None = None
        self._seen: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def tick(self, now: float, seen: dict[str, float]) -> None:
        """Take the times at which workers were last heard of; others are forgotten."""
        passed = min(now - self._at, 2 * TICK_SECONDS) if self._at is not None else 0.0
        self.seconds = {a: self.seconds.get(a, 0.0) + passed if self._seen.get(a) == seen[a] else 0.0 for a in seen}
        self._at, self._seen = now, dict(seen)


def judge(answer: tuple[str, float] | str | None, silent: float, give_up: float, blocked: float) -> str | None:
    """Decide whether a silent worker is lost, and how: None if it is not, or not yet.

    Parameters
    ----------
    answer : (str, float), str or None
        What ``look_at_worker`` says, ``UNREACHABLE`` or ``MUTE``.
    silent, give_up, blocked : float
        Seconds: for how long it is silent, and the bounds of ``Patience``.
    """
    if answer in (UNREACHABLE, MUTE):
        return UNREACHABLE if silent >= (give_up if answer == UNREACHABLE else blocked) else None
    if answer is None or isinstance(answer, str):  # no process: the nanny is about to tell how it ended
        return None
    status, computed = answer
    if status == psutil.STATUS_STOPPED:
        return STOPPED
    idle = status in (psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP, psutil.STATUS_IDLE) and computed < IDLE_SECONDS
    return BLOCKED if idle and silent >= blocked else None


class Overseer(SchedulerPlugin):
    """Watches the workers that runs hold, and the clients that hold them; runs on the scheduler.

    Attributes
    ----------
    deaths : dict of str to Death
        By address, oldest first, at most ``MAX_DEATHS``.
    runs : dict of str to dict
        By client: id of each of its runs, and what its workers are to do when it is over without a client.
    holders : Holders
    """

    name = OVERSEER
    idempotent = True

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self.deaths: dict[str, Death] = {}
        self.runs: dict[str, dict[str, bytes]] = {}
        self.holders = Holders(self)
        self._known: dict[str, Death] = {}  # what there is to tell of the living
        self._memory: dict[str, deque[tuple[float, int]]] = {}
        self._alive: set[str] = set()  # those of which no sign of death has come; an address may live again
        self._asking: set[str] = set()

    async def start(self, scheduler: Scheduler) -> None:
        """Begin to watch."""
        self.scheduler, self.silence = scheduler, Silence()
        self._tasks: set[asyncio.Task[None]] = set()
        for worker in scheduler.workers:
            self.add_worker(scheduler, worker)
        self._clock = PeriodicCallback(self._tick, 1000 * TICK_SECONDS)
        self._clock.start()
        self.spawn(self._call_witnesses())

    async def close(self) -> None:
        """Stop watching."""
        self._clock.stop()
        for task in self._tasks:
            task.cancel()

    async def _call_witnesses(self) -> None:
        with suppress(Exception):  # a nanny without daskdl: its workers' ends remain unexplained
            await self.scheduler.register_nanny_plugin(None, dumps(Witness()), Witness.name, idempotent=True)

    # -- who was lost -----------------------------------------------------------------------------------------

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Remember what is to be told of it should it be lost."""
        ws = scheduler.workers[worker]
        about = (str(ws.name), ws.host, ws.pid, ws.memory_limit or 0, ws.nanny is not None)
        self._known[worker] = Death(ws.address, *about)
        self._alive.add(worker)
        self._memory.pop(worker, None)

    def log_event(self, topic: str, msg: Any) -> None:
        """Take what nannies say of their workers, and who leaves."""
        if not isinstance(msg, dict) or not isinstance(msg.get("worker"), str):
            return
        if topic == "all" and msg.get("action") == "remove-worker":
            death = self._death(msg["worker"])
            death.retired = bool(msg.get("expected"))
            death.memory = list(self._memory.pop(death.address, ()))
            self._known.pop(death.address, None)
        elif topic == "worker-restart-memory":
            self._death(msg["worker"]).over_budget = msg["rss"]
        elif topic == EXITS:
            death = self._death(msg["worker"])
            if death.exitcode is None:
                death.exitcode, death.oom_kill, death.trace = msg["exitcode"], msg["oom_kill"], msg["trace"]
                death.lines = msg.get("lines", [])

    def _death(self, worker: str) -> Death:
        if worker not in self.deaths or worker in self._alive:
            self._alive.discard(worker)
            self.deaths.pop(worker, None)
            if len(self.deaths) >= MAX_DEATHS:
                del self.deaths[next(iter(self.deaths))]
            self.deaths[worker] = replace(self._known.get(worker, Death(worker)))
        return self.deaths[worker]

    # -- who is silent ----------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Look at the workers that runs hold."""
        workers = self.scheduler.workers
        held = {name: workers[name] for name in queue_of(self.scheduler).held if name in workers}
        for worker, ws in held.items():
            samples = self._memory.setdefault(worker, deque(maxlen=MEMORY_SAMPLES))
            if not samples or samples[-1][0] < ws.last_seen:
                samples.append((ws.last_seen, int(ws.metrics.get("memory", 0))))
        self.silence.tick(time.monotonic(), {worker: ws.last_seen for worker, ws in held.items()})
        suspect = self.patience.suspect * heartbeat_interval(len(workers))
        for worker, seconds in self.silence.seconds.items():
            if seconds > suspect and worker not in self._asking:
                self._asking.add(worker)
                self.spawn(self._inquire(held[worker]))

    async def _inquire(self, ws: WorkerState) -> None:
        """Find out what is the matter with a silent worker, and give it up if it is lost."""
        try:
            give_up = self.patience.give_up(heartbeat_interval(len(self.scheduler.workers)))
            left = give_up - self.silence.seconds.get(ws.address, 0.0) + TICK_SECONDS
            answer = await self._look(ws, max(ASK_SECONDS, left))
            silent = self.silence.seconds.get(ws.address, 0.0)
            verdict = judge(answer, silent, give_up, self.patience.blocked) if silent else None
            if verdict is not None and self.scheduler.workers.get(ws.address) is ws:
                await self._give_up(ws, verdict, silent)
            else:
                await asyncio.sleep(TICK_SECONDS)
        finally:
            self._asking.discard(ws.address)

    async def _look(self, ws: WorkerState, seconds: float) -> tuple[str, float] | str | None:
        """Ask after a worker: the system of its machine first, which answers however busy its processes are."""
        where = urlsplit(ws.nanny or ws.address)
        try:
            _, writer = await _listening(asyncio.open_connection(where.hostname, where.port), seconds)
            writer.close()
        except OSError:  # a time-out too
            return UNREACHABLE
        if ws.nanny is None:
            return psutil.STATUS_SLEEPING, 0.0
        try:
            answer: tuple[str, float] | None = await self.ask(ws.nanny, look_at_worker, seconds=ANSWER_SECONDS)
            return answer
        except OSError:
            return MUTE

    async def _give_up(self, ws: WorkerState, verdict: str, seconds: float) -> None:
        """Remove a worker as if it had died; its nanny starts another."""
        self._death(ws.address).silent = (verdict, seconds)
        through_nanny = ws.nanny is not None and verdict != UNREACHABLE  # told to close, it would not be started again
        stimulus = f"daskdl-{verdict}-{time.time()}"
        await self.scheduler.remove_worker(ws.address, stimulus_id=stimulus, close=not through_nanny)
        if ws.nanny is not None and through_nanny:
            with suppress(OSError):
                await self.ask(ws.nanny, kill_worker, ws.pid)

    # -- whose client has gone --------------------------------------------------------------------------------

    def goes_on(self, run: str) -> bool:
        """Whether a run has a client."""
        return any(run in runs for runs in self.runs.values())

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Stop what a client has left behind, unless it comes back."""
        if client in self.runs or queue_of(scheduler).held_by(client):
            self.spawn(self._clear_up(client))

    async def _clear_up(self, client: str) -> None:
        """Have the ranks of a client commit and stop, and give its workers back."""
        await asyncio.sleep(RETURN_SECONDS)
        if client in self.scheduler.clients:
            return
        queue = queue_of(self.scheduler)
        workers, runs = queue.held_by(client), self.runs.pop(client, {})
        for run in runs:
            await self._ask_those_left(workers, put_word, run, STOP)
        if runs:
            await self._until_idle(workers, client, OBEY_SECONDS)
        await self._ask_those_left(workers, stop_gangs, client)
        await self._until_idle(workers, client, WAKE_SECONDS)
        await self._ask_those_left(workers, end_gangs, client)
        for run, farewell in runs.items():
            await self._ask_those_left(workers, _call, farewell)
            why = "its client left the cluster. What it did until then is in its checkpoints: daskdl.resume goes on"
            told = {"run": run, "kind": "end", "time": time.time(), "state": "failed", "error": why}
            self.scheduler.log_event(TOPIC, told)
            self.holders.end(run)
        queue.end_client(client)

    async def _until_idle(self, workers: list[str], client: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while any(await self._ask_those_left(workers, gangs_of, client)) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)

    async def _ask_those_left(self, workers: list[str], function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function in workers that are still there; the answers of those that gave one."""
        here = [worker for worker in workers if worker in self.scheduler.workers]
        answers = await self.ask_all(here, function, *args, seconds=ANSWER_SECONDS)
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    # -- talking to workers and nannies -----------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do some work as long as this plugin watches."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def ask(self, address: str, function: Callable[..., Any], *args: Any, seconds: float = ASK_SECONDS) -> Any:
        """Call a function in a worker or a nanny."""

        async def ask() -> Any:
            async with rpc(address, connection_args=self.scheduler.connection_args) as server:
                return (await server.run(function=dumps(function), args=dumps(args))).get("result")

        return await _listening(ask(), seconds)

    async def ask_all(
        self, addresses: Iterable[str], function: Callable[..., Any], *args: Any, seconds: float = ASK_SECONDS
    ) -> list[Any]:
        """Call a function in workers or nannies at once; what they answer, or the error of those that do not."""
        asked = (self.ask(address, function, *args, seconds=seconds) for address in addresses)
        return await asyncio.gather(*asked, return_exceptions=True)


async def _listening(work: Coroutine[Any, Any, Any], seconds: float) -> Any:
    """Await work for some seconds, of which, as with ``Silence``, only those count in which the scheduler listens."""
    doing, listened, before = asyncio.ensure_future(work), 0.0, time.monotonic()
    try:
        while listened < seconds:
            if (await asyncio.wait({doing}, timeout=min(TICK_SECONDS, seconds - listened)))[0]:
                return doing.result()
            now = time.monotonic()
            listened, before = listened + min(now - before, 2 * TICK_SECONDS), now
        raise TimeoutError(f"no answer in {seconds:.1f} s")
    finally:
        doing.cancel()


def _call(function: bytes) -> None:
    from distributed.protocol.pickle import loads

    loads(function)()


# -- the client's side ------------------------------------------------------------------------------------------

_installed: WeakSet[Client] = WeakSet()


def install(client: Client) -> None:
    """Have a client's scheduler watch its workers; a second call does nothing."""
    if client not in _installed:
        client.register_plugin(Overseer())
        _installed.add(client)


@contextmanager
def watched(client: Client, run: str, farewell: Callable[[], Any]) -> Iterator[None]:
    """Have a run ended in order if its client should leave during the block.

    Parameters
    ----------
    farewell : callable
        Called in each worker of the run when it is over without a client.
    """
    install(client)
    client.run_on_scheduler(_begin, client.id, run, dumps(farewell))
    try:
        yield
    finally:
        if client.status == "running":
            with suppress(OSError):
                client.run_on_scheduler(_end, client.id, run)


def _begin(client: str, run: str, farewell: bytes, dask_scheduler: Scheduler) -> None:
    overseer = _overseer_of(dask_scheduler)
    if overseer is not None:
        overseer.runs.setdefault(client, {})[run] = farewell


def _end(client: str, run: str, dask_scheduler: Scheduler) -> None:
    overseer = _overseer_of(dask_scheduler)
    if overseer is not None and client in overseer.runs:
        overseer.runs[client].pop(run, None)
        if not overseer.runs[client]:
            del overseer.runs[client]
        overseer.holders.end(run)


def _overseer_of(scheduler: Scheduler) -> Overseer | None:
    return cast("Overseer | None", scheduler.plugins.get(Overseer.name))


def deaths_of(client: Client, workers: Sequence[str], seconds: float = EXPLAIN_SECONDS) -> list[Death]:
    """Say what is known of workers that left, in their order; waits up to ``seconds`` for what is not yet known."""
    found: list[Death] = client.run_on_scheduler(_deaths_of, list(workers), seconds)
    return found


async def _deaths_of(workers: list[str], seconds: float, dask_scheduler: Scheduler) -> list[Death]:
    overseer = _overseer_of(dask_scheduler)
    deadline = time.monotonic() + seconds
    while overseer is not None and time.monotonic() < deadline:
        if all(worker in overseer.deaths and overseer.deaths[worker].settled for worker in workers):
            break
        await asyncio.sleep(0.02)
    deaths = overseer.deaths if overseer is not None else {}
    return [deaths.get(worker, Death(worker)) for worker in workers]


def explained(client: Client, lost: Exception, seconds: float = 1.0) -> Exception:
    """Return the error of a lost worker with its likely cause; any other error as it is."""
    if not isinstance(lost, WorkerLost):
        return lost
    with suppress(OSError, RuntimeError):  # the scheduler is gone too
        text = told(deaths_of(client, [lost.worker], seconds))
        more = WorkerLost(f"{lost} {text}", lost.rank, lost.world_size, lost.worker)
        for note in getattr(lost, "__notes__", ()):
            more.add_note(note)
        return more
    return lost
