"""What a rank sets in its worker process while it trains, and puts back afterwards."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's mallopt parameters


@contextmanager
def training_process(threads: int) -> Iterator[None]:
    """Give the calling process ``threads`` compute threads and an allocator that keeps freed tensors.

    Dask's nanny starts workers with one OpenMP thread and a small ``MALLOC_TRIM_THRESHOLD_``, which maps and unmaps
    every tensor over 128 KiB and nearly doubles the time of a step.
    """
    with _torch_threads(threads), _keep_freed_memory():
        yield


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _keep_freed_memory() -> Iterator[None]:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):  # not glibc
        yield
        return
    assert libc is not None
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, int(os.environ.get("MALLOC_TRIM_THRESHOLD_", 128 * 1024)))
        libc.mallopt(M_MMAP_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)


def available_cores() -> int:
    """Cores this process may use on its host."""
    from dask.system import CPU_COUNT

    return int(CPU_COUNT)
