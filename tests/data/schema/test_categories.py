"""Columns of many categories: frequent ones have codes of their own, others share some, the same ones everywhere."""

from __future__ import annotations

import subprocess
import sys
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import daskdl
from daskdl.data.schema import MAX_CATEGORIES, Schema, describe
from daskdl.data.schema.buckets import hash_of
from daskdl.data.schema.columns import Category
from daskdl.data.schema.kinds import MAX_TOP
from daskdl.data.schema.stats import ColumnStats

VALUES = st.one_of(st.text(max_size=5), st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False))


def made(column: Any, kind: Any = None) -> Category:
    frame = pd.DataFrame({"c": column})
    return Schema.learn(frame, kinds={"c": kind or "category"})["c"]  # type: ignore[return-value]


@pytest.mark.parametrize("as_type", [str, int])
def test_more_categories_than_codes_share_some(as_type: Any) -> None:
    values = [as_type(i) for i in range(15_000)]
    column = made([*values, *values[:5_000]])
    assert column.categories[:5_000] == tuple(sorted(values[:5_000], key=str)), "the most frequent ones first"
    assert len(column.categories) == MAX_CATEGORIES and column.buckets == 8_192
    codes = column.codes(np.array(values, dtype=object))
    assert sorted(codes[codes <= MAX_CATEGORIES]) == list(range(1, MAX_CATEGORIES + 1))
    assert codes.min() == 1 and codes.max() < column.n_codes
    rest = codes[codes > MAX_CATEGORIES]
    assert len(rest) == 5_000 and len(np.unique(rest)) > 3_000


def test_unseen_categories_share_codes_and_missing_ones_have_theirs() -> None:
    column = made(["a", "b", "c", "a"], daskdl.Category(top=1, buckets=8))
    assert column.categories == ("a",) and column.n_codes == 10
    codes = column.codes(pa.array(["a", None, "never seen", "b"]))
    assert codes[:2].tolist() == [1, 0] and (codes[2:] > 1).all()
    assert made(["a", "b"], daskdl.Category(top=1, buckets=0)).codes(pa.array(["a", "b"])).tolist() == [1, 0]


@given(st.lists(VALUES | st.none(), min_size=1, max_size=30), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_codes_are_the_same_for_every_type_that_holds_the_values(values: list[Any], top: int) -> None:
    text = [None if v is None else str(v) for v in values]
    column = made(text, daskdl.Category(top=top, buckets=64))
    expected = column.codes(np.array([*text, None], dtype=object)[:-1]).tolist()
    assert [code > 0 for code in expected] == [v is not None for v in text]
    forms = [pa.array(text, kind) for kind in (pa.string(), pa.large_string(), pa.string_view())]
    forms += [pa.array(text).dictionary_encode()]
    assert all(column.codes(form).tolist() == expected for form in forms)


@pytest.mark.parametrize("kind", ["int8", "int64", "uint64", "float32", "float64", "object"])
def test_numbers_have_one_hash_in_every_type(kind: str) -> None:
    column = made([3, 3, 1, 2], daskdl.Category(top=1, buckets=1_000))
    assert column.codes(np.array([1, 2, 3, 120]).astype(kind)).tolist() == [*column.codes(np.array([1, 2, 3, 120]))]
    assert column.codes(pa.array([1.0, None, 2.0], pa.float64())).tolist()[1] == 0


def test_a_hash_is_the_same_in_every_process() -> None:
    values = ["", "Oslo", "ø", 0, -1, 2**40, 0.5, 1e300, True]
    code = f"from daskdl.data.schema.buckets import hash_of; print([hash_of(v) for v in {values!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([hash_of(v) for v in values])


@pytest.mark.parametrize("n", [MAX_TOP, 60_000])
def test_statistics_of_partitions_stay_small_and_know_how_many_there_are(n: int) -> None:
    rng = np.random.default_rng(0)
    parts = [np.concatenate([rng.permutation(n)[: n // 2], np.arange(100), [7] * 50]) for _ in range(6)]
    found: ColumnStats = reduce(ColumnStats.merge, [describe(pd.Series(p), kind="category") for p in parts])
    n_true = len(np.unique(np.concatenate(parts)))
    assert len(found.values) <= MAX_TOP and abs(found.n_different - n_true) < 0.1 * n_true
    assert found.values[7] == sum(int((part == 7).sum()) for part in parts)
    assert found.n == sum(map(len, parts))


def test_a_class_is_never_left_out() -> None:
    labels = [ColumnStats("label", 30_000, values=dict.fromkeys(range(i, i + 30_000), 1)) for i in (0, 20_000)]
    assert len(labels[0].merge(labels[1]).values) == 50_000


def test_wrong_numbers_of_codes_are_refused() -> None:
    for wrong in ({"top": -1}, {"top": MAX_TOP + 1}, {"buckets": -1}, {"top": 0, "buckets": 0}):
        with pytest.raises(ValueError, match="top|buckets"):
            daskdl.Category(**wrong)
