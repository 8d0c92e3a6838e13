"""Worker processes forked warm instead of spawned cold, so that a killed one is back at once with torch imported.

This module is light on purpose: the fork server should import its modules while the client imports distributed.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver

# One thread per library until a rank takes more; one hash seed, so that all workers hash strings alike. Dask's
# MALLOC_TRIM_THRESHOLD_ is left out on purpose: with it glibc maps and unmaps every tensor, at twice the step time.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "6640",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # or every lost worker is told by a C++ stack trace of each that talked to it
}


def start() -> None:
    """Start the process that workers are forked from, and return at once. Does nothing when it runs already.

    Runs on the client. Variables that the user has set win over :data:`ENVIRONMENT`.
    """
    preload()
    with environment(ENVIRONMENT):
        forkserver.ensure_running()


def preload() -> None:
    """Have the next fork server import :mod:`daskdl.cluster.warm`."""
    multiprocessing.set_forkserver_preload(["daskdl.cluster.warm"])


@contextmanager
def environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set those variables of ``os.environ`` that are not set yet, for the length of a block."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
