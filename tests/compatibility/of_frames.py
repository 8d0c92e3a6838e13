"""Frames and arrays, as ``X`` and ``y``."""

from __future__ import annotations

import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client

import daskdl

from .case import Case

GROUP = "Frames and arrays"


def _frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(400, 2)), columns=["a", "b"])
    return frame.assign(y=(frame.a > 0).astype(int))


def _learns(X: object, y: object) -> None:
    fitted = daskdl.XGBClassifier(n_estimators=5, verbose=0).fit(X, y)
    assert fitted.score(X, y) > 0.9


def _pandas(client: Client) -> None:
    _learns(_frame()[["a", "b"]], _frame().y)


def _lazy(client: Client) -> None:
    lazy = dd.from_pandas(_frame(), npartitions=3)
    _learns(lazy[["a", "b"]], lazy.y)


CASES = [
    Case(GROUP, "a pandas frame and Series", "is cut into pieces and trained on", _pandas),
    Case(GROUP, "a Dask frame and a Series of it", "stays lazy; its partitions are computed on the workers", _lazy),
]
