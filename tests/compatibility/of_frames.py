"""Frames and arrays, as ``X`` and ``y``."""

from __future__ import annotations

import dask.array as da
import dask.bag
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from distributed import Client

import daskdl
from daskdl.errors import DataError

from .case import Case

GROUP = "Frames and arrays"


def _frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(400, 2)), columns=["a", "b"])
    return frame.assign(y=(frame.a > 0).astype(int))


def _learns(X: object, y: object) -> daskdl.XGBClassifier:
    fitted = daskdl.XGBClassifier(n_estimators=5, verbose=0).fit(X, y)
    assert fitted.score(X, y) > 0.9
    return fitted


def _pandas(client: Client) -> None:
    _learns(_frame()[["a", "b"]], _frame().y)


def _lazy(client: Client) -> None:
    lazy = dd.from_pandas(_frame(), npartitions=3)
    _learns(lazy[["a", "b"]], lazy.y)


def _named(client: Client) -> None:
    assert _learns(_frame(), "y").schema_.names == ["a", "b"]


def _twin(client: Client) -> None:
    with pytest.raises(DataError, match="X contains the label"):
        _learns(_frame(), _frame().y)


def _two_levels(client: Client) -> None:
    frame = _frame()
    frame.columns = pd.MultiIndex.from_tuples([("v", "a"), ("v", "b"), ("y", "")])
    assert _learns(frame, ("y", "")).schema_.names == ["('v', 'a')", "('v', 'b')"]


def _dask_array(client: Client) -> None:
    frame = _frame()
    X, y = da.from_array(frame[["a", "b"]].to_numpy(), chunks=(150, 1)), da.from_array(frame.y.to_numpy(), chunks=100)
    fitted = _learns(X, y)
    assert isinstance(fitted.predict(X), da.Array)


def _dask_array_unknown(client: Client) -> None:
    lazy = dd.from_pandas(_frame(), npartitions=3)
    _learns(lazy[["a", "b"]].to_dask_array(), lazy.y.to_dask_array())


def _arrow(client: Client) -> None:
    table = pa.Table.from_pandas(_frame()[["a", "b"]].assign(city="Oslo"))
    assert [c.kind for c in _learns(table, _frame().y).schema_.columns] == ["number", "number", "category"]


def _dicts(client: Client) -> None:
    _learns(_frame()[["a", "b"]].to_dict("records"), _frame().y)
    _learns({name: _frame()[name].to_numpy() for name in ("a", "b")}, _frame().y)


def _object_array(client: Client) -> None:
    rows = _frame()[["a", "b"]].assign(city="Oslo").to_numpy()
    assert [c.kind for c in _learns(rows, _frame().y).schema_.columns] == ["number", "number", "category"]


def _other_lazy(client: Client) -> None:
    lazy = dd.from_pandas(_frame(), npartitions=2)
    for X, remedy in ((lazy.a, "to_frame"), (dask.bag.from_sequence([1]), "to_dataframe")):
        with pytest.raises(DataError, match=remedy):
            daskdl.XGBClassifier(verbose=0).fit(X, lazy.y)


CASES = [
    Case(GROUP, "a pandas frame and Series", "is cut into pieces and trained on", _pandas),
    Case(GROUP, "a Dask frame and a Series of it", "stays lazy; its partitions are computed on the workers", _lazy),
    Case(GROUP, "a frame and the name of its label", "the label is taken out of the features", _named),
    Case(GROUP, "a frame that holds `y` as well, under its name", "`DataError`: take it out, or give its name", _twin),
    Case(
        GROUP,
        "columns of two levels, the label by its tuple",
        "features named by the text of their tuples",
        _two_levels,
    ),
    Case(GROUP, "Dask arrays, however they are cut", "stay lazy; `predict` gives a Dask array", _dask_array),
    Case(GROUP, "Dask arrays of unknown length", "the same, paired chunk by chunk", _dask_array_unknown),
    Case(GROUP, "an Arrow table, or any with `__arrow_c_stream__`", "columns keep their types", _arrow),
    Case(GROUP, "a list of dicts, a dict of arrays", "a frame of these columns", _dicts),
    Case(GROUP, "an array of objects, numbers beside text", "numbers are numbers, text is categories", _object_array),
    Case(
        GROUP, "a Dask Series, Bag or Delayed as `X`", "`DataError` with the call that makes a frame of it", _other_lazy
    ),
]
