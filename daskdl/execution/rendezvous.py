"""How the ranks of a gang find each other, and how a rank that is stuck in a collective is woken."""

from __future__ import annotations

import gc
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

STORE_TIMEOUT = timedelta(seconds=60)
RETIRE_SECONDS = 1.0

_control: list[Any] = []  # the process group of daskdl's own collectives, of the gang this process is in
_stores: dict[str, Any] = {}  # gang id -> TCPStore served by this process
_sockets: dict[str, set[tuple[int, int]]] = {}  # gang id -> {(file descriptor, inode)} of this process's connections


def serve_store(gang: str, host: str) -> int:
    """Serve a key-value store for a gang from this process, on ``host`` only; return the port the system chose."""
    from torch.distributed import TCPStore

    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = int(listener.getsockname()[1])
    _stores[gang] = TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=STORE_TIMEOUT,
        master_listen_fd=listener.detach(),
    )
    return port


def close_store(gang: str) -> None:
    """Stop serving the store of a gang; the process that does not serve one does nothing."""
    _stores.pop(gang, None)


def connect_store(host: str, port: int) -> Any:
    """Connect to the store of a gang."""
    from torch.distributed import TCPStore

    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=STORE_TIMEOUT)


@contextmanager
def process_group(gang: str, store: Any, backend: str, rank: int, world_size: int, host: str) -> Iterator[None]:
    """Make the default process group of this process, listening on ``host`` only, and destroy it on leaving."""
    import torch.distributed as dist

    if dist.is_initialized():
        raise RuntimeError(
            "this worker process already has a torch.distributed process group, and it can have one only. Give the "
            "cluster one thread per worker, and leave init_process_group to daskdl."
        )
    before = _connections(store.port)
    try:
        with _environment(GLOO_SOCKET_IFNAME=_interface_of(host)):
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
            _control[:] = [dist.new_group(backend="gloo")]
            dist.barrier(_control[0])  # connects the ranks, so that their sockets are known below
            if backend == "gloo":
                dist.barrier()
        _sockets[gang] = _connections(store.port) - before
        yield
    finally:
        failed = _sockets.pop(gang, None) is None
        _control.clear()
        if dist.is_initialized():  # or a rank was lost before this one had its group
            groups = list(dist.distributed_c10d._world.pg_map)
            dist.destroy_process_group()
            _retire(groups, failed)


def control_group() -> Any:
    """Process group, of the CPU, for daskdl's own collectives; None outside of a gang.

    Those of the user's code are in the default group, and may not match.
    """
    return _control[0] if _control else None


def collectives_called() -> int:
    """How many collectives this rank has begun in the default group: as many as the others, or some will wait."""
    import torch.distributed as dist

    group: Any = dist.distributed_c10d._get_default_group()
    return int(group._get_sequence_number_for_group())


def _retire(groups: list[Any], failed: bool) -> None:
    """Let go of destroyed process groups a while later.

    The destructor of a gloo group joins the group's threads with the interpreter lock held. A thread that has just
    completed a collective needs that lock to drop its work: both would wait for ever (seen with torch 2.13). A second
    later the threads are idle.
    """

    def let_go() -> None:
        groups.clear()
        if failed:  # errors and frames hold each other, and with them the model and the group's listening port
            gc.collect()

    timer = threading.Timer(RETIRE_SECONDS, let_go)
    timer.daemon = True
    timer.start()


def abort(gang: str) -> int:
    """Shut this process's connections to the other ranks, so that a blocked collective fails at once.

    A collective of gloo that waits for a dead or finished rank cannot be interrupted from another thread
    (``destroy_process_group`` returns and changes nothing); it does fail when its socket is shut. Linux only.

    Returns
    -------
    int
        Connections shut.
    """
    shut = 0
    for descriptor, inode in _sockets.pop(gang, set()):
        try:
            if os.fstat(descriptor).st_ino == inode:  # not reused since
                with socket.socket(fileno=os.dup(descriptor)) as connection:
                    connection.shutdown(socket.SHUT_RDWR)
                shut += 1
        except OSError:
            continue
    return shut


def _connections(store_port: int) -> set[tuple[int, int]]:
    """Connected TCP sockets of this process, but for those of the store, in which ranks still agree who failed first.

    Listening sockets are left out: gloo ends the process when one is shut.
    """
    found = set()
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            status = os.fstat(int(name))
            if not stat.S_ISSOCK(status.st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as s:
                tcp = s.family in (socket.AF_INET, socket.AF_INET6) and s.type == socket.SOCK_STREAM
                if not tcp or s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    continue
                if store_port not in (s.getsockname()[1], s.getpeername()[1]):
                    found.add((int(name), status.st_ino))
        except OSError:
            continue
    return found


def _interface_of(host: str) -> str | None:
    """Name of the network interface that has the address ``host``, or None when it cannot be told."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == host for address in addresses):
            return str(name)
    return None


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Set environment variables for the duration of a block; None leaves one alone."""
    wanted = {k: v for k, v in values.items() if v is not None and k not in os.environ}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            os.environ.pop(name, None)
