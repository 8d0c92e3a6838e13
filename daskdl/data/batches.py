"""The batches of one rank, read from blocks of rows in the sample order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daskdl.data.order import SampleOrder, Window

Array = npt.NDArray[np.generic]
Block = Mapping[str, Array]  # field name -> array whose first axis is rows; every field has as many rows


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    Attributes
    ----------
    arrays : dict of str to array of shape (n_rows, ...)
        The fields of the blocks, for this rank's rows.
    epoch, step : int
        Epoch, and step counted from the start of training.
    n_rows, n_global : int
        Rows of this rank and of the whole batch.
    """

    arrays: dict[str, Array]
    epoch: int
    step: int
    n_rows: int
    n_global: int


class _Lane:
    """Reads one lane in one epoch, keeping only the window it is in."""

    def __init__(self, order: SampleOrder, blocks: Mapping[int, Block], lane: int, epoch: int) -> None:
        self.order, self.blocks, self.lane, self.epoch = order, blocks, lane, epoch
        self.window: Window | None = None
        self.rows: dict[str, Array] = {}

    def _open(self, offset: int) -> Window:
        self.window = self.order.window(self.lane, self.epoch, offset)
        pieces = [
            {name: array[first:stop] for name, array in self.blocks[int(group)].items()}
            for group, first, stop in self.window.segments
        ]
        # one piece is a view of its block; several small ones are laid end to end
        self.rows = pieces[0] if len(pieces) == 1 else {k: np.concatenate([p[k] for p in pieces]) for k in pieces[0]}
        return self.window

    def read(self, first: int, stop: int, out: dict[str, Array], at: int) -> int:
        """Write rows ``first`` to ``stop`` of the lane to ``out`` from row ``at`` on; return where they end."""
        while first < stop:
            window = self.window
            if window is None or not window.start <= first < window.stop:
                window = self._open(first)
            end = min(stop, window.stop)
            index = window.permutation[first - window.start : end - window.start]
            for name, rows in self.rows.items():
                np.take(rows, index, axis=0, out=out[name][at : at + len(index)], mode="clip")
            at, first = at + len(index), end
        return at


class RankBatches:
    """Iterable over the batches of one rank; its place is two integers, so it resumes anywhere.

    Parameters
    ----------
    order : SampleOrder
    blocks : mapping of int to Block
        At least the groups ``order.groups_of(rank, world_size)``.
    rank, world_size : int
    epochs : int
    start : int
        Global step to begin at.

    Examples
    --------
    >>> order = SampleOrder([3, 3], batch_size=4, seed=0)
    >>> blocks = {g: {"row": np.arange(3) + 3 * g} for g in (0, 1)}
    >>> [batch.n_rows for batch in RankBatches(order, blocks, rank=0, world_size=2, epochs=1)]
    [2, 1]
    """

    def __init__(
        self, order: SampleOrder, blocks: Mapping[int, Block], rank: int, world_size: int, epochs: int, start: int = 0
    ) -> None:
        self.order, self.blocks, self.epochs = order, blocks, epochs
        self.rank, self.world_size = rank, world_size
        self.next_step = start

    def __len__(self) -> int:
        return self.epochs * self.order.steps_per_epoch - self.next_step

    def state_dict(self) -> dict[str, int]:
        """Return the place in the order: the global step of the next batch, and the seed it belongs to."""
        return {"step": self.next_step, "seed": self.order.seed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a place; refuses one that belongs to another seed, where rows would repeat or be left out."""
        if state["seed"] != self.order.seed:
            raise ValueError(
                f"this place belongs to seed {state['seed']}, the batches have seed {self.order.seed}: rows would be "
                "used twice or never. Make the batches with the seed of the run that is continued."
            )
        self.next_step = state["step"]

    def __iter__(self) -> Iterator[Batch]:
        lanes: dict[int, _Lane] = {}
        lanes_epoch = -1
        for global_step, epoch, step in self.order.steps(self.epochs, self.next_step):
            if epoch != lanes_epoch:
                lanes, lanes_epoch = {}, epoch
            self.next_step = global_step + 1
            yield self._read(lanes, epoch, step, global_step)

    def _read(self, lanes: dict[int, _Lane], epoch: int, step: int, global_step: int) -> Batch:
        slices = self.order.slices(step, self.rank, self.world_size)
        n = sum(stop - first for _, first, stop in slices)
        out = {name: np.empty((n, *a.shape[1:]), a.dtype) for name, a in self._fields().items()}
        at = 0
        for lane, first, stop in slices:
            reader = lanes.get(lane) or lanes.setdefault(lane, _Lane(self.order, self.blocks, lane, epoch))
            at = reader.read(first, stop, out, at)
        return Batch(out, epoch, global_step, n, self.order.batch_rows(step))

    def _fields(self) -> Block:
        return next(iter(self.blocks.values()), {})
