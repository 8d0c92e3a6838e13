"""How a column becomes numbers or codes: learned from its statistics, kept as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from daskdl.data.schema.buckets import bucket, is_there
from daskdl.data.schema.kinds import Category as CategoryKind
from daskdl.data.schema.kinds import Kind
from daskdl.data.schema.lookup import Lookup
from daskdl.data.schema.stats import MAX_CATEGORIES, ColumnStats, crowded
from daskdl.data.schema.values import Values, categories, days, numbers, plain
from daskdl.errors import DataError

Missing = Literal["impute", "indicator", "refuse"]
Floats = npt.NDArray[np.float32]
TINY = 1e-30  # of a standard deviation that float32 cannot divide by
Ints = npt.NDArray[np.int32]
FEWEST_BUCKETS, MOST_BUCKETS = 256, 32_768


def to_float(column: Any) -> Floats:
    """Numbers, booleans and nullable numbers of a pandas or pyarrow column as float32, missing ones as NaN."""
    return numbers(plain(column)).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Column:
    """How one column becomes tensors.

    Attributes
    ----------
    name : hashable
    kind : str
        One of the kinds of ``daskdl.data.schema.kinds``.
    n_missing : int
        Missing values seen in training.
    """

    name: Any
    n_missing: int = 0
    kind: ClassVar[str] = ""
    word: ClassVar[str] = ""  # for messages

    def summary(self) -> str:
        """Say in a few words what it becomes."""
        return ""

    def table_names(self) -> list[tuple[Any, str]]:
        """Names of the columns it becomes for trees, with XGBoost's feature types.

        Raises
        ------
        DataError
            Trees cannot read it.
        """
        raise DataError(
            f"column {self.name!r} is {self.word}, which trees cannot read: XGBoost takes numbers, categories, dates "
            "and arrays of one shape. Use TorchClassifier or TorchRegressor with a module of your own, or leave the "
            "column out."
        )

    def table(self, values: Values) -> list[npt.NDArray[Any]]:
        """Return the columns named by ``table_names``, missing values NaN."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {"kind": self.kind, **{f.name: getattr(self, f.name) for f in fields(self)}}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """Undo ``to_dict``; what this class does not know is left out."""
        known: dict[str, Any] = {f.name: state[f.name] for f in fields(cls) if f.name in state}
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        return cls(**known)


@dataclass(frozen=True)
class Dense(Column):
    """A column that becomes features in ``numbers``."""

    mean: float = 0.0
    scale: float = 1.0
    width: ClassVar[int] = 1

    def read(self, values: Values) -> npt.NDArray[Any]:
        """Read what ``fill`` takes: an array whose first axis is rows."""
        raise NotImplementedError

    def missing(self, read: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which rows are missing."""
        raise NotImplementedError

    def fill(self, read: npt.NDArray[Any], out: Floats) -> None:
        """Write standardised features, NaN where missing, to ``out`` of shape (width, n_rows)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Number(Dense):
    """A number ``x`` becomes ``(x - mean) / scale``; ``scale`` is the standard deviation, or 1 for a constant.

    Attributes
    ----------
    offset : float
        For trees ``x`` becomes ``x - offset`` in float32: not 0 where the digits of float32 would not tell near values
        apart, such as dates written ``20240131``, seconds since 1970, and ids.
    fine : bool
        Whether that is not enough, because values lie in several places far apart. Then there is one more column,
        ``<name>_fine``, with what float32 leaves out of the first.
    """

    offset: float = 0
    fine: bool = False
    kind: ClassVar[str] = "number"
    word: ClassVar[str] = "a number"

    @classmethod
    def learn(cls, name: Any, stats: ColumnStats) -> Number:
        """Learn from statistics."""
        offset, fine = split_of(stats.crowd)
        return cls(name, stats.n_missing, stats.mean, scale_of(stats), offset, fine)

    def summary(self) -> str:
        """Mean and standard deviation."""
        return f"mean {self.mean:.4g}, std {self.scale:.4g}"

    def read(self, values: Values) -> npt.NDArray[Any]:
        """Numbers in their own dtype."""
        return numbers(values)

    def missing(self, read: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """NaN is missing."""
        return np.isnan(read)

    def fill(self, read: npt.NDArray[Any], out: Floats) -> None:
        """Subtract in the precision of the numbers, then scale in float32."""
        np.subtract(read, self.mean, out=out[0], casting="same_kind")
        np.multiply(out[0], 1.0 / self.scale, out=out[0])

    def table_names(self) -> list[tuple[Any, str]]:
        """One column, or two."""
        return [(self.name, "q"), *([(f"{self.name}_fine", "q")] if self.fine else [])]

    def table(self, values: Values) -> list[npt.NDArray[Any]]:
        """The number as it is, or less the offset."""
        if not self.offset and not self.fine:
            return [numbers(values).astype(np.float32, copy=False)]
        coarse, rest = halves(numbers(values), self.offset)
        return [coarse, rest] if self.fine else [coarse]


@dataclass(frozen=True)
class Time(Dense):
    """A date becomes seven numbers.

    They are standardised elapsed days, then sine and cosine of the time of day, of the week and of the year. Times
    with a time zone are read as the clock on the wall shows them. A missing one is the mean day and no time: zeros.
    """

    fine: bool = False
    kind: ClassVar[str] = "time"
    word: ClassVar[str] = "a date"
    width: ClassVar[int] = 7

    @classmethod
    def learn(cls, name: Any, stats: ColumnStats) -> Time:
        """Learn from statistics of days since 1970."""
        return cls(name, stats.n_missing, stats.mean, scale_of(stats), bool(stats.crowd))

    def summary(self) -> str:
        """Mean date and standard deviation."""
        mean = np.datetime64(round(self.mean * 86_400), "s").item()
        return f"mean {mean:%Y-%m-%d %H:%M}, std {self.scale:.4g} days"

    def read(self, values: Values) -> npt.NDArray[Any]:
        """Features in float32, computed in float64: shape (n_rows, 7)."""
        day, rest, missing = days(values)
        out = np.empty((len(day), self.width), dtype=np.float32)
        out[:, 0] = ((day - self.mean) + rest) / self.scale
        phases = [rest, ((day + 3) % 7 + rest) / 7, _part_of_year(day, rest)]  # 1970 began on a Thursday
        for i, phase in enumerate(phases):
            np.sin(2 * np.pi * phase, out=out[:, 1 + 2 * i], casting="same_kind")
            np.cos(2 * np.pi * phase, out=out[:, 2 + 2 * i], casting="same_kind")
        if missing.any():
            out[missing] = 0
            out[missing, 0] = np.nan
        return out

    def missing(self, read: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Rows without a day."""
        return np.isnan(read[:, 0])

    def fill(self, read: npt.NDArray[Any], out: Floats) -> None:
        """Copy the features."""
        out[...] = read.T

    def table_names(self) -> list[tuple[Any, str]]:
        """Whole days since 1970, hour, weekday (0 is Monday) and day of the year.

        Where times differ by less than float32 tells of hours: whole hours, and two more columns, seconds of the hour
        and the fraction of the second.
        """
        more = ("second", "fraction") if self.fine else ()
        parts = ("days", "hour", "weekday", "day_of_year", *more)
        return [(f"{self.name}_{part}", "q") for part in parts]

    def table(self, values: Values) -> list[npt.NDArray[Any]]:
        """Plain numbers, which a tree can cut."""
        day, rest, missing = days(values)
        start = _days_of(_dates(day).astype("M8[Y]"))
        hour = rest * 24
        found = [day, hour, (day + 3) % 7, day - start]
        if self.fine:
            second = (hour - np.floor(hour)) * 3_600
            found = [day, np.floor(hour), *found[2:], np.floor(second), second - np.floor(second)]
        return [np.where(missing, np.nan, x).astype(np.float32) for x in found]


def _dates(day: npt.NDArray[np.float64]) -> npt.NDArray[np.datetime64]:
    return day.astype(np.int64).view("M8[D]")


def _days_of(dates: npt.NDArray[np.datetime64]) -> npt.NDArray[np.float64]:
    return dates.astype("M8[D]").view(np.int64).astype(np.float64)


def _part_of_year(day: npt.NDArray[np.float64], rest: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    year = _dates(day).astype("M8[Y]")
    start, end = _days_of(year), _days_of(year + 1)
    return (day - start + rest) / (end - start)


def scale_of(stats: ColumnStats) -> float:
    """Return the standard deviation, or 1 for a constant, as far as float64 tells."""
    scale = math.sqrt(stats.m2 / stats.n_seen) if stats.n_seen else 0.0
    return 1.0 if scale <= max(TINY, 1e-13 * abs(stats.mean)) else scale


def halves(x: npt.NDArray[Any], offset: float) -> tuple[Floats, Floats]:
    """Split ``x - offset`` into its value in float32 and what that leaves out; both together order as ``x`` does.

    Integers are subtracted as such, as float64 does not hold them all.

    Examples
    --------
    >>> coarse, fine = halves(np.array([2**60 + 1, 2**61 + 5]), 2**60)
    >>> coarse.tolist() == [1.0, 2.0**60], fine.tolist()
    (True, [0.0, 5.0])
    """
    far = x.astype(np.float64) - offset
    if x.dtype.kind in "iu" and isinstance(offset, int):
        with np.errstate(over="ignore"):
            exact = x.astype(np.int64) - np.array(offset).astype(np.int64)
        near = np.abs(far) < 2.0**62
        coarse = np.where(near, exact, far).astype(np.float32)
        return coarse, np.where(near, exact - np.where(near, coarse, 0).astype(np.int64), 0).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        coarse = far.astype(np.float32)
        rest = (far - coarse).astype(np.float32)
    return coarse, np.where(np.isinf(coarse), 0, rest).astype(np.float32)


def split_of(crowd: Sequence[float]) -> tuple[float, bool]:
    """Where a number is cut for trees, given values of it that float32 does not tell apart: offset, and if in two."""
    if not crowd:
        return 0, False
    values = np.array(crowd)
    offset = crowd[len(crowd) // 2]
    coarse, rest = halves(values, offset)
    whole = bool((values % 1 == 0).all())
    return offset, bool(rest.any()) and (whole or crowded(values, coarse))


@dataclass(frozen=True)
class Category(Column):
    """A value of a known set becomes its number.

    Attributes
    ----------
    categories : tuple
        Known categories, most frequent first. Code 0 stands for missing and unseen ones, ``i + 1`` for the i-th.
    buckets : int
        Codes behind these that all others share by their hash, unseen ones too.
    """

    categories: tuple[Any, ...] = ()
    buckets: int = 0
    kind: ClassVar[str] = "category"
    word: ClassVar[str] = "a category"

    @classmethod
    def learn(cls, name: Any, stats: ColumnStats, kind: Kind | None = None) -> Category:
        """Learn from statistics; rare ones of many categories get no code of their own."""
        wanted = kind if isinstance(kind, CategoryKind) else CategoryKind()
        top = MAX_CATEGORIES if wanted.top is None else wanted.top
        ordered = sorted(stats.values, key=lambda v: (-stats.values[v], str(v)))[:top]
        others = max(0, stats.n_different - len(ordered))
        buckets = shared_codes(others) if wanted.buckets is None else wanted.buckets
        return cls(name, stats.n_missing, tuple(ordered), buckets)

    @property
    def n_codes(self) -> int:
        """Codes, 0 included."""
        return 1 + len(self.categories) + self.buckets

    def summary(self) -> str:
        """How many categories, and the most frequent ones."""
        first = ", ".join(map(str, self.categories[:4]))
        more = f"; others in {self.buckets:,} buckets" if self.buckets else ""
        return f"{len(self.categories)}: {first}{', ...' * (len(self.categories) > 4)}{more}"

    def codes(self, values: Values) -> Ints:
        """Integer codes: 0 is missing, or unseen where there are no buckets."""
        values = categories(values)
        codes = self._lookup(values)
        if self.buckets:
            others = (codes == 0) & is_there(values)
            codes[others] = 1 + len(self.categories) + bucket(values, others, self.buckets)
        return codes

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.categories)

    def table_names(self) -> list[tuple[Any, str]]:
        """One column."""
        return [(self.name, "c")]

    def table(self, values: Values) -> list[npt.NDArray[Any]]:
        """Codes from 0, missing and unseen ones NaN."""
        codes = self.codes(values)
        return [np.where(codes == 0, np.nan, codes - 1).astype(np.float32)]


def shared_codes(others: int) -> int:
    """Codes for so many categories that have none of their own: a power of two.

    Examples
    --------
    >>> shared_codes(0), shared_codes(10), shared_codes(1_000), shared_codes(10**9)
    (0, 256, 1024, 32768)
    """
    return int(min(max(1 << (others - 1).bit_length(), FEWEST_BUCKETS), MOST_BUCKETS)) if others else 0
