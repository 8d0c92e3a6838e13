"""Rows used more or less often than once per epoch, by weight: exactly, and the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from daskdl.data.arrays import Block, Ints, take
from daskdl.data.order import philox
from daskdl.data.reading import Reader, open_reader

WEIGHT = "__weight__"  # the field of a block that holds its rows' weights; no field of a batch

Floats = npt.NDArray[np.float64]


def picks_per_group(totals: Sequence[float], n: int, seed: int) -> Ints:
    """How many of ``n`` picks fall into each group, given the sum of its weights: its share, to within one.

    Systematic sampling (W. G. Cochran, "Sampling Techniques", 3rd ed. 1977, chapter 8) from a start that the seed
    decides.

    Examples
    --------
    >>> picks_per_group([1.0, 3.0, 0.0], 8, seed=0).tolist()
    [2, 6, 0]
    """
    weights = np.asarray(totals, dtype=np.float64)
    if not weights.sum() > 0 or (weights < 0).any():
        raise ValueError(f"weights must be 0 or more and not all 0; the groups add up to {weights[:10].tolist()}")
    edges = np.floor(np.cumsum(weights) / weights.sum() * n + philox(seed, 4).random())
    last = np.flatnonzero(weights)[-1]
    edges[last:] = n  # whatever was lost by rounding
    return np.diff(edges, prepend=0).astype(np.int64)


def balanced_weights(rows_per_class: Ints) -> Floats:
    """Weight of a row of each class with which all classes come up alike: shape (n_classes,)."""
    counts = np.asarray(rows_per_class, dtype=np.float64)
    return counts.sum() / (np.count_nonzero(counts) * np.where(counts > 0, counts, np.inf))


class Weighted:
    """Reader that gives each row of a group as often as its weight says: the expected number of times, to within one.

    Which rows get the one more is drawn anew in every epoch. A group of ``picks[g]`` picks is for the order a group of
    that many rows; reading its middle means to go through the weights before it.

    Parameters
    ----------
    reader : Reader
        Of all rows.
    weigh : callable
        ``weigh(block)`` gives the weight of each of its rows, shape (n_rows,).
    counts, picks : sequence of int
        Rows of each group, and how many are picked from it in an epoch.
    totals : sequence of float
        Sum of the weights of each group.
    seed : int
    """

    def __init__(
        self,
        reader: Reader,
        weigh: Callable[[Block], npt.NDArray[np.generic]],
        counts: Sequence[int],
        picks: Sequence[int],
        totals: Sequence[float],
        seed: int,
    ) -> None:
        self.reader, self.weigh, self.seed = reader, weigh, seed
        self.counts, self.picks, self.totals = list(counts), list(picks), list(totals)

    def open(self) -> None:
        """Open the reader of all rows."""
        open_reader(self.reader)

    def used(self, group: int, n: int, epoch: int) -> None:
        """Pass on that picks were copied out: a block is done with when all picks from it are."""
        used = getattr(self.reader, "used", None)
        if used:
            used(group, n, epoch)

    def read(self, group: int, first: int, stop: int, epoch: int) -> Iterator[Block]:
        """Yield picks ``first`` to ``stop`` of a group."""
        scale = self.picks[group] / self.totals[group]
        start = philox(self.seed, 5, epoch, group).random()
        row, passed, weight = 0, 0, 0.0
        for block in self.reader.read(group, 0, self.counts[group], epoch):
            sums = np.cumsum(np.concatenate([[weight], np.asarray(self.weigh(block), dtype=np.float64)]))
            weight = float(sums[-1])
            edges = np.minimum(np.floor(sums[1:] * scale + start), self.picks[group]).astype(np.int64)
            row += len(edges)
            if row == self.counts[group]:
                edges[np.flatnonzero(np.diff(sums))[-1] if weight > sums[0] else -1 :] = self.picks[group]
            index = np.repeat(np.arange(len(edges)), np.diff(edges, prepend=passed))
            low, high = max(0, first - passed), max(0, min(stop, int(edges[-1])) - passed)
            passed = int(edges[-1])
            if low < high:
                chosen = index[low:high]
                yield {name: take(array, chosen) for name, array in block.items() if name != WEIGHT}
            if passed >= stop:
                return
