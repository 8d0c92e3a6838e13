"""What travels with the rows beside features and label, by its role: weights, margins, queries, bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from daskdl.data.schema.stats import ColumnStats
from daskdl.data.schema.values import column_of, numbers
from daskdl.errors import DataError

Extras = Mapping[str, Any]  # role -> Series, array, list or the name of a column
Columns = Mapping[str, tuple[Any, ...]]  # role -> columns of the rows that hold it
Values = npt.NDArray[Any]


def _finite(x: Values) -> npt.NDArray[np.bool_]:
    return np.isfinite(x)


def _weights(x: Values) -> npt.NDArray[np.bool_]:
    return np.isfinite(x) & (x >= 0)


def _known(x: Values) -> npt.NDArray[np.bool_]:
    return ~np.isnan(x)


@dataclass(frozen=True)
class Role:
    """What the values of a role must be.

    Attributes
    ----------
    good : callable
        Says for each value whether it is.
    words : str
        The same for a message.
    several : bool
        Whether a row may have more than one value.
    """

    good: Callable[[Values], npt.NDArray[np.bool_]]
    words: str
    several: bool = False


ROLES = {
    "sample_weight": Role(_weights, "finite and 0 or more, one for each row"),
    "base_margin": Role(_finite, "finite, one for each row, or one for each row and class", several=True),
    "qid": Role(_known, "there for each row: which query it belongs to"),
    "label_lower_bound": Role(_weights, "finite and 0 or more, one for each row"),
    "label_upper_bound": Role(_known, "a number, or inf where the event was not seen, one for each row"),
}


def column_names(role: str, n: int = 1) -> list[str]:
    """Names of the columns that hold a role in the rows of a frame.

    Examples
    --------
    >>> column_names("sample_weight"), column_names("base_margin", 2)
    (['__sample_weight__'], ['__base_margin_0__', '__base_margin_1__'])
    """
    return [f"__{role}__"] if n == 1 else [f"__{role}_{i}__" for i in range(n)]


def read_extra(role: str, chunk: Any, columns: Sequence[Any]) -> Values:
    """Read a role from a chunk of rows: float64 of shape (n_rows,) or (n_rows, n_columns); queries are int64.

    Raises
    ------
    DataError
        A value that the role cannot have, with its row.
    """
    found = [_numbers(role, column_of(chunk, name)) for name in columns]
    x = found[0] if len(found) == 1 else np.stack(found, axis=1)
    if x.dtype.kind == "f":
        good = ROLES[role].good(x)
        if not good.all():
            row = np.argwhere(~good)[0]
            raise DataError(
                f"{role} must be {ROLES[role].words}; found {x[tuple(row)]} in row {row[0]:,} of a piece. A row cannot "
                "be counted by it: fill or clip such values, or drop the rows on purpose."
            )
    return x


def _numbers(role: str, values: Any) -> Values:
    if role == "qid":
        return _queries(values)
    try:
        return numbers(values).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{role} must be {ROLES[role].words}: {error}. Convert it to numbers.") from error


def _queries(values: Any) -> Values:
    """Queries as integers: whole numbers as they are, whatever else by its hash."""
    series = pd.Series(values if isinstance(values, np.ndarray) else values.to_pandas())
    if series.isna().any():
        raise DataError(f"qid must be {ROLES['qid'].words}; {int(series.isna().sum()):,} rows of a piece have none.")
    if series.dtype.kind in "biu":
        return series.to_numpy().astype(np.int64)
    if series.dtype.kind == "f" and (series % 1 == 0).all():
        return series.to_numpy().astype(np.int64)
    return pd.util.hash_pandas_object(series, index=False).to_numpy().view(np.int64)


def read_extras(chunk: Any, columns: Columns) -> dict[str, Values]:
    """Read all roles of a chunk."""
    return {role: read_extra(role, chunk, names) for role, names in columns.items()}


def describe_extras(chunk: Any, columns: Columns) -> dict[str, ColumnStats]:
    """Check all roles of a chunk, and say between what their values lie."""
    found = {}
    for role, x in read_extras(chunk, columns).items():
        stats = found[role] = ColumnStats("number", len(x))
        if len(x):
            stats.low, stats.high = float(x.min()), float(x.max())
    return found


def check_extras(stats: Mapping[str, ColumnStats]) -> None:
    """Refuse what only all rows together tell.

    Raises
    ------
    DataError
        All weights are 0.
    """
    weights = stats.get("sample_weight")
    if weights is not None and weights.n and weights.high == 0:
        raise DataError(
            f"sample_weight is zero (0) in all {weights.n:,} rows: there is nothing to learn from. Give some rows a "
            "weight above 0."
        )
