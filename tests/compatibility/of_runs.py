"""Clients and clusters, and the places that runs and models are kept in."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster

import daskdl
from daskdl.errors import ConnectionFailed, NotEnoughWorkers
from daskdl.tracking.folder import resolve_root, set_root

from .case import Case

CLIENTS = "Clients and clusters"
PLACES = "Paths and stores"


def _frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(400, 2)), columns=["a", "b"])
    return frame.assign(y=(frame.a > 0).astype(int))


def _trees(frame: Any, **options: Any) -> daskdl.XGBClassifier:
    return daskdl.XGBClassifier(n_estimators=3, verbose=0, **options).fit(frame[["a", "b"]], frame["y"])


def _refused(error: type[Exception], text: str) -> Callable[[Callable[[], Any]], None]:
    def check(call: Callable[[], Any]) -> None:
        with pytest.raises(error, match=text):
            call()

    return check


@contextmanager
def _other(**options: Any) -> Iterator[Client]:
    settings = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None, **options}
    with LocalCluster(**settings) as cluster, Client(cluster, set_as_default=False) as other:
        yield other


def _asynchronous(client: Client) -> None:
    async def main() -> None:
        async with Client(processes=False, n_workers=1, dashboard_address=None, asynchronous=True):
            _refused(TypeError, "asynchronous")(lambda: _trees(_frame()))

    asyncio.run(main())


def _closed(client: Client) -> None:
    with Client(client.scheduler.address, set_as_default=False) as second:
        pass
    _refused(ConnectionFailed, "is closed")(lambda: daskdl.check(_frame(), "y", client=second))


def _current(client: Client) -> None:
    with _other() as other, other.as_current():
        assert _trees(other.persist(dd.from_pandas(_frame(), npartitions=2))).run_.state == "finished"


def _elsewhere(client: Client) -> None:
    with _other() as other:
        frame = other.persist(dd.from_pandas(_frame(), npartitions=2))
        _refused(ValueError, "lies in the memory of the cluster at")(lambda: _trees(frame))


def _same_scheduler(client: Client) -> None:
    with Client(client.scheduler.address, set_as_default=False) as second:
        assert _trees(second.persist(dd.from_pandas(_frame(), npartitions=2))).run_.state == "finished"


def _no_workers(client: Client) -> None:
    with _other(n_workers=0) as empty, empty.as_current():
        _refused(NotEnoughWorkers, "has no workers yet")(lambda: _trees(dd.from_pandas(_frame(), npartitions=2)))


@contextmanager
def _odd_root() -> Iterator[Path]:
    before = resolve_root()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "größer #1 [a b]"
        try:
            set_root(root)
            yield root
        finally:
            set_root(before)


def _paths(client: Client) -> None:
    with _odd_root() as root:
        root.mkdir()
        dd.from_pandas(_frame(), npartitions=2).to_parquet(str(root / "rows"), write_index=False)
        source = daskdl.ParquetSource(str(root / "rows"))
        assert daskdl.ParquetSource(str(root / "rows" / "*.parquet")).n_rows == source.n_rows == 400
        model = daskdl.XGBClassifier(n_estimators=3, verbose=0, checkpoints=str(root / "checkpoints")).fit(source, "y")
        model.save(str(root / "model"))
        assert daskdl.load(str(root / "model")).predict(_frame()[["a", "b"]]).shape == (400,)
        assert daskdl.runs()["id"].tolist() == [model.run_.id]


def _unwritable(client: Client) -> None:
    with _odd_root() as root:
        root.write_text("no folder")
        _refused(OSError, "runs cannot be kept in")(lambda: _trees(dd.from_pandas(_frame(), npartitions=2)))


def _bad_checkpoints(client: Client) -> None:
    _refused(OSError, "cannot be written to by the workers")(lambda: _trees(_frame(), checkpoints="/proc/nowhere"))


def _mlflow(client: Client) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "mlflow.db").write_text("damaged")
        run = daskdl.Run.start("n", "by hand", {"a": 1}, root=folder)
        run.log(1, train_loss=0.5)
        assert daskdl.load_run(run.id, folder).params == {"a": 1}
        assert os.path.exists(run.folder)


CASES = [
    Case(CLIENTS, "the current client, also `with client.as_current():`", "trains; `client=` takes another", _current),
    Case(CLIENTS, "an asynchronous client", "`TypeError`: connect a second one and train in a thread", _asynchronous),
    Case(CLIENTS, "a client that is closed", "`ConnectionFailed`: connect again", _closed),
    Case(CLIENTS, "a frame persisted on another cluster", "`ValueError` with both addresses, at once", _elsewhere),
    Case(CLIENTS, "a frame persisted by another client of the same scheduler", "is trained on", _same_scheduler),
    Case(CLIENTS, "a cluster without workers", "`NotEnoughWorkers`: `scale`, then `wait_for_workers`", _no_workers),
    Case(PLACES, "umlauts, spaces, `#`, `[ ]` in any path", "are taken letter by letter", _paths),
    Case(PLACES, "a folder for runs that cannot be written to", "`OSError` before anything is computed", _unwritable),
    Case(PLACES, "`checkpoints=` that cannot be written to", "`OSError` before anything is computed", _bad_checkpoints),
    Case(PLACES, "an MLflow file that is damaged, locked, older, newer", "a warning; runs are in folders", _mlflow),
]
