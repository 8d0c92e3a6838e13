"""How the columns of a frame become numbers a model can read: learned once, carried with the model."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from daskdl.errors import DataError

Missing = Literal["impute", "indicator", "refuse"]
MISSING: tuple[Missing, ...] = ("impute", "indicator", "refuse")
MAX_CATEGORIES = 10_000
Floats = npt.NDArray[np.float32]


@dataclass
class ColumnStats:
    """What one pass over some rows of a column tells; two of them merge into one."""

    kind: str  # "number" or "category"
    n: int = 0
    n_missing: int = 0
    n_infinite: int = 0
    mean: float = 0.0
    m2: float = 0.0  # sum of squared differences from the mean
    low: float = math.inf
    high: float = -math.inf
    values: dict[Any, int] = field(default_factory=dict)  # category -> rows

    def merge(self, other: ColumnStats) -> ColumnStats:
        """Combine with the statistics of other rows.

        Mean and variance by the pairwise update of Chan, Golub and LeVeque, "Updating formulae and a pairwise
        algorithm for computing sample variances" (1979).
        """
        if self.kind != other.kind and self.n and other.n:
            raise TypeError(f"{self.kind} in some partitions, {other.kind} in others")
        seen, seen_other = self.n - self.n_missing, other.n - other.n_missing
        total = max(1, seen + seen_other)
        delta = other.mean - self.mean
        values = dict(self.values)
        for value, count in other.values.items():
            values[value] = values.get(value, 0) + count
        return ColumnStats(
            kind=self.kind if self.n else other.kind,
            n=self.n + other.n,
            n_missing=self.n_missing + other.n_missing,
            n_infinite=self.n_infinite + other.n_infinite,
            mean=self.mean + delta * seen_other / total,
            m2=self.m2 + other.m2 + delta * delta * seen * seen_other / total,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            values=values,
        )


def column_kind(name: Any, dtype: Any) -> str:
    """Say how a column of this dtype is read: ``number`` or ``category``.

    Raises
    ------
    DataError
        The dtype is neither: dates, lists, complex numbers.
    """
    if isinstance(dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(dtype):
        return "category"  # object counts as string here; its values are looked at in describe
    if pd.api.types.is_complex_dtype(dtype):
        raise DataError(
            f"Complex data not supported: column {name!r} has dtype {dtype}. Give its real and imaginary parts as two "
            "columns."
        )
    if pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype):
        return "number"
    raise DataError(
        f"column {name!r} has dtype {dtype}; a feature must be a number, a boolean or a category (strings are read as "
        "categories). Turn dates into numbers (df.date.dt.month, df.date.dt.hour), or leave the column out."
    )


def describe(column: pd.Series, moments: bool = True) -> ColumnStats:
    """Gather the statistics of a column of one partition; runs where the partition is.

    ``moments=False`` leaves out mean and variance, which trees do not need.
    """
    kind = column_kind(column.name, column.dtype)
    if kind == "category":
        column = _plain_category(column)
        counts = column.value_counts(dropna=True)
        values = {_plain(value): int(n) for value, n in counts.items() if n}
        return ColumnStats(kind, len(column), int(column.isna().sum()), values=values)
    x = to_float(column)
    finite = np.isfinite(x)
    n_missing = 0 if finite.all() else int(np.isnan(x).sum())
    stats = ColumnStats(kind, len(x), n_missing, int(len(x) - n_missing - np.count_nonzero(finite)))
    known = (x if finite.all() else x[finite]).astype(np.float64) if moments else x[:0]
    if len(known):
        stats.mean = float(known.mean())
        stats.m2 = float(((known - stats.mean) ** 2).sum())
        stats.low, stats.high = float(known.min()), float(known.max())
    return stats


def _plain_category(column: pd.Series) -> pd.Series:
    """Refuse an object column that holds something else than plain values."""
    if column.dtype != object:
        return column
    odd = next((v for v in column if not isinstance(v, (str, bool, int, float, np.generic, type(None)))), None)
    if odd is not None and not pd.api.types.is_scalar(odd):
        raise DataError(
            f"column {column.name!r} is an object column that is no category: it holds {type(odd).__name__} values "
            f"such as {str(odd)[:60]!r}. Turn it into numbers or strings, or leave it out."
        )
    return column


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def to_float(column: pd.Series) -> Floats:
    """Numbers, booleans and nullable numbers as float32, missing ones as NaN."""
    if column.dtype == object:
        column = pd.to_numeric(column)
    return column.to_numpy(dtype=np.float32, na_value=np.nan)


@dataclass(frozen=True)
class Column:
    """How one column becomes numbers.

    Attributes
    ----------
    name : hashable
    kind : {"number", "category"}
    mean, scale : float
        A number ``x`` becomes ``(x - mean) / scale``; ``scale`` is the standard deviation, or 1 for a constant.
    n_missing : int
        Missing values seen in training.
    categories : tuple
        Known categories, most frequent first. Code 0 stands for missing and unseen ones, ``i + 1`` for the i-th.
    """

    name: Any
    kind: str
    mean: float = 0.0
    scale: float = 1.0
    n_missing: int = 0
    categories: tuple[Any, ...] = ()

    @classmethod
    def from_stats(cls, name: Any, stats: ColumnStats, missing: Missing) -> Column:
        """Learn a column from its statistics; bad ones are refused here, with the remedy."""
        if missing == "refuse" and stats.n_missing:
            raise DataError(
                f"column {name!r} has {stats.n_missing:,} missing values (NaN) in {stats.n:,} rows and "
                "missing='refuse'. Fill them, or use missing='impute' (the mean) or 'indicator' (the mean and a 0/1 "
                "feature that says so)."
            )
        if stats.n_infinite:
            raise DataError(
                f"column {name!r} holds {stats.n_infinite:,} infinite values (inf) in {stats.n:,} rows; they would "
                "turn the loss into NaN. Replace them, for example df.replace([np.inf, -np.inf], np.nan)."
            )
        if len(stats.values) > MAX_CATEGORIES:
            raise DataError(
                f"column {name!r} has {len(stats.values):,} different values, more than {MAX_CATEGORIES:,}: that is an "
                "identifier or free text and no category. Leave it out, or group its rare values."
            )
        seen = stats.n - stats.n_missing
        scale = math.sqrt(stats.m2 / seen) if seen else 0.0
        tiny = scale <= 1e-7 * max(1.0, abs(stats.mean))
        ordered = sorted(stats.values, key=lambda v: (-stats.values[v], str(v)))
        return cls(name, stats.kind, stats.mean, 1.0 if tiny else scale, stats.n_missing, tuple(ordered))

    def codes(self, column: pd.Series) -> npt.NDArray[np.int32]:
        """Integer codes of a category column: 0 is missing or unseen."""
        if column_kind(self.name, column.dtype) == "number":
            column = column.astype(object)
        return (pd.Index(self.categories, dtype=object).get_indexer(column.astype(object)) + 1).astype(np.int32)


@dataclass(frozen=True)
class Schema:
    """How the columns of a frame become the tensors of a model. It is learned in training and travels with the model.

    Attributes
    ----------
    columns : tuple of Column
        In the order of the frame.
    missing : {"impute", "indicator", "refuse"}
        What happens to missing numbers: the mean stands in; that and one more 0/1 feature per column that had any in
        training; or an error. Missing categories are a category of their own.

    Examples
    --------
    >>> frame = pd.DataFrame({"x": [1.0, 3.0, None], "city": ["Oslo", "Rome", "Oslo"]})
    >>> schema = Schema.learn(frame)
    >>> schema.numbers(frame).tolist()
    [[-1.0], [1.0], [0.0]]
    >>> schema.codes(frame).tolist()
    [[1], [2], [1]]
    """

    columns: tuple[Column, ...]
    missing: Missing = "impute"

    @classmethod
    def learn(cls, frame: pd.DataFrame, missing: Missing = "impute") -> Schema:
        """Learn from a frame in memory."""
        return cls.from_stats({name: describe(frame[name]) for name in frame}, missing)

    @classmethod
    def from_stats(cls, stats: Mapping[Any, ColumnStats], missing: Missing = "impute") -> Schema:
        """Learn from the statistics of each column."""
        if missing not in MISSING:
            raise ValueError(f"missing must be one of {', '.join(map(repr, MISSING))}, got {missing!r}")
        return cls(tuple(Column.from_stats(name, s, missing) for name, s in stats.items()), missing)

    # -- names and widths -------------------------------------------------------------------------------------

    @property
    def names(self) -> list[Any]:
        """Column names, in order."""
        return [c.name for c in self.columns]

    @property
    def number_columns(self) -> list[Column]:
        """The columns that are numbers."""
        return [c for c in self.columns if c.kind == "number"]

    @property
    def category_columns(self) -> list[Column]:
        """The columns that are categories."""
        return [c for c in self.columns if c.kind == "category"]

    @property
    def indicators(self) -> list[Column]:
        """The number columns that get one more feature, which says where they were missing."""
        return [c for c in self.number_columns if self.missing == "indicator" and c.n_missing]

    @property
    def n_numbers(self) -> int:
        """Width of ``numbers``."""
        return len(self.number_columns) + len(self.indicators)

    @property
    def cardinalities(self) -> list[int]:
        """Codes of each category column, 0 included: the number of rows its embedding needs."""
        return [len(c.categories) + 1 for c in self.category_columns]

    @property
    def feature_types(self) -> list[str]:
        """XGBoost's feature types: ``q`` for numbers, ``c`` for categories."""
        return ["c" if c.kind == "category" else "q" for c in self.columns]

    # -- frames to arrays -------------------------------------------------------------------------------------

    def check(self, names: Iterable[Any]) -> None:
        """Refuse a frame whose columns are not the ones learned; more columns are refused too, as in scikit-learn."""
        have = list(names)
        if have == self.names:
            return
        absent = [n for n in self.names if n not in have]
        extra = [n for n in have if n not in self.names]
        what = "; ".join(
            part
            for part in (
                f"missing: {absent}" if absent else "",
                f"not seen in fit: {extra}" if extra else "",
                "" if absent or extra else "the same names in another order",
            )
            if part
        )
        raise DataError(
            f"The feature names should match those that were passed during fit. {what}. Expected {len(self.columns)}: "
            f"{self.names[:20]}, got {len(have)}: {have[:20]}. Select the columns of fit: df[list(names)]."
        )

    def numbers(self, frame: pd.DataFrame) -> Floats:
        """Standardised numbers, then indicators: shape (n_rows, n_numbers), row-major."""
        out = np.empty((len(frame), self.n_numbers), dtype=np.float32)
        for i, column in enumerate(self.number_columns):
            x = _number(frame, column)
            out[:, i] = (x - np.float32(column.mean)) / np.float32(column.scale)
        for i, column in enumerate(self.indicators, start=len(self.number_columns)):
            out[:, i] = np.isnan(_number(frame, column))
        if self.missing == "refuse":
            self._refuse_missing(out)
        return np.nan_to_num(out, copy=False, nan=0.0)

    def codes(self, frame: pd.DataFrame) -> npt.NDArray[np.int32]:
        """Category codes: shape (n_rows, n_categories); 0 is missing or unseen."""
        out = np.empty((len(frame), len(self.category_columns)), dtype=np.int32)
        for i, column in enumerate(self.category_columns):
            out[:, i] = column.codes(frame[column.name])
        return out

    def table(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Every feature as it is, in order, NaN where missing or unseen: float32 columns, for trees.

        Columns that are float32 already are not copied; XGBoost reads columns faster than rows.
        """
        columns: dict[Any, Floats] = {}
        for column in self.columns:
            if column.kind == "number":
                columns[column.name] = _number(frame, column)
            else:
                codes = column.codes(frame[column.name])
                columns[column.name] = np.where(codes == 0, np.nan, codes - 1).astype(np.float32)
        if self.missing == "refuse":
            for values in columns.values():
                self._refuse_missing(values)
        return pd.DataFrame(columns, index=frame.index, copy=False)

    def _refuse_missing(self, values: Floats) -> None:
        if np.isnan(values).any():
            raise DataError(
                f"Input contains NaN: {int(np.isnan(values).sum()):,} missing values, and missing='refuse'. Fill them, "
                "or fit with missing='impute' or 'indicator'."
            )

    # -- to keep and to show ----------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Schema:
        """Undo ``to_dict``."""
        columns = (Column(**{**c, "categories": tuple(c["categories"])}) for c in state["columns"])
        return cls(tuple(columns), state["missing"])

    def _table(self) -> list[tuple[str, str, str, str]]:
        return [
            (
                str(c.name),
                c.kind,
                f"mean {c.mean:.4g}, std {c.scale:.4g}"
                if c.kind == "number"
                else f"{len(c.categories)}: {', '.join(map(str, c.categories[:4]))}{', ...' * (len(c.categories) > 4)}",
                f"{c.n_missing:,}",
            )
            for c in self.columns
        ]

    def __repr__(self) -> str:
        rows = [("column", "kind", "values", "missing"), *self._table()]
        widths = [max(len(r[i]) for r in rows) for i in range(4)]
        return "\n".join("  ".join(v.ljust(w) for v, w in zip(r, widths, strict=True)).rstrip() for r in rows)

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{h}</th>" for h in ("column", "kind", "values", "missing"))
        rows = ("".join(f"<td style='text-align:left'>{html.escape(v)}</td>" for v in row) for row in self._table())
        return f"<table><tr>{head}</tr><tr>{'</tr><tr>'.join(rows)}</tr></table>"


def _number(frame: pd.DataFrame, column: Column) -> Floats:
    values = frame[column.name]
    try:
        return to_float(values)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"column {column.name!r} was a number in fit and is {values.dtype} now: {error}. Convert it as it was."
        ) from error
