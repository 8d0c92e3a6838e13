"""Predicting where the rows are: a model with its schema, applied to one partition or to all, lazily."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import pandas as pd

from daskdl.data.frame import as_frame, is_lazy, to_pandas
from daskdl.data.schema import Schema
from daskdl.data.schema.target import Target
from daskdl.errors import DataError

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


def predict(predictor: Any, X: Any, what: str, aside: Sequence[Any] = (), beside: Sequence[Any] = ()) -> Any:
    """Ask a predictor for ``what`` (``labels``, ``probabilities``, ...), which it has a method and ``<what>_part`` for.

    A lazy collection for a Dask frame, what the method gives for one in memory. ``aside`` are columns that are no
    features and say where a row comes from: a broken row is called by them. ``beside`` are those that are no features
    and that the predictor reads.
    """
    frame = as_frame(X)
    names = [name for name in frame.columns if name not in aside and name not in beside]
    predictor.schema.check(names)
    names += beside
    if not is_lazy(frame):
        return _part(frame, predictor, what, names)
    meta = getattr(predictor, f"{what}_part")(to_pandas(frame._meta)[names])
    once = dask.delayed(predictor, pure=False)  # one copy per worker, not one per partition
    return frame.map_partitions(_part, once, f"{what}_part", names, meta=meta)


def _part(frame: Any, predictor: Any, what: str, names: list[Any]) -> Any:
    try:
        return getattr(predictor, what)(frame[names])
    except DataError as error:
        raise error.named(partial(_row, to_pandas(frame).drop(columns=names))) from error


def _row(aside: pd.DataFrame, row: int) -> str:
    said = " and ".join(f"{name} {value}" for name, value in aside.iloc[row].items())
    return said or f"the row of index {aside.index[row]!r}"
