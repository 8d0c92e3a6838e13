"""Predictions that are there already, as an estimator for scikit-learn's scorers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from daskdl.data.schema.target import Target


class Predicted(BaseEstimator):
    """An estimator that has predicted already, for scikit-learn's scorers."""

    def __init__(self, found: Any, classes: Any = None) -> None:
        self.found, self.classes_ = found, classes

    @staticmethod
    def of(target: Target, found: npt.NDArray[Any]) -> Predicted:
        """For a target's classes, or numbers in the unit of its labels."""
        if target.classes is not None:
            return _PredictedClasses(found, target.classes)
        numbers = found * target.scale + target.mean
        return _PredictedNumbers(numbers[:, 0] if numbers.shape[1] == 1 else numbers)

    def __sklearn_is_fitted__(self) -> bool:
        return True


class _PredictedClasses(ClassifierMixin, Predicted):
    def predict(self, X: Any) -> npt.NDArray[Any]:
        return np.asarray(self.classes_)[self.found.argmax(axis=1)]

    def predict_proba(self, X: Any) -> npt.NDArray[Any]:
        return np.asarray(self.found)


class _PredictedNumbers(RegressorMixin, Predicted):
    def predict(self, X: Any) -> npt.NDArray[Any]:
        return np.asarray(self.found)
