"""Rows used more or less often than once per epoch, by weight: exactly, and the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from daskdl.data.arrays import Block, Ints, take
from daskdl.data.order import philox
from daskdl.data.reading import Reader, open_reader, row_named

MARGIN = 1e-4  # of a pick, in which the sums of the weights of a group may be rounded
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
    if not 0 < weights.sum() < np.inf or (weights < 0).any():
        raise ValueError(
            f"weights must be 0 or more and not all 0, and finite; the groups add up to {weights[:10].tolist()}"
        )
    edges = np.minimum(np.floor(np.cumsum(weights) / weights.sum() * n + philox(seed, 4).random()), n)
    last = np.flatnonzero(weights)[-1]
    edges[last:] = n  # whatever was lost by rounding
    return np.diff(edges, prepend=0).astype(np.int64)


def balanced_weights(rows_per_class: Ints) -> Floats:
    """Weight of a row of each class with which all classes come up alike: shape (n_classes,)."""
    counts = np.asarray(rows_per_class, dtype=np.float64)
    return counts.sum() / (np.count_nonzero(counts) * np.where(counts > 0, counts, np.inf))


Line = Callable[[Block], tuple[Floats, Floats]]  # where each row of a block begins and ends on its group's line


class ByWeight:
    """Lays the rows of a group end to end, each as long as its weight, in their order."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self, block: Block) -> tuple[Floats, Floats]:
        """Lay the next rows. One by one: the sums are the same however the rows are cut into blocks."""
        ends = np.cumsum(np.concatenate([[self.at], np.asarray(block[WEIGHT], dtype=np.float64)]))
        self.at = float(ends[-1])
        return ends[:-1], ends[1:]


class ByClass:
    """Lays the rows of a group class by class, so that each class gets its share of the picks, to within one.

    Parameters
    ----------
    weights : array of shape (n_classes,)
        Of a row of each class.
    rows : array of shape (n_classes,)
        Of each class in the group.
    """

    def __init__(self, weights: Floats, rows: Ints) -> None:
        self.weights, self.seen = weights, np.zeros(len(rows), dtype=np.int64)
        self.begins = np.concatenate([[0.0], np.cumsum(weights * rows)])

    def __call__(self, block: Block) -> tuple[Floats, Floats]:
        """Lay the next rows, each behind those of its class."""
        y = np.asarray(block["y"])
        number = np.empty(len(y), dtype=np.int64)  # of the row within its class
        for k in np.unique(y):
            mine = np.flatnonzero(y == k)
            number[mine] = self.seen[k] + np.arange(len(mine))
            self.seen[k] += len(mine)
        return self.begins[y] + self.weights[y] * number, self.begins[y] + self.weights[y] * (number + 1)


class Weighted:
    """Reader that gives each row of a group as often as its weight says: the expected number of times, to within one.

    Which rows get the one more is drawn anew in every epoch. A group of ``picks[g]`` picks is for the order a group of
    that many rows; reading its middle means to go through the weights before it.

    Parameters
    ----------
    reader : Reader
        Of all rows.
    lines : callable
        ``lines(group)`` makes what lays the rows of a group end to end, block by block, as long as their weights.
    counts, picks : sequence of int
        Rows of each group, and how many are picked from it in an epoch.
    totals : sequence of float
        Sum of the weights of each group.
    seed : int
    """

    def __init__(
        self,
        reader: Reader,
        lines: Callable[[int], Line],
        counts: Sequence[int],
        picks: Sequence[int],
        totals: Sequence[float],
        seed: int,
    ) -> None:
        self.reader, self.lines, self.seed = reader, lines, seed
        self.counts, self.picks, self.totals = list(counts), list(picks), list(totals)

    def open(self) -> None:
        """Open the reader of all rows."""
        open_reader(self.reader)

    def where_row(self, group: int, row: int) -> str:
        """Say in which group a pick lies; which of its rows it is would take to go through the weights again."""
        return f"a row of the group of {row_named(self.reader, group, 0)}"

    def used(self, group: int, n: int, epoch: int) -> None:
        """Pass on that picks were copied out: a block is done with when all picks from it are."""
        used = getattr(self.reader, "used", None)
        if used:
            used(group, n, epoch)

    def read(self, group: int, first: int, stop: int, epoch: int) -> Iterator[Block]:
        """Yield picks ``first`` to ``stop`` of a group."""
        scale = self.picks[group] / self.totals[group]
        start = MARGIN + (1 - 2 * MARGIN) * philox(self.seed, 5, epoch, group).random()
        line, row, passed = self.lines(group), 0, 0
        for block in self.reader.read(group, 0, self.counts[group], epoch):
            begins, ends = line(block)
            picked = np.minimum(np.floor(np.stack([begins, ends]) * scale + start), self.picks[group]).astype(np.int64)
            times = picked[1] - picked[0]
            row += len(times)
            if row == self.counts[group]:  # and whatever rounding has lost for the last row that can be picked
                last = np.flatnonzero(ends > begins)
                times[last[-1] if len(last) else -1] += self.picks[group] - passed - times.sum()
            index = np.repeat(np.arange(len(times)), times)
            low, high = max(0, first - passed), max(0, min(stop - passed, len(index)))
            passed += len(index)
            if low < high:
                chosen = index[low:high]
                yield {name: take(array, chosen) for name, array in block.items() if name != WEIGHT}
            if passed >= stop:
                return
