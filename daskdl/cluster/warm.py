"""Loaded once by multiprocessing's fork server, so that every worker is born with these modules imported.

Nothing here may start a thread: a forked child keeps only the thread that forked.
"""

from __future__ import annotations

import importlib
import os
import signal
from contextlib import suppress

from daskdl.execution.frames import guard_frames

MODULES = (
    "distributed.worker",
    "torch",
    "torch.distributed",
    "torch.nn.parallel.distributed",
    "torch._dynamo",  # the first optimizer of a process imports it
    "dask.dataframe",
    "pyarrow.parquet",
    "daskdl.training.job",
    "daskdl.training.fit",
    "daskdl.training.checkpoints",
    "xgboost",
)

# Ctrl-C in a terminal, or an interrupted cell, is for the client, which then ends or keeps its workers
signal.signal(signal.SIGINT, signal.SIG_IGN)

guard_frames()

for name in MODULES:
    with suppress(ImportError):  # a worker that needs it reports it better than the fork server could
        importlib.import_module(name)

with suppress(ImportError):
    from numpy import random

    # Python's own generator is reseeded after a fork, NumPy's is not: workers would draw the same numbers
    os.register_at_fork(after_in_child=random.seed)
