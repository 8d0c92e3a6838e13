"""What a nanny knows of its worker's process: that it hangs, how it ended, and where it was when it crashed."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from distributed.diagnostics.plugin import NannyPlugin

from daskdl.execution.obituary import trace_of

EXITS = "daskdl-exits"  # the Dask event topic on which nannies tell how processes ended
LOOK_SECONDS = 0.25  # between two looks at a process
TRACE_BYTES = 20_000


class Witness(NannyPlugin):
    """Has a nanny tell the scheduler how its worker's process ended; runs in every nanny, daskdl's or not.

    Dask's nanny has no public way to learn it, only a callback that it gives to each process it starts.
    """

    name = "daskdl-witness"
    idempotent = True

    def setup(self, nanny: Any) -> None:
        """Be told by the process that runs, and by all that follow."""
        before, self.oom_kills = nanny._on_worker_exit_sync, oom_kills()

        def on_exit(exitcode: int) -> None:
            with suppress(Exception):  # a nanny that closes; whatever happens, it has to start its next process
                self._tell(nanny, exitcode)
            before(exitcode)

        nanny._on_worker_exit_sync = on_exit
        if nanny.process is not None:
            nanny.process.on_exit = on_exit

    def _tell(self, nanny: Any, exitcode: int) -> None:
        kills, self.oom_kills = oom_kills() - self.oom_kills, oom_kills()
        path, text = trace_path(nanny.local_directory, nanny.worker_address), ""
        with suppress(OSError):
            with open(path, errors="replace") as file:
                text = file.read(TRACE_BYTES)
            os.unlink(path)
        told = {"worker": nanny.worker_address, "exitcode": exitcode, "oom_kill": kills > 0, "trace": trace_of(text)}
        nanny._ongoing_background_tasks.call_soon(_send, nanny, told)


async def _send(nanny: Any, told: dict[str, Any]) -> None:
    with suppress(OSError):  # the scheduler has closed too
        await nanny.scheduler.log_event(topic=EXITS, msg=told)


def oom_kills() -> int:
    """Processes that the kernel of this machine has killed for lack of memory; 0 where it does not count them."""
    with suppress(OSError), open("/proc/vmstat") as file:
        found = re.search(r"^oom_kill (\d+)$", file.read(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


async def look_at_worker(dask_worker: Any) -> tuple[str, float] | None:
    """Status of the worker's process, as ``psutil`` has it, and processor seconds it used between two looks.

    Runs in a nanny, which Dask hands in as ``dask_worker``. None if there is no process.
    """
    try:
        process = psutil.Process(dask_worker.pid)
        before, first = sum(process.cpu_times()[:2]), process.status()
        await asyncio.sleep(LOOK_SECONDS)
        status = process.status()
        return (status if status == first else psutil.STATUS_RUNNING), sum(process.cpu_times()[:2]) - before
    except (psutil.Error, TypeError):
        return None


def kill_worker(pid: int, dask_worker: Any) -> None:
    """Kill the worker's process, if it is still that one; its nanny starts another. Runs in a nanny."""
    if dask_worker.pid == pid:
        os.kill(pid, signal.SIGKILL)


def trace_path(folder: str, address: str) -> str:
    """File for the last words of a worker, in the scratch folder that it shares with its nanny."""
    return os.path.join(folder, f"daskdl-trace-{re.sub('[^0-9a-zA-Z]+', '-', address)}")


@contextmanager
def last_words(worker: Any) -> Iterator[None]:
    """Have a crash of this process in native code leave Python's stack to its nanny. Runs in a worker."""
    if worker.nanny is None or faulthandler.is_enabled():
        yield
        return
    path = trace_path(os.path.dirname(worker.local_directory), worker.address)
    try:
        file = open(path, "w")  # noqa: SIM115 - closed below, when nothing writes to it any more
    except OSError:  # a full disk is no reason not to train
        yield
        return
    try:
        faulthandler.enable(file)
        yield
    finally:
        faulthandler.disable()
        file.close()
        with suppress(OSError):
            os.unlink(path)
