"""TorchClassifier and TorchRegressor on a real cluster and without one."""

from __future__ import annotations

import copy
import pickle

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from torch import nn

import daskdl
from daskdl.data.schema import Schema

FEATURES = ["a", "b", "flag", "city"]


class SkipDropout(nn.Module):
    """A network without dropout, so that the number of ranks cannot change it."""

    def __init__(self, schema: Schema, n_outputs: int) -> None:
        super().__init__()
        self.city = nn.Embedding(schema.cardinalities[0], 4)
        self.layers = nn.Sequential(nn.Linear(schema.n_numbers + 4, 32), nn.Tanh(), nn.Linear(32, n_outputs))

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([numbers, self.city(codes[:, 0])], dim=1))


def classifier(**params: object) -> daskdl.TorchClassifier:
    return daskdl.TorchClassifier(
        **{"epochs": 4, "batch_size": 128, "learning_rate": 1e-2, "verbose": 0, **params}  # type: ignore[arg-type]
    )


def test_the_four_lines_of_the_readme(client: Client, ragged: dd.DataFrame) -> None:
    clf = classifier().fit(ragged[FEATURES], ragged["late"])
    p = clf.predict_proba(ragged[FEATURES])
    assert isinstance(p, dd.DataFrame)
    assert roc_auc_score(ragged["late"].compute(), p[1].compute()) > 0.95
    assert clf.run_.state == "finished"
    assert clf.run_.metrics.train_loss.iloc[-1] < clf.run_.metrics.train_loss.iloc[0]


def test_prediction_is_lazy_and_keeps_the_index(client: Client, ragged: dd.DataFrame) -> None:
    clf = classifier(epochs=1).fit(ragged[FEATURES], ragged["late"])
    predicted = clf.predict(ragged[FEATURES])
    assert isinstance(predicted, dd.Series)
    assert predicted.npartitions == ragged.npartitions
    assert predicted.dtype == "int64"
    assert predicted.compute().index.equals(ragged.compute().index)


def test_the_number_of_workers_does_not_change_what_is_learned(client: Client, ragged: dd.DataFrame) -> None:
    losses, weights = [], []
    for num_workers in (1, 2):
        clf = classifier(module=SkipDropout, epochs=2, num_workers=num_workers).fit(ragged[FEATURES], ragged["late"])
        losses.append(clf.run_.metrics.train_loss.to_numpy())
        weights.append(torch.cat([p.detach().flatten() for p in clf.model_.parameters()]))
    assert len(losses[0]) == 2 * -(-4000 // 128)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert torch.allclose(weights[0], weights[1], atol=1e-3)


def test_gradients_are_weighted_by_rows_when_the_last_batch_is_ragged(client: Client) -> None:
    """Seven rows in batches of four on two ranks: 2 + 2, then 2 + 1. One worker must see the same losses."""
    frame = pd.DataFrame({"x": np.arange(7.0), "y": [1.0, 4.0, 2.0, 8.0, 5.0, 7.0, 1.0]})
    lazy = dd.from_pandas(frame, npartitions=3)
    start = nn.Linear(1, 1)
    losses = [
        daskdl.TorchRegressor(
            start, epochs=5, batch_size=4, optimizer="sgd", learning_rate=0.1, num_workers=n, verbose=0
        )
        .fit(lazy[["x"]], lazy["y"])
        .run_.metrics.train_loss.to_numpy()
        for n in (1, 2)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_rank_without_rows_in_the_last_batch_counts_nothing(client: Client) -> None:
    """Five rows in batches of four on two ranks: the last batch is one row, on one rank."""
    frame = pd.DataFrame({"x": np.arange(5.0), "y": [1.0, 4.0, 2.0, 8.0, 5.0]})
    lazy = dd.from_pandas(frame, npartitions=2)
    start = nn.Linear(1, 1)
    weights = [
        daskdl.TorchRegressor(
            start, epochs=3, batch_size=4, optimizer="sgd", learning_rate=0.1, num_workers=n, verbose=0
        )
        .fit(lazy[["x"]], lazy["y"])
        .model_.weight.item()
        for n in (1, 2)
    ]
    assert weights[0] == pytest.approx(weights[1], rel=1e-5)


def test_validation_and_early_stopping_keep_the_best_weights(client: Client, ragged: dd.DataFrame) -> None:
    clf = classifier(epochs=60, learning_rate=0.05, patience=2).fit(
        ragged[FEATURES], ragged["late"], validation_data=(ragged[FEATURES], ragged["late"])
    )
    metrics = clf.run_.metrics
    assert metrics.val_loss.notna().sum() < 60
    assert "early_stop" in clf.run_.events.event.tolist()
    best = metrics.val_auc[metrics.val_loss.idxmin()]
    exact = roc_auc_score(ragged["late"].compute(), clf.predict_proba(ragged[FEATURES])[1].compute())
    assert best == pytest.approx(exact, abs=2e-3)  # the histogram's AUC, and that these are the best epoch's weights


def test_more_than_two_classes_and_their_names(client: Client, ragged: dd.DataFrame) -> None:
    clf = classifier(epochs=8).fit(ragged[["a", "city"]], ragged["city"].rename("where"))
    assert clf.classes_.tolist() == ["Lima", "Oslo", "Rome"]
    assert clf.score(ragged[["a", "city"]], ragged["city"]) > 0.99
    assert list(clf.predict_proba(ragged[["a", "city"]]).columns) == ["Lima", "Oslo", "Rome"]


def test_a_regression_learns_in_the_unit_of_its_labels(client: Client, ragged: dd.DataFrame) -> None:
    reg = daskdl.TorchRegressor(epochs=8, batch_size=128, learning_rate=1e-2, verbose=0)
    assert reg.fit(ragged[FEATURES], ragged["delay"]).score(ragged[FEATURES], ragged["delay"]) > 0.8


def test_frames_in_memory_need_no_cluster(planted: pd.DataFrame) -> None:
    clf = classifier().fit(planted[FEATURES], planted["late"])
    assert isinstance(clf.predict(planted[FEATURES]), np.ndarray)
    assert clf.score(planted[FEATURES], planted["late"]) > 0.9


def test_a_column_name_is_a_label_too(client: Client, ragged: dd.DataFrame) -> None:
    clf = classifier(epochs=1).fit(ragged[[*FEATURES, "late"]], "late")
    assert clf.feature_names_in_.tolist() == FEATURES


def test_fit_changes_neither_parameters_nor_the_module_given(planted: pd.DataFrame) -> None:
    module = nn.Sequential(nn.Linear(2, 1))
    before = copy.deepcopy(module.state_dict())
    clf = daskdl.TorchClassifier(module, epochs=1, verbose=0).fit(planted[["a", "flag"]], planted["late"])
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert clf.module is module
    assert clone(clf).get_params()["epochs"] == 1


def test_the_same_seed_gives_the_same_weights(planted: pd.DataFrame) -> None:
    first, second, other = (
        classifier(seed=s, epochs=1).fit(planted[FEATURES], planted["late"]).predict_proba(planted[FEATURES])
        for s in (1, 1, 2)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_saved_and_loaded_it_predicts_the_same(planted: pd.DataFrame, tmp_path: object) -> None:
    clf = classifier(epochs=1).fit(planted[FEATURES], planted["late"])
    clf.save(f"{tmp_path}/model")
    loaded = daskdl.load(f"{tmp_path}/model")
    assert np.array_equal(loaded.predict_proba(planted[FEATURES]), clf.predict_proba(planted[FEATURES]))
    assert loaded.feature_names_in_.tolist() == FEATURES
    assert pickle.loads(pickle.dumps(clf)).predict(planted[FEATURES]).shape == (4000,)


def test_weights_of_a_module_of_your_own_need_it_back(planted: pd.DataFrame, tmp_path: object) -> None:
    clf = classifier(module=SkipDropout, epochs=1).fit(planted[FEATURES], planted["late"])
    clf.save(f"memory://{tmp_path}")
    with pytest.raises(ValueError, match=r"Pass it: daskdl.load\(path, module=net\)"):
        daskdl.load(f"memory://{tmp_path}")
    loaded = daskdl.load(f"memory://{tmp_path}", module=SkipDropout)
    assert np.array_equal(loaded.predict(planted[FEATURES]), clf.predict(planted[FEATURES]))


def test_a_folder_without_an_estimator_is_refused(tmp_path: object) -> None:
    with pytest.raises(ValueError, match="holds no saved estimator"):
        daskdl.load(str(tmp_path))
