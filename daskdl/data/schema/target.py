"""What is predicted: classes, or a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from daskdl.data.schema.lookup import Lookup
from daskdl.data.schema.stats import ColumnStats
from daskdl.data.schema.values import categories, numbers, plain
from daskdl.errors import DataError


def describe_target(y: Any, classes: bool) -> ColumnStats:
    """Gather what must be known of the labels of one partition; runs where the partition is.

    Parameters
    ----------
    y : pandas.Series, pyarrow.Array or pyarrow.ChunkedArray
    classes : bool
        Whether they are classes, or numbers.

    Raises
    ------
    DataError
        They shall be numbers and are not.

    Examples
    --------
    >>> describe_target(pa.array(["no", "yes", "no"]), classes=True).values
    {'no': 2, 'yes': 1}
    """
    if not isinstance(y, pd.Series):
        y = pd.Series(pd.arrays.ArrowExtensionArray(y), name="y")
    if classes:
        y = class_labels(y)
        counts = y.value_counts(dropna=True)
        values = {v.item() if isinstance(v, np.generic) else v: int(n) for v, n in counts.items() if n}
        infinite = sum(n for v, n in values.items() if isinstance(v, float) and np.isinf(v))
        return ColumnStats("label", len(y), int(y.isna().sum()), infinite, values=values)
    try:
        x = numbers(plain(y)).astype(np.float64)
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
        stats.low, stats.high = float(known.min()), float(known.max())
    return stats


def describe_targets(columns: Sequence[Any], classes: bool) -> ColumnStats:
    """Gather the same of several labels of a row: ``mean`` and ``m2`` are then arrays of shape (n_targets,)."""
    if len(columns) == 1:
        return describe_target(columns[0], classes)
    each = [describe_target(column, classes) for column in columns]
    stats = ColumnStats("label", each[0].n, sum(s.n_missing for s in each), sum(s.n_infinite for s in each))
    stats.mean, stats.m2 = np.array([s.mean for s in each]), np.array([s.m2 for s in each])  # type: ignore[assignment]
    stats.low, stats.high = min(s.low for s in each), max(s.high for s in each)
    return stats


def class_labels(y: Any) -> pd.Series:
    """Give classes as text, numbers or booleans, whatever they are held as: intervals and dates by their text.

    Examples
    --------
    >>> class_labels(pd.Series(pd.cut([1, 5], [0, 3, 6]))).tolist()
    ['(0, 3]', '(3, 6]']
    """
    try:
        values = categories(plain(y))
    except TypeError as error:
        raise DataError(
            f"label {getattr(y, 'name', 'y')!r} holds no classes: {error}. Give text, numbers or booleans."
        ) from error
    if isinstance(values, pa.Array):
        return pd.Series(pd.arrays.ArrowExtensionArray(values), name=getattr(y, "name", "y"))
    return pd.Series(values, name=getattr(y, "name", "y"))


@dataclass(frozen=True)
class Target:
    """How labels become what a loss reads, and back.

    Attributes
    ----------
    classes : array of shape (n_classes,) or None
        Sorted class labels of a classification; None for a regression.
    mean, scale : float, or array of shape (n_targets,)
        A regression's label ``y`` becomes ``(y - mean) / scale``; of several labels each has its own.
    names : tuple
        Of several labels.
    """

    classes: npt.NDArray[Any] | None
    mean: Any = 0.0
    scale: Any = 1.0
    names: tuple[Any, ...] = ()

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
            if isinstance(scale, np.ndarray):
                return cls(None, stats.mean, np.where(scale > 0, scale, 1.0), tuple(name))
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
    def n_targets(self) -> int:
        """Labels of a row."""
        return len(self.names) or 1

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 for a regression."""
        return 0 if self.classes is None else len(self.classes)

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup([] if self.classes is None else self.classes.tolist())

    def encode(self, y: Any) -> npt.NDArray[Any]:
        """Class numbers as int64, or standardised numbers as float32: shape (n_rows,).

        Parameters
        ----------
        y : pandas.Series, pyarrow.Array or pyarrow.ChunkedArray

        Raises
        ------
        DataError
            A class that training did not have, or something that is no number.

        Examples
        --------
        >>> Target(np.array(["no", "yes"])).encode(pa.array(["yes", "no"])).tolist()
        [1, 0]
        """
        values = plain(y)
        if self.classes is None:
            return self._standardised(values, y)
        codes = self._lookup(categories(values))
        if not codes.all():
            unknown = values[int(np.argmin(codes))]
            raise DataError(
                f"label {getattr(y, 'name', 'y')!r} holds {_python(unknown)!r}, which is none of the {self.n_classes} "
                f"classes of the training data: {list(self.classes)[:10]}. Validation data must have known classes."
            )
        return codes.astype(np.int64) - 1

    def encode_several(self, columns: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Encode several labels of a row: shape (n_rows, n_targets)."""
        each = zip(columns, self.mean, self.scale, strict=True)
        return np.stack([Target(None, float(mean), float(scale)).encode(y) for y, mean, scale in each], axis=1)

    def known(self, y: Any) -> Any:
        """Give labels as ``predict`` gives them, to compare both; several labels of a row as they are."""
        if not isinstance(y, pd.Series):
            y = np.asarray(y)
        if y.ndim != 1:
            return y
        y = y if isinstance(y, pd.Series) else pd.Series(y)
        if self.classes is None:
            return numbers(plain(y))
        values = categories(plain(y))
        return values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values

    def _standardised(self, values: Any, y: Any) -> npt.NDArray[np.float32]:
        try:
            x = numbers(values)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"label {getattr(y, 'name', 'y')!r} was a number in fit and is none now: {error}. Convert it as it was."
            ) from error
        return ((x - self.mean) / self.scale).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        classes = None if self.classes is None else self.classes.tolist()
        dtype = None if self.classes is None else str(self.classes.dtype)
        mean, scale = (np.asarray(v, dtype=np.float64).tolist() for v in (self.mean, self.scale))
        return {"classes": classes, "dtype": dtype, "mean": mean, "scale": scale, "names": list(self.names)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Target:
        """Undo ``to_dict``."""
        classes = None if state["classes"] is None else np.array(state["classes"], dtype=state["dtype"])
        names = tuple(state.get("names", ()))
        mean, scale = (np.array(state[key]) if names else state[key] for key in ("mean", "scale"))
        return cls(classes, mean, scale, names)


def _python(value: Any) -> Any:
    if isinstance(value, pa.Scalar):
        return value.as_py()
    return value.item() if isinstance(value, np.generic) else value
