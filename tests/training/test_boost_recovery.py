"""Boosting goes on after a loss, a stop or a resume: all rounds are there, and the trees are as good as undisturbed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
import xgboost
from distributed import Client
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from watching import when_at

import daskdl
from daskdl.run import Run
from daskdl.training.commit import Commit

FEATURES = ["a", "b", "flag", "city"]
ROUNDS = 150


@pytest.fixture
def whole(three: Client) -> Client:
    """The cluster with all of its workers."""
    three.wait_for_workers(3, timeout=60)
    return three


@contextmanager
def slow_rounds(client: Client, seconds: float) -> Iterator[None]:
    """Let a round take some time, so that what happens at one of them happens before the last."""

    def slow() -> None:
        quick = xgboost.Booster.update

        def update(*args: Any, **kwargs: Any) -> None:
            time.sleep(seconds)
            quick(*args, **kwargs)

        update.quick = quick  # type: ignore[attr-defined]
        xgboost.Booster.update = update

    def quick() -> None:
        xgboost.Booster.update = getattr(xgboost.Booster.update, "quick", xgboost.Booster.update)

    client.run(slow)
    yield
    client.wait_for_workers(3)
    client.run(quick)


def kill(client: Client, *ranks: int) -> Any:
    """What kills the workers of some ranks: they are numbered in the order of addresses."""
    pids = [pid for _, pid in sorted(client.run(os.getpid).items())]

    def act() -> None:
        for rank in ranks:
            os.kill(pids[rank], signal.SIGKILL)

    return act


def split(planted: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    return planted[:3000], planted[3000:]


def auc(clf: Any, frame: pd.DataFrame) -> float:
    return float(roc_auc_score(frame.late, clf.predict_proba(frame[FEATURES])[:, 1]))


def data_of(kind: str, frame: pd.DataFrame) -> tuple[Any, Any]:
    frame = frame[[*FEATURES, "late"]]
    if kind == "pandas":
        return frame[FEATURES], frame.late
    if kind == "dask":
        return dd.from_pandas(frame, npartitions=7), "late"
    return daskdl.MemorySource(frame, group_rows=500), "late"


@pytest.mark.cluster
@pytest.mark.parametrize("kind, killed", [("pandas", (0,)), ("source", (0, 2)), ("dask", (0, 1))])
def test_boosting_goes_on_with_those_that_are_left(
    whole: Client, planted: pd.DataFrame, started_runs: list[Run], kind: str, killed: tuple[int, ...]
) -> None:
    train, held_out = split(planted)
    options: dict[str, Any] = {"n_estimators": ROUNDS, "learning_rate": 0.1, "num_workers": 3, "verbose": 0}
    killer = when_at(started_runs, 20, kill(whole, *killed))
    with slow_rounds(whole, 0.02):
        clf = daskdl.XGBClassifier(**options).fit(*data_of(kind, train))
    killer.join()
    assert clf.model_.num_boosted_rounds() == ROUNDS
    assert clf.run_.metrics.index.tolist() == list(range(1, ROUNDS + 1))
    assert clf.run_.metrics.train_loss.notna().all()
    lost = clf.run_.events.query("event == 'worker_lost'")
    assert len(lost), clf.run_.events.to_string()
    assert all(0 <= step < ROUNDS for step in lost.step)
    whole.wait_for_workers(3)
    undisturbed = daskdl.XGBClassifier(**options).fit(*data_of(kind, train))
    assert auc(clf, held_out) == pytest.approx(auc(undisturbed, held_out), abs=0.01)
    last = [c.run_.metrics.train_loss.iloc[-1] for c in (clf, undisturbed)]
    assert last[0] == pytest.approx(last[1], rel=0.05)


def logistic(y: Any, p: Any) -> Any:
    chance = 1 / (1 + np.exp(-p))
    return chance - y, chance * (1 - chance)


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["function", "ranker", "dart"])
def test_what_rows_and_functions_bring_survives_a_loss(
    whole: Client, planted: pd.DataFrame, started_runs: list[Run], kind: str
) -> None:
    frame = dd.from_pandas(planted.assign(q=np.arange(4000) % 70, w=1 + np.arange(4000) % 70 % 3), npartitions=6)
    X, options = frame[["a", "b", "q", "w"]], {"n_estimators": 80, "num_workers": 3, "verbose": 0}
    schedule = xgboost.callback.LearningRateScheduler(lambda i: 0.3 if i < 40 else 0.05)
    more: dict[str, Any] = {"sample_weight": "w"}
    if kind == "ranker":
        made, more = daskdl.XGBRanker(**options, eval_metric="ndcg@5"), {**more, "qid": "q"}
    elif kind == "function":
        made = daskdl.XGBClassifier(**options, objective=logistic, callbacks=[schedule], base_score=0.0)
    else:
        made = daskdl.XGBClassifier(**options, booster="dart", params={"rate_drop": 0.3})

    def fitted() -> Any:
        return clone(made).fit(X, frame.late, **more)

    killer = when_at(started_runs, 10, kill(whole, 1))
    with slow_rounds(whole, 0.02):
        found = fitted()
    killer.join()
    assert "worker_lost" in found.run_.events.event.tolist()
    assert found.model_.num_boosted_rounds() == 80
    whole.wait_for_workers(3)
    undisturbed = fitted()
    x = planted[["a", "b"]].assign(q=0, w=0)
    for kind_ in (found, undisturbed):
        assert kind_.schema_.names == (["a", "b", "q"] if kind != "ranker" else ["a", "b"])
    names = found.schema_.names
    margins = [clf.predict(x[names], output_margin=True) for clf in (found, undisturbed)]
    aucs = [roc_auc_score(planted.late, margin) for margin in margins]
    assert aucs[0] == pytest.approx(aucs[1], abs=0.02)


@pytest.mark.cluster
def test_it_grows_back(whole: Client, planted: pd.DataFrame, started_runs: list[Run]) -> None:
    frame = planted[FEATURES], planted.late
    killer = when_at(started_runs, 20, kill(whole, 1))
    stopper: list[threading.Thread] = []

    def stop_when_grown() -> None:
        run = started_runs[0]
        while run.state == "running" and "resize" not in [event["event"] for event in run.record.events]:
            time.sleep(0.05)
        step = run.record.step
        stopper.append(when_at(started_runs, step + 20, run.stop))

    watcher = when_at(started_runs, 1, stop_when_grown)
    clf = daskdl.XGBClassifier(n_estimators=100_000, max_depth=2, verbose=0).fit(*frame)
    for thread in (killer, watcher, *stopper):
        thread.join()
    events = clf.run_.events
    assert events.event.tolist().index("worker_lost") < events.event.tolist().index("resize")
    assert events[events.event == "resize"].text.iloc[-1].startswith("3 ranks instead of 2 from step")
    assert clf.run_.state == "stopped"
    assert clf.model_.num_boosted_rounds() == clf.run_.record.step


@pytest.mark.cluster
def test_early_stopping_counts_over_a_loss(whole: Client, planted: pd.DataFrame, started_runs: list[Run]) -> None:
    train, held_out = split(planted)
    rng = np.random.default_rng(1)
    noisy = (train.late + (rng.random(len(train)) < 0.3)) % 2
    options: dict[str, Any] = {
        "n_estimators": 2_000,
        "learning_rate": 0.01,
        "eval_metric": "logloss",
        "early_stopping_rounds": 60,
        "verbose": 0,
    }
    validation = held_out[FEATURES], held_out.late
    killer = when_at(started_runs, 50, kill(whole, 0))
    with slow_rounds(whole, 0.02):
        clf = daskdl.XGBClassifier(**options).fit(train[FEATURES], noisy, validation_data=validation)
    killer.join()
    assert "worker_lost" in clf.run_.events.event.tolist()
    losses = clf.run_.metrics.val_loss
    assert clf.best_iteration_ == losses.idxmin() - 1
    assert len(losses) == clf.best_iteration_ + 61 < 2_000
    assert clf.model_.num_boosted_rounds() == len(losses)
    whole.wait_for_workers(3)
    undisturbed = daskdl.XGBClassifier(**options).fit(train[FEATURES], noisy, validation_data=validation)
    assert losses.min() == pytest.approx(undisturbed.run_.metrics.val_loss.min(), rel=0.02)
    assert abs(clf.best_iteration_ - undisturbed.best_iteration_) <= 30


@pytest.mark.cluster
def test_an_interrupt_leaves_the_rounds_so_far(whole: Client, planted: pd.DataFrame, started_runs: list[Run]) -> None:
    clf = daskdl.XGBClassifier(n_estimators=100_000, verbose=0)
    interrupter = when_at(started_runs, 10, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        clf.fit(planted[FEATURES], planted.late)
    interrupter.join()
    assert clf.model_.num_boosted_rounds() == clf.run_.record.step >= 10
    assert clf.run_.state == "stopped"
    assert auc(clf, planted) > 0.9


@pytest.mark.cluster
@pytest.mark.parametrize("kind, n_workers", [("dask", 1), ("source", 3)])
def test_a_run_is_stopped_and_resumed(
    whole: Client, planted: pd.DataFrame, started_runs: list[Run], kind: str, n_workers: int
) -> None:
    rounds = 200
    options: dict[str, Any] = {"n_estimators": rounds, "num_workers": n_workers, "verbose": 0, "max_depth": 4}
    stopper = when_at(started_runs, 10, lambda: started_runs[0].stop())
    with slow_rounds(whole, 0.1):
        first = daskdl.XGBClassifier(**options).fit(*data_of(kind, planted))
    stopper.join()
    done = first.model_.num_boosted_rounds()
    assert first.run_.state == "stopped" and 10 <= done < rounds
    second = daskdl.resume(first.run_.id)
    assert second.model_.num_boosted_rounds() == rounds and second.run_.state == "finished"
    assert second.run_.metrics.index.tolist() == list(range(1, rounds + 1))
    assert f"from step {done}" in second.run_.events.query("event == 'resumed'").text.iloc[0]
    undisturbed = daskdl.XGBClassifier(**options).fit(*data_of(kind, planted))
    if n_workers == 1:
        assert second.model_.save_raw("ubj") == undisturbed.model_.save_raw("ubj")
    assert auc(second, planted) == pytest.approx(auc(undisturbed, planted), abs=0.01)


@pytest.mark.cluster
def test_a_run_that_ended_early_is_not_boosted_further(whole: Client, planted: pd.DataFrame) -> None:
    train, held_out = split(planted)
    clf = daskdl.XGBClassifier(n_estimators=500, early_stopping_rounds=3, num_workers=2, verbose=0)
    clf.fit(
        dd.from_pandas(train[[*FEATURES, "late"]], npartitions=4),
        "late",
        validation_data=(held_out[FEATURES], held_out.late),
    )
    again = daskdl.resume(clf.run_.id)
    assert again.model_.num_boosted_rounds() == clf.model_.num_boosted_rounds() < 500
    assert again.best_iteration_ == clf.best_iteration_


def rank_of(frame: pd.DataFrame, rounds: int, commit: Commit | None = None, **params: Any) -> tuple[Commit, list[Any]]:
    """Boost in this process to a round; return the commit, and the messages sent."""
    from daskdl.training.boost import boost_rank
    from daskdl.training.boost_matrix import BoostConfig
    from daskdl.training.commit import take_commit

    given = {"objective": "binary:logistic", "tree_method": "hist", "eval_metric": ["logloss"], "max_bin": 32, **params}
    x = frame[["a", "b"]].astype("float32")
    config = BoostConfig(given, rounds, None, ["a", "b"], ["float", "float"], 0, len(frame))
    messages: list[Any] = []
    boost_rank(config, "doc", None, messages.append, 0, commit, [{"x": x, "y": frame.late.to_numpy()}])
    return take_commit("doc"), messages


def test_other_rows_go_into_the_bins_of_the_commit(planted: pd.DataFrame) -> None:
    half, _ = rank_of(planted, 10)
    whole, _ = rank_of(planted, 30)
    resumed, messages = rank_of(planted[::-1], 30, half)  # other rows first, as other ranks have
    bins = [commit.state["bins"][1].numpy() for commit in (whole, resumed)]
    assert np.array_equal(*bins)
    matrix = xgboost.DMatrix(planted[["a", "b"]].astype("float32"))
    margins: list[Any] = []
    for commit in (whole, resumed):
        booster = xgboost.Booster(model_file=bytearray(commit.state["booster"].numpy().tobytes()))
        margins.append(booster.predict(matrix, output_margin=True))
    assert np.allclose(margins[0], margins[1], atol=1e-3)
    steps = [step for m in messages if m["kind"] == "metrics" for step, _ in m["points"]]
    assert steps[0] <= 10 and steps == list(range(steps[0], 31)), (
        "the points that rank 0 may not have sent are sent again"
    )


@pytest.mark.parametrize("params", [{}, {"subsample": 0.5}, {"colsample_bytree": 0.5}])
def test_bits_are_the_same_but_for_what_is_drawn(planted: pd.DataFrame, params: dict[str, Any]) -> None:
    whole, _ = rank_of(planted, 20, **params)
    resumed, _ = rank_of(planted, 20, rank_of(planted, 7, **params)[0], **params)
    assert torch.equal(whole.state["booster"], resumed.state["booster"]) == (not params)
