"""What a run may have left behind: in workers, on the scheduler, in this process and on this machine."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from distributed import Client

from daskdl.execution import deposits
from daskdl.execution.queue import queue_of
from daskdl.execution.seats import holders

from .outside import pids_of

SECONDS = 8.0  # for what is about to go: groups are retired after a second, a death is waited for two
SHARED = Path("/dev/shm")


def of_worker() -> dict[str, Any]:
    """What a worker that no run uses should have nothing of."""
    import torch.distributed as dist

    from daskdl.execution import progress, ranks, rendezvous, words
    from daskdl.training import commit

    process = psutil.Process()
    listening = [c.laddr.port for c in process.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN]
    held = {
        "stores": len(rendezvous._stores),
        "connections": len(rendezvous._sockets),
        "process groups": int(dist.is_initialized()) + len(rendezvous._control),
        "gangs": len(ranks._running) + len(ranks._serving) + len(ranks._stopping),
        "words": len(words._words),
        "commits": len(commit._commits),
        "deposits": len(deposits._deposits) + len(deposits._arriving) + len(commit._depositors),
        "places": len(progress._progress),
        "ports": len(listening) - 2,  # its own, and that of its page
        "threads of daskdl": sum(t.name.startswith("daskdl") for t in threading.enumerate()),
        "children": len(process.children(recursive=True)),
    }
    return {name: n for name, n in held.items() if n}


def of_scheduler(dask_scheduler: Any) -> dict[str, Any]:
    """Tasks, runs that are watched, and seats."""
    overseer, queue = dask_scheduler.plugins.get("daskdl-overseer"), queue_of(dask_scheduler)
    held = {
        "tasks": sorted(map(str, dask_scheduler.tasks))[:5],
        "watched runs": len(overseer.runs) if overseer is not None else 0,
        "holders of deposits": len(overseer.holders.chosen) if overseer is not None else 0,
        "requests for seats": len(queue.waiting) + len(queue.held),
    }
    return {name: found for name, found in held.items() if found}


class Leftovers:
    """Compares with what there was when it was made."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.threads = {thread.name for thread in threading.enumerate()}
        self.shared = set(os.listdir(SHARED)) if SHARED.exists() else set()
        self.semaphores = _semaphores()
        self.ports = self._ports()
        self.forked = _forked() - set(pids_of(client).values())
        roots = {os.path.dirname(folder) for folder in client.run(_local_directory).values()}
        self.scratch = {str(path) for root in roots for path in Path(root).iterdir()}

    def found(self) -> list[str]:
        """Say what is left; waits a while for it to go."""
        looks: tuple[Callable[[], Any], ...] = (
            self._seats,
            lambda: self.client.run_on_scheduler(of_scheduler),
            lambda: {address: held for address, held in self.client.run(of_worker).items() if held},
            lambda: [f"deposit of {run} in the process of the nannies" for run in deposits._deposits],
            self._threads,
            self._processes,
            lambda: self._ports() - self.ports and f"ports {self._ports() - self.ports}",
            self._shared,
            self._scratch,
        )
        gc.collect()
        problems = []
        for look in looks:
            deadline = time.monotonic() + SECONDS
            while (left := look()) and time.monotonic() < deadline:
                time.sleep(0.05)
            if left:
                problems.append(f"left over: {left}")
        return problems

    def _seats(self) -> Any:
        return {f"seat of {address}": owner for address, owner in holders(self.client).items()}

    def _threads(self) -> list[str]:
        names = (t.name for t in threading.enumerate())
        return [f"thread {name}" for name in names if name.startswith(("daskdl", "chaos")) and name not in self.threads]

    def _ports(self) -> set[int]:
        connections = psutil.Process().net_connections(kind="tcp")
        return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}

    def _processes(self) -> list[str]:
        """Processes that were forked for this cluster and are not its workers now, or are stopped."""
        workers = set(pids_of(self.client).values())
        found = [f"process {pid} of no worker" for pid in _forked() - self.forked - workers]
        for process in psutil.Process().children(recursive=True):
            try:
                if process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                    found.append(f"process {process.pid}: {process.status()}")
            except psutil.NoSuchProcess:
                continue
        return found

    def _shared(self) -> list[str]:
        """New files in shared memory that no process has open or mapped."""
        names = os.listdir(SHARED) if SHARED.exists() else []
        new = {name for name in names if not name.startswith("sem.")} - self.shared  # those may be of other programs
        used = _in_use() if new else set()
        grown = _semaphores() - self.semaphores
        return [f"/dev/shm/{name}" for name in sorted(new - used)] + [f"{grown} semaphores more"] * (grown > 0)

    def _scratch(self) -> list[str]:
        """Folders of workers that are gone, and last words that nobody has read."""
        current = set(self.client.run(_local_directory).values())
        roots = {os.path.dirname(folder) for folder in current}
        paths = {str(path) for root in roots for path in Path(root).iterdir()} - self.scratch - current
        return [path for path in sorted(paths) if os.path.isdir(path) or "daskdl-trace" in path]


def _local_directory(dask_worker: Any) -> str:
    return str(dask_worker.local_directory)


def _forked() -> set[int]:
    """The children of the fork server."""
    found: set[int] = set()
    for child in psutil.Process().children():
        try:
            if "forkserver" in " ".join(child.cmdline()):
                found |= {grandchild.pid for grandchild in child.children()}
        except psutil.NoSuchProcess:
            continue
    return found


def _semaphores() -> int:
    """Those that this process holds, such as the queues of Dask's nannies."""
    return Path("/proc/self/maps").read_text().count("/dev/shm/sem.") if SHARED.exists() else 0


def _in_use() -> set[str]:
    names: set[str] = set()
    for process in psutil.process_iter():
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            files = [os.readlink(fd) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
        except OSError:
            continue
        names |= {line.rpartition("/dev/shm/")[2].split()[0] for line in maps.splitlines() if "/dev/shm/" in line}
        names |= {file.removeprefix("/dev/shm/").split()[0] for file in files if file.startswith("/dev/shm/")}
    return names
