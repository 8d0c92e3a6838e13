"""Which row is used at which step: a pure function of (row counts, seed, epoch, step).

The construction. The row groups of a dataset are permuted by the seed and laid end to end: a line of ``N`` rows. The
line is cut into ``C`` *lanes* of equal length (to within one row). In every epoch the pieces of groups that make up a
lane are permuted anew, the lane is cut into windows of a fixed length, and rows are permuted inside their window.
Position ``p`` of an epoch belongs to lane ``p mod C`` at offset ``p div C``, and global batch ``s`` is positions
``[s B, (s + 1) B)``, so every batch takes the same number of rows from every lane: a stratified shuffle. Inside a
batch, rows stand lane by lane, and rank ``r`` of ``W`` reads the ``r``-th of ``W`` equal slices. Lanes never move
between epochs and never depend on ``W``: a rank keeps its rows, and another number of ranks cuts the same batch
elsewhere. The windows of lane ``i`` begin ``i / C`` of a window early, so that they are opened one after the other and
not all at once.

Nothing is stored but (seed, epoch, step), and nothing is replayed to reach a step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from daskdl.data.lanes import WINDOW_ROWS, choose_lanes

MAX_RUNS = 65_536

Ints = npt.NDArray[np.int64]


def philox(*key: int) -> np.random.Generator:
    """Make a random generator from a few integers: the same numbers on every machine."""
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

    def rows(self, group_starts: Ints) -> Ints:
        """Row numbers in the order of use, given the number of the first row of each group."""
        return np.concatenate([np.arange(a, b) + group_starts[g] for g, a, b in self.segments])[self.permutation]

    def place(self, i: int) -> tuple[int, int]:
        """Group, and row of it, that is the window's row ``i`` in the order of use.

        Examples
        --------
        >>> Window(0, np.array([[7, 10, 12], [3, 0, 2]]), np.array([3, 0, 1, 2])).place(0)
        (3, 1)
        """
        lengths = self.segments[:, 2] - self.segments[:, 1]
        ends, at = np.cumsum(lengths), self.permutation[i]
        k = int(np.searchsorted(ends, at, side="right"))
        return int(self.segments[k, 0]), int(self.segments[k, 1] + at - ends[k] + lengths[k])


class Slice(NamedTuple):
    """Neighbouring rows of a lane that a rank reads for a batch."""

    dataset: int
    epoch: int
    lane: int
    first: int
    stop: int


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
        Number of lanes; by default at most 64 (more from 2**34 rows on), and a divisor of ``batch_size`` where there
        is a good one. It belongs to the order, as the seed does.
    window_rows : int
        Rows are shuffled within windows of this many rows of a lane. It belongs to the order too.
    least_rows : int
        A last batch of fewer rows is joined to the one before it: for a module that cannot be trained on one row.

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

    counts: Sequence[int] | Ints
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    lanes: int | None = None
    window_rows: int = WINDOW_ROWS
    least_rows: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 row, got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed must be a non-negative integer, got {self.seed}")
        if self.row_counts.size and self.row_counts.min() < 0:
            raise ValueError(f"row counts must not be negative, got {self.row_counts.min()}")

    # -- sizes ------------------------------------------------------------------------------------------------

    @cached_property
    def row_counts(self) -> Ints:
        """Rows of each group: shape (n_groups,)."""
        return np.asarray(self.counts, dtype=np.int64)

    @cached_property
    def group_starts(self) -> Ints:
        """Number of the first row of each group, counted over the groups in their given order."""
        return np.concatenate([[0], np.cumsum(self.row_counts)])

    @property
    def parts(self) -> tuple[SampleOrder, ...]:
        """The orders of the datasets this one is made of: itself."""
        return (self,)

    @cached_property
    def n_rows(self) -> int:
        """Rows of the dataset."""
        return int(self.row_counts.sum())

    @cached_property
    def fingerprint(self) -> str:
        """The same for the same order, in words and 12 hex digits of all that decides it.

        Examples
        --------
        >>> SampleOrder([5, 0, 7], batch_size=4, seed=0).fingerprint
        '12 rows in 3 groups, batches of 4 (0eff55b69629)'
        """
        decides = [self.batch_size, self.seed, self.shuffle, self.drop_last, self.n_lanes, self.window_rows]
        decides += [self.least_rows] if self.least_rows > 1 else []  # an order is called what it was called before
        seen = hashlib.sha256(repr(tuple(map(int, decides))).encode())
        seen.update(np.ascontiguousarray(self.row_counts).data)
        size = f"{self.n_rows:,} rows in {len(self.row_counts):,} groups, batches of {self.batch_size:,}"
        return f"{size} ({seen.hexdigest()[:12]})"

    @cached_property
    def n_lanes(self) -> int:
        """Number of lanes, never more than rows in a batch."""
        if not self.shuffle:
            return 1
        wanted = self.lanes or choose_lanes(self.batch_size, self.n_rows)
        return max(1, min(wanted, self.batch_size, self.n_rows))

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        full, rest = divmod(self.n_rows, self.batch_size)
        if not rest or self.drop_last or (full and rest < self.least_rows):
            return full
        return full + 1

    def batch_rows(self, step: int) -> int:
        """Rows of the global batch at ``step``; only the last one may be short, or long by what was joined to it."""
        self._check_step(step)
        return self._end(step + 1) - step * self.batch_size

    def _end(self, step: int) -> int:
        """Position in the epoch at which the first ``step`` batches end."""
        last = step == self.steps_per_epoch and not self.drop_last
        return self.n_rows if last else step * self.batch_size

    def _check_step(self, step: int) -> None:
        if not 0 <= step < self.steps_per_epoch:
            raise ValueError(f"step must be in [0, {self.steps_per_epoch}) for {self.n_rows} rows, got {step}")

    # -- the line and its lanes -------------------------------------------------------------------------------

    @cached_property
    def _filled(self) -> Ints:
        """Groups that have rows."""
        return np.arange(len(self.row_counts)) if self.row_counts.all() else np.flatnonzero(self.row_counts)

    @cached_property
    def _runs(self) -> tuple[Ints, Ints, int]:
        """Runs of groups in the order in which they lie on the line, where each begins there, groups in a run.

        A run is one group; only with more than ``MAX_RUNS`` groups it is several neighbours, because to permute ten
        million of anything takes a second.
        """
        length = max(1, -(-len(self._filled) // MAX_RUNS))
        begins = np.arange(0, len(self._filled), length)
        counts = self.row_counts if len(self._filled) == len(self.row_counts) else self.row_counts[self._filled]
        rows = np.add.reduceat(counts, begins) if len(begins) else counts
        runs = philox(self.seed).permutation(len(begins)) if self.shuffle else np.arange(len(begins))
        return runs, np.concatenate([[0], np.cumsum(rows[runs])]), length

    def lane_rows(self, lane: int) -> int:
        """Rows of a lane; the first ``n_rows mod n_lanes`` lanes have one more than the others."""
        short, extra = divmod(self.n_rows, self.n_lanes)
        return short + (lane < extra)

    def lane_segments(self, lane: int) -> Ints:
        """Pieces of groups that make up a lane, as rows (group, first row, end row)."""
        short, extra = divmod(self.n_rows, self.n_lanes)
        start = lane * short + min(lane, extra)
        stop = start + self.lane_rows(lane)
        runs, starts, length = self._runs
        first = np.searchsorted(starts, start, side="right") - 1
        last = np.searchsorted(starts, stop, side="left")
        groups = np.concatenate([self._filled[run * length : (run + 1) * length] for run in runs[first:last].tolist()])
        ends = starts[first] + np.cumsum(self.row_counts[groups])
        begins = ends - self.row_counts[groups]
        low, high = np.maximum(begins, start) - begins, np.minimum(ends, stop) - begins
        inside = low < high
        return np.stack([groups[inside], low[inside], high[inside]], axis=1)

    @lru_cache(maxsize=256)  # noqa: B019 - an order lives as long as its training
    def _lane_plan(self, lane: int, epoch: int) -> tuple[Ints, Ints]:
        """Segments of a lane in this epoch's order, and where each begins in the lane."""
        segments = self.lane_segments(lane)
        if self.shuffle:
            segments = philox(self.seed, 1, epoch, lane).permutation(segments)
        return segments, np.concatenate([[0], np.cumsum(segments[:, 2] - segments[:, 1])])

    def window_at(self, lane: int, offset: int) -> tuple[int, int, int]:
        """Return number, start and stop of the window of a lane that holds ``offset``; the same in every epoch."""
        rows = self.lane_rows(lane)
        early = self.window_rows * lane // self.n_lanes if rows > self.window_rows else 0
        number = (offset + early) // self.window_rows
        start = number * self.window_rows - early
        return number, max(0, start), min(rows, start + self.window_rows)

    def window(self, lane: int, epoch: int, offset: int) -> Window:
        """Return the window of a lane that holds ``offset``, with the order of its rows in this epoch."""
        number, start, stop = self.window_at(lane, offset)
        segments, starts = self._lane_plan(lane, epoch)
        first = np.searchsorted(starts, start, side="right") - 1
        last = np.searchsorted(starts, stop, side="left")
        inside = segments[first:last].copy()
        inside[-1, 2] = inside[-1, 1] + stop - starts[last - 1]
        inside[0, 1] += start - starts[first]
        n = stop - start
        permutation = philox(self.seed, 2, epoch, lane, number).permutation(n) if self.shuffle else np.arange(n)
        return Window(start, inside, permutation)

    def window_places(self, lane: int, window: Window) -> Ints:
        """Positions in the epoch of a window's rows, in the order of their use."""
        return np.arange(window.start, window.stop) * self.n_lanes + lane

    def ranges(self, first_step: int, stop_step: int) -> Iterator[tuple[int, int, int, int]]:
        """Say what global steps ``[first_step, stop_step)`` read: (dataset, epoch, first position, end position)."""
        while first_step < stop_step:
            epoch, step = divmod(first_step, self.steps_per_epoch)
            steps = min(stop_step - first_step, self.steps_per_epoch - step)
            yield 0, epoch, step * self.batch_size, self._end(step + steps)
            first_step += steps

    # -- who reads what ---------------------------------------------------------------------------------------

    def slices(self, global_step: int, rank: int = 0, world_size: int = 1) -> list[Slice]:
        """What a rank reads at a step counted from the start of training, lane by lane.

        Ranks differ by at most one row, and their slices laid end to end are the global batch.
        """
        epoch, step = divmod(global_step, self.steps_per_epoch)
        n, start = self.batch_rows(step), step * self.batch_size
        low, high = share(n, rank, world_size)
        return [Slice(0, epoch, *cut) for cut in self.cuts(start, start + n, low, high)]

    def cuts(self, start: int, stop: int, low: int, high: int) -> list[tuple[int, int, int]]:
        """Rows ``low`` to ``high`` of positions ``[start, stop)`` sorted by lane: (lane, first offset, end offset)."""
        lanes = np.arange(self.n_lanes)
        first = -((lanes - start) // self.n_lanes)  # ceil((start - lane) / n_lanes)
        last = -((lanes - stop) // self.n_lanes)
        ends = np.cumsum(last - first)  # of each lane inside the batch
        begins = ends - (last - first)
        a = np.maximum(begins, low) - begins + first
        b = np.minimum(ends, high) - begins + first
        return [(int(i), int(a[i]), int(b[i])) for i in np.flatnonzero(a < b)]

    def lanes_of(self, rank: int, world_size: int) -> list[int]:
        """Lanes a rank ever reads from. With ``world_size`` dividing ``n_lanes`` and full batches, only its own."""
        period = self.n_lanes // math.gcd(self.n_lanes, self.batch_size)
        steps = {*range(min(period, self.steps_per_epoch)), self.steps_per_epoch - 1} - {-1}
        return sorted({cut.lane for step in steps for cut in self.slices(step, rank, world_size)})

    def groups_of(self, rank: int, world_size: int) -> list[int]:
        """Groups a rank ever reads from, in no particular order of use."""
        segments = [self.lane_segments(lane)[:, 0] for lane in self.lanes_of(rank, world_size)]
        return [int(g) for g in np.unique(np.concatenate(segments))] if segments else []

    def rows(self, epoch: int, step: int, rank: int = 0, world_size: int = 1) -> Ints:
        """Row numbers of one rank's part of a batch, counted over the groups in their given order.

        Slow and plain: what the batches of a rank are checked against, and what an audit counts.
        """
        self._check_step(step)
        parts: list[Ints] = []
        for _, _, lane, first, stop in self.slices(epoch * self.steps_per_epoch + step, rank, world_size):
            while first < stop:
                window = self.window(lane, epoch, first)
                end = min(stop, window.stop)
                parts.append(window.rows(self.group_starts)[first - window.start : end - window.start])
                first = end
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def share(n: int, rank: int, world_size: int) -> tuple[int, int]:
    """Begin and end of a rank's share of ``n`` rows; shares differ by at most one row."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
    return rank * n // world_size, (rank + 1) * n // world_size
