"""What bad input gets: a clear error that names the column, the value and the remedy, and nothing lost."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from processes import wait_until
from torch import nn

import daskdl
from daskdl.errors import DataError, LossDiverged, NotEnoughWorkers

FEATURES = ["a", "b", "flag", "city"]
BOTH = pytest.mark.parametrize("kind", ["TorchClassifier", "XGBClassifier"])


def make(kind: str, **params: object) -> Any:
    return getattr(daskdl, kind)(verbose=0, **params)


@BOTH
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.assign(late=1), r"label 'late' has one class only: \[1\]"),
        (lambda f: f.assign(late=f.late.where(f.a < 1)), r"label 'late' has [\d,]+ missing \(NaN\)"),
        (lambda f: f.assign(late=f.late.where(f.a < 1, np.inf)), r"and [\d,]+ infinite \(inf\)"),
        (lambda f: f[f.a > 1000], r"the data has no rows"),
        (lambda f: f.assign(a=f.a.where(f.a < 1, np.inf)), r"column 'a' holds [\d,]+ infinite"),
        (
            lambda f: f.assign(
                a=f.a.map_partitions(lambda a: pd.Series([["x"]] * len(a), index=a.index), meta=("a", "O"))
            ),
            "column 'a' is an object column that is no category: it holds list",
        ),
    ],
)
def test_data_nothing_can_be_learned_from(
    client: Client, ragged: dd.DataFrame, kind: str, change: Callable[[dd.DataFrame], dd.DataFrame], message: str
) -> None:
    frame = change(ragged)
    with pytest.raises(DataError, match=message):
        make(kind).fit(frame[FEATURES], frame["late"])


@BOTH
def test_a_label_column_that_is_not_there(client: Client, ragged: dd.DataFrame, kind: str) -> None:
    with pytest.raises(DataError, match=r"label column 'latte' is not in X. Did you mean \['late'\]"):
        make(kind).fit(ragged, "latte")


@BOTH
def test_fewer_workers_than_asked_for(client: Client, ragged: dd.DataFrame, kind: str) -> None:
    with pytest.raises(NotEnoughWorkers, match="num_workers=3 asked for, but the cluster .* has 2"):
        make(kind, num_workers=3).fit(ragged[FEATURES], ragged["late"])


@BOTH
def test_other_features_in_predict_than_in_fit(client: Client, ragged: dd.DataFrame, kind: str) -> None:
    model = make(kind).fit(ragged[FEATURES], ragged["late"])
    with pytest.raises(DataError, match=r"missing: \['city'\]"):
        model.predict(ragged[["a", "b", "flag"]])


@BOTH
def test_lazy_data_without_a_cluster(planted: pd.DataFrame, kind: str, no_client: None) -> None:
    lazy = dd.from_pandas(planted, npartitions=2)
    with pytest.raises(ValueError, match=r"there is no Dask client .* daskdl.connect\(\)"):
        make(kind).fit(lazy[FEATURES], lazy["late"])


@BOTH
def test_validation_labels_that_training_has_not(client: Client, ragged: dd.DataFrame, kind: str) -> None:
    other = ragged.assign(late=ragged["late"] + 1)
    with pytest.raises(DataError, match=r"labels that training data does not: \[2\]"):
        make(kind).fit(ragged[FEATURES], ragged["late"], validation_data=(other[FEATURES], other["late"]))


def test_frames_that_do_not_belong_together(client: Client, ragged: dd.DataFrame, planted: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="X is a Dask DataFrame, so y must be a Dask Series"):
        make("TorchClassifier").fit(ragged[FEATURES], planted["late"])
    other = dd.from_map(lambda part: part, [planted[:1000], planted[1000:]])["late"]
    with pytest.raises(DataError, match="come from different frames"):
        make("TorchClassifier").fit(ragged[FEATURES], other)


@pytest.mark.parametrize(
    "module, message",
    [
        (nn.Linear(3, 7), r"output of shape \(6, 7\) .* expected \(6,\) or \(6, 1\) or \(6, 2\) for 2 classes"),
        (nn.Linear(9, 1), r"module cannot take the inputs this data makes, numbers \(6, 3\) for 6 rows"),
        (nn.Flatten(0), r"module has no parameters that learn: Flatten"),
    ],
)
def test_a_module_of_the_wrong_shape(client: Client, ragged: dd.DataFrame, module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        daskdl.TorchClassifier(module, verbose=0).fit(ragged[["a", "b", "flag"]], ragged["late"])


@pytest.mark.parametrize(
    "module, message",
    [
        (
            lambda schema, n: 3,
            r"Expected a torch.nn.Module, or a function module\(schema, n_outputs\).*; this one made int",
        ),
        (3, r"Expected a torch.nn.Module, or a function .* that makes one; got 3"),
        (
            nn.Linear,
            r"(?s)It was raised by module\(schema, 1\). Expected a torch.nn.Module, or a function .*; got <class",
        ),
    ],
)
def test_something_that_makes_no_module(planted: pd.DataFrame, module: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        daskdl.TorchClassifier(module, verbose=0).fit(planted[["a"]], planted["late"])
    assert re.search(message, "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())]))


def test_more_ranks_than_rows_in_a_batch(client: Client, ragged: dd.DataFrame) -> None:
    with pytest.raises(DataError, match="num_workers=2 ranks cannot share batches of 1 rows"):
        make("TorchClassifier", num_workers=2, batch_size=1).fit(ragged[FEATURES], ragged["late"])


def test_arguments_that_cannot_be() -> None:
    frame = pd.DataFrame({"x": [0.0, 1.0] * 10})
    y = [0, 1] * 10
    with pytest.raises(ValueError, match="batch_size must be at least 1 row, got 0"):
        daskdl.TorchClassifier(batch_size=0, verbose=0).fit(frame, y)
    with pytest.raises(ValueError, match=r"patience=3 needs validation_data"):
        daskdl.TorchClassifier(patience=3).fit(frame, y)
    with pytest.raises(ValueError, match="early_stopping_rounds=3 needs validation_data"):
        daskdl.XGBClassifier(early_stopping_rounds=3).fit(frame, y)
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        daskdl.TorchClassifier(epochs=0).fit(frame, y)
    with pytest.raises(ValueError, match="n_estimators must be at least 1, got 0"):
        daskdl.XGBClassifier(n_estimators=0).fit(frame, y)
    with pytest.raises(ValueError, match="optimizer must be one of .* got 'adma'"):
        daskdl.TorchClassifier(optimizer="adma", verbose=0).fit(frame, y)
    with pytest.raises(DataError, match="columns of the same name"):
        daskdl.TorchClassifier().fit(pd.concat([frame, frame], axis=1), y)


def test_a_loss_that_becomes_nan_names_the_step_and_keeps_the_last_good_weights(
    client: Client, ragged: dd.DataFrame
) -> None:
    clf = daskdl.TorchClassifier(epochs=2, batch_size=256, learning_rate=0.01, loss=nan_at_step_9, verbose=0)
    with pytest.raises(LossDiverged, match="the training loss became nan at step 9") as e:
        clf.fit(ragged[FEATURES], ragged["late"])
    assert e.value.step == 9
    assert e.value.good_step == 8
    assert all(p.isfinite().all() for p in clf.model_.parameters())
    assert clf.run_.state == "failed"
    assert clf.score(ragged[FEATURES], ragged["late"]) > 0.6  # eight steps of learning are not lost


def nan_at_step_9(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    nan_at_step_9.calls = getattr(nan_at_step_9, "calls", 0) + (len(y) > 100)  # not where it is tried before launch
    loss = nn.functional.binary_cross_entropy_with_logits(output.reshape(-1), y.float())
    return loss * float("nan") if nan_at_step_9.calls == 10 else loss


@BOTH
def test_a_fit_goes_on_when_all_workers_were_killed_and_the_next_one_works(
    client: Client, ragged: dd.DataFrame, kind: str
) -> None:
    """It waits for those that are started again, and begins again at its newest checkpoint, or at step 0."""
    long = {"epochs": 10_000} if kind == "TorchClassifier" else {"n_estimators": 100_000}
    model, doomed = make(kind, **long), list(client.run(os.getpid).values())

    def kill_all_and_stop_later() -> None:
        wait_until(lambda: hasattr(model, "run_") and model.run_.record.step > 5)
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "worker_lost" in [e["event"] for e in model.run_.record.events])
        model.run_.stop()

    killer = threading.Thread(target=kill_all_and_stop_later, daemon=True)
    killer.start()
    model.fit(ragged[FEATURES], ragged["late"])
    killer.join()
    assert model.run_.state == "stopped" and model.score(ragged[FEATURES], ragged["late"]) > 0.5
    client.wait_for_workers(2)
    make(kind, **dict.fromkeys(long, 1)).fit(ragged[FEATURES], ragged["late"])
