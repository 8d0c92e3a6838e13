"""Runs side by side on one cluster: who holds which worker, who waits, and that nobody waits for ever."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client
from processes import wait_until

import daskdl
from daskdl.execution import spmd
from daskdl.execution.queue import Request, queue_of
from daskdl.execution.seats import Seats, holders

pytestmark = pytest.mark.cluster


def test_nobody_holds_a_worker_while_waiting_for_another(client: Client) -> None:
    a, b = spmd.choose_workers(client, 2)
    said: list[str] = []
    with Seats(client, "first") as first, Seats(client, "second") as second:
        first.take([a])
        waits = threading.Thread(target=second.take, args=([a, b], said.append))
        waits.start()
        time.sleep(1.5)
        assert holders(client) == {a: "first"}
        assert first.take_free([b], 1) == [b], "a run that is going gets what is free, whoever waits"
        assert said == ["waiting for 1 of 2 workers, held by first"]
        first.__exit__(None, None, None)
        waits.join(10)
        assert holders(client) == {a: "second", b: "second"}
    assert holders(client) == {}


def test_those_who_wait_take_turns_in_the_order_of_asking(client: Client) -> None:
    workers, order = spmd.choose_workers(client, 2), []

    def one(name: str) -> None:
        with Seats(client, name) as seats:
            seats.take(workers)
            order.append(name)

    with Seats(client, "holds") as holds:
        holds.take(workers)
        threads = []
        for name in "abcd":
            threads.append(threading.Thread(target=one, args=(name,)))
            threads[-1].start()
            time.sleep(0.3)
    for thread in threads:
        thread.join(20)
    assert order == list("abcd") and holders(client) == {}


def interrupt(_: str) -> None:
    raise KeyboardInterrupt


def test_to_stop_waiting_leaves_nothing(client: Client) -> None:
    workers = spmd.choose_workers(client, 2)
    with Seats(client, "holds") as holds, Seats(client, "gives up") as other:
        holds.take(workers)
        with pytest.raises(KeyboardInterrupt):
            other.take(workers, interrupt)
    with Seats(client, "next") as after:
        after.take(workers)
        assert set(holders(client).values()) == {"next"}


def test_a_client_that_leaves_while_it_waits_holds_up_nobody(client: Client) -> None:
    a, b = spmd.choose_workers(client, 2)

    def ask(seats: Seats) -> None:
        with suppress(Exception):  # its client is closed
            seats.take([a, b])

    with Seats(client, "holds") as holds:
        holds.take([a])
        leaving = Client(client.scheduler.address, set_as_default=False)
        threads = [threading.Thread(target=ask, args=(Seats(each, "waits"),)) for each in (leaving, client)]
        for n, thread in enumerate(threads):
            thread.start()
            assert wait_until(lambda n=n: len(_waiting(client)) > n)
        leaving.close()
        threads[0].join(20)
        assert wait_until(lambda: [one.client for one in _waiting(client)] == [client.id])
    threads[1].join(20)
    assert holders(client) == {a: "waits", b: "waits"}
    client.run_on_scheduler(_end, client.id)
    assert holders(client) == {}


def _end(client: str, dask_scheduler: Any) -> None:
    queue_of(dask_scheduler).end_client(client)


def _waiting(client: Client) -> list[Request]:
    found: list[Request] = client.run_on_scheduler(lambda dask_scheduler: [*queue_of(dask_scheduler).waiting.values()])
    return found


def test_a_worker_that_is_lost_is_not_waited_for(client: Client) -> None:
    a, b = spmd.choose_workers(client, 2)
    with Seats(client, "holds") as holds, Seats(client, "waits") as waits:
        holds.take([a])
        waits.take(["tcp://127.0.0.1:1", b])
        assert holders(client) == {a: "holds", b: "waits"}


def test_two_trainings_at_once_both_end(client: Client) -> None:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(2_000, 4)), columns=list("abcd"))
    fitted: list[Any] = []

    def fit() -> None:
        with client.as_current():
            fitted.append(daskdl.TorchClassifier(epochs=40, batch_size=64, verbose=0).fit(X, (X.a > 0).astype(int)))

    threads = [threading.Thread(target=fit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [each.run_.state for each in fitted] == ["finished"] * 2
    waited = [each.run_.events.query("event == 'waiting'").text.tolist() for each in fitted]
    assert any("held by " + fitted[0].run_.id in text for texts in waited for text in texts)
    assert all(each.run_.audit()["max"].eq(1).all() for each in fitted)
