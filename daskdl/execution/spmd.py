"""One function on a gang of workers at once: one rank per worker, start together, fail together."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from distributed import Client, Future, wait

from daskdl.clients import needed_client
from daskdl.errors import NotEnoughWorkers, RankFailed, WorkerLost
from daskdl.execution.calls import call_workers
from daskdl.execution.interrupts import noted_interrupts
from daskdl.execution.losses import Losses
from daskdl.execution.overseer import explained, install
from daskdl.execution.ranks import (
    Failure,
    Gang,
    close_store,
    end_process,
    host_of_rank,
    rank_main,
    serve_store,
    stopping,
    wake,
)
from daskdl.execution.seats import Seats, holders
from daskdl.travel import Packed, pack
from daskdl.waiting import Waiting, logger
from daskdl.workers import workers_of

__all__ = ["Gang", "choose_workers", "host_of_rank", "run", "span_of", "stopping"]

ANSWER_SECONDS = 0.5  # to fetch what a rank returned, before it is asked whether its worker lives
GRACE_SECONDS = 3.0  # for ranks to leave by themselves after one failed
LOSS_SECONDS = 1.0  # for word of a lost worker, after a task was cancelled
WATCH_SECONDS = 0.25


def choose_workers(client: Client, num_workers: int | tuple[int, int] | None = None) -> list[str]:
    """Addresses of the workers that hold the ranks, in rank order: hosts one after the other.

    Those that no run holds are taken first.

    Parameters
    ----------
    client : distributed.Client
    num_workers : int or (int, int), optional
        As many, or as there are from the first to the second number. All workers by default.

    Raises
    ------
    NotEnoughWorkers
        The cluster has fewer; nothing was launched.
    """
    least, most = span_of(num_workers)
    everyone = sorted(workers_of(client))
    threads = [address for address in everyone if address.startswith("inproc://")]  # workers of one process
    workers = [address for address in everyone if address not in threads[1:]]
    if len(workers) < least:
        raise NotEnoughWorkers(
            f"num_workers={num_workers or 1} asked for, but the cluster at {client.scheduler.address} has "
            f"{len(workers)}{' process (processes=False), and a process holds one rank' if threads else ''}. "
            "A gang starts all its ranks at once, one per worker, so nothing was started. Ask for fewer, or add "
            "workers: client.cluster.scale(n)."
        )
    if most is not None and most < len(workers):
        taken = holders(client)
        workers = sorted(sorted(workers, key=lambda address: address in taken)[:most])
    return workers


def span_of(num_workers: int | tuple[int, int] | None) -> tuple[int, int | None]:
    """Fewest and most ranks to begin with; no upper bound is None."""
    if num_workers is None:
        return 1, None
    pair = num_workers if isinstance(num_workers, tuple) else (num_workers, num_workers)
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) for n in pair):
        raise TypeError(f"num_workers must be a number or a pair (fewest, most), got {num_workers!r}")
    if pair[0] < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    if pair[1] < pair[0]:
        raise ValueError(f"num_workers=(fewest, most) must not fall, got {num_workers}")
    return pair


def run(
    function: Callable[..., Any],
    *args: Any,
    num_workers: int | None = None,
    workers: Sequence[str] | None = None,
    rank_args: Sequence[tuple[Any, ...]] | None = None,
    client: Client | None = None,
    backend: str | None = None,
    held: bool = False,
    watch: Callable[[], None] | None = None,
    interrupted: Callable[[], bool] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Any]:
    """Run ``function(*args)`` on a gang of workers at once, inside a ``torch.distributed`` process group.

    Every rank sees ``torch.distributed.get_rank()`` and ``get_world_size()``. Gangs that share a worker wait for each
    other and never interleave. Blocks until all ranks have returned.

    Parameters
    ----------
    function : callable
        Runs in the workers. Its tensors are on the CPU unless it moves them.
    *args
        Passed to every rank. Futures arrive as their results.
    num_workers : int, optional
        Number of ranks; all workers by default.
    workers : sequence of str, optional
        Addresses to use instead, in rank order.
    rank_args : sequence of tuple, optional
        Further arguments of each rank, one tuple per rank, after ``args``.
    client : distributed.Client, optional
        The current client by default.
    backend : {"gloo", "nccl"}, optional
        NCCL where every worker of the gang sees a GPU, gloo otherwise.
    held : bool
        Whether the caller holds ``Seats`` on the workers; by default they are held while the gang lasts.
    watch : callable, optional
        Called several times a second while the ranks work.
    interrupted : callable, optional
        Called on ``KeyboardInterrupt``; if it returns true, the ranks are waited for all the same.
    say : callable, optional
        Takes a sentence that says what is waited for; by default it is logged.

    Returns
    -------
    list
        What each rank returned, in rank order.

    Raises
    ------
    NotEnoughWorkers
        Before anything is launched.
    RankFailed
        A rank raised. It is the first one to fail; its own exception is the ``__cause__``. The other ranks are woken
        from their collectives and stopped.
    WorkerLost
        The process of a rank died.

    Examples
    --------
    >>> import torch, torch.distributed as dist  # doctest: +SKIP
    >>> def mean_rank():
    ...     t = torch.tensor([float(dist.get_rank())])
    ...     dist.all_reduce(t)
    ...     return t.item() / dist.get_world_size()
    >>> daskdl.spmd.run(mean_rank, num_workers=2)  # doctest: +SKIP
    [0.5, 0.5]
    """
    client = needed_client(client, "a gang runs on workers")
    addresses = list(workers) if workers is not None else choose_workers(client, num_workers)
    extra = list(rank_args) if rank_args is not None else [()] * len(addresses)
    if len(extra) != len(addresses):
        raise ValueError(f"rank_args must have one tuple per rank: {len(addresses)} ranks, got {len(extra)}")
    call, more = pack((function, args), "the function with its arguments"), [pack(one, "rank_args") for one in extra]
    install(client)
    with Seats(client, str(getattr(function, "__name__", "spmd.run"))) as seats:
        if not held:
            seats.take(addresses, say or logger.warning)
        _check_alive(client, addresses)
        try:
            gang = _assemble(client, addresses, backend)
            name = str(getattr(function, "__name__", "rank"))
            beginning = Waiting(client, f"{gang.world_size} ranks to begin", say)
            return _launched(client, gang, name, call, more, _both(beginning, watch), interrupted)
        except WorkerLost as lost:
            if held:  # the caller may go on without it, and must not wait to be told why
                raise
            raise explained(client, lost) from None


def _both(beginning: Waiting, watch: Callable[[], None] | None) -> Callable[[list[Future]], None]:
    """What is looked at while ranks work: whether all have begun, until they have, and what the caller looks at."""
    begun = False

    def look(futures: list[Future]) -> None:
        nonlocal begun
        begun = begun or beginning.look(futures)
        if watch is not None:
            watch()

    return look


def _launched(
    client: Client,
    gang: Gang,
    name: str,
    call: Packed,
    extra: list[Packed],
    watch: Callable[[list[Future]], None],
    interrupted: Callable[[], bool] | None,
) -> list[Any]:
    """Start all ranks and wait for what they return; leaves nothing behind."""
    losses = Losses(client, list(gang.workers))
    futures = [
        client.submit(
            rank_main,
            gang,
            rank,
            (call, extra[rank]),
            (call.futures, extra[rank].futures),
            key=f"{name}-{gang.id}-{rank}",
            workers=[address],
            allow_other_workers=False,
            pure=False,
            retries=0,
            priority=100,
        )
        for rank, address in enumerate(gang.workers)
    ]
    try:
        with losses:
            return _gather(futures, gang, losses, watch, interrupted)
    finally:
        _disband(client, gang, futures)


def _check_alive(client: Client, addresses: list[str]) -> None:
    alive = workers_of(client)
    gone = [address for address in addresses if address not in alive]
    if gone:
        raise NotEnoughWorkers(
            f"{len(gone)} of the {len(addresses)} workers asked for are not in the cluster: {', '.join(gone)}. Nothing "
            f"was started. The cluster has: {', '.join(sorted(alive)) or 'none'}."
        )


def _assemble(client: Client, addresses: list[str], backend: str | None) -> Gang:
    """Open the store in rank 0's process and settle the backend."""
    identity = uuid.uuid4().hex[:8]
    host = urlsplit(addresses[0]).hostname or "127.0.0.1"
    port = call_workers(client, serve_store, identity, host, client.id, workers=addresses[:1]).get(addresses[0])
    if isinstance(port, BaseException) and not isinstance(port, OSError):
        raise port
    if not isinstance(port, int):  # it left, or is leaving
        raise _worker_lost(Gang(identity, tuple(addresses), "", 0), addresses[0])
    if backend is None:
        sees = call_workers(client, _sees_gpu, workers=addresses)
        backend = "nccl" if all(sees.get(address) is True for address in addresses) else "gloo"
    return Gang(identity, tuple(addresses), backend, port, client.id)


def _sees_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _gather(
    futures: list[Future],
    gang: Gang,
    losses: Losses,
    watch: Callable[[list[Future]], None],
    interrupted: Callable[[], bool] | None,
) -> list[Any]:
    """Wait for all ranks, or for the first sign of failure."""
    for future in futures:
        future.add_done_callback(lambda _: losses.news.set())
    answers: dict[int, Any] = {}
    with noted_interrupts() as noted:
        while len(answers) < len(futures):
            try:
                losses.news.wait(timeout=WATCH_SECONDS)
                losses.news.clear()
                _look(futures, gang, losses, answers)
                watch(futures)
                if noted.is_set():
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                noted.clear()
                if interrupted is None or not interrupted():
                    raise
    return [answers[rank] for rank in range(len(futures))]


def _look(futures: list[Future], gang: Gang, losses: Losses, answers: dict[int, Any]) -> None:
    """Take what has been answered; raises for a rank that failed, or a worker that is gone."""
    for rank, future in enumerate(futures):
        if future.status in ("error", "cancelled", "lost"):
            if future.status != "error":  # a worker took with it what the task needs: it may be told a moment later
                losses.wait(LOSS_SECONDS)
            raise _worker_lost(gang, losses.lost[0]) if losses.lost else _not_started(gang, rank, future)
        if future.status == "finished" and rank not in answers:
            answers[rank] = _answer(future, gang, losses)
    failures = {rank: answer for rank, answer in answers.items() if isinstance(answer, Failure)}
    if failures:
        raise _first_failure(failures, futures, gang, losses)
    if losses.lost:
        raise _worker_lost(gang, losses.lost[0])


def _answer(future: Future, gang: Gang, losses: Losses) -> Any:
    """Fetch what a rank returned. Dask waits for ever if its worker dies meanwhile: it would compute it again there."""
    seconds = ANSWER_SECONDS
    while True:
        try:
            return future.result(timeout=seconds).open(home=True)
        except TimeoutError:
            if losses.lost:
                raise _worker_lost(gang, losses.lost[0]) from None
            seconds *= 2  # what is large takes long


def _first_failure(failures: dict[int, Failure], futures: list[Future], gang: Gang, losses: Losses) -> RankFailed:
    """Make the error of the rank that failed first; every failed rank knows its number, agreed in the store."""
    first = next(iter(failures.values())).first
    deadline = time.monotonic() + GRACE_SECONDS
    while first not in failures and not losses.lost and time.monotonic() < deadline:
        if futures[first].status == "finished":
            failures[first] = _answer(futures[first], gang, losses)
        else:
            time.sleep(0.02)
    if losses.lost:  # its neighbours saw their connections close a moment before the scheduler knew
        return _worker_lost(gang, losses.lost[0])
    rank, failure = (first, failures[first]) if first in failures else next(iter(failures.items()))
    notes = getattr(failure.error, "__notes__", ())
    error = RankFailed(
        f"rank {rank} of {gang.world_size} on {gang.workers[rank]} failed: "
        f"{type(failure.error).__name__}: {failure.error}{''.join(f' ({note})' for note in notes)}",
        rank,
        gang.world_size,
        gang.workers[rank],
    )
    error.__cause__ = failure.exception()
    return error


def _worker_lost(gang: Gang, address: str) -> WorkerLost:
    rank = gang.workers.index(address)
    return WorkerLost(
        f"rank {rank} of {gang.world_size} is lost: its worker {address} left the cluster. The others were stopped.",
        rank,
        gang.world_size,
        address,
    )


def _not_started(gang: Gang, rank: int, future: Future) -> RankFailed:
    cause = future.exception() if future.status == "error" else None
    error = RankFailed(
        f"rank {rank} of {gang.world_size} on {gang.workers[rank]} could not start, its task is {future.status}: "
        f"{cause!r}. Ranks must be able to unpickle the function and its arguments.",
        rank,
        gang.world_size,
        gang.workers[rank],
    )
    error.__cause__ = cause
    return error


def _disband(client: Client, gang: Gang, futures: list[Future]) -> None:
    """Leave nothing behind: wake ranks that are blocked, cancel their tasks, close the store."""
    alive = [a for a in gang.workers if a in workers_of(client)]
    running = [f for f in futures if not f.done()]
    if running and alive:
        call_workers(client, wake, gang.id, workers=alive)
        deaf = _wait(client, running, [a for f, a in zip(futures, gang.workers, strict=True) if f in running])
        client.cancel(running, force=True)
        if deaf:  # in code that neither steps nor communicates: a thread cannot be ended but with its process
            call_workers(client, end_process, workers=deaf)
    elif running:  # nobody is left, and no other worker may run them
        client.cancel(running, force=True)
    if alive:
        call_workers(client, close_store, gang.id, workers=alive)


def _wait(client: Client, futures: list[Future], workers: Sequence[str]) -> list[str]:
    """Wait a while for ranks to leave; return the workers of those that have not, and are still there."""
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        with suppress(TimeoutError, CancelledError):
            wait(futures, timeout=0.2)
        alive = workers_of(client)
        left = [(f, a) for f, a in zip(futures, workers, strict=True) if a in alive and not f.done()]
        if not left or time.monotonic() > deadline:
            return [address for _, address in left]
        futures, workers = [future for future, _ in left], [address for _, address in left]
