"""Where fit may be called: in tasks, threads and searches; and what is said of a wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import dask.dataframe as dd
import joblib
import pandas as pd
import pytest
from distributed import Client, Event, get_client, worker_client
from sklearn.model_selection import GridSearchCV, cross_val_score

import daskdl
from daskdl.clients import current_client
from daskdl.errors import ConnectionFailed
from daskdl.waiting import Waiting, as_they_come

FEATURES = ["a", "b"]
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 256, "verbose": 0}


@pytest.fixture
def rows(planted: pd.DataFrame) -> pd.DataFrame:
    return planted[[*FEATURES, "late"]].fillna(0).head(600)


def test_a_fit_in_a_task_that_has_a_client_trains_there(client: Client, rows: pd.DataFrame) -> None:
    def task(frame: pd.DataFrame) -> tuple[Any, Any]:
        get_client()
        clf = daskdl.TorchClassifier(**QUICK).fit(frame[FEATURES], frame["late"])
        return clf.predict(frame[FEATURES]), clf.run_.record.num_workers

    found, ranks = client.submit(task, rows, pure=False).result(timeout=60)
    here = daskdl.TorchClassifier(**QUICK, num_workers=1).fit(rows[FEATURES], rows["late"])
    assert ranks == 1
    assert (found == here.predict(rows[FEATURES])).mean() > 0.99


def test_a_lazy_frame_in_a_task_is_refused_with_the_remedy(client: Client, rows: pd.DataFrame) -> None:
    def task(lazy: bool) -> None:
        frame = dd.from_pandas(rows, npartitions=2)
        given = {} if lazy else {"client": get_client()}
        daskdl.train(lambda context: None, (frame[FEATURES], frame["late"]), verbose=0, **given)

    began = time.monotonic()
    for lazy in (True, False):
        with pytest.raises(ValueError, match="must let its thread go meanwhile.*worker_client"):
            client.submit(task, lazy, pure=False).result(timeout=60)
    assert time.monotonic() - began < 30


def test_a_task_that_lets_its_thread_go_trains_on_the_cluster(client: Client, rows: pd.DataFrame) -> None:
    def task() -> Any:
        frame = dd.from_pandas(rows, npartitions=2)
        with worker_client():
            return daskdl.XGBClassifier(n_estimators=2, verbose=0).fit(frame[FEATURES], frame["late"]).run_.record

    record = client.submit(task, pure=False).result(timeout=100)
    assert (record.state, record.num_workers) == ("finished", 2)


@pytest.mark.parametrize("backend", ["dask", "threading"])
def test_a_search_finds_what_it_finds_one_after_the_other(client: Client, rows: pd.DataFrame, backend: str) -> None:
    def scores(backend: str, n_jobs: int) -> Any:
        search = GridSearchCV(
            daskdl.TorchClassifier(**QUICK, num_workers=1), {"learning_rate": [1e-3, 1e-1]}, cv=2, n_jobs=n_jobs
        )
        with joblib.parallel_config(backend, n_jobs=n_jobs):
            return search.fit(rows[FEATURES], rows["late"]).cv_results_["mean_test_score"].tolist()

    assert scores(backend, 2) == pytest.approx(scores("sequential", 1), abs=0.01)


def test_scores_of_folds_on_the_cluster(client: Client, rows: pd.DataFrame) -> None:
    with joblib.parallel_config("dask", n_jobs=2):
        model = daskdl.XGBClassifier(n_estimators=3, verbose=0)
        assert cross_val_score(model, rows[FEATURES], rows["late"], cv=2).min() > 0.6


@pytest.fixture
def held(client: Client) -> Iterator[Event]:
    """All threads of the cluster are held by tasks of somebody else, until the event is set."""
    event = Event("free", client=client)

    def hold(number: int) -> None:
        with worker_client(separate_thread=False) as inner:
            Event("free", client=inner).wait(60)

    futures = [client.submit(hold, n, pure=False, key=f"hold-{n}", workers=[w], allow_other_workers=False)
               for n, w in enumerate(client.scheduler_info(n_workers=-1)["workers"])]  # fmt: skip
    while sum(len(keys) for keys in client.processing().values()) < 2:
        time.sleep(0.05)
    yield event
    event.set()
    client.gather(futures)
    event.clear()


def test_what_holds_the_threads_is_said(client: Client, held: Event) -> None:
    said: list[str] = []
    waited = client.submit(int, 3, pure=False)

    def say(text: str) -> None:
        said.append(text)
        held.set()

    assert [future.result() for future in as_they_come(client, [waited], "a number", say)] == [3]
    assert said[0].startswith("waiting for a number: other tasks hold the threads: hold-")


def test_who_waits_hears_of_a_client_that_is_closed(client: Client) -> None:
    with Client(client.scheduler.address, set_as_default=False) as other:
        waiting = Waiting(other, "a number")
    with pytest.raises(ConnectionFailed, match="the client was closed while a number was waited for"):
        waiting.look([])


def test_outside_of_tasks_the_current_client_is_taken(client: Client) -> None:
    assert current_client() is client
