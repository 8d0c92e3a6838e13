"""Objectives and metrics that are Python functions: called in every rank, and tried before anything is launched."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost

Floats = npt.NDArray[Any]


@dataclass(frozen=True)
class UserFunction:
    """A function of the user's, in scikit-learn's form or in XGBoost's own.

    Attributes
    ----------
    function : callable
        ``function(y_true, y_pred)`` or ``function(y_true, y_pred, sample_weight=...)``; or, ``native``,
        ``function(predictions, matrix)``.
    native : bool
    """

    function: Callable[..., Any]
    native: bool = False

    @property
    def name(self) -> str:
        """What it is called in logs."""
        return str(getattr(self.function, "__name__", type(self.function).__name__)).replace(" ", "_")

    @property
    def takes_weights(self) -> bool:
        """Whether it has a third parameter, for weights."""
        try:
            parameters = inspect.signature(self.function).parameters
        except (TypeError, ValueError):  # of C
            return False
        return "sample_weight" in parameters

    def of_rows(self, y: Floats, predictions: Floats, weights: Floats, matrix: xgboost.DMatrix) -> Any:
        """Call it on rows."""
        if self.native:
            return self.function(predictions, matrix)
        more = {"sample_weight": weights} if weights.size and self.takes_weights else {}
        return self.function(y, predictions, **more)


def understood(function: Callable[..., Any], call: Callable[[UserFunction], Any]) -> UserFunction:
    """Find out in which form a function is, by calling it on a few rows.

    One in XGBoost's form asks the matrix for its labels, which an array does not have.
    """
    plain = UserFunction(function)
    try:
        call(plain)
    except AttributeError:
        native = UserFunction(function, native=True)
        call(native)
        return native
    return plain


def labels_of(matrix: xgboost.DMatrix) -> Floats:
    """Labels of a matrix: shape (n_rows,), or (n_rows, n_targets)."""
    y = matrix.get_label()
    n = matrix.num_row()
    return y.reshape(n, -1) if n and y.size != n and y.size % n == 0 and y.size else y


def as_objective(user: UserFunction) -> Callable[[Floats, xgboost.DMatrix], tuple[Floats, Floats]]:
    """Make of it what XGBoost calls for the gradients of a rank's rows; weights it does not take are put on here."""

    def objective(predictions: Floats, matrix: xgboost.DMatrix) -> tuple[Floats, Floats]:
        weights = matrix.get_weight()
        found = user.of_rows(labels_of(matrix), predictions, weights, matrix)
        grad, hess = (np.asarray(part, dtype=np.float32) for part in found)
        if weights.size and not user.native and not user.takes_weights:
            share = weights.reshape(-1, *[1] * (grad.ndim - 1))
            grad, hess = grad * share, hess * share
        return grad, hess

    return objective


class Whole:
    """The labels and weights of all ranks' rows of a matrix, for metrics that no sum over ranks gives."""

    def __init__(self, matrix: xgboost.DMatrix, shift: Any) -> None:
        self.y, self.weights = everywhere(labels_of(matrix)), everywhere(matrix.get_weight())
        label = self.y if self.y.ndim == 1 or self.y.size else None
        rows = np.zeros((len(self.y), 1), dtype=np.float32)
        self.matrix = xgboost.DMatrix(rows, label, weight=self.weights if self.weights.size else None)
        self.shift = shift
        if np.any(shift):
            self.y = self.y.astype(np.float64) + shift

    def __call__(self, user: UserFunction, predictions: Floats) -> list[tuple[str, float]]:
        """Call a metric on the predictions of all ranks' rows."""
        predictions = predictions.astype(np.float64) + self.shift if np.any(self.shift) else predictions
        found = user.of_rows(self.y, predictions, self.weights, self.matrix)
        pairs = found if isinstance(found, list) else [found] if isinstance(found, tuple) else [(user.name, found)]
        return [(str(name), float(value)) for name, value in pairs]


def everywhere(mine: Floats) -> Floats:
    """Lay the rows of all ranks end to end, in every rank, in the order of ranks."""
    size, rank = xgboost.collective.get_world_size(), xgboost.collective.get_rank()
    if size == 1:
        return mine
    counts = np.zeros((size, 2), dtype=np.int64)
    counts[rank] = len(mine), mine.size // max(1, len(mine))
    counts = xgboost.collective.allreduce(counts.ravel(), xgboost.collective.Op.SUM).reshape(size, 2)
    width = int(counts[:, 1].max())
    whole = np.zeros((int(counts[:, 0].sum()), max(1, width)), dtype=np.float32)
    first = int(counts[:rank, 0].sum())
    if mine.size:
        whole[first : first + len(mine)] = mine.reshape(len(mine), -1)
    whole = xgboost.collective.allreduce(whole.ravel(), xgboost.collective.Op.SUM).reshape(whole.shape)
    return whole if width > 1 else whole[:, 0] if width else whole[:0, 0]


class Metrics:
    """The user's metrics of all evaluated matrices, as XGBoost calls them."""

    def __init__(self, users: Sequence[UserFunction], shift: Any) -> None:
        self.users, self.shift = users, shift
        self._whole: dict[int, Whole] = {}

    def __call__(self, predictions: Floats, matrix: xgboost.DMatrix) -> list[tuple[str, float]]:
        """Evaluate one matrix; all ranks get here together."""
        if id(matrix) not in self._whole:
            self._whole[id(matrix)] = Whole(matrix, self.shift)
        whole, predictions = self._whole[id(matrix)], everywhere(predictions)
        return [pair for user in self.users for pair in whole(user, predictions)]
