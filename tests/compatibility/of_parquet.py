"""Parquet files, as ``ParquetSource`` reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client

import daskdl
from daskdl.errors import DataError

from .case import Case

GROUP = "Parquet files"


def _within(check: Callable[[Path], None]) -> Callable[[Client], None]:
    def checked(client: Client) -> None:
        with TemporaryDirectory() as folder:
            check(Path(folder))

    return checked


def _frame() -> pd.DataFrame:
    a = np.random.default_rng(0).normal(size=200)
    return pd.DataFrame({"a": a, "y": (a > 0).astype(int)})


def _by_dask(folder: Path) -> None:
    dd.from_pandas(_frame(), npartitions=2).to_parquet(folder)
    source = daskdl.ParquetSource(str(folder))
    assert source.names == ["a", "y"]
    assert daskdl.XGBClassifier(n_estimators=5, verbose=0).fit(source, "y").score(source, "y") > 0.9


def _named_index(folder: Path) -> None:
    _frame().set_index(pd.Index([f"r{i}" for i in range(200)], name="key")).to_parquet(folder / "a.parquet")
    assert daskdl.ParquetSource(str(folder)).names == ["a", "y"]
    assert daskdl.ParquetSource(str(folder), columns=["key"]).names == ["key"]


def _lacking(folder: Path) -> None:
    _frame().to_parquet(folder / "a.parquet")
    _frame().drop(columns="a").assign(b=1).to_parquet(folder / "b.parquet")
    assert daskdl.ParquetSource(str(folder)).names == ["a", "y", "b"]


def _widths(folder: Path) -> None:
    for name, a in (("a", 1), ("b", 0.5)):
        pd.DataFrame({"a": [a]}).to_parquet(folder / f"{name}.parquet")
    for order in ("ab", "ba"):
        source = daskdl.ParquetSource([str(folder / f"{name}.parquet") for name in order])
        assert sorted(source.to_dask().compute().a) == [0.5, 1.0]


def _apart(folder: Path) -> None:
    for name, a in (("a", 1), ("b", "x")):
        pd.DataFrame({"a": [a]}).to_parquet(folder / f"{name}.parquet")
    with pytest.raises(DataError, match=r"int64 in .*a\.parquet and .*string in .*b\.parquet"):
        daskdl.ParquetSource(str(folder))


def _keys(folder: Path) -> None:
    for key in ("city=San%20Jose/zip=007", "city=__HIVE_DEFAULT_PARTITION__/zip=123"):
        (folder / "run=3" / key).mkdir(parents=True)
        _frame().to_parquet(folder / "run=3" / key / "a.parquet")
    source = daskdl.ParquetSource(str(folder / "run=3"))
    assert source.names == ["a", "y", "city", "zip"]
    assert source.to_dask().compute().zip.unique().tolist() in (["007", "123"], ["123", "007"])
    assert source.to_dask().compute().city.isna().sum() == 200


CASES = [
    Case(GROUP, "written by pandas or Dask, with their index", "the index is no feature", _within(_by_dask)),
    Case(GROUP, "an index with a name", "no feature; a column if `columns=` names it", _within(_named_index)),
    Case(GROUP, "a column that some files lack", "is missing there", _within(_lacking)),
    Case(GROUP, "whole numbers in one file, fractions in another", "fractions, in any order", _within(_widths)),
    Case(GROUP, "numbers in one file, text in another", "`DataError` that names both files", _within(_apart)),
    Case(
        GROUP,
        "keys in paths, `city=San%20Jose/zip=007`",
        "categories: decoded, missing where Hive says so, leading zeros kept, those above the path left out",
        _within(_keys),
    ),
]
