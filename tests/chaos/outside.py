"""Faults that are done from outside while a training blocks its caller."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from distributed import Client

from daskdl.run import Run
from daskdl.training.checkpoints import CheckpointFolder
from daskdl.workers import workers_of

from .loop import Marks
from .network import Link, worker
from .plan import Fault, Plan

LOOK_SECONDS = 0.002
FORGET_SECONDS = 30.0
DISK_BYTES, FREE_BYTES = 256 << 10, 12 << 10


def pids_of(client: Client) -> dict[str, int]:
    """Process of each worker, by address: in the order of ranks if there are no others."""
    return {nanny.worker_address: nanny.pid for nanny in sorted(client.cluster.workers.values(), key=_address)}


def _address(nanny: Any) -> str:
    return nanny.worker_address or ""


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Hand:
    """Does the faults of a plan that come from outside, each in a thread of its own, to the run that starts next."""

    def __init__(self, client: Client, plan: Plan, marks: Marks, far: Far | None) -> None:
        self.client, self.plan, self.marks, self.far = client, plan, marks, far
        self.run: Run | None = None
        self.over = threading.Event()
        self.threads: list[threading.Thread] = []

    def took(self, run: Run) -> None:
        """Begin with a run, if there was none before."""
        if self.run is not None:
            return
        self.run = run
        for n, fault in enumerate(self.plan.faults):
            act: Callable[..., None] | None = getattr(self, f"_{fault.how}", None)
            if act is not None:
                self.threads.append(threading.Thread(target=act, args=(n, fault), name=f"chaos-{fault.how}"))
                self.threads[-1].start()

    def close(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def _until(self, condition: Callable[[], object]) -> bool:
        while not condition():
            if self.over.wait(LOOK_SECONDS):
                return False
        return True

    def _heard_of(self, step: int) -> bool:
        return self._until(lambda: self.run is not None and self.run.record.step >= step)

    def _kill_ranks(self, n: int, fault: Fault) -> None:
        pids = list(pids_of(self.client).values())
        self.marks.leave(f"fault-{n}")
        for rank in fault.ranks:
            if rank < len(pids):
                kill(pids[rank])

    def _kill_after(self, n: int, fault: Fault) -> None:
        if not self.over.wait(fault.seconds):
            self._kill_ranks(n, fault)

    def _kill_at(self, n: int, fault: Fault) -> None:
        if self._heard_of(fault.step):
            self._kill_ranks(n, fault)

    def _kill_again(self, n: int, fault: Fault) -> None:
        assert self.run is not None
        events = self.run.record.events
        if self._until(lambda: sum(e["event"] == "worker_lost" for e in list(events)) > fault.step):
            self._kill_after(n, fault)

    def _nanny(self, n: int, fault: Fault) -> None:
        assert self.far is not None
        if self._heard_of(fault.step):
            pids = self.far.pids if fault.ranks else self.far.pids[:1]
            self.marks.leave(f"fault-{n}")
            for pid in pids:
                kill(pid)

    def _cut(self, n: int, fault: Fault) -> None:
        assert self.far is not None
        if self._heard_of(fault.step):
            self.marks.leave(f"fault-{n}")
            self.far.silence()

    def _pause(self, n: int, fault: Fault) -> None:
        path = self.marks.folder / f"fault-{n}-{fault.ranks[0]}"
        if self._until(lambda: path.exists() and len(path.read_text().split()) == 2):
            time.sleep(fault.seconds)
            with suppress(ProcessLookupError):
                os.kill(int(path.read_text().split()[1]), signal.SIGCONT)

    def _stop(self, n: int, fault: Fault) -> None:
        if self._heard_of(fault.step) and self.run is not None:
            with suppress(RuntimeError):  # it has ended
                self.run.stop()
                self.marks.leave(f"asked-{n}")

    def _interrupt(self, n: int, fault: Fault) -> None:
        if self._heard_of(fault.step) and self.run is not None and self.run.record.step < self.run.record.total_steps:
            self.marks.leave(f"asked-{n}")
            os.kill(os.getpid(), signal.SIGINT)

    def _damage(self, n: int, fault: Fault) -> None:
        assert self.run is not None
        folder = Path(self.run.folder) / "checkpoints"
        if self._heard_of(fault.step) and self._until(lambda: len(list(folder.glob("*.json"))) >= 2):
            with suppress(FileNotFoundError, IndexError):  # removed meanwhile: then it is killing all, at least
                damage(folder, Random(self.plan.seed))
            self._kill_ranks(n, fault)


def damage(folder: Path, rng: Random) -> None:
    """Do something to the newest checkpoint that it should not survive."""
    newest = CheckpointFolder(str(folder)).saved()[-1]
    path, manifest = folder / newest.name, folder / newest.manifest
    data = path.read_bytes()
    at = rng.randrange(len(data))
    how = rng.choice(["flip", "cut", "remove", "manifest"])
    if how == "flip":
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
    elif how == "cut":
        path.write_bytes(data[:at])
    elif how == "remove":
        path.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[: rng.randrange(40)])


@dataclass
class Far:
    """A worker that has a nanny of its own.

    Attributes
    ----------
    pids : list of int
        Of the nanny, and of the worker.
    link : Link or None
        Between it and the others.
    """

    pids: list[int]
    link: Link | None

    def silence(self) -> None:
        """Cut the link; where there is none, stop both processes, which is as quiet."""
        if self.link is not None:
            self.link.cut()
        else:
            for pid in self.pids:
                os.kill(pid, signal.SIGSTOP)


@contextmanager
def far_worker(client: Client, plan: Plan, folder: str, link: Link | None) -> Iterator[Far | None]:
    """Have one more worker, with a nanny of its own, for the length of a block, if a plan asks for it."""
    if plan.far is None:
        yield None
        return
    before = len(workers_of(client))
    host = link.there[plan.far] if link is not None else "127.0.0.1"
    with worker(client.scheduler.address, folder, host, link) as process:
        client.wait_for_workers(before + 1, timeout=30)
        [address] = [address for address, about in workers_of(client).items() if about["name"] == "far"]
        pid = client.run(os.getpid, workers=[address])[address]
        try:
            yield Far([process.pid, pid], link)
        finally:
            if link is not None:
                link.mend()
    deadline = time.monotonic() + FORGET_SECONDS
    while address in workers_of(client):
        assert time.monotonic() < deadline, "the scheduler still counts on a dead worker"
        time.sleep(0.05)


@contextmanager
def hand_on(client: Client, plan: Plan, marks: Marks, far: Far | None) -> Iterator[Hand]:
    """Do the outside faults of a plan to the run that is started in the block."""
    hand, start = Hand(client, plan, marks, far), Run.start.__func__  # type: ignore[attr-defined]

    def remembering(cls: type[Run], *args: Any, **kwargs: Any) -> Run:
        run = start(cls, *args, **kwargs)
        hand.took(run)
        return run

    with mock.patch.object(Run, "start", classmethod(remembering)):
        try:
            yield hand
        finally:
            hand.close()


@contextmanager
def small_disk() -> Iterator[str | None]:
    """A disk with room for a checkpoint or two, or None where none can be mounted."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", folder]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            yield None
            return
        try:
            Path(folder, "ballast").write_bytes(bytes(DISK_BYTES - FREE_BYTES))
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True, capture_output=True)


@contextmanager
def not_started_again(client: Client, rank: int | None) -> Iterator[None]:
    """Have the nanny of a rank leave its worker dead for the length of a block."""
    if rank is None:
        yield
        return
    address = sorted(pids_of(client))[rank]
    [nanny] = [nanny for nanny in client.cluster.workers.values() if nanny.worker_address == address]

    async def refuse() -> None:
        pass

    nanny.instantiate = refuse
    try:
        yield
    finally:
        del nanny.instantiate
        if nanny.process is None or nanny.process.pid is None or not nanny.is_alive():
            client.sync(nanny.instantiate)
