"""How the ranks of a gang find each other, and how a rank that is stuck in a collective is woken."""

from __future__ import annotations

import gc
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

STORE_TIMEOUT = timedelta(seconds=60)
RETIRE_SECONDS = 1.0

_control: list[Any] = []  # the process group of daskdl's own collectives, of the gang this process is in
_stores: dict[str, Any] = {}  # gang id -> TCPStore served by this process
_sockets: dict[str, set[tuple[int, int]]] = {}  # gang id -> {(file descriptor, inode)} of this process's connections
_aborting: dict[str, list[threading.Thread]] = {}  # gang id -> one for each group of NCCL that is being aborted
_leaving = threading.Lock()  # of a gang is either left or aborted
# What torch does by itself when NCCL reports an error, as that of a peer that died: its watchdog ends the process, its
# monitor does so a little later, and meanwhile the watchdog sleeps a minute with the lock that a collective needs.
# Here ranks are to go on in the same process, so it does nothing; abort() comes as soon as the client knows.
_NCCL_ERRORS_ARE_OURS = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "0",
}


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
    before = connections(store.port)
    try:
        with _environment(**(_NCCL_ERRORS_ARE_OURS if backend == "nccl" else {})):  # for groups of the user's, too
            with _environment(GLOO_SOCKET_IFNAME=_interface_of(host)):
                dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
                _control[:] = [dist.new_group(backend="gloo")]
                dist.barrier(_control[0])  # connects the ranks, so that their sockets are known below
                if backend == "gloo":
                    dist.barrier()
            _sockets[gang] = connections(store.port) - before
            yield
    finally:
        with _leaving:
            failed, aborting = _sockets.pop(gang, None) is None, _aborting.pop(gang, [])
        for thread in aborting:  # what is destroyed before it is aborted waits for the other ranks
            thread.join()
        _control.clear()
        if dist.is_initialized():  # or a rank was lost before this one had its group
            groups = list(dist.distributed_c10d._world.pg_map)
            dist.destroy_process_group()
            _retire(groups, failed)


def also_shut(since: set[tuple[int, int]]) -> None:
    """Have :func:`abort` shut what this process has connected to since, as another library's collective."""
    with _leaving:
        for shut in _sockets.values():  # of the one gang that this process is in
            shut |= connections() - since


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
    """Make a collective in which this process waits for the other ranks of a gang fail; returns at once.

    A collective of gloo that waits for a dead or finished rank cannot be interrupted from another thread
    (``destroy_process_group`` returns and changes nothing); it does fail when its socket is shut. Linux only.

    One of NCCL is a kernel on the GPU that waits for memory to change. Aborting its communicator ends the kernel, so
    what was queued after it is computed from numbers that make no sense, and the next collective fails. The sockets
    are shut before, and a rank that is told to stop commits nothing after.

    Returns
    -------
    int
        Connections shut.
    """
    with _leaving:
        if (found := _sockets.pop(gang, None)) is None:  # not of this process, or no longer
            return 0
        shut = sum(_shut(descriptor, inode) for descriptor, inode in found)
        # at once, as one of several waits for kernels of the others
        _aborting[gang] = [threading.Thread(target=backend.abort, daemon=True) for backend in nccl_backends()]
        for thread in _aborting[gang]:
            thread.start()
    return shut


def nccl_backends() -> list[Any]:
    """Return NCCL's part of every process group of this process, those of the user's too."""
    import torch
    import torch.distributed as dist

    found = []
    for group in list(dist.distributed_c10d._world.pg_map):
        with suppress(RuntimeError):  # a group may have nothing for GPUs
            backend = group._get_backend(torch.device("cuda"))
            found += [backend] if backend.name() == "nccl" else []
    return found


def _shut(descriptor: int, inode: int) -> bool:
    try:
        if os.fstat(descriptor).st_ino != inode:  # used for something else since
            return False
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    return True


def connections(store_port: int = 0) -> set[tuple[int, int]]:
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
