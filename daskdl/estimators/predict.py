"""Predicting where the rows are: a model with its schema, applied to one partition or to all, lazily."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import pandas as pd

from daskdl.data.frame import as_frame, is_lazy, to_pandas
from daskdl.data.schema import Schema
from daskdl.data.schema.target import Target

Outputs = Callable[[Any, Schema, pd.DataFrame], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Predictor:
    """A trained model and the encoding it was trained with.

    ``outputs(model, schema, frame)`` gives class probabilities of shape (n_rows, n_classes), or standardised values of
    shape (n_rows,) for a regression.
    """

    model: Any
    schema: Schema
    target: Target
    outputs: Outputs

    def probabilities(self, frame: Any) -> npt.NDArray[np.float32]:
        """Class probabilities of the rows of a frame in memory."""
        frame = to_pandas(frame)
        if not len(frame):
            return np.empty((0, max(1, self.target.n_classes)), dtype=np.float32)
        return self.outputs(self.model, self.schema, frame)

    def labels(self, frame: Any) -> npt.NDArray[Any]:
        """Classes, or values in the unit of the labels, of the rows of a frame in memory."""
        found = self.probabilities(frame)
        if self.target.classes is None:
            return (found.reshape(-1) * self.target.scale + self.target.mean).astype(np.float64)
        return self.target.classes[found.argmax(axis=1)]

    def labels_part(self, frame: Any) -> pd.Series:
        """The labels of one partition, with its index."""
        frame = to_pandas(frame)
        return pd.Series(self.labels(frame), index=frame.index, name="prediction")

    def probabilities_part(self, frame: Any) -> pd.DataFrame:
        """The probabilities of one partition, one column per class, with its index."""
        frame = to_pandas(frame)
        return pd.DataFrame(self.probabilities(frame), index=frame.index, columns=self.columns)

    @property
    def columns(self) -> list[Any]:
        """Column names of the probabilities: the classes."""
        assert self.target.classes is not None
        return [value.item() if isinstance(value, np.generic) else value for value in self.target.classes]


def predict(predictor: Predictor, X: Any, what: str) -> Any:
    """Predict ``labels`` or ``probabilities``: a lazy collection for a Dask frame, an array for one in memory."""
    frame = as_frame(X)
    predictor.schema.check(frame.columns)
    if not is_lazy(frame):
        return getattr(predictor, what)(frame)
    meta = getattr(predictor, f"{what}_part")(to_pandas(frame._meta))
    once = dask.delayed(predictor, pure=False)  # one copy per worker, not one per partition
    return frame.map_partitions(_part, once, what, meta=meta)


def _part(frame: Any, predictor: Predictor, what: str) -> Any:
    return getattr(predictor, f"{what}_part")(frame)
