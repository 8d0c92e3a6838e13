"""What the benchmarks of loaders share: the second pass is timed, every row is counted, and memory is watched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd  # noqa: F401 - pyarrow imports it when it first converts a column, which is not to be measured
import psutil
from harness import answer

Pass = Callable[[], Iterable[Any]]  # begins a pass over the rows; yields the labels of each batch


class Memory:
    """Peak of the memory of this process, and of those it started, above what it was at first.

    Of a process alone it is the resident set, every 20 ms. Processes share pages, so those of a family are counted
    by their proportional share; to ask for that takes longer and is done every 200 ms.

    Attributes
    ----------
    mib : float
    """

    def __init__(self, family: bool = False) -> None:
        self._process, self._family = psutil.Process(), family
        self._base = self._peak = self._now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.mib = (self._peak - self._base) / 2**20

    def _watch(self) -> None:
        while not self._ended.wait(0.2 if self._family else 0.02):
            self._peak = max(self._peak, self._now())

    def _now(self) -> int:
        if not self._family:
            return int(self._process.memory_info().rss)
        return sum(_share(each) for each in [self._process, *self._process.children(recursive=True)])


def _share(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it has ended
        return 0


def cpu_seconds() -> float:
    """Seconds of processor time of this process and of those it started that still run."""
    found = 0.0
    for each in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times = each.cpu_times()
        except psutil.Error:
            continue
        found += times.user + times.system
    return found


def contest(prepare: Callable[[], Pass], expected: Callable[[], tuple[int, int]], family: bool = False) -> None:
    """Run two passes and answer with the rows per second of the second.

    Parameters
    ----------
    prepare : callable
        Called when memory is watched already: data that is kept in memory is loaded here.
    expected : callable
        Gives the number of rows and the sum of their labels, at the end: a loader that leaves out rows or repeats some
        is no contestant.
    family : bool
        Whether it works in several processes.
    """
    with Memory(family) as memory:
        begin = prepare()
        began = time.perf_counter()
        labels = iter(begin())
        first = next(labels)
        first_batch = time.perf_counter() - began
        seen = [_counted(chain([first], labels))]
        labels, busy, began = begin(), cpu_seconds(), time.perf_counter()
        seen.append(_counted(labels))
        seconds, busy = time.perf_counter() - began, cpu_seconds() - busy
    if seen != [expected()] * 2:
        raise SystemExit(f"rows and sum of labels of the two passes are {seen}, expected {expected()}")
    answer(value=seen[1][0] / seconds, cpu_s=busy, mib=memory.mib, first_batch_s=first_batch)


def _counted(batches: Iterable[Any]) -> tuple[int, int]:
    rows = total = 0
    for labels in batches:
        rows += len(labels)
        total += int(labels.sum())
    return rows, total


def labels_of(folder: Path, column: str = "y") -> tuple[int, int]:
    """Count rows and add up the labels of a Parquet folder."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    y = pq.read_table(folder, columns=[column])[column]
    return len(y), pc.sum(y).as_py()
