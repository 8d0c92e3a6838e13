"""What a training can go on from: the state after a step, held in the memory of every rank's process.

Data-parallel ranks are replicas: after a step all have the same state. So each keeps its own copy, no storage and no
network is needed, and any one survivor is enough. A rank that is alone has its copies deposited with another process.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import torch
from distributed.utils import offload

from daskdl.execution.depositor import Deposited, Depositor, fetch
from daskdl.execution.deposits import PIECE_BYTES, drop_deposit

Use = tuple[int, int, int, int]  # first step, stop step, rows used by all ranks, digest of them


@dataclass
class Commit:
    """The state of a run after a number of steps.

    Attributes
    ----------
    step : int
        Steps done.
    state : dict
        ``state_dict`` of everything kept, by name, on the CPU.
    uses : dict of int to Use
        What was used until then, by the first step of each stretch; for the audit.
    gradients : dict of str to tensor
        Those that were accumulated by then, and that no optimizer has used.
    """

    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    uses: dict[int, Use] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)


_commits: dict[str, Commit] = {}  # of this process, by run
_depositors: dict[str, Depositor] = {}  # of ranks that are alone


def put_commit(run: str, commit: Commit) -> None:
    """Keep a commit of a run in place of the one before."""
    _commits[run] = commit
    if run in _depositors:
        _depositors[run].offer(commit.step, commit)


@contextmanager
def deposited(run: str, worker: Any) -> Iterator[None]:
    """Have the commits that are put in this block held by another process, too: those of a rank that is alone."""
    drop_deposit(run)  # it is this process that goes on from it
    if worker.address.startswith("inproc://"):  # all workers are this process
        yield
        return
    depositor = _depositors[run] = Depositor(worker, run, _pack)
    try:
        yield
    finally:
        del _depositors[run]
        depositor.close()


async def bring_commit(run: str, where: Deposited, dask_worker: Any) -> int:
    """Bring the commit of a run from who holds it to this worker; return its step."""
    pieces = await fetch(dask_worker, run, where)
    commit: Commit = await offload(_unpack, pieces)
    put_commit(run, commit)
    return commit.step


class _Pieces(list[bytes]):
    """What ``torch.save`` writes to, cut into pieces."""

    def __init__(self) -> None:
        self._last = bytearray()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE_BYTES):
            self._last += view[start : start + PIECE_BYTES]
            if len(self._last) >= PIECE_BYTES:
                self.flush()
        return len(view)

    def flush(self) -> None:
        if self._last:
            self.append(bytes(self._last))
            self._last.clear()


def _pack(commit: Commit) -> list[bytes]:
    pieces: Any = _Pieces()
    torch.save(commit, pieces, pickle_module=cloudpickle, pickle_protocol=5)
    pieces.flush()
    return list(pieces)


def _unpack(pieces: list[bytes]) -> Commit:
    commit: Commit = torch.load(io.BytesIO(b"".join(pieces)), map_location="cpu", weights_only=False)  # of own ranks
    return commit


def commit_step(run: str) -> int:
    """Steps of the commit of a run that this process has; 0 if it has none."""
    return _commits[run].step if run in _commits else 0


def take_commit(run: str) -> Commit:
    """Return the commit of a run that this process has."""
    return _commits.get(run, Commit())


def forget_commit(run: str) -> None:
    """Free the memory of a run's commit."""
    _commits.pop(run, None)
