"""Objectives, parameters and what else fit and predict of trees take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xgboost
from distributed import Client

import daskdl

from .case import Case

OBJECTIVES, PARAMETERS, TAKEN = "Objectives of XGBoost", "Parameters of XGBoost", "What fit and predict take (trees)"
F = ["a", "b"]
Check = Callable[[Client], None]


def _frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(300, 2)), columns=F).astype("float32")
    return frame.assign(y=(frame.a > 0).astype(int), z=frame.a.astype("float64") * 50 + 200, q=np.arange(300) % 20)


def _quick(kind: str, **options: Any) -> Any:
    return getattr(daskdl, kind)(n_estimators=5, verbose=0, **options)


def _as_plain(objective: str, label: Callable[[pd.DataFrame], Any], **params: Any) -> Check:
    def check(client: Client) -> None:
        frame = _frame()
        y = label(frame)
        reg = _quick("XGBRegressor", objective=objective, num_workers=1, params=params).fit(frame[F], y)
        matrix = xgboost.QuantileDMatrix(frame[F], y)
        booster = xgboost.train({"objective": objective, **params}, matrix, 5)
        expected = booster.predict(xgboost.DMatrix(frame[F]))
        assert np.allclose(reg.predict(frame[F]), expected, rtol=1e-4, atol=1e-4)

    return check


def _refused(words: str, kind: str = "XGBClassifier", label: str = "y", **options: Any) -> Check:
    def check(client: Client) -> None:
        frame = _frame()
        with pytest.raises((ValueError, TypeError), match=words):
            _quick(kind, **options).fit(frame[F], frame[label])

    return check


def _classes(objective: str) -> Check:
    def check(client: Client) -> None:
        frame = _frame()
        several = objective.startswith("multi:")
        y = frame.y + (frame.b > 1) if several else frame.y
        clf = daskdl.XGBClassifier(n_estimators=20, verbose=0, objective=objective).fit(frame[F], y)
        assert clf.score(frame[F], y) > 0.98
        if objective != "binary:hinge":
            assert np.allclose(clf.predict_proba(frame[F]).sum(axis=1), 1, atol=1e-5)

    return check


def _ranks(objective: str) -> Check:
    def check(client: Client) -> None:
        frame = dd.from_pandas(_frame(), npartitions=3)
        ranker = _quick("XGBRanker", objective=objective).fit(frame[F], frame.y, qid=frame.q)
        assert ranker.predict(frame[F]).compute().corr(frame.a.compute()) > 0.5

    return check


def _survival(client: Client) -> None:
    frame = _frame()
    times = frame.z.abs() + 1
    upper = np.where(frame.y, times, np.inf)
    reg = _quick("XGBRegressor", objective="survival:aft")
    reg.fit(frame[F], None, label_lower_bound=times, label_upper_bound=upper)
    assert (reg.predict(frame[F]) > 0).all()


def _function(client: Client) -> None:
    def squares(y: Any, p: Any) -> Any:
        return p - y, np.ones_like(p)

    def worst(y: Any, p: Any) -> float:
        return float(np.abs(y - p).max())

    frame = _frame()
    reg = daskdl.XGBRegressor(n_estimators=30, verbose=0, objective=squares, eval_metric=worst).fit(frame[F], frame.z)
    assert reg.score(frame[F], frame.z) > 0.9
    assert reg.evals_result_["train"]["worst"][-1] == pytest.approx(
        np.abs(reg.predict(frame[F]) - frame.z).max(), rel=1e-4
    )


def _large_labels(client: Client) -> None:
    frame = _frame()
    y = frame.z + 1.7e12
    reg = daskdl.XGBRegressor(n_estimators=30, verbose=0).fit(frame[F], y)
    assert reg.score(frame[F], y) > 0.99


def _several(client: Client) -> None:
    frame = dd.from_pandas(_frame().assign(v=lambda f: -f.z), npartitions=2)
    found = daskdl.XGBRegressor(n_estimators=20, verbose=0).fit(frame[F], frame[["z", "v"]]).predict(frame[F])
    assert list(found.columns) == ["z", "v"]


def _quantiles(client: Client) -> None:
    frame = dd.from_pandas(_frame(), npartitions=2)
    reg = _quick("XGBRegressor", objective="reg:quantileerror", params={"quantile_alpha": [0.1, 0.9]})
    assert list(reg.fit(frame[F], frame.z).predict(frame[F]).columns) == ["0.1", "0.9"]


def _same(one: dict[str, Any], other: dict[str, Any]) -> Check:
    def check(client: Client) -> None:
        frame = _frame()
        a, b = (_quick("XGBClassifier", num_workers=1, **how).fit(frame[F], frame.y).model_ for how in (one, other))
        assert a.save_raw("ubj") == b.save_raw("ubj")

    return check


def _one_rank(client: Client) -> None:
    frame = dd.from_pandas(_frame(), npartitions=4)
    for options in ({"booster": "gblinear"}, {"tree_method": "exact"}):
        assert _quick("XGBRegressor", **options).fit(frame[F], frame.z).run_.record.num_workers == 1


def _constraints(client: Client) -> None:
    frame = _frame()
    reg = _quick("XGBRegressor", monotone_constraints={"a": -1}, interaction_constraints=[["a"], ["b"]])
    reg.fit(frame[F], frame.z)
    steps = pd.DataFrame({"a": np.linspace(-2, 2, 20), "b": 0.0}).astype("float32")
    assert (np.diff(reg.predict(steps)) <= 0).all()


def _names(client: Client) -> None:
    frame = _frame()[F].set_axis(["a[0]<1", 7], axis=1)
    clf = _quick("XGBClassifier").fit(frame, _frame().y)
    assert clf.feature_importances_.idxmax() == "a[0]<1"


def _digits(column: Callable[[Any], Any]) -> Check:
    def check(client: Client) -> None:
        x = pd.Series(column(np.random.default_rng(0)))
        y = (x > x.sort_values().iloc[150]).astype(int)
        clf = daskdl.XGBClassifier(n_estimators=20, verbose=0).fit(pd.DataFrame({"x": x}), y)
        assert clf.score(pd.DataFrame({"x": x}), y) > 0.98

    return check


def _weights(client: Client) -> None:
    frame = _frame()
    clf = _quick("XGBClassifier").fit(frame[[*F, "q"]], frame.y, sample_weight="q", base_margin=np.zeros(300))
    assert clf.schema_.names == F


def _going_on(client: Client) -> None:
    frame = _frame()
    first = _quick("XGBRegressor").fit(frame[F], frame.z)
    assert _quick("XGBRegressor").fit(frame[F], frame.z, xgb_model=first).model_.num_boosted_rounds() == 10


def _explained(client: Client) -> None:
    frame = dd.from_pandas(_frame(), npartitions=2)
    reg = _quick("XGBRegressor").fit(frame[F], frame.z)
    told = reg.predict_contributions(frame[F])
    assert list(told.columns) == ["a", "b", "bias"]
    assert np.allclose(told.sum(axis=1).compute(), reg.predict(frame[F]).compute(), rtol=1e-4)
    assert reg.apply(frame[F]).columns[0] == "tree_0"


REGRESSIONS = {
    "reg:squarederror": lambda f: f.z,
    "reg:squaredlogerror": lambda f: f.z.abs(),
    "reg:logistic": lambda f: f.y,
    "reg:pseudohubererror": lambda f: f.z,
    "reg:absoluteerror": lambda f: f.z,
    "count:poisson": lambda f: f.z.abs().round(),
    "reg:gamma": lambda f: f.z.abs() + 1,
    "reg:tweedie": lambda f: f.z.abs(),
    "survival:cox": lambda f: f.z,
}
NOT_FOR = "is refused before launch: what it needs of labels, and between what yours lie"
CASES = [
    *(
        Case(
            OBJECTIVES,
            f"`XGBRegressor(objective={name!r})`",
            "what plain XGBoost predicts, in its unit",
            _as_plain(name, y),
        )
        for name, y in REGRESSIONS.items()
    ),
    Case(OBJECTIVES, "`'reg:quantileerror'` with several alphas", "a column for each quantile", _quantiles),
    Case(
        OBJECTIVES,
        "`'survival:aft'` with the bounds of times",
        "`fit(X, None, label_lower_bound=, label_upper_bound=)`",
        _survival,
    ),
    *(
        Case(
            OBJECTIVES,
            f"`XGBClassifier(objective={name!r})`",
            "classes; probabilities that add up to 1",
            _classes(name),
        )
        for name in ("binary:logistic", "binary:logitraw", "multi:softprob", "multi:softmax")
    ),
    Case(
        OBJECTIVES,
        "`XGBClassifier(objective='binary:hinge')`",
        "classes; `predict_proba` says that there are none",
        _classes("binary:hinge"),
    ),
    *(
        Case(
            OBJECTIVES,
            f"`XGBRanker(objective={name!r})`",
            "rows of a query are brought together from all partitions",
            _ranks(name),
        )
        for name in ("rank:ndcg", "rank:map", "rank:pairwise")
    ),
    Case(
        OBJECTIVES,
        "an objective and a metric that are functions",
        "are called in the ranks; the metric with all rows",
        _function,
    ),
    Case(
        OBJECTIVES,
        "`'reg:gamma'` and labels below 0",
        NOT_FOR,
        _refused("needs labels > 0", "XGBRegressor", "y", objective="reg:gamma"),
    ),
    Case(
        OBJECTIVES,
        "an objective of other labels",
        "is refused with the estimator that takes it",
        _refused("Use daskdl.XGBRegressor", objective="reg:gamma"),
    ),
    Case(
        OBJECTIVES,
        "labels of 1.7e12 \u00b1 100",
        "R\u00b2 above 0.99: they are trained on less a constant, which `predict` adds",
        _large_labels,
    ),
    Case(OBJECTIVES, "several labels, as a frame", "a lazy frame with a column for each", _several),
    Case(
        PARAMETERS,
        "`params={'eta': 0.1, 'lambda': 5}`",
        "the booster of `learning_rate=0.1, reg_lambda=5`, bit for bit",
        _same({"learning_rate": 0.1, "reg_lambda": 5}, {"params": {"eta": 0.1, "lambda": 5}}),
    ),
    Case(PARAMETERS, "`params={'n_estimators': 5}`", "five rounds", _same({}, {"params": {"num_boost_round": 5}})),
    Case(
        PARAMETERS,
        "`learning_rate=0.1, params={'eta': 0.3}`",
        "is refused: two values for one parameter",
        _refused("two values", learning_rate=0.1, params={"eta": 0.3}),
    ),
    Case(
        PARAMETERS,
        "`params={'learning_rat': 0.1}`",
        "is refused, with the name that was meant",
        _refused("Did you mean", params={"learning_rat": 0.1}),
    ),
    Case(PARAMETERS, "`subsample=1.5`", "is refused in XGBoost's words", _refused("exceed bound", subsample=1.5)),
    Case(
        PARAMETERS,
        "`eval_metric='acuracy'`",
        "is refused in XGBoost's words",
        _refused("Unknown metric", eval_metric="acuracy"),
    ),
    Case(PARAMETERS, "`booster='gblinear'`, `tree_method='exact'`", "one rank, and the run says why", _one_rank),
    Case(
        PARAMETERS,
        "`tree_method='exact', num_workers=2`",
        "is refused: XGBoost does it on one rank only",
        _refused("num_workers=1", tree_method="exact", num_workers=2),
    ),
    Case(
        PARAMETERS,
        "constraints by the names of columns",
        "hold, also where columns become several features",
        _constraints,
    ),
    Case(TAKEN, "columns called `a[0]<1` or `7`", "are called so in importances and contributions", _names),
    Case(
        TAKEN,
        "dates as `20240131`, ids and seconds above 2\u00b2\u2074",
        "keep their digits: less an offset that is learned",
        _digits(lambda rng: 20_240_101 + rng.integers(0, 31, 300)),
    ),
    Case(
        TAKEN,
        "ids of several ranges far apart",
        "keep their digits: a second column has what float32 leaves out",
        _digits(lambda rng: rng.choice([10**12, 9 * 10**14], 300) + rng.integers(0, 99, 300)),
    ),
    Case(
        TAKEN,
        "times that differ by microseconds",
        "keep their digits",
        _digits(lambda rng: pd.Timestamp("2024-01-01T12") + pd.to_timedelta(rng.integers(0, 999, 300), unit="us")),
    ),
    Case(TAKEN, "`sample_weight=` the name of a column, `base_margin=` an array", "the column is no feature", _weights),
    Case(TAKEN, "`xgb_model=` a fitted estimator", "rounds are added to it", _going_on),
    Case(
        TAKEN,
        "`predict_contributions`, `apply` of a Dask frame",
        "lazy frames with the names of columns; rows add up to the prediction",
        _explained,
    ),
]
