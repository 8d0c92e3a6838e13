"""Blocks of rows as the matrices that XGBoost trains on and evaluates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xgboost

from daskdl.errors import DataError
from daskdl.training.bins import Cuts, rows_with_cuts

WATCHED_ROWS = 100_000
Block = dict[str, Any]  # "x", a frame of table columns; "y"; and what else each row has, by its role


@dataclass(frozen=True)
class BoostConfig:
    """What the ranks are asked to do.

    Attributes
    ----------
    params : dict
        XGBoost's own parameters.
    rounds : int
    early_stopping_rounds : int or None
    feature_names, feature_types : list of str
    sketch_rows : int
        Rows, over all ranks, from which histogram bins are learned when there are many more.
    n_rows : int
        Rows over all ranks.
    validated : tuple of str
        Names of the sets of validation rows.
    objective : UserFunction or None
    metrics : tuple of UserFunction
    callbacks : tuple of TrainingCallback
    start : bytes or None
        A booster, as UBJSON, that is gone on with.
    feature_weights : array of shape (n_features,), optional
    class_weights : array of shape (n_classes,), optional
    shift : float, or array of shape (n_targets,)
        What was subtracted from the labels, and is from margins.
    """

    params: dict[str, Any]
    rounds: int
    early_stopping_rounds: int | None
    feature_names: list[str]
    feature_types: list[str]
    sketch_rows: int
    n_rows: int
    validated: tuple[str, ...] = ()
    objective: Any = None
    metrics: tuple[Any, ...] = ()
    callbacks: tuple[Any, ...] = ()
    start: bytes | None = None
    feature_weights: npt.NDArray[np.float32] | None = None
    class_weights: npt.NDArray[np.float64] | None = None
    shift: Any = 0.0

    @property
    def binned(self) -> bool:
        """Whether rows are put into bins once, for all rounds; other methods need the rows as they are."""
        params = self.params
        return params.get("booster") != "gblinear" and params.get("tree_method", "hist") in ("hist", "auto")

    @property
    def ranking(self) -> bool:
        """Whether rows belong to queries."""
        return str(self.params.get("objective", "")).startswith("rank:")


def about_rows(config: BoostConfig, block: Block, rows: slice) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the features of some rows of a block, and what XGBoost is told of each; queries are brought together."""
    order = slice(None) if "qid" not in block else np.argsort(block["qid"], kind="stable")
    told = {key: block[key][order][rows] for key in block if key not in ("x", "sample_weight")}
    if "y" in told:
        told["label"] = told.pop("y")
    weights = block.get("sample_weight")
    if config.class_weights is not None:
        share = config.class_weights[block["y"]]
        weights = share if weights is None else weights * share
    if weights is not None:
        told["weight"] = weights[order][rows]
    if "qid" in told:
        told["qid"] = pd.factorize(told["qid"])[0]
        if weights is not None:
            told["weight"] = _weight_per_query(told["qid"], told["weight"])
    if "base_margin" in told and np.any(config.shift):
        told["base_margin"] = told["base_margin"] - config.shift
    x = block["x"] if isinstance(order, slice) else block["x"].iloc[order]
    return x.iloc[rows], told


def _weight_per_query(qid: npt.NDArray[Any], weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """XGBoost weighs queries, not rows."""
    first = np.flatnonzero(np.diff(qid, prepend=-1))
    if not np.array_equal(weights, weights[first][qid]):
        row = int(np.flatnonzero(weights != weights[first][qid])[0])
        raise DataError(
            f"sample_weight of a ranking must be the same in all rows of a query, as XGBoost weighs queries; one has "
            f"{weights[first][qid][row]} and {weights[row]}. Give each query its weight, for example the mean of its "
            "rows."
        )
    return weights[first]


class _Blocks(xgboost.DataIter):
    """Gives XGBoost one block after the other, every ``stride``-th row of each."""

    def __init__(self, config: BoostConfig, blocks: Iterable[Any], stride: int = 1, like: Iterable[Any] = ()) -> None:
        super().__init__()
        self.config, self.blocks, self.stride, self.like = config, blocks, stride, like
        self.reset()

    def next(self, input_data: Callable[..., Any]) -> bool:
        block = next(self.left, None)
        stop = None
        if block is None and self.n_given == 0:  # XGBoost takes no rows, but not no block
            block, stop = next(iter(self.like), None), 0
        if block is None:
            return False
        self.n_given += 1
        x, told = about_rows(self.config, block, slice(None, stop, self.stride))
        names, kinds = self.config.feature_names, self.config.feature_types
        input_data(data=x, feature_names=names, feature_types=kinds, **told)
        return True

    def reset(self) -> None:
        self.left, self.n_given = iter(self.blocks), 0


def matrix_of(
    config: BoostConfig,
    params: dict[str, Any],
    blocks: Iterable[Any],
    stride: int = 1,
    ref: Any = None,
    like: Iterable[Any] = (),
) -> xgboost.DMatrix:
    """Make a matrix of some rows; binned like ``ref`` if the method bins them once."""
    if not config.binned:
        return _plain_matrix(config, params, blocks, stride, like)
    return xgboost.QuantileDMatrix(
        _Blocks(config, blocks, stride, like),
        max_bin=params.get("max_bin"),
        ref=ref,
        nthread=params["nthread"],
        enable_categorical=True,
    )


def _plain_matrix(
    config: BoostConfig, params: dict[str, Any], blocks: Iterable[Any], stride: int, like: Iterable[Any]
) -> xgboost.DMatrix:
    """Make a matrix of the rows as they are, in one piece."""
    parts = [about_rows(config, block, slice(None, None, stride)) for block in blocks]
    if not parts:
        parts = [about_rows(config, block, slice(0, 0)) for block in list(like)[:1]]
    told = {key: np.concatenate([more[key] for _, more in parts]) for key in parts[0][1]}
    if "qid" in told:  # of each block they are numbered from 0
        ends = np.cumsum([0, *(1 + int(more["qid"].max(initial=-1)) for _, more in parts)])
        told["qid"] = np.concatenate([more["qid"] + end for (_, more), end in zip(parts, ends[:-1], strict=True)])
    return xgboost.DMatrix(
        pd.concat([x for x, _ in parts]),
        feature_names=config.feature_names,
        feature_types=config.feature_types,
        nthread=params["nthread"],
        enable_categorical=True,
        **told,
    )


def train_matrix(
    config: BoostConfig, params: dict[str, Any], blocks: Iterable[Any], cuts: Cuts | None
) -> xgboost.DMatrix:
    """Bin this rank's rows; with many rows the bins are learned from a regular sample of them."""
    stride = config.n_rows // config.sketch_rows if config.sketch_rows and not config.ranking else 1
    ref: xgboost.DMatrix | None = None
    if cuts is not None:
        ref = xgboost.QuantileDMatrix(
            rows_with_cuts(cuts, config.feature_types),
            max_bin=params.get("max_bin"),
            nthread=params["nthread"],
            feature_names=config.feature_names,
            feature_types=config.feature_types,
            enable_categorical=True,
        )
    elif stride > 1 and config.binned:
        ref = matrix_of(config, params, blocks, stride)
    train = matrix_of(config, params, blocks, ref=ref)
    if config.feature_weights is not None:
        train.set_info(feature_weights=config.feature_weights)
    return train


def watched_matrix(
    config: BoostConfig, params: dict[str, Any], blocks: Iterable[Any], train: xgboost.DMatrix
) -> xgboost.DMatrix:
    """The rows that the training curve is of: a regular sample of many; of queries all."""
    stride = -(-config.n_rows // WATCHED_ROWS)
    return train if stride == 1 or config.ranking else matrix_of(config, params, blocks, stride, ref=train)


def cuts_of(matrix: xgboost.DMatrix) -> Cuts:
    """Borders of the bins of a matrix."""
    indptr, values = matrix.get_quantile_cut()
    return indptr.astype(np.int64), values.astype(np.float32)
