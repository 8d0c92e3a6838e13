"""From what a user wants and the rows that were read to what the ranks are asked to do, tried before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from daskdl.data.rows import Rows
from daskdl.data.schema.stats import ColumnStats
from daskdl.estimators.xgboost.objectives import (
    CUSTOM,
    RANKS,
    SEVERAL,
    check_labels,
    check_objective,
    shift_of,
    target_of,
)
from daskdl.estimators.xgboost.params import Wanted, class_weights_of, constraints_of, weights_of
from daskdl.estimators.xgboost.start import Start
from daskdl.estimators.xgboost.trial import ROWS, made_rows, tried
from daskdl.training.boost_functions import UserFunction
from daskdl.training.boost_matrix import BoostConfig

DEFAULTS = {"XGBClassifier": "binary:logistic", "XGBRegressor": "reg:squarederror", "XGBRanker": "rank:ndcg"}
FEATURES = 300  # of a trial
OF_COLUMNS = ("monotone_constraints", "interaction_constraints")


def configured(
    estimator: Any, said: Wanted, rows: Rows, label: Any, validated: int, start: Start | None
) -> tuple[BoostConfig, str]:
    """Return what the ranks are asked to do, and the name of the objective; sets how ``estimator`` encodes rows.

    Raises
    ------
    DataError, ValueError
        Rows, objective and parameters do not fit one another.
    """
    kind, classes = type(estimator).__name__, estimator.target_.n_classes
    objective = objective_of(kind, said, classes)
    _check_extras(kind, objective, rows.extras)
    metrics = [metric for metric in said.eval_metric if not callable(metric)]
    shift: Any = 0.0
    if not classes:
        check_labels(objective, rows.label, label)
        shift = shift_of(objective, rows.label, metrics, label)
        estimator.target_ = target_of(estimator.target_, shift)
    if start is not None:
        estimator.schema_, estimator.target_ = start.check(estimator.schema_, estimator.target_)
        shift = 0.0 if classes else estimator.target_.mean
    schema = estimator.schema_
    params = booster_params(said, objective, classes, bool(validated), shift) | constraints_of(said.params, schema)
    params.setdefault("seed", estimator.seed)
    weights = None
    if classes:
        weights = class_weights_of(estimator.class_weight, estimator.target_.classes.tolist(), rows.label.values)
    config = BoostConfig(
        params,
        said.n_estimators,
        said.early_stopping_rounds,
        schema.feature_names,
        schema.feature_types,
        estimator.sketch_rows,
        rows.n_rows,
        tuple(f"val{i}" if i > 1 else "val" for i in range(1, validated + 1)),
        UserFunction(said.objective) if objective == CUSTOM else None,
        tuple(UserFunction(metric) for metric in said.eval_metric if callable(metric)),
        said.callbacks,
        None if start is None else start.raw,
        weights_of(said.feature_weights, schema),
        weights,
        shift,
    )
    block = made_rows(config.feature_types[:FEATURES], classes, rows.label, shift, extras_seen(rows))
    what = f"{ROWS} rows of {classes} classes" if classes else f"{ROWS} rows with labels from {rows.label.low:g} to "
    what += "" if classes else f"{rows.label.high:g}"
    found = tried(_of_few_features(config), block, what)
    return replace(config, objective=found.objective, metrics=found.metrics), objective


def _of_few_features(config: BoostConfig) -> BoostConfig:
    """A configuration for a trial: of thousands of features it takes seconds, and is the same of some."""
    params = {k: v for k, v in config.params.items() if k not in OF_COLUMNS}
    if len(config.feature_names) <= FEATURES:
        return config
    names, kinds = config.feature_names[:FEATURES], config.feature_types[:FEATURES]
    return replace(config, params=params, feature_names=names, feature_types=kinds, feature_weights=None, start=None)


def extras_seen(rows: Rows) -> dict[str, tuple[ColumnStats, int]]:
    """Between what the extras lie, of all rows, and how many each has."""
    found: dict[str, ColumnStats] = {}
    for look in rows.looks:
        for role, stats in look.extras.items():
            found[role] = found[role].merge(stats) if role in found else stats
    return {role: (stats, len(rows.extras[role])) for role, stats in found.items()}


def objective_of(kind: str, said: Wanted, n_classes: int) -> str:
    """Name the objective: the one given, or the default for the estimator and the classes."""
    if said.objective is None:
        return "multi:softprob" if n_classes > 2 else DEFAULTS[kind]
    return check_objective(kind, said.objective, n_classes)


def booster_params(said: Wanted, objective: str, n_classes: int, validated: bool, shift: Any) -> dict[str, Any]:
    """Parameters as XGBoost is told them."""
    params = {name: value for name, value in said.params.items() if name not in OF_COLUMNS}
    if params.get("booster") != "gblinear":
        params.setdefault("tree_method", "hist")
    if objective != CUSTOM:
        params["objective"] = objective
    several = objective in SEVERAL or (objective == CUSTOM and n_classes > 2)
    if several:
        if params.setdefault("num_class", n_classes) != n_classes:
            raise ValueError(f"num_class={params['num_class']} and y has {n_classes} classes. Leave num_class out.")
        if objective == CUSTOM:
            params["disable_default_eval_metric"] = True
    metrics = [metric for metric in said.eval_metric if not callable(metric)]
    if not said.eval_metric and objective == "binary:logistic":
        metrics = ["logloss", "auc"][: 1 + validated]
    if metrics:
        params["eval_metric"] = metrics
    if np.any(shift) and params.get("base_score") is not None:
        params["base_score"] = (np.asarray(params["base_score"], dtype=np.float64) - shift).tolist()
    return params


def _check_extras(kind: str, objective: str, extras: Mapping[str, Any]) -> None:
    bounds = [role for role in ("label_lower_bound", "label_upper_bound") if role in extras]
    if objective == "survival:aft" and len(bounds) < 2:
        raise ValueError(
            "objective 'survival:aft' learns from between what times lie: fit(X, None, label_lower_bound=..., "
            "label_upper_bound=...), where the upper bound is inf for an event that was not seen."
        )
    if bounds and objective != "survival:aft":
        raise ValueError(f"{bounds[0]} is read by objective 'survival:aft' only; it is {objective!r}.")
    if kind == "XGBRanker" and "qid" not in extras:
        raise ValueError("XGBRanker.fit needs qid=: the query of each row, or the name of its column.")
    if "qid" in extras and kind != "XGBRanker":
        raise ValueError(f"qid is read by XGBRanker, not by {kind}. Leave it out, or drop the column.")


def tried_alone(kind: str, said: Wanted, extras: Mapping[str, Any]) -> None:
    """Try the parameters on rows that fit the objective, before any row is read.

    Raises
    ------
    ValueError
        XGBoost does not take them.
    """
    several = said.objective in SEVERAL
    objective = objective_of(kind, said, 2)
    _check_extras(kind, objective, extras)
    n_classes = 0 if kind != "XGBClassifier" else int(said.params.get("num_class", 3)) if several else 2
    params = booster_params(said, objective, n_classes, True, 0.0)
    if not said.params and not params.get("eval_metric"):
        return
    params.pop("disable_default_eval_metric", None)
    label = ColumnStats("label", 1, low=1.0, high=1.0)
    roles = ["qid"] if objective in RANKS else []
    roles += ["label_lower_bound", "label_upper_bound"] if objective == "survival:aft" else []
    seen = {role: (ColumnStats("number", 1, low=1.0, high=1.0), 1) for role in roles}
    config = BoostConfig(params, 1, None, ["0", "1"], ["q", "q"], 0, ROWS)
    block = made_rows(["q", "q"], n_classes, label, 0.0, seen)
    tried(replace(config, params={k: v for k, v in params.items() if k != "num_class" or several}), block, "some rows")
