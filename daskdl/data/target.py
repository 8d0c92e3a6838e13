"""What is predicted: classes, or a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from daskdl.data.schema import ColumnStats, to_float
from daskdl.errors import DataError


def describe_target(y: pd.Series, classes: bool) -> ColumnStats:
    """Gather what must be known of the labels of one partition; runs where the partition is."""
    if classes:
        counts = y.value_counts(dropna=True)
        values = {v.item() if isinstance(v, np.generic) else v: int(n) for v, n in counts.items() if n}
        infinite = sum(n for v, n in values.items() if isinstance(v, float) and np.isinf(v))
        return ColumnStats("label", len(y), int(y.isna().sum()), infinite, values=values)
    try:
        x = to_float(y).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"label {y.name!r} has dtype {y.dtype}; a regression needs numbers: {error}. Unknown label type: convert "
            "it, or use a classifier."
        ) from error
    known = x[np.isfinite(x)]
    n_missing = int(np.isnan(x).sum())
    stats = ColumnStats("label", len(x), n_missing, len(x) - n_missing - len(known))
    if len(known):
        stats.mean = float(known.mean())
        stats.m2 = float(((known - stats.mean) ** 2).sum())
    return stats


@dataclass(frozen=True)
class Target:
    """How labels become what a loss reads, and back.

    Attributes
    ----------
    classes : array of shape (n_classes,) or None
        Sorted class labels of a classification; None for a regression.
    mean, scale : float
        A regression's label ``y`` becomes ``(y - mean) / scale``.
    """

    classes: npt.NDArray[Any] | None
    mean: float = 0.0
    scale: float = 1.0

    @classmethod
    def from_stats(cls, name: Any, stats: ColumnStats, classes: bool) -> Target:
        """Learn from the statistics; labels nothing can be learned from are refused here."""
        if stats.n == 0:
            raise DataError("the data has no rows (0 samples); there is nothing to learn from. Look at its filters.")
        if stats.n_missing or stats.n_infinite:
            raise DataError(
                f"Input y contains NaN or infinity: label {name!r} has {stats.n_missing:,} missing (NaN) and "
                f"{stats.n_infinite:,} infinite (inf) values in {stats.n:,} rows. A row without a label cannot be "
                "learned from: drop such rows on purpose, df[df.label.notnull()]."
            )
        if not classes:
            scale = (stats.m2 / stats.n) ** 0.5
            return cls(None, stats.mean, scale if scale > 0 else 1.0)
        found = list(stats.values)
        if len(found) < 2:
            raise DataError(
                f"label {name!r} has one class only: {found}, in {stats.n:,} rows. The number of classes has to be "
                "greater than one. Look at how the rows were selected."
            )
        if any(isinstance(v, float) and not v.is_integer() for v in found):
            raise DataError(
                f"Unknown label type: continuous. Label {name!r} has {len(found):,} different values such as "
                f"{found[:3]}; a classifier needs classes. Use a regressor, or cut the values into classes."
            )
        try:
            return cls(np.array(sorted(found)))
        except TypeError as error:
            raise DataError(
                f"label {name!r} mixes types: {[type(v).__name__ for v in found[:5]]}. Give all classes one type."
            ) from error

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 for a regression."""
        return 0 if self.classes is None else len(self.classes)

    def encode(self, y: pd.Series) -> npt.NDArray[Any]:
        """Class numbers as int64, or standardised numbers as float32: shape (n_rows,)."""
        if self.classes is None:
            return (to_float(y) - np.float32(self.mean)) / np.float32(self.scale)
        codes = pd.Index(self.classes).get_indexer(np.asarray(y.astype(object)))
        if (codes < 0).any():
            raise DataError(
                f"label {y.name!r} holds {y[codes < 0].iloc[0]!r}, which is none of the {self.n_classes} classes of "
                f"the training data: {list(self.classes)[:10]}. Validation data must have known classes."
            )
        return codes.astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        classes = None if self.classes is None else self.classes.tolist()
        dtype = None if self.classes is None else str(self.classes.dtype)
        return {"classes": classes, "dtype": dtype, "mean": self.mean, "scale": self.scale}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Target:
        """Undo ``to_dict``."""
        classes = None if state["classes"] is None else np.array(state["classes"], dtype=state["dtype"])
        return cls(classes, state["mean"], state["scale"])
