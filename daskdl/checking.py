"""``daskdl.check``: look at one partition and the workers, and say what a training will meet, in five seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from distributed import Client

from daskdl.clients import check_lies_here, current_client
from daskdl.data.schema import Schema
from daskdl.data.schema.stats import ColumnStats
from daskdl.errors import DataError
from daskdl.preflight.facts import Facts, rows_in_words
from daskdl.preflight.findings import findings
from daskdl.preflight.gather import Gathering
from daskdl.preflight.report import CheckReport

SECONDS = 5.0  # after which the report is made of what is known
RESERVE = 0.4  # of them, to make it
STEP_SECONDS = 0.6


def check(
    X: Any,
    y: Any,
    *,
    num_workers: int | None = None,
    batch_size: int = 1024,
    client: Client | None = None,
) -> CheckReport:
    """Say before a training what it will meet: columns, label, partitions, memory, workers, time.

    Looks at one partition (the first of few that has rows), for categories at the last one too, at the metadata and at
    the workers. The number of rows of a lazy frame is estimated from up to eight partitions, or counted if it has no
    more. It ends after five seconds whatever happens: then it says what is known, and cancels what it began. ``fit``
    and ``train`` say by themselves what their pass over all rows tells; this looks closer at fewer rows.

    Parameters
    ----------
    X : Dask, pandas or cudf DataFrame, array, Arrow table, or Source
    y : Series, or str
        Labels, or the name of their column in ``X``.
    num_workers : int, optional
        Ranks; all workers by default.
    batch_size : int
        Rows per global batch.
    client : distributed.Client, optional
        The current one by default; without any, lazy frames are judged by their metadata.

    Returns
    -------
    CheckReport
        Shows itself. ``.table``, ``.ok`` and ``.raise_if_refused()`` are for scripts.

    Raises
    ------
    DataError, TypeError, ValueError
        For wrong arguments, such as a label that is not in ``X``; never for what is in the data.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"row": range(100), "x": [1.0, 2.0] * 50, "late": [0, 0, 1, 1] * 25})
    >>> report = check(frame, "late")
    >>> report.ok, report.table.query("verdict == 'warning'").check.tolist()
    (True, ['identifier'])
    """
    began = time.perf_counter()
    for name, value in (("num_workers", num_workers), ("batch_size", batch_size)):
        if value is not None and (not isinstance(value, (int, np.integer)) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    client = current_client(client)
    if client is not None:
        check_lies_here(client, X, y)
    gathering = Gathering(X, y, client, step_seconds)
    gathering.facts.batch_size = batch_size
    gathering.facts.ranks = num_workers or max(1, len(gathering.facts.workers))
    facts = gathering.within(SECONDS - RESERVE)
    return CheckReport(tuple(findings(facts)), _title(X, facts), time.perf_counter() - began)


def _title(X: Any, facts: Facts) -> str:
    n_columns = len(facts.kinds) + len(set(facts.refused) - set(facts.kinds))
    return f"{type(X).__name__} of {rows_in_words(facts)} and {n_columns} features, {facts.looked:,} rows looked at"


def step_seconds(columns: Mapping[Any, ColumnStats], n_outputs: int, n_rows: int, threads: int = 0) -> float:
    """Time a training step of the default network, in seconds; 0 where there is no PyTorch, or the network refuses.

    Runs where a rank would, with ``threads`` compute threads (0: as many as now); the fastest of some steps counts.

    Examples
    --------
    >>> import pandas as pd
    >>> from daskdl.data.schema.stats import describe
    >>> 0 < step_seconds({"x": describe(pd.Series([1.0, 2.0]))}, 1, 64) < 60
    True
    """
    try:
        import torch

        from daskdl.estimators.tabular import TabularNet
        from daskdl.training.tensors import to_tensors
    except ImportError:
        return 0.0
    schema, before = Schema.from_stats(columns), torch.get_num_threads()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(threads or before)
    try:
        with torch.random.fork_rng():
            network = TabularNet(schema, n_outputs).to(device)
            inputs, _ = to_tensors(schema.example(n_rows), device)
            return _fastest_step(network, inputs)
    except DataError:
        return 0.0
    finally:
        torch.set_num_threads(before)


def _fastest_step(network: Any, inputs: Any) -> float:
    import torch

    optimizer = torch.optim.Adam(network.parameters())
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 20 and time.perf_counter() - began < STEP_SECONDS:
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = network(*inputs).square().mean()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for a GPU
        times.append(time.perf_counter() - start)
    return min(times)
