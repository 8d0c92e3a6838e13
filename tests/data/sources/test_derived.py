"""Sources made of others: rows changed, rows left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from data.conformance import check_source, fingerprint_elsewhere
from distributed import Client

import daskdl
from daskdl.data.batches import RankBatches
from daskdl.data.order import SampleOrder
from daskdl.data.reading import Encoded
from daskdl.data.sources.base import Source
from daskdl.errors import DataError


@pytest.fixture(params=["memory", "parquet"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    frame = pd.DataFrame({"x": np.arange(300), "name": [f"n{i % 5}" for i in range(300)]})
    if request.param == "memory":
        return daskdl.MemorySource(frame, group_rows=70)
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=70)
    return daskdl.ParquetSource(str(tmp_path / "rows.parquet"))


def test_changed_rows_are_a_source(source: Source) -> None:
    rows = check_source(source.map(lambda df: df.assign(y=df.x * 2)[["x", "y"]]))
    assert rows == [(i, 2 * i) for i in range(300)]


def test_rows_left_are_a_source(source: Source) -> None:
    kept = source.filter(lambda df: df.x % 7 == 0)
    assert check_source(kept) == [(i, f"n{i % 5}") for i in range(0, 300, 7)]
    assert kept.counts.tolist() == [10, 10, 10, 10, 3]


def test_a_group_may_lose_all_its_rows(source: Source) -> None:
    kept = source.filter(lambda df: (df.x < 20) | (df.x > 290))
    assert kept.counts.tolist() == [20, 0, 0, 0, 9]
    check_source(kept)
    assert source.filter(lambda df: df.x < 0).n_rows == 0


def test_a_window_of_a_group_is_read_without_the_rest(source: Source) -> None:
    kept = source.filter(lambda df: df.x % 2 == 1).map(lambda df: df.assign(x=-df.x))
    assert [x for chunk in kept.read(1, 3, 6) for x in chunk["x"].tolist()] == [-77, -79, -81]
    assert "row" in kept.where(1) and kept.where(1) == source.where(1)


def test_they_are_used_once_per_epoch(source: Source) -> None:
    made = source.filter(lambda df: df.name != "n0").map(lambda df: df.assign(x=df.x + 1000))
    order = SampleOrder(made.counts, 32, seed=1, **made.layout(32))
    reader = Encoded(made, lambda chunk: {"x": chunk["x"].to_numpy()})
    used = np.concatenate([batch.arrays["x"] for batch in RankBatches(order, reader, 0, 1, 1)])
    assert sorted(used.tolist()) == [1000 + i for i in range(300) if i % 5]


def times(k: int) -> Any:
    return lambda df: df.assign(x=df.x * k)


def test_fingerprints_tell_functions_apart(source: Source) -> None:
    made = [source.map(times(2)), source.map(times(3)), source.filter(lambda df: df.x > 2), source]
    made += [source.filter(lambda df: df.x > 3), source.map(times(2)).filter(lambda df: df.x > 2)]
    assert len({one.fingerprint for one in made}) == len(made)
    assert source.map(times(2)).fingerprint == made[0].fingerprint


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    def make() -> Source:
        source = daskdl.MemorySource(pd.DataFrame({"x": [1, 2, 3]}))
        return source.map(lambda df: df.assign(x=df.x * 3)).filter(lambda df: df.x > 3)

    assert fingerprint_elsewhere(make) == fingerprint_elsewhere(make)


@pytest.mark.parametrize(
    "function, found",
    [(lambda df: df[df.x > 3], r"returned \d+ rows"), (lambda df: df.x, "returned a Series"), (len, "returned a int")],
)
def test_a_map_that_loses_rows_is_refused(source: Source, function: Any, found: str) -> None:
    with pytest.raises(DataError, match=rf"as many rows as it gets: it got 70 rows of .*{found}.*Use filter"):
        list(source.map(function).read(0, 0, 70))


@pytest.mark.parametrize(
    "predicate, found",
    [
        (lambda df: df.x, r"shape \(70,\), int64"),
        (lambda df: df.x.sum() > 0, r"shape \(\), bool"),
        (lambda df: (df.x > 0)[:5], r"shape \(5,\), bool"),
        (lambda df: df[["x"]] > 0, r"shape \(70, 1\), bool"),
    ],
)
def test_a_predicate_that_is_none_is_refused(source: Source, predicate: Any, found: str) -> None:
    with pytest.raises(DataError, match=rf"one boolean per row; it got 70 rows of .*{found}.*fillna"):
        source.filter(predicate)


def test_a_nullable_predicate_counts_where_nothing_is_missing() -> None:
    source = daskdl.MemorySource(
        pd.DataFrame({"x": pd.array([1, 2, 3], "Int64"), "z": pd.array([1, None, 3], "Int64")})
    )
    assert source.filter(lambda df: df.x > 1).n_rows == 2
    with pytest.raises(DataError, match=r"one boolean per row.*\.fillna\(False\)"):
        source.filter(lambda df: df.z > 1)


def test_a_function_that_raises_raises(source: Source) -> None:
    with pytest.raises(AttributeError, match="nothing"):
        source.filter(lambda df: df.nothing > 0)


@pytest.mark.cluster
def test_a_classifier_learns_from_them(client: Client, source: Source) -> None:
    made = source.filter(lambda df: df.x != 7).map(lambda df: df.assign(big=df.x > 150))
    clf = daskdl.TorchClassifier(epochs=2, batch_size=32, verbose=0).fit(made, "big")
    assert clf.run_.audit()["rows"].tolist() == [299] * 2 and clf.run_.audit().as_planned.all()
