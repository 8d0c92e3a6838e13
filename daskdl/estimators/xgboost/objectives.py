"""What XGBoost's objectives are for, what they need, and what comes out of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from daskdl.data.schema.stats import ColumnStats
from daskdl.data.schema.target import Target
from daskdl.errors import DataError

CUSTOM = "custom"  # a function of the user's: what comes out is its margin
BINARY = ("binary:logistic", "binary:logitraw", "binary:hinge", "reg:logistic")
SEVERAL = ("multi:softprob", "multi:softmax")
NUMBERS = (
    "reg:squarederror", "reg:squaredlogerror", "reg:logistic", "reg:pseudohubererror", "reg:absoluteerror",
    "reg:quantileerror", "count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft",
    "binary:logistic", "binary:logitraw", "binary:hinge",
)  # fmt: skip
RANKS = ("rank:ndcg", "rank:map", "rank:pairwise")
KNOWN = tuple(dict.fromkeys((*BINARY, *SEVERAL, *NUMBERS, *RANKS)))
FOR = {"XGBClassifier": (*BINARY, *SEVERAL), "XGBRegressor": NUMBERS, "XGBRanker": RANKS}

# objective -> lowest label, highest, whether the lowest is one
UNIT = (0.0, 1.0, True)
BETWEEN = {
    "reg:gamma": (0.0, np.inf, False),
    "reg:tweedie": (0.0, np.inf, True),
    "count:poisson": (0.0, np.inf, True),
    "reg:squaredlogerror": (-1.0, np.inf, False),
    **dict.fromkeys(BINARY, UNIT),
    **dict.fromkeys(RANKS, (0.0, np.inf, True)),
    "rank:map": UNIT,
}

# a label may be shifted where the loss only looks at differences, and so do these metrics
SHIFTED = ("reg:squarederror", "reg:absoluteerror", "reg:quantileerror", "reg:pseudohubererror")
SHIFTED_METRICS = ("rmse", "mae", "mphe", "quantile")
COARSE = 1e-3  # of the spread of labels, that a step of float32 may be


def check_objective(estimator: str, objective: Any, n_classes: int) -> str:
    """Return the name of the objective, ``"custom"`` for a function; one that is for other labels is refused.

    Raises
    ------
    ValueError
    """
    if callable(objective):
        return CUSTOM
    if objective == "reg:linear":
        raise ValueError("objective 'reg:linear' is XGBoost's old name: give 'reg:squarederror'.")
    if objective not in KNOWN:
        raise ValueError(f"objective {objective!r} is none that XGBoost has; it has {', '.join(KNOWN)}, or a function.")
    if objective not in FOR[estimator]:
        others = [name for name, theirs in FOR.items() if objective in theirs]
        raise ValueError(f"objective {objective!r} is not for {estimator}. Use daskdl.{' or '.join(others)}.")
    if n_classes > 2 and objective in BINARY:
        raise ValueError(
            f"objective {objective!r} is for two classes, and y has {n_classes}. Use 'multi:softprob', or leave it out."
        )
    return str(objective)


def check_labels(objective: str, stats: ColumnStats, name: Any) -> None:
    """Refuse labels that an objective has no loss for.

    Raises
    ------
    DataError
    """
    low, high, included = BETWEEN.get(objective, (-np.inf, np.inf, True))
    if stats.low < low or stats.high > high or (not included and stats.low == low):
        sign = ">=" if included else ">"
        span = f"{sign} {low:g}" + (f" and <= {high:g}" if np.isfinite(high) else "")
        raise DataError(
            f"objective {objective!r} needs labels {span}; label {name!r} lies between {stats.low:,.6g} and "
            f"{stats.high:,.6g}. Use another objective, or change the labels."
        )


def one_rank_only(params: Mapping[str, Any], objective: str, metrics: list[Any]) -> str | None:
    """Say why a training must run on one rank, if it must: XGBoost itself does not do it over several."""
    if params.get("booster") == "gblinear":
        return "booster='gblinear' trains a model of its own in every rank"
    if params.get("tree_method") == "exact" or "grow_colmaker" in str(params.get("updater", "")):
        return "tree_method='exact' looks at all rows in one place (tree_method='hist' does not)"
    if objective == "survival:cox" or "cox-nloglik" in metrics:
        return "the likelihood of survival:cox compares each row with all others"
    return None


def shift_of(objective: str, stats: ColumnStats, metrics: list[Any], name: Any) -> Any:
    """What is subtracted from labels that float32, in which XGBoost holds them, cannot tell apart; mostly nothing.

    A number, or an array of one for each of several labels.

    Raises
    ------
    DataError
        There is something to be subtracted, and the objective or a metric would not be the same.
    """
    mean = np.asarray(stats.mean, dtype=np.float64)
    spread = (np.asarray(stats.m2) / max(1, stats.n)) ** 0.5
    step = np.spacing((np.abs(mean) + spread).astype(np.float32))
    coarse = (spread > 0) & (step > COARSE * spread)
    if not coarse.any():
        return 0.0
    odd = [m for m in metrics if not callable(m) and m.partition("@")[0] not in SHIFTED_METRICS]
    if objective not in SHIFTED or odd:
        raise DataError(
            f"label {name!r} lies between {stats.low:,.17g} and {stats.high:,.17g}: XGBoost holds labels in float32, "
            f"which cannot tell them apart there, and {odd[0] if odd else objective} means something else for labels "
            f"that are shifted. Subtract a constant yourself, or use one of {', '.join(SHIFTED)} with "
            f"{', '.join(SHIFTED_METRICS)}."
        )
    shift = np.where(coarse, np.round(mean), 0.0)
    return float(shift) if shift.ndim == 0 else shift


def target_of(target: Target, shift: Any) -> Target:
    """The target for trees, which learn labels in their own unit."""
    if target.classes is not None:
        return target
    n = len(target.names)
    return Target(None, shift + np.zeros(n) if n else shift, np.ones(n) if n else 1.0, target.names)
