"""Which row is used at which step: a pure function of (row counts, seed, epoch, step).

The construction. The row groups of a dataset are permuted by the seed and laid end to end: a line of ``N`` rows. The
line is cut into ``C`` *lanes* of equal length (to within one row). In every epoch the groups of a lane are permuted
anew, and rows are permuted inside windows of a few groups. Position ``p`` of an epoch belongs to lane ``p mod C`` at
offset ``p div C``, and global batch ``s`` is positions ``[s B, (s + 1) B)``, so every batch takes the same number of
rows from every lane: a stratified shuffle. Inside a batch, rows stand lane by lane, and rank ``r`` of ``W`` reads the
``r``-th of ``W`` equal slices. Lanes never move between epochs and never depend on ``W``: a rank keeps its rows, and
another number of ranks cuts the same batch elsewhere.

Nothing is stored but (seed, epoch, step), and nothing is replayed to reach a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

MAX_LANES = 64
WINDOW_ROWS = 32_768

Ints = npt.NDArray[np.int64]


def _rng(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclass(frozen=True)
class Window:
    """A run of a lane inside which rows are shuffled in one epoch.

    Attributes
    ----------
    start : int
        Offset in the lane of the window's first row.
    segments : array of shape (n_segments, 3)
        Group, first row and end row of each piece, in the order in which they are laid end to end.
    permutation : array of shape (n_rows,)
        Row ``i`` of the window is row ``permutation[i]`` of the pieces laid end to end.
    """

    start: int
    segments: Ints
    permutation: Ints

    @property
    def stop(self) -> int:
        """Offset in the lane behind the window's last row."""
        return self.start + len(self.permutation)


@dataclass(frozen=True, eq=False)
class SampleOrder:
    """The order in which the rows of a dataset are used, for any number of ranks.

    Parameters
    ----------
    counts : sequence of int
        Rows per group: a Parquet row group or a partition. Groups may be empty.
    batch_size : int
        Rows per global batch, over all ranks together.
    seed : int
        Any non-negative integer.
    shuffle : bool
        False gives the rows in the order of the groups.
    drop_last : bool
        Leave out the last batch of an epoch if it is short.
    lanes : int, optional
        Number of lanes; by default at most 64, and a divisor of ``batch_size`` where there is a good one.
    window_rows : int
        Rows are shuffled within pieces of about this many rows (one group at least).

    Examples
    --------
    >>> order = SampleOrder([5, 0, 7], batch_size=4, seed=0)
    >>> order.steps_per_epoch
    3
    >>> whole = order.rows(epoch=0, step=1)
    >>> halves = [order.rows(epoch=0, step=1, rank=r, world_size=2) for r in (0, 1)]
    >>> bool((np.concatenate(halves) == whole).all())
    True
    """

    counts: Sequence[int]
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    lanes: int | None = None
    window_rows: int = WINDOW_ROWS

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 row, got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed must be a non-negative integer, got {self.seed}")
        if self._counts.size and self._counts.min() < 0:
            raise ValueError(f"row counts must not be negative, got {self._counts.min()}")

    # -- sizes ------------------------------------------------------------------------------------------------

    @cached_property
    def _counts(self) -> Ints:
        return np.asarray(self.counts, dtype=np.int64)

    @cached_property
    def n_rows(self) -> int:
        """Rows of the dataset."""
        return int(self._counts.sum())

    @cached_property
    def n_lanes(self) -> int:
        """Number of lanes, never more than rows in a batch."""
        if not self.shuffle:
            return 1
        wanted = self.lanes or choose_lanes(self.batch_size)
        return max(1, min(wanted, self.batch_size, self.n_rows))

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        full, rest = divmod(self.n_rows, self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def batch_rows(self, step: int) -> int:
        """Rows of the global batch at ``step`` (only the last one may be short)."""
        self._check_step(step)
        return min(self.batch_size, self.n_rows - step * self.batch_size)

    def _check_step(self, step: int) -> None:
        if not 0 <= step < self.steps_per_epoch:
            raise ValueError(f"step must be in [0, {self.steps_per_epoch}) for {self.n_rows} rows, got {step}")

    # -- the line and its lanes -------------------------------------------------------------------------------

    @cached_property
    def _line(self) -> Ints:
        """Groups in the order in which they lie on the line."""
        groups = np.flatnonzero(self._counts)
        return _rng(self.seed).permutation(groups) if self.shuffle else groups

    @cached_property
    def _line_starts(self) -> Ints:
        """Where each group of the line begins, and the end: shape (n_groups + 1,)."""
        return np.concatenate([[0], np.cumsum(self._counts[self._line])])

    def lane_rows(self, lane: int) -> int:
        """Rows of a lane; the first ``n_rows mod n_lanes`` lanes have one more than the others."""
        short, extra = divmod(self.n_rows, self.n_lanes)
        return short + (lane < extra)

    def lane_segments(self, lane: int) -> Ints:
        """Pieces of groups that make up a lane, as rows (group, first row, end row)."""
        short, extra = divmod(self.n_rows, self.n_lanes)
        start = lane * short + min(lane, extra)
        stop = start + self.lane_rows(lane)
        first = np.searchsorted(self._line_starts, start, side="right") - 1
        last = np.searchsorted(self._line_starts, stop, side="left")
        begins, ends = self._line_starts[first:last], self._line_starts[first + 1 : last + 1]
        low, high = np.maximum(begins, start) - begins, np.minimum(ends, stop) - begins
        return np.stack([self._line[first:last], low, high], axis=1)

    @lru_cache(maxsize=256)  # noqa: B019 - an order lives as long as its training
    def _lane_plan(self, lane: int, epoch: int) -> tuple[Ints, Ints, Ints]:
        """Segments of a lane in this epoch's order, where each begins, and the index of its window."""
        segments = self.lane_segments(lane)
        if self.shuffle:
            segments = _rng(self.seed, 1, epoch, lane).permutation(segments)
        starts = np.concatenate([[0], np.cumsum(segments[:, 2] - segments[:, 1])])
        return segments, starts, starts[:-1] // self.window_rows

    def window(self, lane: int, epoch: int, offset: int) -> Window:
        """Return the shuffle window of a lane that holds ``offset``."""
        segments, starts, windows = self._lane_plan(lane, epoch)
        at = np.searchsorted(starts, offset, side="right") - 1
        first = int(np.searchsorted(windows, windows[at], side="left"))
        last = int(np.searchsorted(windows, windows[at], side="right"))
        n = int(starts[last] - starts[first])
        key = (self.seed, 2, epoch, lane, int(windows[at]))
        permutation = _rng(*key).permutation(n) if self.shuffle else np.arange(n)
        return Window(int(starts[first]), segments[first:last], permutation)

    # -- who reads what ---------------------------------------------------------------------------------------

    def slices(self, step: int, rank: int = 0, world_size: int = 1) -> list[tuple[int, int, int]]:
        """What a rank reads at a step: (lane, first offset, end offset), lane by lane; the same in every epoch.

        Ranks differ by at most one row, and their slices laid end to end are the global batch.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        n = self.batch_rows(step)
        start = step * self.batch_size
        lanes = np.arange(self.n_lanes)
        first = -((lanes - start) // self.n_lanes)  # ceil((start - lane) / n_lanes)
        stop = -((lanes - start - n) // self.n_lanes)
        ends = np.cumsum(stop - first)  # of each lane inside the batch
        begins = ends - (stop - first)
        low, high = rank * n // world_size, (rank + 1) * n // world_size
        a = np.maximum(begins, low) - begins + first
        b = np.minimum(ends, high) - begins + first
        return [(int(i), int(a[i]), int(b[i])) for i in np.flatnonzero(a < b)]

    def lanes_of(self, rank: int, world_size: int) -> list[int]:
        """Lanes a rank ever reads from. With ``world_size`` dividing ``n_lanes`` and full batches, only its own."""
        period = self.n_lanes // math.gcd(self.n_lanes, self.batch_size)
        steps = {*range(min(period, self.steps_per_epoch)), self.steps_per_epoch - 1} - {-1}
        return sorted({lane for step in steps for lane, _, _ in self.slices(step, rank, world_size)})

    def groups_of(self, rank: int, world_size: int) -> list[int]:
        """Groups a rank ever reads from, in no particular order of use."""
        segments = [self.lane_segments(lane)[:, 0] for lane in self.lanes_of(rank, world_size)]
        return [int(g) for g in np.unique(np.concatenate(segments))] if segments else []

    def rows(self, epoch: int, step: int, rank: int = 0, world_size: int = 1) -> Ints:
        """Row numbers of one rank's part of a batch, counted over the groups in their given order.

        Slow and plain: what the batches of a rank are checked against, and what an audit counts.
        """
        offsets = np.concatenate([[0], np.cumsum(self._counts)])
        parts: list[Ints] = []
        for lane, first, stop in self.slices(step, rank, world_size):
            while first < stop:
                window = self.window(lane, epoch, first)
                line = np.concatenate([np.arange(a, b) + offsets[g] for g, a, b in window.segments])
                end = min(stop, window.stop)
                parts.append(line[window.permutation[first - window.start : end - window.start]])
                first = end
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def steps(self, epochs: int, start: int = 0) -> Iterator[tuple[int, int, int]]:
        """Yield (global step, epoch, step in the epoch) from a global step on."""
        for global_step in range(start, epochs * self.steps_per_epoch):
            yield global_step, *divmod(global_step, self.steps_per_epoch)


def choose_lanes(batch_size: int) -> int:
    """Lanes for a batch size: 64 or the largest power of two that divides it, but never fewer than 16."""
    return max(math.gcd(batch_size, MAX_LANES), 16)
