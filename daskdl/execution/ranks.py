"""What a rank does in its worker's process, and what can be done to it there."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import tblib
from distributed import Status, get_worker

from daskdl.execution import rendezvous
from daskdl.execution.frames import guard_frames
from daskdl.execution.rank_env import available_cores, training_process
from daskdl.execution.witness import last_words
from daskdl.travel import Packed, pack


@dataclass(frozen=True)
class Gang:
    """What every rank is told about its gang; ``client`` is the id of that which started it."""

    id: str
    workers: tuple[str, ...]
    backend: str
    store_port: int
    client: str = ""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.workers)

    def host(self, rank: int) -> str:
        """Address of the host of a rank."""
        return urlsplit(self.workers[rank]).hostname or "127.0.0.1"

    def threads(self, rank: int) -> int:
        """Compute threads of a rank: the cores of its host, shared among the ranks there."""
        here = self.host(rank)
        return max(1, available_cores() // sum(self.host(r) == here for r in range(self.world_size)))


@dataclass
class _Rank:
    """A rank of this process: the client of its gang, and how often it asked whether to stop, once a step."""

    client: str
    steps: int = 0


_stopping: set[str] = set()  # gangs of this process that were told to stop
_running: dict[str, _Rank] = {}  # by gang: what runs in this process
_ended: list[_Rank] = []  # the last that did
_serving: dict[str, str] = {}  # gangs whose store this process serves, and their clients


def wake(gang: str) -> None:
    """Have the rank of a gang in this process stop, also if it is blocked in a collective."""
    _stopping.add(gang)
    rendezvous.abort(gang)


def gangs_of(client: str) -> int:
    """Ranks in this process whose gang a client has started."""
    return sum(rank.client == client for rank in list(_running.values()))


def stop_gangs(client: str) -> None:
    """Wake and stop the ranks in this process of a client that has left."""
    for gang in [gang for gang, rank in list(_running.items()) if rank.client == client]:
        wake(gang)


def end_gangs(client: str, dask_worker: Any) -> None:
    """Close what is left of the gangs of a client that has left, if it must be with the worker's process."""
    if gangs_of(client):
        end_process(dask_worker)
    for gang in [gang for gang, owner in list(_serving.items()) if owner == client]:
        close_store(gang)


def serve_store(gang: str, host: str, client: str) -> int:
    """Serve the store of a client's gang from this process; see ``rendezvous.serve_store``."""
    _serving[gang] = client
    return rendezvous.serve_store(gang, host)


def close_store(gang: str) -> None:
    """Forget a gang, and its store if this process serves it."""
    if gang not in _running:  # a rank that ended before it was woken, or never began
        _stopping.discard(gang)
    _serving.pop(gang, None)
    rendezvous.close_store(gang)


def stopping() -> bool:
    """Whether the gang of the calling rank was told to stop, or its worker closes; a training loop asks once a step."""
    gang = getattr(_this_rank, "gang", "")
    if gang not in _running:
        return False
    _running[gang].steps += 1
    return gang in _stopping or _this_rank.worker.status in (Status.closing, Status.closed)


def told_to_stop() -> bool:
    """Whether the gang of the calling rank was told to stop; asked at any time, it counts no step."""
    return getattr(_this_rank, "gang", "") in _stopping


def steps_begun() -> int:
    """Steps that the rank of this process began before it ended, the last one that did."""
    return _ended[-1].steps if _ended else 0


_this_rank = threading.local()


def host_of_rank() -> str:
    """Address at which the other ranks of its gang reach the calling rank."""
    return str(_this_rank.host)


@dataclass
class Failure:
    """What a rank returns when its function raised: an error as a value, so that Dask does not log it as well."""

    first: int
    error: BaseException
    traceback: dict[str, Any]

    def exception(self) -> BaseException:
        """Return the error with the traceback it had in the worker."""
        return self.error.with_traceback(tblib.Traceback.from_dict(self.traceback).as_traceback())


def rank_main(gang: Gang, rank: int, call: tuple[Packed, Packed], found: tuple[list[Any], list[Any]]) -> Packed:
    """One rank: join the gang, call the function, and say who failed first if it fails.

    Parameters
    ----------
    call : (Packed, Packed)
        The function and its arguments, and further arguments of this rank.
    found : (list, list)
        Results of the futures among them.
    """
    guard_frames()
    store = rendezvous.connect_store(gang.host(0), gang.store_port)
    _this_rank.gang, _this_rank.host, _this_rank.worker = gang.id, gang.host(rank), get_worker()
    _running[gang.id] = _Rank(gang.client)
    try:
        with (
            last_words(_this_rank.worker),
            training_process(gang.threads(rank)),
            rendezvous.process_group(gang.id, store, gang.backend, rank, gang.world_size, gang.host(rank)),
        ):
            try:
                (function, args), extra = (packed.open(values) for packed, values in zip(call, found, strict=True))
                return pack(function(*args, *extra), f"what rank {rank} returned", "back")
            except BaseException as error:
                # first, because other ranks fail by what comes next
                failure = _failure(store if gang.id not in _stopping else None, rank, error)
                rendezvous.abort(gang.id)
                return pack(failure)
    finally:
        _this_rank.gang = ""
        _stopping.discard(gang.id)
        _ended[:] = [_running.pop(gang.id)]


def _failure(store: Any, rank: int, error: BaseException) -> Failure:
    try:  # a rank that was told to stop need not ask, perhaps in a machine that cannot be reached, for a minute
        first = int(store.compare_set("failed", "", str(rank))) if store is not None else 0
    except RuntimeError:  # the process that serves the store died
        first = 0
    frames = tblib.Traceback(error.__traceback__).to_dict()
    error.__traceback__ = None  # its frames hold the model and the data
    try:
        pack(error).open()
    except Exception:  # an error that does not survive the way to the client
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return Failure(first, error, frames)


def end_process(dask_worker: Any) -> None:
    """Kill a worker that a nanny starts again."""
    if dask_worker.nanny and not dask_worker.address.startswith("inproc://"):
        os.kill(os.getpid(), signal.SIGKILL)
