"""Rows of one query brought together: a ranking compares them with one another, so they must lie in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from daskdl.data.frame import is_lazy
from daskdl.data.looking import Look


def sorted_by_query(frame: pd.DataFrame, column: Any) -> pd.DataFrame:
    """Give the rows of a frame in memory query by query: in the order in which queries, and rows of one, come."""
    return frame.iloc[np.argsort(pd.factorize(frame[column])[0], kind="stable")]


def shuffled_by_query(frame: Any, column: Any) -> Any:
    """Give a lazy frame anew with each query in one partition; the same rows in the same order each time."""
    assert is_lazy(frame)
    return frame.shuffle(on=column, shuffle_method="tasks")


def scattered(looks: Sequence[Look]) -> bool:
    """Whether a query has rows in more than one piece."""
    found = [look.queries for look in looks if look.queries is not None and len(look.queries)]
    return bool(found) and len(np.unique(np.concatenate(found))) < sum(map(len, found))


def cut_between_queries(frame: pd.DataFrame, column: Any, n: int) -> list[pd.DataFrame]:
    """Cut rows that are sorted by query into about ``n`` pieces, where a query ends.

    Examples
    --------
    >>> frame = pd.DataFrame({"q": [0, 0, 0, 1, 2, 2]})
    >>> [piece.q.tolist() for piece in cut_between_queries(frame, "q", 3)]
    [[0, 0, 0], [1], [2, 2]]
    """
    ends = np.append(np.flatnonzero(np.diff(pd.factorize(frame[column])[0])) + 1, len(frame))
    wanted = [len(frame) * i / n for i in range(1, n + 1)]
    cuts = [0, *np.unique(ends[np.searchsorted(ends, wanted)]).tolist()]
    return [frame.iloc[a:b] for a, b in pairwise(cuts)]
