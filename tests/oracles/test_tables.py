"""A table is read as pandas and Dask read it, the same whichever way it comes: in memory, lazily, from files.

What daskdl makes of the rows for trees shows every value as it is: numbers as numbers, categories by their text.
"""

from __future__ import annotations

import datetime
import json
import warnings
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daskdl.data.frame import as_frame
from daskdl.data.looking import Asked, look_at, look_at_source, merge_looks, refused
from daskdl.data.schema import Schema
from daskdl.data.sources.base import Source
from daskdl.data.sources.memory import MemorySource
from daskdl.data.sources.parquet import ParquetSource

ROWS = 6
ASKED = Asked(None, None, classes=True, moments=True, kinds={})
NOON = pd.Timestamp("2021-03-04 12:00")


def seconds(value: Any) -> float:
    return value.hour * 3600.0 + value.minute * 60 + value.second


def column(dtype: Any, values: list[Any], read: Any = float, missing: bool = True) -> tuple[Any, list[Any], Any, bool]:
    return dtype, values, read, missing


# type of the column, values to draw from, what is read of a value, whether it can be missing
COLUMNS = {
    **{kind: column(kind, [0, 1, 7, 100], missing=False) for kind in ("int8", "uint16", "int32", "uint64", "bool")},
    **{kind: column(kind, [0.0, -1.5, 0.25, 3.0]) for kind in ("float16", "float32", "float64", "Float32", "Float64")},
    **{kind: column(kind, [0, 1, 100]) for kind in ("Int8", "UInt32", "Int64", "int64[pyarrow]", "double[pyarrow]")},
    "boolean": column("boolean", [True, False]),
    "large": column("uint64", [2**63, 2**64 - 2**40, 0], missing=False),
    "decimals": column(object, [Decimal("1.50"), Decimal("-2"), Decimal("0.001")]),
    "decimals of Arrow": column(pd.ArrowDtype(pa.decimal128(9, 3)), [Decimal("1.5"), Decimal("-2")]),
    "objects: floats": column(object, [0.5, -1.0, 2.25]),
    "objects: whole": column(object, [1, 2, 3]),
    "objects: booleans": column(object, [True, False]),
    "objects: mixed numbers": column(object, [True, 2, 0.5]),
    "objects: numpy": column(object, [np.float32(0.5), np.float64(2), np.int8(3)]),
    "sparse": column(pd.SparseDtype(float, 0.0), [0.0, 1.5]),
    "durations": column("m8[ns]", [pd.Timedelta(90, "s"), pd.Timedelta(2, "D")], lambda v: v.total_seconds()),
    "times of day": column(object, [datetime.time(1, 2, 3), datetime.time(0)], seconds),
    "text": column("str", ["Oslo", "Rome", "1.5", ""], str),
    "text objects": column(object, ["Oslo", "Rome", "2"], str),
    "text of Arrow": column("string[pyarrow]", ["Oslo", "Rome"], str),
    "categories": column("category", ["Oslo", "Rome"], str),
    "ordered": column(pd.CategoricalDtype(["low", "high", "never"], ordered=True), ["low", "high"], str),
    "numbered categories": column("category", [3, 1], str),
    "intervals": column(pd.CategoricalDtype(pd.interval_range(0, 6, 2)), [pd.Interval(0, 3), pd.Interval(3, 6)], str),
    "dates as categories": column("category", [NOON, NOON.normalize()], lambda v: v.isoformat()),
}
MEMORY_ONLY = {"sparse", "intervals", "objects: mixed numbers", "objects: numpy"}  # no Parquet file holds them
FORGOTTEN_IN_FILES = {"numbered categories", "dates as categories"}  # there they are numbers and dates

INDICES = [
    lambda n: pd.RangeIndex(n),
    lambda n: pd.RangeIndex(5, 5 + 2 * n, 2, name="a"),
    lambda n: pd.Index([f"r{i}" for i in reversed(range(n))], name="key"),
    lambda n: pd.date_range("2020", periods=n),
    lambda n: pd.MultiIndex.from_arrays([[1] * n, list(range(n))], names=["u", None]),
]
NAMES = [str, lambda name: sum(map(ord, name)), lambda name: (name, ""), lambda name: (name, "mean")]


@st.composite
def tables(draw: st.DrawFn, among: list[str]) -> tuple[pd.DataFrame, dict[str, list[Any]]]:
    """A frame, and what each of its columns says: a number, the text of a category, None where it is missing."""
    made, wanted = {}, {}
    for name in draw(st.lists(st.sampled_from(among), min_size=1, max_size=3, unique=True)):
        dtype, values, read, missing = COLUMNS[name]
        drawn = draw(st.lists(st.sampled_from([*values, None] if missing else values), min_size=ROWS, max_size=ROWS))
        drawn[0] = values[0] if drawn[0] is None else drawn[0]  # a column without a value has no kind
        made[name] = pd.Series(drawn, dtype=object)
        made[name] = made[name] if dtype is object else made[name].astype(dtype)
        drawn = [bool(v) for v in drawn] if dtype == "bool" else drawn
        wanted[name] = [None if v is None else read(v) for v in drawn]
    frame = pd.DataFrame(made)
    frame.index = draw(st.sampled_from(INDICES))(ROWS)
    return frame, wanted


def seen(frame: pd.DataFrame, schema: Schema) -> dict[str, list[Any]]:
    """What trees are given, in the terms of ``tables``."""
    table, found, at = schema.table(frame), {}, 0
    for learned in schema.columns:
        width = len(learned.table_names())
        values = table.iloc[:, at].to_numpy(dtype=np.float64)
        known = [str(v) for v in learned.categories] if learned.kind == "category" else None
        found[learned.name] = [None if np.isnan(v) else float(v) if known is None else known[int(v)] for v in values]
        at += width
    return found


def agree(found: dict[str, list[Any]], wanted: dict[str, list[Any]]) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert [v is None for v in found[name]] == [v is None for v in values], name
        for one, other in zip(found[name], values, strict=True):
            assert one == (pytest.approx(other, rel=1e-6) if isinstance(other, float) else other), name


def learned_of(pieces: list[pd.DataFrame]) -> Schema:
    return Schema.from_stats(merge_looks(refused([look_at(piece, ASKED) for piece in pieces]))[0])


def partitions(lazy: dd.DataFrame) -> list[pd.DataFrame]:
    with dask.config.set(scheduler="sync"):
        return [part.compute() for part in as_frame(lazy).partitions]


def of_source(source: Source) -> tuple[Schema, pd.DataFrame]:
    schema = Schema.from_stats(merge_looks(look_at_source(source, ASKED, None))[0])
    with dask.config.set(scheduler="sync"):
        return schema, source.to_dask().compute()


def same(one: Schema, other: Schema) -> None:
    """Equal but for the last bits of sums that are made in another order."""
    assert one.names == other.names
    for a, b in zip(one.to_dict()["columns"], other.to_dict()["columns"], strict=True):
        assert a.keys() == b.keys()
        assert all(a[key] == (pytest.approx(b[key]) if isinstance(b[key], float) else b[key]) for key in a), (a, b)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(table=tables(list(COLUMNS)), cut=st.integers(1, 3), rename=st.sampled_from(NAMES))
def test_in_memory_and_lazily(table: tuple[pd.DataFrame, dict[str, list[Any]]], cut: int, rename: Any) -> None:
    frame, wanted = table
    frame = frame.set_axis([rename(name) for name in frame.columns], axis=1)
    wanted = {str(rename(name)): values for name, values in wanted.items()}
    rows = as_frame(frame)
    schema = learned_of([rows])
    agree(seen(rows, schema), wanted)
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema, "what is fitted can be saved"
    from_memory, again = of_source(MemorySource(rows, group_rows=4))
    same(from_memory, schema)
    agree(seen(again, schema), wanted)
    if isinstance(frame.index, pd.MultiIndex):
        return  # Dask has none
    lazy = partitions(dd.from_pandas(frame, npartitions=cut, sort=False))
    same(learned_of(lazy), schema)
    agree(seen(pd.concat(lazy), schema), wanted)
    agree(seen(rows, learned_of(lazy)), wanted)
    halves = [frame.iloc[:2], frame.iloc[2:]]
    same(learned_of(partitions(dd.from_map(lambda part: part, halves, meta=frame.iloc[:0]))), schema)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(table=tables(sorted(COLUMNS.keys() - MEMORY_ONLY)), group=st.integers(2, 6), by_dask=st.booleans())
def test_in_files(table: tuple[pd.DataFrame, dict[str, list[Any]]], group: int, by_dask: bool) -> None:
    frame, wanted = table
    named_range = isinstance(frame.index, pd.RangeIndex) and frame.index.name is not None
    for_dask = not isinstance(frame.index, pd.MultiIndex) and not named_range  # Dask cannot read these files
    with TemporaryDirectory() as folder, dask.config.set({"scheduler": "sync", "dataframe.convert-string": False}):
        with warnings.catch_warnings(action="ignore"):  # Dask calls pandas in old ways
            if (
                by_dask and for_dask and not len(frame.select_dtypes(object).columns)
            ):  # of which it would write the text
                dd.from_pandas(frame, npartitions=2, sort=False).to_parquet(folder)
            else:
                frame.to_parquet(f"{folder}/rows.parquet", row_group_size=group)
            own, lazy = pd.read_parquet(folder), dd.read_parquet(folder) if for_dask else None
        schema, rows = of_source(ParquetSource(folder))
        assert schema.names == list(own.columns), "the index is no column"
        same(learned_of([as_frame(own)]), schema)
        agree(seen(rows, schema), seen(own, schema))
        if lazy is not None and not FORGOTTEN_IN_FILES & wanted.keys():  # which Dask, unlike pandas, does remember
            same(learned_of(partitions(lazy)), schema)
        there = {name: values for name, values in wanted.items() if name not in FORGOTTEN_IN_FILES}
        agree({name: values for name, values in seen(rows, schema).items() if name in there}, there)


WIDTHS = {kind: pa.type_for_alias(kind) for kind in ("int8", "uint16", "int64", "float32", "double", "null")}
WIDTHS["decimal"] = pa.decimal128(5, 2)


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(sorted(WIDTHS)), min_size=2, max_size=4),
    lacks=st.sets(st.integers(0, 3)),
    order=st.randoms(use_true_random=False),
)
def test_files_that_differ(kinds: list[str], lacks: set[int], order: Any) -> None:
    """Files with a column of other widths, or without it, are what pandas reads of each and puts together."""
    with TemporaryDirectory() as folder:
        for i, kind in enumerate(kinds):
            x = pa.array([None if kind == "null" else i, None], WIDTHS[kind])
            columns = {"row": pa.array([2 * i, 2 * i + 1])} | ({} if i in lacks else {"x": x})
            names = sorted(columns, key=lambda _: order.random())
            pq.write_table(pa.table({name: columns[name] for name in names}), f"{folder}/{i}.parquet")
        paths = sorted(map(str, Path(folder).iterdir()), key=lambda _: order.random())
        own = pd.concat([pd.read_parquet(path) for path in paths]).sort_values("row")
        with dask.config.set(scheduler="sync"):
            found = ParquetSource(paths).to_dask().compute().sort_values("row")
        assert set(found.columns) == set(own.columns)
        for name in own.columns:
            one, other = (pd.to_numeric(f[name]).to_numpy(dtype=float, na_value=np.nan) for f in (found, own))
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("key", ["a=1", "a=x%20y", "a=%C3%BC", "a=-3", "a=1.5"])
def test_keys_are_what_arrow_reads(tmp_path: Path, key: str) -> None:
    (tmp_path / key).mkdir()
    pd.DataFrame({"x": [1.0]}).to_parquet(tmp_path / key / "rows.parquet")
    own = pd.read_parquet(tmp_path)
    assert ParquetSource(str(tmp_path)).head().astype(object).to_dict("list") == own.astype(object).to_dict("list")
