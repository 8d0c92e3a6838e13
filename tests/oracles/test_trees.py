"""Trees are XGBoost's: the same rows, parameters and objective, given to plain ``xgboost.train``, are the oracle."""

from __future__ import annotations

from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xgboost
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import daskdl

ROUNDS = 6
N = 600


def rows(seed: int = 0) -> tuple[pd.DataFrame, pd.Series]:
    """Three float32 columns, with gaps, and a number that follows from them."""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.normal(size=(N, 3)), columns=list("abc")).astype("float32")
    score = 2 * X.a - X.b + rng.normal(0, 0.3, N)
    X.loc[rng.random(N) < 0.1, "c"] = np.nan
    return X, score.astype("float64")


def label_of(objective: str, score: pd.Series) -> Any:
    """Labels that an objective takes."""
    if objective in ("reg:logistic", "binary:logistic", "binary:logitraw", "binary:hinge"):
        return (score > 0).astype("int64")
    if objective.startswith("multi:"):
        return pd.Series(np.digitize(score, [-1, 1]), index=score.index)
    if objective.startswith("rank:"):
        return pd.Series(np.digitize(score, [-1, 1]) if objective != "rank:map" else (score > 0) * 1, index=score.index)
    if objective in ("count:poisson", "reg:gamma", "reg:tweedie", "reg:squaredlogerror"):
        return score.abs().round() + 1
    return score * 100 + 5_000


CLASSIFIERS = ("binary:logistic", "binary:logitraw", "binary:hinge", "multi:softprob", "multi:softmax")
RANKERS = ("rank:ndcg", "rank:map", "rank:pairwise")
REGRESSORS = (
    "reg:squarederror", "reg:squaredlogerror", "reg:logistic", "reg:pseudohubererror", "reg:absoluteerror",
    "reg:quantileerror", "count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft",
)  # fmt: skip
OBJECTIVES = (*CLASSIFIERS, *REGRESSORS, *RANKERS)
ESTIMATORS = dict.fromkeys(CLASSIFIERS, daskdl.XGBClassifier) | dict.fromkeys(RANKERS, daskdl.XGBRanker)

PARAMS = {
    "learning_rate": (("learning_rate", "eta"), st.sampled_from([0.05, 0.3, 1.0])),
    "reg_lambda": (("reg_lambda", "lambda"), st.sampled_from([0.0, 1.0, 50.0])),
    "reg_alpha": (("reg_alpha", "alpha"), st.sampled_from([0.0, 3.0])),
    "gamma": (("gamma", "min_split_loss"), st.sampled_from([0.0, 5.0])),
    "max_depth": (("max_depth",), st.sampled_from([1, 3])),
    "min_child_weight": (("min_child_weight",), st.sampled_from([0.0, 20.0])),
    "max_bin": (("max_bin",), st.sampled_from([4, 256])),
    "subsample": (("subsample",), st.sampled_from([0.6])),
    "seed": (("seed", "random_state"), st.sampled_from([3, 8])),
    "base_score": (("base_score",), st.sampled_from([0.4])),
    "num_parallel_tree": (("num_parallel_tree",), st.sampled_from([2])),
    "grow_policy": (("grow_policy",), st.sampled_from(["lossguide"])),
}


@st.composite
def parameters(draw: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Some parameters, as XGBoost's Python API calls them, and under another of their names, if they have one."""
    chosen = draw(st.lists(st.sampled_from(sorted(PARAMS)), unique=True, max_size=5))
    values = {name: draw(PARAMS[name][1]) for name in chosen}
    return values, {draw(st.sampled_from(PARAMS[name][0])): value for name, value in values.items()}


def plain(objective: str, params: dict[str, Any], X: pd.DataFrame, y: Any, more: dict[str, Any]) -> Any:
    """Train with XGBoost alone; return the booster and its log."""
    classes = {"num_class": 3} if objective.startswith("multi:") else {}
    full = {"tree_method": "hist", "objective": objective, **classes, **params}
    binned = params.get("tree_method", "hist") == "hist" and params.get("booster") != "gblinear"
    if params.get("booster") == "gblinear":
        full.pop("tree_method")
    if binned:
        matrix = xgboost.QuantileDMatrix(X, y, max_bin=params.get("max_bin", 256), **more)
    else:
        matrix = xgboost.DMatrix(X, y, **more)
    log: dict[str, Any] = {}
    told = {"evals": [(matrix, "train")], "evals_result": log, "verbose_eval": False}
    return xgboost.train(full, matrix, ROUNDS, **told), log["train"]


def ours(objective: str, params: dict[str, Any], X: Any, y: Any, more: dict[str, Any], **options: Any) -> Any:
    kind = ESTIMATORS.get(objective, daskdl.XGBRegressor)
    more = {("sample_weight" if name == "weight" else name): values for name, values in more.items()}
    made = kind(objective=objective, n_estimators=ROUNDS, params=params, sketch_rows=0, verbose=0, **options)
    return made.fit(X, y, **more)


def extras_of(objective: str, weighted: bool, margin: bool, score: pd.Series) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    more: dict[str, Any] = {}
    if objective.startswith("rank:"):
        more["qid"] = np.arange(N) // 12
    elif weighted:
        more["weight"] = rng.integers(1, 4, N).astype(float)
    if objective == "survival:aft":
        more |= {"label_lower_bound": score.abs() + 1, "label_upper_bound": score.abs() + rng.choice([1.5, np.inf], N)}
    if margin:
        width = 3 if objective.startswith("multi:") else 2 if objective == "reg:quantileerror" else 1
        more["base_margin"] = rng.normal(size=(N, width) if width > 1 else N).astype("float32")
    return more


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(OBJECTIVES), parameters(), st.sampled_from(["gbtree", "dart"]), st.booleans(), st.booleans())
def test_one_rank_is_plain_xgboost(
    objective: str, params: tuple[dict[str, Any], dict[str, Any]], booster: str, weighted: bool, margin: bool
) -> None:
    X, score = rows()
    y = label_of(objective, score)
    values, spelt = params
    drop = {"booster": "dart", "rate_drop": 0.5} if booster == "dart" else {}
    if objective == "reg:quantileerror":
        drop["quantile_alpha"] = [0.1, 0.5]
    if objective.startswith("rank:") or objective == "survival:aft":  # XGBoost's pairs and bounds know no such start
        values, spelt = ({k: v for k, v in of.items() if k != "base_score"} for of in (values, spelt))
    more = extras_of(objective, weighted, margin, score)
    booster_, log = plain(objective, {**values, **drop}, X, y, more)
    fitted = ours(objective, {**spelt, **drop}, X, y, more)
    told = more.get("base_margin")
    expected = booster_.predict(xgboost.DMatrix(X, base_margin=told), output_margin=True)
    found = fitted.predict(X, output_margin=True, base_margin=told)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4), np.abs(found - expected).max()
    for name, scores in log.items():
        if name in fitted.evals_result_["train"]:
            assert np.allclose(fitted.evals_result_["train"][name], scores, rtol=1e-4, equal_nan=True)
    if objective not in CLASSIFIERS:
        assert np.allclose(fitted.predict(X, base_margin=told), booster_.predict(xgboost.DMatrix(X, base_margin=told)),
                           rtol=1e-4, atol=1e-4)  # fmt: skip


@pytest.mark.cluster
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([o for o in OBJECTIVES if o != "survival:cox"]), st.booleans(), st.sampled_from(["hist", "approx"])
)
def test_two_ranks_are_close(client: Client, objective: str, weighted: bool, method: str) -> None:
    X, score = rows()
    y = label_of(objective, score)
    more = extras_of(objective, weighted, False, score)
    params: dict[str, Any] = {"tree_method": method, "max_depth": 3}
    if objective == "reg:quantileerror":
        params["quantile_alpha"] = 0.5
    booster, _ = plain(objective, params, X, y, more)
    named = {name: f"__{name}" for name in more}
    whole = X.assign(y=y, **{named[name]: np.asarray(values) for name, values in more.items()})
    lazy = dd.from_pandas(whole, npartitions=4)
    fitted = ours(objective, params, lazy, "y", named)
    expected = booster.predict(xgboost.DMatrix(X), output_margin=True)
    found = fitted.predict(lazy[list("abc")], output_margin=True).compute().to_numpy()
    assert fitted.run_.record.num_workers == 2
    spread = max(np.std(expected), 1e-6)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.25 * spread


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_comes_out_is_taken_for_what_it_is(objective: str) -> None:
    X, score = rows()
    y = label_of(objective, score)
    more = extras_of(objective, False, False, score)
    params = {"quantile_alpha": [0.1, 0.5]} if objective == "reg:quantileerror" else {}
    booster, log = plain(objective, params, X, y, more)
    fitted = ours(objective, params, X, y, more)
    expected = booster.predict(xgboost.DMatrix(X))
    if objective.startswith("multi:"):
        expected = expected if expected.ndim == 1 else expected.argmax(axis=1)
    elif objective in CLASSIFIERS:
        expected = (expected > (0 if objective == "binary:logitraw" else 0.5)) * 1
    assert np.allclose(fitted.predict(X), expected, rtol=1e-6)
    if objective == "binary:hinge":
        with pytest.raises(ValueError, match="gives classes and no probabilities"):
            fitted.predict_proba(X)
    elif objective in CLASSIFIERS:
        chances = fitted.predict_proba(X)
        assert np.allclose(chances.sum(axis=1), 1, atol=1e-5)
        assert np.array_equal(fitted.classes_[chances.argmax(axis=1)], fitted.predict(X))
    assert set(log) <= set(fitted.evals_result_["train"]) or objective == "binary:logistic"
