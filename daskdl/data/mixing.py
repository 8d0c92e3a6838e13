"""Several datasets in one order, mixed by ratio: batches for any number of ranks, and any step reached at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from daskdl.data.order import Ints, SampleOrder, Slice, share


@dataclass(frozen=True, eq=False)
class Mixture:
    """Rows of several datasets by ratio, each dataset in its own sample order, again and again.

    Of the first ``s`` global batches of ``B`` rows, dataset ``k`` has given ``s B r_k`` rows, to within one. These are
    the first rows of its own endless order, epoch after epoch: every row of a dataset is used once before any is used
    again, and ranks, steps and resuming are as in ``SampleOrder``.

    Parameters
    ----------
    parts : sequence of SampleOrder
        Their batch size has no meaning here but that it chose their lanes. See ``mixture``.
    ratios : sequence of float
        Shares of the rows, of any sum.
    batch_size : int
        Rows per global batch.
    epoch_rows : int, optional
        Rows that are called an epoch; as many as all datasets have by default. Its last, short batch is left out.

    Examples
    --------
    >>> mixed = mixture([[100], [10]], ratios=[1, 1], batch_size=8)
    >>> [cut.dataset for cut in mixed.slices(0)].count(0), mixed.steps_per_epoch
    (4, 13)
    """

    parts: tuple[SampleOrder, ...]
    ratios: tuple[float, ...]
    batch_size: int
    epoch_rows: int | None = None

    def __post_init__(self) -> None:
        _check(len(self.parts), self.ratios, self.batch_size)
        empty = [k for k, part in enumerate(self.parts) if not part.n_rows]
        if empty:
            raise ValueError(f"dataset {empty[0]} of the mixture has no rows; leave it out")
        least = min(self.ratios) / sum(self.ratios) * self.batch_size
        if least < 1:
            raise ValueError(
                f"a ratio of {min(self.ratios)} in {list(self.ratios)} gives {least:.2g} rows in a batch of "
                f"{self.batch_size}; it takes 1 at least. Use a batch_size of "
                f"{int(self.batch_size / least) + 1} or more."
            )

    @cached_property
    def _edges(self) -> list[Fraction]:
        """Shares of the first datasets together: 0, r_0, r_0 + r_1, ..., 1."""
        shares = [Fraction(r) for r in self.ratios]
        edges = accumulate(s / sum(shares) for s in shares)
        return [Fraction(0), *(edge.limit_denominator(10**9) for edge in edges)]

    @cached_property
    def fingerprint(self) -> str:
        """The same for the same order; see ``SampleOrder.fingerprint``."""
        decides = ([part.fingerprint for part in self.parts], self._edges, self.batch_size, self.n_rows)
        size = f"{self.n_rows:,} rows of {len(self.parts)} datasets, batches of {self.batch_size:,}"
        return f"{size} ({hashlib.sha256(repr(decides).encode()).hexdigest()[:12]})"

    @property
    def seed(self) -> int:
        """Seed of the first dataset's order; the others are derived from the same one."""
        return self.parts[0].seed

    @property
    def n_rows(self) -> int:
        """Rows of an epoch."""
        return self.epoch_rows or sum(part.n_rows for part in self.parts)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch; all are full."""
        return max(1, self.n_rows // self.batch_size)

    def batch_rows(self, step: int) -> int:
        """Rows of a global batch: always ``batch_size``."""
        return self.batch_size

    def taken(self, dataset: int, global_step: int) -> int:
        """Rows of a dataset in the first ``global_step`` batches."""
        n = global_step * self.batch_size
        return int(n * self._edges[dataset + 1]) - int(n * self._edges[dataset])

    def slices(self, global_step: int, rank: int = 0, world_size: int = 1) -> list[Slice]:
        """What a rank reads at a step counted from the start of training; see ``SampleOrder.slices``."""
        low, high = share(self.batch_size, rank, world_size)
        found, at = [], 0
        for k, epoch, first, stop in self.ranges(global_step, global_step + 1):
            found += [Slice(k, epoch, *cut) for cut in self.parts[k].cuts(first, stop, low - at, high - at)]
            at += stop - first
        return found

    def ranges(self, first_step: int, stop_step: int) -> Iterator[tuple[int, int, int, int]]:
        """Say what global steps ``[first_step, stop_step)`` read: (dataset, epoch, first position, end position)."""
        for k, part in enumerate(self.parts):
            start, end = self.taken(k, first_step), self.taken(k, stop_step)
            while start < end:  # a small dataset may begin anew inside a batch
                epoch, first = divmod(start, part.n_rows)
                n = min(end - start, part.n_rows - first)
                yield k, epoch, first, first + n
                start += n

    def groups_of(self, rank: int, world_size: int) -> list[list[int]]:
        """Groups of each dataset that a rank may read: all, as a dataset's rows in a batch move over its lanes."""
        return [np.flatnonzero(part.row_counts).tolist() for part in self.parts]


def _check(n_parts: int, ratios: Sequence[float], batch_size: int) -> None:
    if len(ratios) != n_parts or not n_parts:
        raise ValueError(f"a mixture needs one ratio per dataset: {n_parts} datasets, {len(ratios)} ratios")
    if not all(0 < r < float("inf") for r in ratios):
        raise ValueError(f"ratios must be above 0 and finite, got {list(ratios)}; leave a dataset out instead")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 row, got {batch_size}")


def mixture(
    counts: Sequence[Sequence[int] | Ints],
    ratios: Sequence[float],
    batch_size: int,
    seed: int = 0,
    epoch_rows: int | None = None,
    layouts: Sequence[Callable[[int], Mapping[str, Any]]] = (),
) -> Mixture:
    """Make a mixture from the row counts of each dataset; every dataset gets a seed of its own from ``seed``.

    ``layouts`` give lanes and window of a dataset by its rows in a batch, see ``Source.layout``.
    """
    ratios = [float(r) for r in ratios]
    _check(len(counts), ratios, batch_size)
    seeds = [int(np.random.SeedSequence((seed, 3, k)).generate_state(1)[0]) for k in range(len(counts))]
    total = sum(ratios)
    sizes = [max(1, round(batch_size * r / total)) for r in ratios]
    how: list[Mapping[str, Any]] = [{} for _ in sizes]
    if layouts:
        how = [layout(size) for layout, size in zip(layouts, sizes, strict=True)]
    parts = tuple(SampleOrder(c, b, s, **h) for c, b, s, h in zip(counts, sizes, seeds, how, strict=True))
    return Mixture(parts, tuple(ratios), batch_size, epoch_rows)
