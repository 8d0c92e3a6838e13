"""What comes out of trees, taken for what it is: classes, probabilities, numbers, margins, contributions, leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xgboost
from scipy.special import expit, softmax

from daskdl.data.frame import to_pandas
from daskdl.data.schema import Schema
from daskdl.data.schema.target import Target
from daskdl.estimators.xgboost.objectives import CUSTOM

Found = npt.NDArray[Any]
NO_PROBABILITIES = {
    "binary:hinge": "objective 'binary:hinge' gives classes and no probabilities. Use predict, or train with "
    "'binary:logistic'.",
    CUSTOM: "the objective is a function of yours, so what its margins say of probabilities is yours to tell: "
    "predict(X, output_margin=True) gives the margins.",
}


@dataclass(frozen=True)
class TreePredictor:
    """A booster, the encoding it was trained with, and what is asked of it.

    Attributes
    ----------
    model : xgboost.Booster
    schema : Schema
    target : Target
    objective : str
        ``"custom"`` for a function of the user's.
    outputs : tuple
        Names of several outputs: classes, labels or quantiles.
    iterations : (int, int)
    approximate : bool
    beside : tuple of str
        Columns of the rows that hold margins to begin with.
    """

    model: xgboost.Booster
    schema: Schema
    target: Target
    objective: str
    outputs: tuple[Any, ...] = ()
    iterations: tuple[int, int] = (0, 0)
    approximate: bool = False
    beside: tuple[str, ...] = ()

    # -- what `predict` asks for: of a frame in memory, and of one partition -----------------------------------

    def labels(self, frame: Any) -> Found:
        """Classes, or values in the unit of the labels."""
        if self.target.classes is None:
            return self._raw(frame).astype(np.float64) + self.shift
        found = self._raw(frame, output_margin=self.objective == CUSTOM)
        if found.ndim == 2:
            numbers = found.argmax(axis=1)
        elif self.objective == "multi:softmax":
            numbers = found.astype(np.int64)
        else:
            cut = 0.0 if self.objective in (CUSTOM, "binary:logitraw") else 0.5
            numbers = (found > cut).astype(np.int64)
        return self.target.classes[numbers]

    def probabilities(self, frame: Any) -> Found:
        """Class probabilities: shape (n_rows, n_classes)."""
        found = self._raw(frame, output_margin=self.objective in ("multi:softmax", "binary:logitraw"))
        if self.objective == "multi:softmax":
            return np.asarray(softmax(found, axis=1))
        if self.objective == "binary:logitraw":
            found = expit(found)
        return found if found.ndim == 2 else np.stack([1 - found, found], axis=1)

    def margins(self, frame: Any) -> Found:
        """What the trees add up to, before the objective's link."""
        return self._raw(frame, output_margin=True) + (self.shift if self.target.classes is None else 0.0)

    def labels_part(self, frame: Any) -> Any:
        """The labels of one partition, with its index."""
        return self._laid(frame, self.labels(frame), self.outputs)

    def probabilities_part(self, frame: Any) -> pd.DataFrame:
        """The probabilities of one partition, one column per class."""
        return self._laid(frame, self.probabilities(frame), self.columns)

    def margins_part(self, frame: Any) -> Any:
        """The margins of one partition."""
        return self._laid(frame, self.margins(frame), self.outputs)

    def contributions(self, frame: Any) -> pd.DataFrame:
        """How much each feature adds to the margin, and the bias: SHAP values."""
        found = self._raw(frame, pred_contribs=True, approx_contribs=self.approximate)
        labels = [*self.schema.feature_labels, "bias"]
        found[..., -1] += self.shift if self.target.classes is None else 0.0
        names = labels if found.ndim == 2 else [f"{o}: {name}" for o in self._named(found.shape[1]) for name in labels]
        return self._laid(frame, _flat(found), names)

    def interactions(self, frame: Any) -> pd.DataFrame:
        """The same for each pair of features."""
        found = self._raw(frame, pred_interactions=True, approx_contribs=self.approximate)
        labels = [*self.schema.feature_labels, "bias"]
        found[..., -1, -1] += self.shift if self.target.classes is None else 0.0
        pairs = [f"{a} x {b}" for a in labels for b in labels]
        names = pairs if found.ndim == 3 else [f"{o}: {pair}" for o in self._named(found.shape[1]) for pair in pairs]
        return self._laid(frame, _flat(found), names)

    def leaves(self, frame: Any) -> pd.DataFrame:
        """The leaf that each row falls into, of each tree."""
        found = self._raw(frame, pred_leaf=True)
        found = _flat(found).astype(np.int64)
        return self._laid(frame, found, [f"tree_{i}" for i in range(found.shape[1])])

    contributions_part, interactions_part, leaves_part = contributions, interactions, leaves

    # -- from the booster -------------------------------------------------------------------------------------

    @property
    def columns(self) -> list[str]:
        """Column names of several outputs, as text, for Parquet takes no other names."""
        return [str(name) for name in self.outputs]

    @property
    def shift(self) -> Any:
        """What was subtracted from the labels."""
        return self.target.mean

    def _named(self, n: int) -> Sequence[Any]:
        return self.outputs if len(self.outputs) == n else range(n)

    def _laid(self, frame: Any, found: Found, names: Sequence[Any]) -> Any:
        index = to_pandas(frame).index
        if found.ndim == 1:
            return pd.Series(found, index=index, name="prediction")
        columns = names if len(names) == found.shape[1] else range(found.shape[1])
        return pd.DataFrame(found, index=index, columns=[str(name) for name in columns])

    def _raw(self, frame: Any, **what: Any) -> Found:
        frame = to_pandas(frame)
        margin = frame[list(self.beside)].to_numpy(dtype=np.float64) - self.shift if self.beside else None
        if len(frame):
            table = self.schema.table(frame)
        else:  # the shape of the answer is that of any row
            table = np.full((1, len(self._names)), np.nan, dtype=np.float32)
            margin = None
        matrix = xgboost.DMatrix(
            table,
            base_margin=margin if margin is None or margin.shape[1] > 1 else margin[:, 0],
            feature_names=self._names,
            feature_types=self.schema.feature_types,
            enable_categorical=True,
        )
        found: Found = self.model.predict(matrix, iteration_range=self.iterations, strict_shape=False, **what)
        return found[: len(frame)]

    @cached_property
    def _names(self) -> list[str]:
        return self.schema.feature_names


def _flat(found: Found) -> Found:
    """One row for each row, also of none."""
    return found.reshape(len(found), int(np.prod(found.shape[1:])))
