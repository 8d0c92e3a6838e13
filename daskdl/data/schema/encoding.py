"""The steps of a schema, for one column and for a block of numbers: learn, read, standardise."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from daskdl.data.schema.columns import Category, Column, Dense, Floats, Missing, Number, Time
from daskdl.data.schema.fields import ArrayColumn, RaggedColumn
from daskdl.data.schema.kinds import Kind, kind_name
from daskdl.data.schema.media import ImageColumn, TextColumn
from daskdl.data.schema.stats import LARGEST, ColumnStats
from daskdl.data.schema.values import Values, column_of, type_name
from daskdl.errors import DataError

BLOCK_ROWS = 4_096  # rows standardised at a time: in the cache, and in memory that need not be mapped anew each time
WRITTEN = re.compile(r"\[[\d\s.,eE+\-naif\[\]]*\]|b(['\"]).*\1", re.DOTALL)  # how Python writes lists and bytes
WRITTEN_VALUES = 20
COLUMNS: dict[str, type[Column]] = {
    c.kind: c for c in (Number, Category, Time, ArrayColumn, RaggedColumn, ImageColumn, TextColumn)
}
T = TypeVar("T")


def learn_column(name: Any, stats: ColumnStats, missing: Missing, kind: Kind | None) -> Column:
    """Learn a column from its statistics; bad ones are refused here, with the remedy."""
    wanted = stats.kind if kind is None else kind_name(kind)
    told = {stats.kind, "text"} | ({"array", "ragged"} if stats.kind in ("array", "ragged") else set())
    if stats.n_seen and wanted not in told:
        raise ValueError(
            f"column {name!r} is to be read as {wanted!r}, and was described as {stats.kind!r}: what is needed was not "
            f"gathered. Describe it so: describe(column, kind={kind!r})."
        )
    if kind is None and stats.kind == "category":
        _refuse_written_objects(name, stats)
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
    learn: Any = getattr(COLUMNS[wanted], "learn")  # noqa: B009
    return learn(name, stats, kind) if wanted in ("array", "category", "image", "text") else learn(name, stats)


def _refuse_written_objects(name: Any, stats: ColumnStats) -> None:
    """Refuse text that says what lists or bytes held: as categories they would be another table than the one meant."""
    some = list(stats.values)[:WRITTEN_VALUES]
    if some and all(isinstance(value, str) and WRITTEN.fullmatch(value) for value in some):
        raise DataError(
            f"column {name!r} holds text such as {some[0][:60]!r}: lists or bytes that were turned into text, as Dask "
            "does with Python objects. Make the frame within dask.config.set({'dataframe.convert-string': False}), "
            "and write such files again. Text that is meant as categories must be written without the brackets."
        )


def fill_numbers(
    out: Floats, columns: Sequence[Dense], read: Sequence[npt.NDArray[Any]], marked: Sequence[bool]
) -> bool:
    """Fill ``out`` of shape (n_rows, n_numbers): standardised features, then an indicator for each marked column.

    Columns are filled one after the other and then turned, a block of rows at a time: twice as fast as writing each
    column across the rows.

    Returns
    -------
    bool
        Whether every number is there; the others are zero in ``out``, the mean.
    """
    work = np.empty((out.shape[1], min(len(out), BLOCK_ROWS)), dtype=np.float32)
    plain = columns and not any(marked)
    plain = plain and all(isinstance(c, Number) and x.dtype == np.float32 for c, x in zip(columns, read, strict=True))
    fill = _fill_floats(columns) if plain else partial(_fill_each, columns, marked)
    complete = True
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes its largest number below
        for first in range(0, len(out), BLOCK_ROWS):
            rows = slice(first, first + BLOCK_ROWS)
            block = work[:, : len(out[rows])]
            fill([x[rows] for x in read], block)
            if not np.isfinite(block).all():
                complete = False
                np.copyto(block, 0, where=np.isnan(block))  # these two are much faster than nan_to_num
                np.clip(block, -LARGEST, LARGEST, out=block)
            out[rows] = block.T
    return complete


Fill = Callable[[Sequence[npt.NDArray[Any]], Floats], None]


def _fill_floats(columns: Sequence[Dense]) -> Fill:
    """Do what ``_fill_each`` does to columns of float32, in three calls for all: threads wait for each other less."""
    shift = np.array([[c.mean] for c in columns], dtype=np.float32)
    factor = np.array([[1.0 / c.scale] for c in columns], dtype=np.float32)

    def fill(read: Sequence[npt.NDArray[Any]], block: Floats) -> None:
        np.stack(read, out=block)
        np.subtract(block, shift, out=block)
        np.multiply(block, factor, out=block)

    return fill


def _fill_each(
    columns: Sequence[Dense], marked: Sequence[bool], read: Sequence[npt.NDArray[Any]], block: Floats
) -> None:
    at, mark = 0, len(block) - sum(marked)
    for column, x, is_marked in zip(columns, read, marked, strict=True):
        column.fill(x, block[at : at + column.width])
        at += column.width
        if is_marked:
            block[mark] = column.missing(x)
            mark += 1


def read_column(column: Column, chunk: Any, read: Callable[[Values], T]) -> T:
    """Read a column of a chunk; one that is not what it was in training is named."""
    values = column_of(chunk, column.name)
    try:
        return read(values)
    except DataError:
        raise
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"column {column.name!r} was {column.word} in fit and is {type_name(values)} now: {error}. Convert it as "
            "it was."
        ) from error


def other_names(learned: list[Any], have: list[Any]) -> DataError:
    """Say how the columns of a frame differ from those learned."""
    absent = [n for n in learned if n not in have]
    extra = [n for n in have if n not in learned]
    what = "; ".join(
        part
        for part in (
            f"missing: {absent}" if absent else "",
            f"not seen in fit: {extra}" if extra else "",
            "" if absent or extra else "the same names in another order",
        )
        if part
    )
    return DataError(
        f"The feature names should match those that were passed during fit. {what}. Expected {len(learned)}: "
        f"{learned[:20]}, got {len(have)}: {have[:20]}. Select the columns of fit: df[list(names)]."
    )
