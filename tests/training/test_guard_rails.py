"""What goes wrong inside a rank: each ends in a clear error with the rank and the step, and the cluster is free."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xgboost
from distributed import Client

import daskdl
from daskdl.errors import LossDiverged, RankFailed
from daskdl.execution import progress
from daskdl.execution.progress import Place
from daskdl.training.stuck import stuck_error

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def three() -> Iterator[Client]:
    client = daskdl.connect("cpu", n_workers=3, memory_limit="2GiB", dashboard_address="127.0.0.1:0")
    client.run(_impatient)
    with client.as_current():
        yield client
    client.shutdown()


def _impatient() -> None:
    progress.SECONDS = 2.0


@pytest.fixture(scope="module")
def rows() -> tuple[pd.DataFrame, pd.Series]:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(3_000, 4)).astype("float32"), columns=list("abcd"))
    return X, (X.a > 0).astype(int)


def fit_again(rows: Any) -> None:
    """The cluster is usable at once."""
    assert daskdl.TorchClassifier(epochs=1, verbose=0).fit(*rows).run_.state == "finished"


def sleeps(context: daskdl.Context, who: int) -> None:
    for batch in context.batches:
        if batch.step == 10 and context.rank == who:
            time.sleep(1_000)
        context.sum(torch.ones(1))


def test_a_rank_that_makes_no_progress_is_named_with_its_line(three: Client, rows: Any) -> None:
    three.wait_for_workers(3)
    with pytest.raises(RankFailed, match=r"rank 1 at step 10 in .*test_guard_rails.py:\d+ in sleeps: time.sleep") as e:
        daskdl.train(sleeps, rows, 1, num_workers=3, batch_size=60, epochs=5, verbose=0)
    assert e.value.rank == 1 and "The others wait for it" in str(e.value)
    three.wait_for_workers(3)
    three.run(_impatient)
    fit_again(rows)


def hangs(margins: Any, rows: Any) -> Any:
    time.sleep(1_000)


def _hang_in_round_10() -> None:
    """Have the rank of this worker's process call an objective in its tenth round, from inside XGBoost."""
    update = xgboost.Booster.update
    xgboost.Booster.update = lambda self, rows, iteration, fobj=None: update(  # type: ignore[method-assign]
        self, rows, iteration, hangs if iteration == 10 else fobj
    )


@pytest.mark.parametrize("who, validated", [(1, False), (0, True)])
def test_a_rank_of_xgboost_that_makes_no_progress_is_named_with_its_line(
    three: Client, rows: Any, who: int, validated: bool
) -> None:
    three.wait_for_workers(3)
    three.run(_impatient)
    before = three.run(os.getpid)
    hanging = sorted(before)[who]
    three.run(_hang_in_round_10, workers=[hanging])
    classifier = daskdl.XGBClassifier(n_estimators=1_000, num_workers=3, verbose=0)
    where = rf"rank {who} at step 10 in .*test_guard_rails.py:\d+ in hangs: time.sleep"
    with pytest.raises(RankFailed, match=where) as e:
        classifier.fit(*rows, validation_data=rows if validated else None)
    assert e.value.rank == who and "The others wait for it" in str(e.value)
    three.wait_for_workers(3)
    after = three.run(os.getpid)
    others = [worker for worker in before if worker != hanging]
    assert [after.get(w) for w in others] == [before[w] for w in others], "they were woken, not ended"
    assert daskdl.XGBClassifier(n_estimators=20, verbose=0).fit(*rows).run_.state == "finished"
    fit_again(rows)


def test_binning_and_the_first_round_are_no_rounds_to_judge_by() -> None:
    """A round of which others are judged is one of many alike: see boost.py."""
    at = progress.begin_progress("run", 7, first=500.0)
    try:
        place = progress.place_of("run")
        assert place is not None and (place.step, place.allowed) == (7, 500.0)
        at.next(8)  # the first round is done
        assert (at.n, at.mean) == (1, 0.0)
        at.since -= 10  # the second took ten seconds
        at.next(9)
        place = progress.place_of("run")
        assert place is not None and place.step == 9 and place.allowed == pytest.approx(1_000, rel=0.1)
        assert place.line.startswith(f"{__file__}:") and not place.waiting
    finally:
        progress.end_progress("run")
    assert progress.place_of("run") is None


def test_ranks_that_are_all_in_xgboost_are_said_to_be() -> None:
    places = {rank: Place(3, 30.0, 20.0, "/lib/xgboost/core.py:7 in update: _check_call(", True) for rank in (0, 1)}
    error = stuck_error(places, ["tcp://a:1", "tcp://b:1"])
    assert "All of them are in XGBoost" in str(error) and "context.sum" not in str(error)


def unequal(context: daskdl.Context) -> None:
    for batch in context.batches:
        if batch.step == 10 and context.rank == 0:
            context.sum(torch.ones(1))
        context.sum(torch.ones(1))


def test_collectives_called_unequally_are_explained(three: Client, rows: Any) -> None:
    three.wait_for_workers(3)
    three.run(_impatient)
    with pytest.raises(RankFailed, match="must call the same collectives|different numbers of collectives"):
        daskdl.train(unequal, rows, num_workers=3, batch_size=60, epochs=5, verbose=0)
    three.wait_for_workers(3)
    fit_again(rows)


def out_of_memory(context: daskdl.Context) -> None:
    for batch in context.batches:
        if batch.step == 3 and context.rank == 2:
            torch.empty(1 << 60)
        context.sum(torch.ones(1))


def test_one_rank_out_of_memory(three: Client, rows: Any) -> None:
    three.wait_for_workers(3)
    with pytest.raises(RankFailed, match=r"rank 2 of 3 on tcp.*failed: .*\(in rank 2, in step 3 of") as e:
        daskdl.train(out_of_memory, rows, num_workers=3, batch_size=60, epochs=1, verbose=0)
    assert "alloc" in str(e.value) or "memory" in str(e.value) or "Storage" in str(e.value)
    fit_again(rows)


def test_a_loss_that_becomes_infinite_leaves_a_checkpoint(three: Client, rows: Any) -> None:
    X, y = rows
    classifier = daskdl.TorchClassifier(learning_rate=1e30, epochs=3, batch_size=60, optimizer="sgd", verbose=0)
    with pytest.raises(LossDiverged, match="the training loss became"):
        classifier.fit(X, y)
    assert all(bool(p.isfinite().all()) for p in classifier.model_.parameters())
    fit_again(rows)


def explodes(context: daskdl.Context) -> None:
    for batch in context.batches:
        context.report(loss=1.5 ** min(batch.step, 60))


def test_an_exploding_loss_is_warned_of_once(three: Client, rows: Any) -> None:
    three.wait_for_workers(3)
    run = daskdl.train(explodes, rows, batch_size=60, epochs=2, verbose=0).run
    (warning,) = run.events.query("event == 'warning'").text
    assert warning.startswith("train_loss is ") and "times what it began with" in warning
