"""Which client does the work: the current one, a given one; one that cannot says so within a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch  # noqa: F401  what is timed here should not pay for it
from distributed import Client, LocalCluster

import daskdl
from daskdl.errors import ConnectionFailed, NotEnoughWorkers
from daskdl.tracking.folder import set_root

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


@contextmanager
def soon(seconds: float = 20.0) -> Iterator[None]:
    """What is inside waits for nothing: it takes tenths of a second, and more only where others compute."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    pdf = pd.DataFrame(rng.normal(size=(400, 3)), columns=list("abc"))
    return pdf.assign(y=(pdf.a > 0).astype(int))


@pytest.fixture(scope="module")
def other() -> Iterator[Client]:
    """A second cluster, in this process."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def loop(context: daskdl.Context) -> None:
    for _ in context.batches:
        pass


def doors(rows: Any, cache: Path) -> dict[str, Callable[[Client], Any]]:
    """Every way in that works on a client, given it."""
    lazy = dd.from_pandas(rows, npartitions=2) if isinstance(rows, pd.DataFrame) else rows
    X, y = lazy[["a", "b", "c"]], lazy["y"]
    return {
        "connect": lambda client: daskdl.connect(client),
        "check": lambda client: daskdl.check(X, y, client=client),
        "train": lambda client: daskdl.train(loop, (X, y), client=client),
        "spmd.run": lambda client: daskdl.spmd.run(int, client=client),
        "stage": lambda client: daskdl.stage(lazy, cache=str(cache), client=client),
    }


def current_doors(rows: Any, cache: Path) -> dict[str, Callable[[], Any]]:
    """The same of the current client, and those that take no other."""
    lazy = dd.from_pandas(rows, npartitions=2) if isinstance(rows, pd.DataFrame) else rows
    X, y = lazy[["a", "b", "c"]], lazy["y"]
    return {
        **{name: (lambda door=door: door(None)) for name, door in doors(rows, cache).items() if name != "connect"},
        "fit": lambda: daskdl.TorchClassifier(epochs=1).fit(X, y),
        "fit of trees": lambda: daskdl.XGBClassifier(n_estimators=1).fit(X, y),
        "fit in the background": lambda: daskdl.TorchClassifier(epochs=1).fit(X, y, background=True),
    }


DOORS = ["connect", "check", "train", "spmd.run", "stage"]
CURRENT_DOORS = ["check", "train", "spmd.run", "stage", "fit", "fit of trees", "fit in the background"]


@pytest.mark.parametrize("door", CURRENT_DOORS)
def test_an_asynchronous_client_is_refused(door: str, rows: pd.DataFrame, tmp_path: Path) -> None:
    async def main() -> None:
        async with Client(processes=False, n_workers=1, dashboard_address=None, asynchronous=True):
            with soon(), pytest.raises(TypeError, match="asynchronous.*daskdl.connect"):
                current_doors(rows, tmp_path)[door]()

    asyncio.run(main())


def test_a_thread_beside_the_loop_may_train(client: Client, rows: pd.DataFrame) -> None:
    async def main() -> daskdl.TorchClassifier:
        with client.as_current():
            return await asyncio.to_thread(daskdl.TorchClassifier(epochs=1, verbose=0).fit, rows[["a", "b"]], rows.y)

    assert asyncio.run(main()).run_.state == "finished"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("what", ["closed", "a string"])
def test_what_is_no_client_that_can_compute_is_refused(
    door: str, what: str, client: Client, rows: pd.DataFrame, tmp_path: Path
) -> None:
    with Client(client.scheduler.address, set_as_default=False) as second:
        pass
    given, error = (second, ConnectionFailed) if what == "closed" else (object(), (TypeError, ValueError))
    with soon(), pytest.raises(error, match="is closed|takes"):
        doors(rows, tmp_path)[door](given)


def test_staging_uses_the_current_client(client: Client, rows: pd.DataFrame, tmp_path: Path) -> None:
    with daskdl.stage(dd.from_pandas(rows, npartitions=2), cache=str(tmp_path)) as staged:
        assert staged.n_rows == len(rows)


def test_a_run_belongs_to_the_current_client(client: Client, other: Client) -> None:
    with other.as_current(), daskdl.Run.start("here", "by hand", {}) as run:
        assert run._feed is not None and run._feed.client is other


@pytest.mark.parametrize("door", [door for door in CURRENT_DOORS if door != "spmd.run"])
def test_a_frame_that_lies_on_another_cluster_is_refused(
    door: str, client: Client, other: Client, rows: pd.DataFrame, tmp_path: Path
) -> None:
    elsewhere = other.persist(dd.from_pandas(rows, npartitions=2))
    with soon(), pytest.raises(ValueError, match=r"persist.*as it was before persist\(\)|persisted frame"):
        current_doors(elsewhere, tmp_path)[door]()


def test_a_frame_of_a_client_that_is_closed_is_refused(client: Client, rows: pd.DataFrame) -> None:
    with Client(client.scheduler.address, set_as_default=False) as second:
        frame = second.persist(dd.from_pandas(rows, npartitions=2))
    with soon(), pytest.raises(ValueError, match="persisted by a client that is closed"):
        daskdl.XGBClassifier(n_estimators=1).fit(frame[["a", "b"]], frame["y"])


def test_a_frame_of_another_client_of_this_scheduler_is_trained_on(client: Client, rows: pd.DataFrame) -> None:
    with Client(client.scheduler.address, set_as_default=False) as second:
        frame = second.persist(dd.from_pandas(rows, npartitions=2))
        model = daskdl.XGBClassifier(n_estimators=5, verbose=0).fit(frame[["a", "b"]], frame["y"])
    assert model.score(rows[["a", "b"]], rows["y"]) > 0.9


def test_the_cluster_of_the_current_client_trains(client: Client, other: Client, rows: pd.DataFrame) -> None:
    with other.as_current():
        elsewhere = other.persist(dd.from_pandas(rows, npartitions=2))
        model = daskdl.XGBClassifier(n_estimators=2, verbose=0).fit(elsewhere[["a", "b"]], elsewhere["y"])
    assert model.run_.state == "finished"


def test_a_cluster_without_workers_is_refused(rows: pd.DataFrame, tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as empty,
        empty.as_current(),
    ):
        for door in ("fit", "fit of trees", "train"):
            with soon(), pytest.raises(NotEnoughWorkers, match=r"has no workers yet.*scale\(n\)"):
                current_doors(dd.from_pandas(rows, npartitions=2), tmp_path)[door]()


@pytest.mark.parametrize("door", ["fit", "fit of trees", "train", "fit in the background"])
def test_a_place_for_runs_that_cannot_be_written_is_noticed_first(
    door: str, client: Client, rows: pd.DataFrame, tmp_path: Path
) -> None:
    computed = tmp_path / "computed"
    (tmp_path / "file").write_text("no folder")
    set_root(tmp_path / "file")
    lazy = dd.from_pandas(rows, npartitions=2).map_partitions(marked, str(computed), meta=rows.iloc[:0])
    with soon(), pytest.raises(OSError, match="runs cannot be kept in .*daskdl.connect"):
        current_doors(lazy, tmp_path)[door]()
    assert not computed.exists()


@pytest.mark.parametrize("door", ["fit", "fit of trees", "train"])
def test_checkpoints_that_cannot_be_written_are_noticed_first(
    door: str, client: Client, rows: pd.DataFrame, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    bad = str(tmp_path / "file" / "checkpoints")
    calls: dict[str, Callable[[], Any]] = {
        "fit": lambda: daskdl.TorchClassifier(checkpoints=bad).fit(rows[["a"]], rows["y"]),
        "fit of trees": lambda: daskdl.XGBClassifier(checkpoints=bad).fit(rows[["a"]], rows["y"]),
        "train": lambda: daskdl.train(loop, (rows[["a"]], rows["y"]), checkpoints=bad),
    }
    with soon(), pytest.raises(OSError, match="checkpoints=.*file.* cannot be written to by the workers"):
        calls[door]()


def marked(part: pd.DataFrame, path: str) -> pd.DataFrame:
    """Leave a note that something was computed."""
    Path(path).touch()
    return part
