"""XGBoost's own collective over the ranks of a gang: a tracker in rank 0, and nothing left where it dies."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import torch.distributed as dist
import xgboost

from daskdl.execution import rendezvous, spmd


@contextmanager
def communicator(rank: int, world_size: int) -> Iterator[None]:
    """XGBoost's collective over the gang's ranks; rank 0 serves its tracker."""
    if world_size == 1:
        yield
        return
    tracker = None
    args: list[Any] = [None]
    if rank == 0:
        tracker = xgboost.tracker.RabitTracker(world_size, spmd.host_of_rank(), sortby="task")
        tracker.start()
        args = [tracker.worker_args()]
    dist.broadcast_object_list(args)  # pickled by our own rank 0
    others, ports, before = _listening(), set[tuple[str, int]](), rendezvous.connections()
    try:
        # one try: the tracker is up, and when its rank has failed it does not come back
        with xgboost.collective.CommunicatorContext(**args[0], dmlc_task_id=f"{rank:06d}", dmlc_retry=1):
            ports = _listening() - others
            rendezvous.also_shut(before)
            yield
        if tracker is not None:
            tracker.wait_for()
    except BaseException:
        for address in _listening() & ports:
            _end_listener(address)
        raise
    finally:
        if tracker is not None:
            tracker.free()


def _listening() -> set[tuple[str, int]]:
    """Addresses at which this process listens."""
    connections = psutil.Process().net_connections(kind="tcp")
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


def _end_listener(address: tuple[str, int]) -> None:
    """End the thread that waits for word of other ranks' errors, as XGBoost does itself if its tracker still lives.

    The word for it is an integer of 32 bits that is 0 (``ShutdownSignal`` in XGBoost's ``collective/protocol.h``).
    """
    host = "localhost" if address[0] in ("0.0.0.0", "::") else address[0]
    with suppress(OSError), socket.create_connection((host, address[1]), timeout=1) as connection:
        connection.sendall(bytes(4))
