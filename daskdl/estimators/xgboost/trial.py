"""One round on a few made rows, in this process: what XGBoost refuses, it refuses here, before anything is launched."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xgboost

from daskdl.data.schema.stats import ColumnStats
from daskdl.estimators.xgboost.params import near_names
from daskdl.training.boost_functions import Metrics, UserFunction, as_objective, understood
from daskdl.training.boost_log import lines_to
from daskdl.training.boost_matrix import Block, BoostConfig, train_matrix

ROWS = 24
UNUSED = re.compile(r"Parameters: \{(.*)\} are not used")


def made_rows(
    kinds: Sequence[str],
    n_classes: int,
    label: ColumnStats | None,
    shift: Any,
    extras: Mapping[str, tuple[ColumnStats, int]],
) -> Block:
    """Make rows as those of a training are: with its classes, or its lowest and highest labels.

    ``extras`` are between what the values of each role lie, and how many of them a row has.
    """
    rng = np.random.default_rng(0)
    number = np.arange(ROWS)
    columns = [number % 2 if kind == "c" else rng.random(ROWS) for kind in kinds]
    x = pd.DataFrame({str(i): column.astype(np.float32) for i, column in enumerate(columns)})
    block: Block = {"x": x, "y": _labels(number, n_classes, label) - (0 if n_classes else shift)}
    for role, (stats, width) in extras.items():
        values = np.where(number % 2, stats.low, stats.high)
        values = number // 6 if role == "qid" else np.full(ROWS, stats.high) if "weight" in role else values
        block[role] = values if width == 1 else np.repeat(values[:, None], width, axis=1)
    if "label_lower_bound" in block and "label_upper_bound" in block:
        block["label_upper_bound"] = np.maximum(block["label_upper_bound"], block["label_lower_bound"])
    return block


def _labels(number: Any, n_classes: int, label: ColumnStats | None) -> Any:
    if n_classes or label is None:
        return number % max(2, n_classes)
    low, high = label.low, label.high
    middle = (low + high) // 2 if low % 1 == high % 1 == 0 else (low + high) / 2
    values = np.array([low, middle, high], dtype=np.float64)[number % 3]
    if isinstance(label.mean, np.ndarray):
        values = np.repeat(values[:, None], len(label.mean), axis=1)
    return values


def tried(config: BoostConfig, block: Block, what: str) -> BoostConfig:
    """Boost one round; return the configuration with the forms of the user's functions found out.

    Raises
    ------
    ValueError
        XGBoost does not take the parameters, does not use some of them, or a function of the user's fails.
    """
    lines: list[str] = []
    params = {**config.params, "nthread": 1, "device": "cpu", "verbosity": 1}
    with lines_to(lambda line: lines.append(line.decode(errors="replace"))):
        try:
            matrix = train_matrix(config, params, [block], None)
            start = None if config.start is None else bytearray(config.start)
            booster = xgboost.Booster(params, [matrix], start)
            objective = _objective(config, booster, matrix)
            booster.update(matrix, iteration=0, fobj=None if objective is None else as_objective(objective))
            booster.eval_set([(matrix, "train")], 0)
            metrics = _metrics(config, booster, matrix)
        except (xgboost.core.XGBoostError, TypeError) as error:
            raise ValueError(f"XGBoost does not take this, tried on {what}: {_said(error)}") from error
    _refuse_unused(lines, params)
    return replace(config, objective=objective, metrics=metrics)


def _said(error: Exception) -> str:
    """What XGBoost says, without where in its sources."""
    text = str(error).partition("Stack trace")[0].partition("\nObjective candidate")[0]
    return re.sub(r"\[[\d:]+\] \S+?:\d+: (Check failed: )?", "", text).strip()


def _refuse_unused(lines: list[str], params: dict[str, Any]) -> None:
    for found in filter(None, map(UNUSED.search, lines)):
        names = re.findall(r'"([^"]+)"', found[1])
        names = [name for name in names if name != "device"]
        for name in names:
            near = [n for n in near_names(name) if n not in names]
            how = ", ".join(f"{k}={params[k]!r}" for k in ("objective", "booster", "tree_method") if k in params)
            raise ValueError(
                f"XGBoost does not use parameter {name!r} with {how}; what is not used would be left out without a "
                f"word. {f'Did you mean {near}? ' if near else ''}Take it out."
            )


def _objective(config: BoostConfig, booster: xgboost.Booster, matrix: xgboost.DMatrix) -> UserFunction | None:
    if config.objective is None:
        return None
    predictions = booster.predict(matrix, output_margin=True, training=True)

    def call(user: UserFunction) -> None:
        found = as_objective(user)(predictions, matrix)
        for part, name in zip(found, ("gradient", "hessian"), strict=True):
            if part.size != predictions.size:
                raise ValueError(
                    f"the {name} has shape {part.shape}, the predictions have {predictions.shape}: one for each."
                )

    return _understood("objective", config.objective.function, call)


def _metrics(config: BoostConfig, booster: xgboost.Booster, matrix: xgboost.DMatrix) -> tuple[UserFunction, ...]:
    predictions = booster.predict(matrix, output_margin=config.objective is not None)

    def call(user: UserFunction) -> None:
        for name, value in Metrics([user], config.shift)(predictions, matrix):
            if not np.isscalar(value) or re.search(r"[\s:]", name):
                raise ValueError(f"a metric gives a number and a name without spaces, got {name!r}: {value!r}")

    return tuple(_understood("eval_metric", user.function, call) for user in config.metrics)


def _understood(what: str, function: Callable[..., Any], call: Callable[[UserFunction], None]) -> UserFunction:
    try:
        return understood(function, call)
    except Exception as error:
        name = UserFunction(function).name
        form = "grad, hess" if what == "objective" else "a number"
        raise ValueError(
            f"{what} {name} failed on {ROWS} rows like yours: {type(error).__name__}: {error}. It is called as "
            f"{name}(y_true, y_pred) with arrays, or as XGBoost's own {name}(predictions, matrix), and returns {form}."
        ) from error
