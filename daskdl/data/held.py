"""Blocks in the memory of workers: read there by key, and laid there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed import Client, Future
from distributed.utils import sync

from daskdl.errors import WorkerLost
from daskdl.workers import workers_of


def read_held(worker: Any, key: str) -> Any:
    """Read a block of the worker's memory, or of its disk if Dask has spilled it, from a thread of that worker.

    By key, and not as what a task depends on: that would be cancelled with a block of another worker.
    """
    return sync(worker.loop, _get, worker, key)


async def _get(worker: Any, key: str) -> Any:
    """Read on the worker's event loop, where all else does."""
    if key not in worker.data:
        raise RuntimeError(f"block {key} is not on {worker.address} any more: it was cancelled or moved away")
    return worker.data[key]


def laid(client: Client, block: Future, worker: str) -> Future:
    """Lay a block on a worker under a key of its own: of a key on two workers Dask may drop either one."""
    return client.submit(_same, block, workers=[worker], pure=False)


def _same(block: Any) -> Any:
    return block


def check_there(client: Client, workers: Sequence[str]) -> None:
    """Raise ``WorkerLost`` if one of the workers is gone: what is to lie on it would be waited for without end."""
    alive = workers_of(client)
    for rank, worker in enumerate(workers):
        if worker not in alive:
            text = f"rank {rank} of {len(workers)} is lost: its worker {worker} left while data was laid on it."
            raise WorkerLost(text, rank, len(workers), worker)
