"""What tests share: one real cluster of two worker processes, a private root of runs, data with a planted answer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client
from hypothesis import settings
from ranks_at_hand import RanksAtHand, ranks_at_hand

from daskdl.run import Run
from daskdl.tracking import mlflow_client
from daskdl.tracking.folder import set_root

# before torch is imported: two processes of tests share the cores, and threads that wait would spin
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


# beside a program that uses all cores, any example may take long
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

LONG = ("test_browser", "test_following", "test_demo", "test_growing", "test_many_ranks", "test_lab")
LONG += ("test_docs", "test_docs_code")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, or one process of tests would wait for the other at the end."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(autouse=True, scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the folders of workers apart from those of tests that run beside these."""
    folder = str(tmp_path_factory.mktemp("dask"))
    with pytest.MonkeyPatch.context() as patch, dask.config.set({"temporary-directory": folder}):
        patch.setenv("DASK_TEMPORARY_DIRECTORY", folder)
        yield


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's file without runs: to make one takes it a second of a core, to open one 25 ms."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow_client.open_client(str(path))
    return path


@pytest.fixture(autouse=True)
def runs_root(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    """Keep the runs of a test in a folder of their own, and what is to be resumed in another."""
    root = tmp_path_factory.mktemp("runs")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    shutil.copy(empty_store, root)
    set_root(root)
    return root


@pytest.fixture
def started_runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that have started, while ``fit`` blocks."""
    found: list[Run] = []
    start = Run.start.__func__  # type: ignore[attr-defined]

    def remembering(cls: type[Run], *args: Any, **kwargs: Any) -> Run:
        found.append(start(cls, *args, **kwargs))
        return found[-1]

    monkeypatch.setattr(Run, "start", classmethod(remembering))
    return found


@pytest.fixture(scope="session")
def at_hand() -> Iterator[RanksAtHand]:
    """Three processes that are ranks without a cluster, started once."""
    with ranks_at_hand() as ranks:
        yield ranks


@pytest.fixture(scope="session")
def cluster() -> Iterator[Client]:
    """Two workers of one thread, as processes, started once."""
    from daskdl.cluster import connect

    client = connect("cpu", n_workers=2, memory_limit="2GiB", dashboard_address="127.0.0.1:0")
    yield client
    client.shutdown()


@pytest.fixture
def client(cluster: Client) -> Iterator[Client]:
    """The session's cluster, both workers alive, as the current client whatever other tests have connected to."""
    cluster.wait_for_workers(2)
    with cluster.as_current():
        yield cluster


@pytest.fixture
def no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has connected to anything, whatever other tests have."""
    monkeypatch.setattr("distributed.client._global_clients", {})


@pytest.fixture(scope="session")
def planted() -> pd.DataFrame:
    """4,000 rows whose label follows from two numbers and a category, with a little noise and some missing values."""
    rng = np.random.default_rng(0)
    n = 4_000
    frame = pd.DataFrame(
        {
            "a": rng.normal(size=n),
            "b": rng.normal(10.0, 3.0, size=n),
            "flag": rng.random(n) > 0.5,
            "city": rng.choice(["Oslo", "Rome", "Lima"], n),
        }
    )
    score = frame.a + (frame.b - 10) / 3 + 2 * (frame.city == "Rome") - frame.flag + rng.normal(0, 0.2, n)
    frame["late"] = (score > 0.3).astype("int64")
    frame["delay"] = score * 10 + 50
    frame.loc[rng.random(n) < 0.05, "b"] = np.nan
    return frame


@pytest.fixture
def ragged(planted: pd.DataFrame) -> dd.DataFrame:
    """The same rows as a lazy frame of seven ragged partitions, one of them empty."""
    cuts = [0, 700, 701, 701, 1500, 2500, 3990, 4000]
    parts = [planted.iloc[a:b] for a, b in pairwise(cuts)]
    return dd.from_map(lambda part: part, parts, meta=planted.iloc[:0])


FEATURES = ["a", "b", "flag", "city"]
