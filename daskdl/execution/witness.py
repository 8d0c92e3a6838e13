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
from daskdl.tracking.logs import read_lines

EXITS = "daskdl-exits"  # the Dask event topic on which nannies tell how processes ended
LOOK_SECONDS = 0.25  # between two looks at a process
TRACE, TRACE_BYTES = "daskdl-trace", 1 << 20  # in the worker's folder, which its nanny removes
LAST_LINES = 50  # of what a rank said, of a worker that died


class Witness(NannyPlugin):
    """Has a nanny tell the scheduler how its worker's process ended; runs in every nanny, daskdl's or not.

    Dask's nanny has no public way to learn it. What is replaced here is the method of the one that holds the process,
    which it calls at its end: after it the exit code, the process id and the worker's folder are gone.
    """

    name = "daskdl-witness"
    idempotent = True

    def setup(self, nanny: Any) -> None:
        """Be told of the process that runs, and of all that follow."""
        self.oom_kills, instantiate = oom_kills(), nanny.instantiate

        async def instantiate_and_watch() -> Any:
            status = await instantiate()
            self._watch(nanny)
            return status

        nanny.instantiate = instantiate_and_watch
        self._watch(nanny)

    def _watch(self, nanny: Any) -> None:
        held = nanny.process
        if held is None or "mark_stopped" in vars(held):
            return
        mark_stopped = held.mark_stopped

        def tell_and_mark() -> None:
            with suppress(Exception):  # a nanny that closes; whatever happens, it has to start its next process
                if held.process is not None and held.process.exitcode is not None:
                    self._tell(nanny, held)
            mark_stopped()

        held.mark_stopped = tell_and_mark

    def _tell(self, nanny: Any, held: Any) -> None:
        kills, self.oom_kills, text = oom_kills() - self.oom_kills, oom_kills(), ""
        with suppress(OSError, TypeError), open(os.path.join(held.worker_dir, TRACE), errors="replace") as file:
            text = file.read(TRACE_BYTES)
        about = {"exitcode": held.process.exitcode, "oom_kill": kills > 0, "trace": trace_of(text)}
        about["lines"] = read_lines(held.worker_dir)[-LAST_LINES:] if held.worker_dir else []
        nanny._ongoing_background_tasks.call_soon(_send, nanny, {"worker": held.worker_address, **about})


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


@contextmanager
def last_words(worker: Any) -> Iterator[None]:
    """Have a crash of this process in native code leave Python's stack to its nanny. Runs in a worker."""
    if worker.nanny is None or faulthandler.is_enabled():
        yield
        return
    path = os.path.join(worker.local_directory, TRACE)
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
