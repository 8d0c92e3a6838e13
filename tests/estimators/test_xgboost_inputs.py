"""What fit and predict of trees take beside rows and labels, and what is refused before anything is launched."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xgboost
from distributed import Client
from sklearn.metrics import roc_auc_score

import daskdl
from daskdl.errors import DataError

QUICK: dict[str, Any] = {"n_estimators": 8, "verbose": 0}


@pytest.fixture
def table() -> pd.DataFrame:
    """The frame of the issue."""
    rng = np.random.default_rng(0)
    pdf = pd.DataFrame(rng.normal(size=(4000, 3)), columns=list("abc")).astype("float32")
    return pdf.assign(y=(pdf.a > 0).astype(int), z=100 * pdf.a + 10 * pdf.b, w=rng.integers(1, 4, 4000))


F = list("abc")


# -- parameters ---------------------------------------------------------------------------------------------------


def test_other_names_are_the_same_parameters(table: pd.DataFrame) -> None:
    one = daskdl.XGBClassifier(**QUICK, learning_rate=0.01, reg_lambda=50, reg_alpha=3, gamma=1)
    other = daskdl.XGBClassifier(**QUICK, params={"eta": 0.01, "lambda": 50, "alpha": 3, "min_split_loss": 1})
    default = daskdl.XGBClassifier(**QUICK)
    saved = [clf.fit(table[F], table.y).model_.save_raw("ubj") for clf in (one, other, default)]
    assert saved[0] == saved[1] != saved[2]
    rounds = daskdl.XGBClassifier(verbose=0, params={"n_estimators": 3}).fit(table[F], table.y).model_
    assert rounds.num_boosted_rounds() == 3


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"learning_rate": 0.1, "params": {"eta": 0.3}}, ValueError, "learning_rate=0.1 and params: eta=0.3 are two"),
        ({"params": {"eta": 0.1, "learning_rate": 0.3}}, ValueError, "two values for one parameter"),
        ({"params": {"learning_rat": 0.1}}, ValueError, r"does not use parameter 'learning_rat'.*\['learning_rate'"),
        ({"params": {"booster": "gblinear", "max_depth": 3}}, ValueError, "does not use parameter 'max_depth'"),
        ({"params": {"num_workers": 2}}, ValueError, "no parameter of XGBoost: give num_workers="),
        ({"params": {"enable_categorical": True}}, ValueError, "categories are always split as categories"),
        ({"subsample": 1.5}, ValueError, "subsample exceed bound"),
        ({"objective": "binary:logistik"}, ValueError, "is none that XGBoost has"),
        ({"objective": "reg:gamma"}, ValueError, r"is not for XGBClassifier. Use daskdl.XGBRegressor"),
        ({"objective": "rank:ndcg"}, ValueError, "Use daskdl.XGBRanker"),
        ({"eval_metric": "acuracy"}, ValueError, "Unknown metric function acuracy"),
        ({"tree_method": "exact", "num_workers": 2}, ValueError, "on one rank only. Use num_workers=1"),
        ({"monotone_constraints": {"d": 1}}, ValueError, r"names column 'd', which is not in X"),
        ({"early_stopping_rounds": 3}, ValueError, r"needs validation_data=\(X, y\)"),
        ({"params": {"num_class": 4}, "objective": "multi:softprob"}, ValueError, "num_class=4 and y has 2 classes"),
        ({"class_weight": {7: 1.0}}, DataError, "class_weight names classes that are not in y"),
        ({"objective": lambda y, p: p}, ValueError, "objective <lambda> failed on 24 rows"),
        ({"objective": lambda y, p: (p[:3], p[:3])}, ValueError, "the gradient has shape"),
        ({"eval_metric": lambda y, p: "x"}, ValueError, "eval_metric <lambda> failed"),
        ({"random_state": np.random.default_rng(0)}, ValueError, "the seed must be an int"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    table: pd.DataFrame, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    clf = daskdl.XGBClassifier(**{**QUICK, **options})
    daskdl.XGBClassifier(**QUICK, n_jobs=1)
    began = time.perf_counter()
    with pytest.raises(error, match=words):
        clf.fit(table[F], table.y)
    assert time.perf_counter() - began < 5  # a second on a machine that does nothing else
    assert not hasattr(clf, "run_")


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: daskdl.XGBClassifier(n_estimator=3), r"takes no 'n_estimator'. Did you mean \['n_estimators'"),
        (lambda: daskdl.XGBClassifier(enable_categorical=True), "categories are always split"),
        (lambda: daskdl.XGBClassifier(eta=0.1), r"give params=\{'eta': ...\}, or learning_rate="),
        (lambda: daskdl.XGBClassifier().fit([[1]], [1], eval_set=[]), r"fit\(X, y, validation_data=\(X, y\)\)"),
        (lambda: daskdl.XGBRanker().fit([[1]], [1], group=[1]), "the query of each row, not the sizes"),
    ],
)
def test_names_that_go_elsewhere_say_so(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        call()


@pytest.mark.parametrize(
    "labels, objective, words",
    [
        (lambda z: z, "reg:gamma", "needs labels > 0; label .* lies between -374"),
        (lambda z: z, "count:poisson", "needs labels >= 0;"),
        (lambda z: z, "reg:logistic", "needs labels >= 0 and <= 1;"),
        (lambda z: z + 1.7e12, "reg:gamma", "float32, which cannot tell them apart"),
        (lambda z: z, "survival:aft", "learns from between what times lie"),
    ],
)
def test_labels_that_the_objective_does_not_take(
    table: pd.DataFrame, labels: Callable[[Any], Any], objective: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        daskdl.XGBRegressor(**QUICK, objective=objective).fit(table[F], labels(table.z.astype("float64")))


# -- units and digits ---------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_what_xgboost_says_is_in_the_unit_of_the_labels(client: Client, table: pd.DataFrame) -> None:
    lazy = dd.from_pandas(table, npartitions=4)
    reg = daskdl.XGBRegressor(**QUICK).fit(lazy[F], lazy.z, validation_data=(lazy[F], lazy.z))
    error = float(np.sqrt(np.mean((reg.predict(table[F]) - table.z) ** 2)))
    assert reg.run_.metrics.val_rmse.iloc[-1] == pytest.approx(error, rel=1e-3) and error > 1
    assert np.allclose(reg.model_.predict(xgboost.DMatrix(table[F])), reg.predict(table[F]), rtol=1e-5)


@pytest.mark.parametrize("base, kind", [(1.7e9, float), (1.7e12, float), (20_240_000, int), (2**55, int)])
def test_labels_of_more_digits_than_float32_has(table: pd.DataFrame, base: float, kind: type) -> None:
    y = (table.a * 50).round().astype("int64") + int(base) if kind is int else table.a.astype("float64") * 50 + base
    reg = daskdl.XGBRegressor(n_estimators=40, verbose=0, base_score=float(base)).fit(table[F], y)
    assert reg.score(table[F], y) > 0.99
    told = reg.predict_contributions(table[F].head(5)).sum(axis=1)
    assert np.allclose(told, reg.predict(table[F].head(5)), rtol=1e-7)
    both = pd.DataFrame({"y": y, "z": table.z})
    reg = daskdl.XGBRegressor(n_estimators=40, verbose=0).fit(table[F], both)
    assert reg.score(table[F], both) > 0.95
    with pytest.raises(DataError, match="mape means something else"):
        daskdl.XGBRegressor(**QUICK, eval_metric="mape").fit(table[F], y)


DIGITS = {
    "dates": lambda rng: pd.to_datetime("2024-01-01") + pd.to_timedelta(rng.integers(0, 365, 4000), unit="D"),
    "seconds": lambda rng: 1_700_000_000 + rng.integers(0, 600, 4000),
    "ids": lambda rng: 900_000_000_000 + rng.permutation(4000),
    "two places": lambda rng: np.where(rng.random(4000) < 0.5, 10**12, 5 * 10**12) + rng.integers(0, 100, 4000),
    "a zero for none": lambda rng: np.where(rng.random(4000) < 0.1, 0, 1_700_000_000 + rng.integers(0, 600, 4000)),
    "float64": lambda rng: 1.7e12 + rng.uniform(0, 100, 4000),
    "64 bits": lambda rng: 2**62 + rng.integers(0, 1000, 4000),
    "unsigned": lambda rng: np.uint64(2**63) + rng.integers(0, 1000, 4000).astype("uint64"),
    "microseconds": lambda rng: pd.Timestamp("2024-01-01T12") + pd.to_timedelta(rng.integers(0, 1000, 4000), unit="us"),
    "a duration": lambda rng: (
        pd.to_timedelta(3 * 10**9, unit="s") + pd.to_timedelta(rng.integers(0, 99, 4000), unit="s")
    ),
}


@pytest.mark.cluster
@pytest.mark.parametrize("what", list(DIGITS))
def test_digits_that_float32_does_not_hold(client: Client, what: str) -> None:
    values = pd.Series(DIGITS[what](np.random.default_rng(0)))
    if what == "dates":
        values = values.dt.strftime("%Y%m%d").astype("int64")
    if what == "two places":  # a threshold within one of them, and the digits of both count
        y = (values % 10**12 > 40).astype(int)
    else:
        y = (values > values.sort_values().iloc[2_100]).astype(int)
    lazy = dd.from_pandas(pd.DataFrame({"x": values, "y": y}), npartitions=3)
    clf = daskdl.XGBClassifier(n_estimators=20, verbose=0).fit(lazy[["x"]], lazy.y)
    assert roc_auc_score(y, clf.predict_proba(pd.DataFrame({"x": values}))[:, 1]) > 0.9999  # of 256 bins


def test_a_schema_with_offsets_is_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": np.where(rng.random(900) < 0.5, 10**12, 5 * 10**12) + rng.integers(0, 99, 900)})
    y = (frame.x % 10 > 4).astype(int)
    clf = daskdl.XGBClassifier(**QUICK).fit(frame, y)
    clf.save(f"{tmp_path}/model")
    assert np.array_equal(daskdl.load(f"{tmp_path}/model").predict(frame), clf.predict(frame))
    assert clf.schema_.feature_names == ["x", "x_fine"]


# -- functions, callbacks, going on -------------------------------------------------------------------------------


def logistic(y: Any, p: Any) -> Any:
    chance = 1 / (1 + np.exp(-p))
    return chance - y, chance * (1 - chance)


def native(p: Any, matrix: Any) -> Any:
    return logistic(matrix.get_label(), p)


def wrong(y: Any, p: Any, sample_weight: Any = None) -> float:
    return float(np.average((p > 0) != y, weights=sample_weight))


@pytest.mark.cluster
@pytest.mark.parametrize("objective", [logistic, native])
def test_an_objective_of_ones_own_over_two_ranks(client: Client, table: pd.DataFrame, objective: Any) -> None:
    lazy = dd.from_pandas(table, npartitions=3)
    options = {**QUICK, "objective": objective, "eval_metric": wrong, "base_score": 0.0}
    clf = daskdl.XGBClassifier(**options).fit(lazy[F], lazy.y, validation_data=(lazy[F], lazy.y))
    matrix = xgboost.QuantileDMatrix(table[F], table.y)
    booster = xgboost.train({"base_score": 0.0}, matrix, 8, obj=native)
    assert np.mean(np.abs(clf.predict(table[F], output_margin=True) - booster.predict(matrix))) < 0.05
    assert clf.evals_result_["val"]["wrong"][-1] == pytest.approx(float(np.mean(clf.predict(table[F]) != table.y)))
    assert clf.objective_ == "custom"
    with pytest.raises(ValueError, match="the objective is a function of yours"):
        clf.predict_proba(table[F])


def test_weights_reach_functions(table: pd.DataFrame) -> None:
    def with_weights(y: Any, p: Any, sample_weight: Any = None) -> Any:
        grad, hess = logistic(y, p)
        return (grad, hess) if sample_weight is None else (grad * sample_weight, hess * sample_weight)

    def boosted(objective: Any) -> Any:
        made = daskdl.XGBClassifier(**QUICK, objective=objective, eval_metric=wrong)
        return made.fit(table[F], table.y, sample_weight=table.w)

    one, other = boosted(logistic), boosted(with_weights)
    assert np.array_equal(*(clf.predict(table[F], output_margin=True) for clf in (one, other)))
    assert one.evals_result_["train"]["wrong"][-1] == pytest.approx(
        np.average(one.predict(table[F]) != table.y, weights=table.w), abs=1e-6
    )


class _Seen(xgboost.callback.TrainingCallback):
    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        return epoch == 4


@pytest.mark.cluster
def test_callbacks_and_early_stopping_of_a_metric_that_grows(client: Client, table: pd.DataFrame) -> None:
    schedule = xgboost.callback.LearningRateScheduler([0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    clf = daskdl.XGBClassifier(**QUICK, callbacks=[schedule, _Seen()]).fit(table[F], table.y)
    assert clf.model_.num_boosted_rounds() == 5
    noisy = (table.y + (np.random.default_rng(0).random(4000) < 0.4)) % 2
    stop = xgboost.callback.EarlyStopping(rounds=3, metric_name="auc", data_name="val", maximize=True)
    clf = daskdl.XGBClassifier(n_estimators=60, verbose=0, callbacks=[stop]).fit(
        table[F], noisy, validation_data=(table[F], table.y)
    )
    scores = clf.evals_result_["val"]["auc"]
    assert len(scores) < 60 and clf.best_iteration_ == int(np.argmax(scores))
    assert clf.best_score_ == pytest.approx(max(scores))


def test_a_booster_is_gone_on_with(table: pd.DataFrame, tmp_path: Path) -> None:
    table = table.assign(city=np.where(table.b > 0, "Oslo", "Rome"))
    columns = [*F, "city"]
    whole = daskdl.XGBRegressor(n_estimators=8, verbose=0, sketch_rows=0).fit(table[columns], table.z)
    half = daskdl.XGBRegressor(n_estimators=4, verbose=0, sketch_rows=0).fit(table[columns], table.z)
    half.save(f"{tmp_path}/half")
    for given in (half, f"{tmp_path}/half"):
        more = daskdl.XGBRegressor(n_estimators=4, verbose=0, sketch_rows=0).fit(
            table[columns], table.z, xgb_model=given
        )
        assert np.allclose(more.predict(table[columns]), whole.predict(table[columns]), rtol=1e-5)
    with pytest.raises(DataError, match="a bare booster, which does not say which code stands for which category"):
        daskdl.XGBRegressor(**QUICK).fit(table[columns], table.z, xgb_model=half.model_)
    plain = xgboost.XGBRegressor(n_estimators=4).fit(table[F], table.z)
    more = daskdl.XGBRegressor(**QUICK).fit(table[F], table.z, xgb_model=plain)
    assert more.model_.num_boosted_rounds() == 12
    with pytest.raises(DataError, match="has 3 features, and X becomes 2"):
        daskdl.XGBRegressor(**QUICK).fit(table[["a", "b"]], table.z, xgb_model=plain)


# -- names, constraints, explanations -----------------------------------------------------------------------------


def test_any_names(table: pd.DataFrame) -> None:
    names = ["a[0]<1", 7, "7_"]
    frame = table[F].set_axis(names, axis=1)
    clf = daskdl.XGBClassifier(**QUICK).fit(frame, table.y)
    assert clf.score(frame, table.y) > 0.99
    assert clf.feature_importances_.idxmax() == "a[0]<1"
    assert daskdl.plotting.importance_data(clf).feature[0] == "a[0]<1"
    assert clf.schema_.feature_names == clf.model_.feature_names
    assert clf.predict_contributions(frame.head(3)).columns.tolist() == ["a[0]<1", "7", "7_", "bias"]


def test_constraints_by_name(table: pd.DataFrame) -> None:
    when = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(4000) % 90, unit="D")
    frame = table[F].assign(when=when, city=np.where(table.b > 0, "Oslo", "Rome"))[["city", "when", *F]]
    options = {**QUICK, "monotone_constraints": {"a": -1}, "interaction_constraints": [["a", "b"], ["when", 0]]}
    reg = daskdl.XGBRegressor(**options, feature_weights={"c": 0.0}, colsample_bynode=0.5).fit(frame, table.z)
    steps = frame.head(1).loc[[0] * 50].assign(a=np.linspace(-2, 2, 50, dtype="float32"))
    assert (np.diff(reg.predict(steps)) <= 0).all()
    assert reg.feature_importances_["c"] == 0
    pairs = reg.predict_contributions(frame.head(20), interactions=True)
    assert np.allclose(pairs["a x city"], 0, atol=1e-3)
    with pytest.raises(ValueError, match="is a category, which has no order"):
        daskdl.XGBRegressor(**QUICK, monotone_constraints={"city": 1}).fit(frame, table.z)


@pytest.mark.cluster
def test_contributions_and_leaves_are_lazy(client: Client, table: pd.DataFrame) -> None:
    lazy = dd.from_pandas(table, npartitions=3)
    three = pd.Series(np.digitize(table.a, [-0.5, 0.5]), index=table.index)
    clf = daskdl.XGBClassifier(**QUICK).fit(table[F], three)
    told = clf.predict_contributions(lazy[F])
    assert isinstance(told, dd.DataFrame) and list(told.columns)[:4] == ["0: a", "0: b", "0: c", "0: bias"]
    margins = clf.predict(lazy[F], output_margin=True).compute().to_numpy()
    sums = told.compute().to_numpy().reshape(4000, 3, 4).sum(axis=2)
    assert np.allclose(sums, margins, atol=1e-3)
    leaves = clf.apply(lazy[F]).compute()
    assert leaves.shape == (4000, 24) and leaves.columns[1] == "tree_1"
    first = clf.predict(table[F], output_margin=True, iteration_range=(0, 1))
    assert first.shape == (4000, 3) and not np.allclose(first, margins)


# -- what each row has --------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_weights_of_rows_and_classes(client: Client, table: pd.DataFrame) -> None:
    lazy = dd.from_pandas(table, npartitions=3)
    noisy = (table.y + (np.random.default_rng(0).random(4000) < 0.2)) % 2
    lazy["y"] = dd.from_pandas(noisy, npartitions=3)
    by_name = daskdl.XGBClassifier(**QUICK).fit(lazy[[*F, "w"]], lazy.y, sample_weight="w")
    assert list(by_name.feature_names_in_) == F
    by_rows = daskdl.XGBClassifier(**QUICK).fit(lazy[F], lazy.y, sample_weight=lazy.w)
    assert np.allclose(by_name.predict_proba(table[F]), by_rows.predict_proba(table[F]), atol=1e-6)
    assert np.allclose(by_name.predict_proba(table[[*F, "w"]]), by_name.predict_proba(table[F]))
    higher = by_name.predict_proba(lazy[F], base_margin=lazy.w)["1"]  # a margin of 1 to 3 to begin with
    assert (higher > by_name.predict_proba(lazy[F])["1"]).compute().all()
    heavy = daskdl.XGBClassifier(**QUICK, class_weight={1: 9.0}).fit(table[F], noisy)
    same = daskdl.XGBClassifier(**QUICK).fit(table[F], noisy, sample_weight=np.where(noisy == 1, 9.0, 1.0))
    assert np.allclose(heavy.predict_proba(table[F]), same.predict_proba(table[F]), atol=1e-6)
    assert heavy.predict(table[F]).mean() > by_rows.predict(table[F]).mean()


def queries(n: int = 3000) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(n, 2)), columns=["a", "b"]).astype("float32")
    frame["q"] = rng.permutation(np.arange(n) % 150)  # scattered over all partitions
    frame["rel"] = np.digitize(frame.a + rng.normal(0, 0.2, n), [-1, 0, 1])
    return frame


@pytest.mark.cluster
@pytest.mark.parametrize("way", ["pandas", "dask", "source", "text"])
def test_queries_are_brought_together(client: Client, way: str, tmp_path: Path) -> None:
    frame = queries()
    ordered = frame.sort_values("q", kind="stable")
    matrix = xgboost.QuantileDMatrix(ordered[["a", "b"]], ordered.rel, qid=ordered.q)
    log: dict[str, Any] = {}
    params = {"objective": "rank:ndcg", "eval_metric": "ndcg@5"}
    xgboost.train(params, matrix, 8, [(matrix, "train")], evals_result=log, verbose_eval=False)
    data: Any = frame.assign(q="query " + frame.q.astype(str)) if way == "text" else frame
    if way in ("dask", "text"):
        data = dd.from_pandas(data, npartitions=5)
    if way == "source":
        data = daskdl.MemorySource(frame, group_rows=700)
    ranker = daskdl.XGBRanker(**QUICK, eval_metric="ndcg@5").fit(
        data, "rel", qid="q", validation_data=(data, "rel") if way == "dask" else None
    )
    assert ranker.run_.record.num_workers == 2
    found = ranker.evals_result_["train"]["ndcg@5"]
    assert found[-1] == pytest.approx(log["train"]["ndcg@5"][-1], abs=0.01)
    if way == "dask":
        assert ranker.evals_result_["val"]["ndcg@5"] == pytest.approx(found, abs=1e-6)
    ranker.save(f"{tmp_path}/ranker")
    again = daskdl.load(f"{tmp_path}/ranker")
    assert np.array_equal(again.predict(frame[["a", "b"]]), ranker.predict(frame[["a", "b"]]))


def test_weights_of_queries() -> None:
    frame = queries(600)
    with pytest.raises(ValueError, match="must be the same in all rows of a query"):
        daskdl.XGBRanker(**QUICK).fit(frame[["a", "b"]], frame.rel, qid=frame.q, sample_weight=np.arange(600.0))
    daskdl.XGBRanker(**QUICK).fit(frame[["a", "b"]], frame.rel, qid=frame.q, sample_weight=frame.q + 1.0)
    with pytest.raises(ValueError, match="needs qid="):
        daskdl.XGBRanker(**QUICK).fit(frame[["a", "b"]], frame.rel)


@pytest.mark.cluster
def test_several_labels_and_quantiles(client: Client, table: pd.DataFrame) -> None:
    lazy = dd.from_pandas(table.assign(v=-table.z), npartitions=3)
    for strategy in ("one_output_per_tree", "multi_output_tree"):
        reg = daskdl.XGBRegressor(n_estimators=20, verbose=0, multi_strategy=strategy).fit(lazy[F], lazy[["z", "v"]])
        found = reg.predict(lazy[F])
        assert list(found.columns) == ["z", "v"]
        assert np.allclose(found.compute(), reg.predict(table[F]))
        assert reg.score(table[F], lazy[["z", "v"]].compute()) > 0.95
    reg = daskdl.XGBRegressor(**QUICK, objective="reg:quantileerror", params={"quantile_alpha": [0.1, 0.9]})
    found = reg.fit(lazy[F], lazy.z).predict(lazy[F])
    assert list(found.columns) == ["0.1", "0.9"]
    assert (found["0.1"] <= found["0.9"]).compute().mean() > 0.95


@pytest.mark.cluster
def test_what_runs_on_one_rank_only(client: Client, table: pd.DataFrame) -> None:
    lazy = dd.from_pandas(table, npartitions=3)
    reg = daskdl.XGBRegressor(**QUICK, booster="gblinear").fit(lazy[F], lazy.z)
    assert reg.run_.record.num_workers == 1
    assert "one rank: booster='gblinear'" in " ".join(reg.run_.events.text)
    assert reg.score(lazy[F], lazy.z) > 0.9
