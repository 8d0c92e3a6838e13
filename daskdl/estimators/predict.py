"""Predicting where the rows are: a model with its schema, applied to one partition or to all, lazily."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import numpy.typing as npt
import pandas as pd

from daskdl.data.carrying import with_code
from daskdl.data.frame import as_frame, is_lazy, to_pandas
from daskdl.data.schema import Schema
from daskdl.data.schema.target import Target
from daskdl.errors import DataError
from daskdl.travel import Packed, pack

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
    def columns(self) -> list[str]:
        """Column names of the probabilities: the classes, as text, for Parquet takes no other names."""
        assert self.target.classes is not None
        return [str(value) for value in pd.Index(self.target.classes).tolist()]


def predict(predictor: Any, X: Any, what: str, aside: Sequence[Any] = (), beside: Sequence[Any] = ()) -> Any:
    """Ask a predictor for ``what`` (``labels``, ``probabilities``, ...), which it has a method and ``<what>_part`` for.

    A lazy collection for a Dask frame, what the method gives for one in memory. ``aside`` are columns that are no
    features and say where a row comes from: a broken row is called by them. ``beside`` are those that are no features
    and that the predictor reads.
    """
    frame = X if beside else as_frame(X)
    names = [name for name in frame.columns if name not in aside and name not in beside]
    predictor.schema.check(names)
    names += beside
    if not is_lazy(frame):
        return _part(frame, predictor, what, names)
    meta = getattr(predictor, f"{what}_part")(to_pandas(frame._meta)[names])
    # one copy per worker, not one per partition
    once = dask.delayed(pack(predictor, "the fitted estimator"), pure=False)
    found = with_code(frame).map_partitions(_part, once, f"{what}_part", names, meta=meta)
    return Probabilities.of(found, predictor) if what == "probabilities" else found


class Probabilities(dd.DataFrame):
    """Lazy class probabilities. Columns are called by the class as text; ``p[1]`` is that of the class 1, too."""

    _by_class: Mapping[Any, str] = MappingProxyType({})

    @classmethod
    def of(cls, frame: dd.DataFrame, predictor: Any) -> dd.DataFrame:
        """Let the columns of a frame be found by the classes."""
        assert predictor.target.classes is not None
        found = cls(frame.expr)
        found._by_class = dict(zip(pd.Index(predictor.target.classes), predictor.columns, strict=True))
        return found

    def __getitem__(self, other: Any) -> Any:
        is_class = np.isscalar(other) or isinstance(other, pd.Timestamp)
        return super().__getitem__(self._by_class.get(other, other) if is_class else other)


def _part(frame: Any, predictor: Any, what: str, names: list[Any]) -> Any:
    predictor = predictor.value if isinstance(predictor, Packed) else predictor
    try:
        return getattr(predictor, what)(frame[names])
    except DataError as error:
        raise error.named(partial(_row, to_pandas(frame).drop(columns=names))) from error


def _row(aside: pd.DataFrame, row: int) -> str:
    said = " and ".join(f"{name} {value}" for name, value in aside.iloc[row].items())
    return said or f"the row of index {aside.index[row]!r}"
