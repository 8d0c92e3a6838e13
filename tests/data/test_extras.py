"""Weights, margins and queries beside the rows: row by row, from frames lazy or not, arrays and sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client

import daskdl
from daskdl.data import rows as rows_module
from daskdl.data.encoders import TableEncoder, TensorEncoder
from daskdl.data.rows import learn, read_rows
from daskdl.errors import DataError


def frame(n: int = 4_000) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    made = pd.DataFrame({"a": rng.normal(size=n), "w": np.arange(n) % 7 + 0.5, "y": rng.normal(size=n)})
    made.index = rng.permutation(n) % 50  # neither sorted nor of one row each
    return made


def blocks(X: Any, y: Any, client: Client | None, extras: dict[str, Any], table: bool = True) -> pd.DataFrame:
    """Feature, extra and label of all rows, as the ranks get them."""
    rows = read_rows(X, y, classes=False, client=client, extras=extras)
    schema, target = learn(rows, "y", classes=False, missing="impute")
    assert schema.names == ["a"]
    encoder = (TableEncoder if table else TensorEncoder)(schema, target, rows.label_name, extras=rows.extras)
    found = rows.encode(encoder)
    found = client.gather(found) if client is not None else found
    x = [block["x"].a.to_numpy() if table else block["numbers"][:, 0] * schema["a"].scale for block in found]
    y = [block["y"] * target.scale + target.mean for block in found]
    weights = [block["sample_weight"] for block in found]
    return pd.DataFrame({"a": np.concatenate(x), "w": np.concatenate(weights), "y": np.concatenate(y)})


def ways(pdf: pd.DataFrame) -> dict[str, tuple[Any, Any, Any]]:
    lazy = dd.from_map(lambda i: pdf.iloc[i * 1_000 : (i + 1) * 1_000], range(4), meta=pdf.iloc[:0])
    array = da.from_array(pdf.w.to_numpy(), chunks=1_000)
    return {
        "column": (pdf, "y", "w"),
        "series": (pdf[["a"]], pdf.y, pdf.w),
        "another index": (pdf[["a"]], pdf.y, pdf.w.reset_index(drop=True)),
        "list": (pdf[["a"]], pdf.y, pdf.w.tolist()),
        "lazy column": (lazy, "y", "w"),
        "lazy series": (lazy[["a"]], lazy.y, lazy.w),
        "lazy array": (lazy[["a"]], lazy.y, array),
        "array of unknown length": (lazy[["a"]], lazy.y, lazy.w.values),
        "source": (daskdl.MemorySource(pdf, group_rows=500), "y", "w"),
    }


@pytest.mark.cluster
@pytest.mark.parametrize("way", list(ways(frame(4))))
def test_each_row_keeps_its_own(client: Client, way: str) -> None:
    pdf = frame()
    X, y, w = ways(pdf)[way]
    for table in (True, False):
        found = blocks(X, y, client, {"sample_weight": w}, table)
        assert np.array_equal(found.w, pdf.w)
        assert np.allclose(found.y, pdf.y, atol=1e-5)
        if table:
            assert np.array_equal(found.a, pdf.a.astype("float32"))


@pytest.mark.cluster
def test_they_survive_the_cache_of_large_frames(client: Client, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(rows_module, "HELD_SHARE", 1e-9)
    monkeypatch.setenv("HOME", str(tmp_path))
    pdf = frame()
    X, y, w = ways(pdf)["lazy series"]
    found = blocks(X, y, client, {"sample_weight": w})
    assert np.array_equal(found.w, pdf.w)


def test_without_a_cluster_and_of_several_columns() -> None:
    pdf = frame(100)
    rows = read_rows(pdf[["a"]], pdf.y, classes=False, client=None, extras={"base_margin": pdf[["w", "y"]].to_numpy()})
    schema, target = learn(rows, "y", classes=False, missing="impute")
    block = rows.encode(TableEncoder(schema, target, extras=rows.extras))[0]
    assert np.array_equal(block["base_margin"], pdf[["w", "y"]])


def test_queries_are_whole_numbers_or_names() -> None:
    pdf = frame(6).assign(q=["a", "b", "a", "c", "b", "a"])
    rows = read_rows(pdf, "y", classes=False, client=None, extras={"qid": "q"})
    schema, target = learn(rows, "y", classes=False, missing="impute")
    qid = rows.encode(TableEncoder(schema, target, extras=rows.extras))[0]["qid"]
    assert qid.dtype == np.int64 and pd.factorize(qid)[0].tolist() == [0, 0, 0, 1, 1, 2]  # query by query


@pytest.mark.cluster
@pytest.mark.parametrize("lazy", [False, True])
def test_several_labels(client: Client, lazy: bool) -> None:
    pdf = frame().reset_index(drop=True)
    data: Any = dd.from_pandas(pdf, npartitions=3) if lazy else pdf
    for y in (data[["y", "w"]], ["y", "w"], data[["y", "w"]].values):
        X = data if isinstance(y, list) else data[["a"]]
        rows = read_rows(X, y, classes=False, client=client, several=True)
        names = ["y", "w"] if not hasattr(y, "dtype") else None
        schema, target = learn(rows, names, classes=False, missing="impute")
        assert target.names == (("y", "w") if names else ("y0", "y1"))
        found = client.gather(rows.encode(TableEncoder(schema, target, rows.label_name)))
        told = np.concatenate([b["y"] for b in found]) * target.scale + target.mean
        assert np.allclose(told, pdf[["y", "w"]], atol=1e-4)
        again = type(target).from_dict(target.to_dict())
        assert np.array_equal(again.scale, target.scale) and again.names == target.names


@pytest.mark.parametrize(
    "extras, words",
    [
        ({"sample_weight": [1.0, -1.0, 1.0, 1.0]}, "sample_weight must be finite and 0 or more.*found -1.0 in row 1"),
        ({"sample_weight": [1.0, np.nan, 1.0, 1.0]}, "found nan in row 1"),
        ({"sample_weight": [0.0] * 4}, "sample_weight is zero .* in all 4 rows"),
        ({"sample_weight": [1.0] * 3}, "X has 4 rows and sample_weight 3"),
        ({"sample_weight": "weight"}, r"sample_weight column 'weight' is not in X"),
        ({"sample_weight": ["x"] * 4}, "sample_weight must be .*Convert it to numbers"),
        ({"base_margin": [1.0, np.inf, 1.0, 1.0]}, "base_margin must be finite"),
        ({"qid": [1.0, np.nan, 1.0, 1.0]}, "qid must be there for each row"),
        ({"sample_weight": dd.from_pandas(pd.Series([1.0] * 4), npartitions=1)}, "in memory and sample_weight is lazy"),
    ],
)
def test_what_cannot_be_is_refused(extras: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_rows(frame(4)[["a", "y"]], "y", classes=False, client=None, extras=extras)


@pytest.mark.cluster
def test_rows_that_do_not_belong_together_are_refused(client: Client) -> None:
    pdf = frame(400).reset_index(drop=True)
    lazy = dd.from_pandas(pdf, npartitions=4)
    shuffled = dd.from_pandas(pdf.w.sample(frac=1, random_state=0), npartitions=4, sort=False)
    wrong = {
        "different frames of unknown divisions": shuffled,
        "a partition of X has 100 rows": lazy.w[lazy.w > 1],
        "4 partitions and sample_weight 3": da.from_array(pdf.w.to_numpy(), chunks=150),
        "X is a Dask DataFrame, so sample_weight must be a Dask Series": pdf.w,
    }
    for words, weights in wrong.items():
        with pytest.raises(DataError, match=words):
            read_rows(lazy[["a"]], lazy.y, classes=False, client=client, extras={"sample_weight": weights})
    other = dd.from_pandas(pdf.w.rename(lambda i: i + 1), npartitions=4)
    with pytest.raises(DataError, match="the index of X goes from 0 to 399"):
        read_rows(lazy[["a"]], lazy.y, classes=False, client=client, extras={"sample_weight": other})
