"""XGBClassifier and XGBRegressor on a real cluster and without one."""

from __future__ import annotations

from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xgboost
from distributed import Client
from sklearn.metrics import roc_auc_score

import daskdl
from daskdl.errors import DataError

FEATURES = ["a", "b", "flag", "city"]


def test_two_workers_learn_what_plain_xgboost_learns(
    client: Client, ragged: dd.DataFrame, planted: pd.DataFrame
) -> None:
    clf = daskdl.XGBClassifier(n_estimators=20, max_depth=4, verbose=0).fit(ragged[FEATURES], ragged["late"])
    data = planted[FEATURES].assign(city=planted.city.astype("category"))
    matrix = xgboost.QuantileDMatrix(data, planted.late, enable_categorical=True)
    plain = xgboost.train({"objective": "binary:logistic", "max_depth": 4}, matrix, 20).predict(matrix)
    ours = clf.predict_proba(ragged[FEATURES])[1].compute()
    aucs = [roc_auc_score(planted.late, p) for p in (ours, plain)]
    assert aucs[0] == pytest.approx(aucs[1], abs=0.01)
    assert clf.model_.num_boosted_rounds() == 20


def test_the_evaluation_log_is_in_the_run_and_not_in_the_output(
    client: Client, ragged: dd.DataFrame, capfd: pytest.CaptureFixture[str]
) -> None:
    clf = daskdl.XGBClassifier(n_estimators=7, verbose=0).fit(
        ragged[FEATURES], ragged["late"], validation_data=(ragged[FEATURES], ragged["late"])
    )
    metrics = clf.run_.metrics
    assert metrics.index.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert {"train_loss", "val_loss", "val_auc", "rows_per_s"} <= set(metrics.columns)
    exact = roc_auc_score(ragged["late"].compute(), clf.predict_proba(ragged[FEATURES])[1].compute())
    assert metrics.val_auc.iloc[-1] == pytest.approx(exact, abs=0.01)
    out, err = capfd.readouterr()
    assert "logloss" not in out + err


def test_early_stopping_predicts_with_the_best_round(
    client: Client, ragged: dd.DataFrame, planted: pd.DataFrame
) -> None:
    rng = np.random.default_rng(1)
    noise = ragged["late"].map_partitions(lambda y: (y + (rng.random(len(y)) < 0.4)) % 2, meta=("late", "int64"))
    clf = daskdl.XGBClassifier(n_estimators=200, early_stopping_rounds=3, verbose=0).fit(
        ragged[FEATURES], noise, validation_data=(ragged[FEATURES], ragged["late"])
    )
    rounds = len(clf.run_.metrics)
    assert rounds < 200
    assert clf.best_iteration_ == rounds - 1 - 3
    frame = planted[FEATURES]
    matrix = xgboost.DMatrix(
        clf.schema_.table(frame),
        feature_names=FEATURES,
        feature_types=clf.schema_.feature_types,
        enable_categorical=True,
    )
    expected = clf.model_.predict(matrix, iteration_range=(0, clf.best_iteration_ + 1))
    assert np.allclose(clf.predict_proba(frame)[:, 1], expected)


def test_bins_from_a_sample_are_as_good(client: Client, ragged: dd.DataFrame, planted: pd.DataFrame) -> None:
    aucs = [
        roc_auc_score(
            planted.late,
            daskdl.XGBClassifier(n_estimators=20, sketch_rows=rows, verbose=0)
            .fit(ragged[FEATURES], ragged["late"])
            .predict_proba(planted[FEATURES])[:, 1],
        )
        for rows in (0, 1000)
    ]
    assert aucs[0] == pytest.approx(aucs[1], abs=0.01)


def test_classes_regression_and_memory(planted: pd.DataFrame, tmp_path: object) -> None:
    clf = daskdl.XGBClassifier(n_estimators=10, verbose=0).fit(planted[["a", "city"]], planted["city"].rename("town"))
    assert clf.score(planted[["a", "city"]], planted["city"]) == 1.0
    reg = daskdl.XGBRegressor(n_estimators=50, verbose=0).fit(planted[FEATURES], planted["delay"])
    assert reg.score(planted[FEATURES], planted["delay"]) > 0.9
    reg.save(f"{tmp_path}/model")
    loaded = daskdl.load(f"{tmp_path}/model")
    assert np.array_equal(loaded.predict(planted[FEATURES]), reg.predict(planted[FEATURES]))


def test_a_span_of_workers_takes_those_there_are(client: Client, planted: pd.DataFrame, tmp_path: Path) -> None:
    frame = dd.from_pandas(planted[["a", "late"]], npartitions=2)
    options = {"n_estimators": 2, "verbose": 0}
    clf = daskdl.XGBClassifier(num_workers=(1, 3), checkpoints=str(tmp_path), **options).fit(frame, "late")
    assert clf.run_.record.num_workers == 2
    assert daskdl.load_checkpoint(f"{tmp_path}/{clf.run_.id}")["step"] == 2
    with pytest.raises(DataError, match="ranks need a partition with rows each, and the data has 1"):
        daskdl.XGBClassifier(num_workers=2, **options).fit(frame.repartition(npartitions=1), "late")


def test_fewer_validation_partitions_than_ranks(client: Client, planted: pd.DataFrame) -> None:
    clf = daskdl.XGBClassifier(n_estimators=3, verbose=0).fit(
        dd.from_pandas(planted[["a", "late"]], npartitions=4),
        "late",
        validation_data=(dd.from_pandas(planted[["a", "late"]], npartitions=1), "late"),
    )
    metrics = clf.run_.metrics
    assert metrics.val_loss.tolist() == pytest.approx(metrics.train_loss.tolist(), rel=1e-5)
    exact = roc_auc_score(planted.late, clf.predict_proba(planted[["a"]])[:, 1])
    assert metrics.val_auc.iloc[-1] == pytest.approx(exact, abs=1e-3)
