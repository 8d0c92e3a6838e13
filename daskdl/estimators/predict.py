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

Outputs = Callable[[Any, Schema, pd.DataFrame], npt.NDArray[Any]]


@dataclass(frozen=True)
class Predictor:
    """A trained model and the encoding it was trained with.

    ``outputs(model, schema, frame)`` gives class probabilities of shape (n_rows, n_classes), or standardised values of
    shape (n_rows,) for a regression, (n_rows, n_outputs) if ``names`` has a name for each of several.
    """

    model: Any
    schema: Schema
    target: Target
    outputs: Outputs
    names: tuple[Any, ...] = ()

    def probabilities(self, frame: Any) -> npt.NDArray[Any]:
        """Class probabilities of the rows of a frame in memory."""
        frame = to_pandas(frame)
        if not len(frame):
            return np.empty((0, max(1, self.target.n_classes)), dtype=np.float32)
        return self.outputs(self.model, self.schema, frame)

    def values(self, frame: Any) -> npt.NDArray[np.float64]:
        """Values in the unit of the labels, put together in double precision: labels may be large and differ little."""
        frame = to_pandas(frame)
        shape = (len(frame), len(self.names)) if self.names else (len(frame),)
        if not len(frame):
            return np.empty(shape)
        found = np.asarray(self.outputs(self.model, self.schema, frame), dtype=np.float64).reshape(shape)
        return np.asarray(found * self.target.scale + self.target.mean)

    def labels(self, frame: Any) -> npt.NDArray[Any]:
        """Classes, or values in the unit of the labels, of the rows of a frame in memory."""
        if self.target.classes is None:
            return self.values(frame)
        return self.target.classes[self.probabilities(frame).argmax(axis=1)]

    def labels_part(self, frame: Any) -> pd.Series | pd.DataFrame:
        """The labels of one partition, with its index."""
        frame = to_pandas(frame)
        if self.names:
            return pd.DataFrame(self.labels(frame), index=frame.index, columns=list(self.names))
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


def predict(predictor: Predictor, X: Any, what: str, aside: Sequence[Any] = ()) -> Any:
    """Predict ``labels`` or ``probabilities``: a lazy collection for a Dask frame, an array for one in memory.

    ``aside`` are columns that are no features and say where a row comes from: a broken row is called by them.
    """
    frame = as_frame(X)
    names = [name for name in frame.columns if name not in aside]
    predictor.schema.check(names)
    if not is_lazy(frame):
        return _part(frame, predictor, what, names)
    meta = getattr(predictor, f"{what}_part")(to_pandas(frame._meta)[names])
    once = dask.delayed(predictor, pure=False)  # one copy per worker, not one per partition
    return frame.map_partitions(_part, once, f"{what}_part", names, meta=meta)


def _part(frame: Any, predictor: Predictor, what: str, names: list[Any]) -> Any:
    try:
        return getattr(predictor, what)(frame[names])
    except DataError as error:
        raise error.named(partial(_row, to_pandas(frame).drop(columns=names))) from error


def _row(aside: pd.DataFrame, row: int) -> str:
    said = " and ".join(f"{name} {value}" for name, value in aside.iloc[row].items())
    return said or f"the row of index {aside.index[row]!r}"
