"""The bins into which XGBoost puts numbers, carried from gang to gang.

Trees split at the borders of bins, and on binned rows a split is only exact if the bins are those that it was found
with. Other bins, as other ranks would learn them, put rows on the wrong side of splits, and boosting goes on from wrong
margins. XGBoost takes bins from other rows only (``ref=``), so here are rows from which it learns given ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MARGIN = 1e-5  # XGBoost puts the outer borders so far from twice the lowest and highest value

Cuts = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


def rows_with_cuts(cuts: Cuts, kinds: Sequence[str]) -> npt.NDArray[np.float32]:
    """Make rows from which XGBoost learns these borders of bins.

    Parameters
    ----------
    cuts : (array of shape (n_features + 1,), array of shape (n_cuts,))
        As ``QuantileDMatrix.get_quantile_cut`` tells them: where the borders of each feature begin, and all borders.
    kinds : sequence of str
        Feature types; ``"c"`` is a category.

    Returns
    -------
    array of shape (n_rows, n_features)
        Missing where a feature has fewer values than others.
    """
    indptr, values = cuts
    columns = [
        values[a:b] if kind == "c" else _values_with_borders(values[a:b])
        for a, b, kind in zip(indptr[:-1], indptr[1:], kinds, strict=True)
    ]
    rows = np.full((max(map(len, columns)), len(columns)), np.nan, dtype=np.float32)
    for j, column in enumerate(columns):
        rows[: len(column), j] = column
    return rows


def same_cuts(one: Cuts, other: Cuts) -> bool:
    """Whether rows fall into the same bins; the lowest border of a feature only counts as one below its values."""
    if not np.array_equal(one[0], other[0]):
        return False
    inner = np.ones(len(one[1]), dtype=bool)
    inner[one[0][:-1]] = False  # the lowest
    inner[one[0][1:] - 1] = False  # the highest: see _highest_value
    return np.array_equal(one[1][inner], other[1][inner])


def _values_with_borders(borders: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Distinct values of one number: each is a border but for the first; the highest decides the last border."""
    lowest, inner, last = borders[0], borders[1:-1], borders[-1]
    if not len(inner):
        return np.array([_highest_value(last, lowest, -np.inf)], dtype=np.float32)
    first = min(_halved(lowest, -1), float(np.nextafter(inner[0], np.float32(-np.inf))))
    most = [] if _last_border(inner[-1]) == last else [_highest_value(last, lowest, inner[-1])]
    return np.array([first, *inner, *most], dtype=np.float32)


def _last_border(highest: float) -> np.float32:
    return np.float32(float(highest) + (abs(float(highest)) + MARGIN))


def _halved(border: float, sign: int) -> float:
    """The lowest or highest value that led to an outer border, as far as the border tells: 0 for the other sign."""
    return (float(border) - sign * MARGIN) / 2 if sign * float(border) > MARGIN else 0.0


def _highest_value(last: float, lowest: float, above: float) -> np.float32:
    """Find the value that leads to the last border; of numbers below 0 that border tells only that they are."""
    guesses = [np.float32(_halved(last, 1)), np.float32(_halved(lowest, -1)), np.float32(0)]
    near = [np.nextafter(g, np.float32(way)) for g in guesses for way in (-np.inf, np.inf)]
    right = [v for v in guesses + near if v > above and _last_border(v) == last]
    return right[0] if right else guesses[0]
