"""What each rank reads, and where it lies: in files, or as blocks in the memory of the worker that reads them."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from distributed import Future, get_worker, wait

from daskdl.data.arrays import Block
from daskdl.data.encoders import Encoder
from daskdl.data.held import check_there, laid, read_held
from daskdl.data.order import SampleOrder
from daskdl.data.reading import Blocks, Encoded, Reader
from daskdl.data.rows import Rows
from daskdl.data.sampling import ByClass, ByWeight, Weighted, balanced_weights, picks_per_group
from daskdl.data.schema.target import Target
from daskdl.waiting import Waiting


class HeldBlocks:
    """Reader of blocks that lie in the memory of this worker, or on its disk if Dask has spilled them.

    Parameters
    ----------
    keys : dict of int to str
        Dask key of each group's block.
    uses : dict of int to int
        Rows of each group that this rank reads in an epoch.
    last_epoch : int
        In it, a block is given back when its last row has been read.
    topic : str
        On which the client is told so.
    """

    def __init__(self, keys: Mapping[int, str], uses: Mapping[int, int], last_epoch: int, topic: str) -> None:
        self.keys, self.uses, self.last_epoch, self.topic = dict(keys), dict(uses), last_epoch, topic
        self._worker: Any = None

    def open(self) -> None:
        """Find the worker of the calling task; threads that are no tasks cannot."""
        self._worker, self._counting = get_worker(), threading.Lock()

    def read(self, group: int, first: int, stop: int, epoch: int) -> Iterator[Block]:
        """Yield a view of the block."""
        block = read_held(self._worker, self.keys[group])
        yield {name: array[first:stop] for name, array in block.items()}

    def used(self, group: int, n: int, epoch: int) -> None:
        """Count rows that have been copied out; gives the block back after the last."""
        if epoch == self.last_epoch:
            with self._counting:
                self.uses[group] -= n
                done = self.uses[group] == 0
            if done:
                self._worker.log_event(self.topic, self.keys[group])


class _Hearing:
    """Handler of a topic that can be emptied: Dask keeps handlers, and calls them, after ``unsubscribe_topic``."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell: Callable[[str], None] | None = tell

    def __call__(self, event: tuple[float, str]) -> None:
        if (tell := self.tell) is not None:
            tell(event[1])


class Shards:
    """What each rank reads: a reader per rank, and the blocks these need laid where they are read.

    A source is read by the ranks themselves. The blocks of a frame are encoded into worker memory, and each is
    released when its last reader has done with it in the last epoch. Making it begins to encode; leaving it as a
    context frees what is left.

    Parameters
    ----------
    rows : Rows
    encoder : callable
    order : SampleOrder
        Over the rows, or over the picks of ``sampling``.
    epochs : int
        In the last of which blocks are released; 0 keeps them to the end.
    workers : list of str
        On which blocks are encoded, in rank order; empty without a cluster.
    sampling : Sampling, optional
    """

    def __init__(
        self,
        rows: Rows,
        encoder: Encoder,
        order: SampleOrder,
        epochs: int,
        workers: Sequence[str],
        sampling: Sampling | None = None,
    ) -> None:
        self.rows, self.client, self.order, self.epochs = rows, rows.client, order, epochs
        self.encoder, self.sampling = encoder, sampling
        self.say: Callable[[str], None] | None = None  # takes what is waited for
        self._topic = ""
        self._hearing: _Hearing | None = None
        self._blocks: dict[int, Any] = {}  # of each group, not yet given back
        self._copies: dict[tuple[int, str], Future] = {}  # of a group on a worker: blocks of their own for one rank
        if rows.source is None:
            self._encode(workers)

    def _encode(self, workers: Sequence[str], only: Sequence[int] | None = None) -> None:
        n = max(1, len(workers))
        owners = owner_of_pieces(self.rows.counts, [self.order.groups_of(r, n) for r in range(n)])
        blocks = self.rows.encode(self.encoder, lambda i: [workers[owners[i]]] if workers else None, only)
        self._blocks |= dict(zip(only if only is not None else range(len(blocks)), blocks, strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listen(None)
        self._copies.clear()
        self._blocks.clear()

    def readers(self, workers: Sequence[str]) -> list[Any]:
        """Make the reader of each rank. Blocks that are not where they are read are brought there, and waited for.

        May be called again for other workers, fewer or more: a copy that is left on one of them serves, and what was
        lost or given back is made again. Readers of before must not be used any more.

        Raises
        ------
        DataError
            A block could not be made; see ``encode_piece``.
        WorkerLost
            One of the workers is gone.
        """
        if self.rows.source is not None:
            found: list[Any] = [Encoded(self.rows.source, self.encoder)] * max(1, len(workers))
        elif workers:
            found = self._held(list(workers))
        else:
            found = [Blocks(self._blocks)]
        return [self.sampling.applied(reader) for reader in found] if self.sampling else found

    def _held(self, workers: list[str]) -> list[HeldBlocks]:
        assert self.client is not None
        self._listen(f"daskdl-blocks-{uuid.uuid4().hex[:8]}")  # what readers of before still say is not for these
        uses = [rows_per_group(self.order, rank, len(workers)) for rank in range(len(workers))]
        readers = Counter(group for mine in uses for group in mine)
        left = {at: c for at, c in self._copies.items() if c.status == "finished" and at[1] in workers}
        copied = {group: copy for (group, _), copy in left.items()}
        self._blocks = {g: block for g, block in self._blocks.items() if block.status not in ("lost", "cancelled")}
        if lost := [group for group in readers if group not in self._blocks and group not in copied]:
            self._encode(workers, lost)
        found = copied | self._blocks
        self._ready(found.values(), workers)
        held = self.client.who_has(list(found.values()))
        bases, self._blocks, self._copies, plans = self._blocks, {}, {}, []
        for worker, mine in zip(workers, uses, strict=True):
            keys = {}
            for group in mine:
                block, own = found[group], left.get((group, worker))
                if readers[group] > 1 or tuple(held[block.key]) != (worker,):
                    # what others copy from is on their workers too, and no block to read
                    block = own if own not in (None, block) else laid(self.client, block, worker)
                if block is bases.get(group):
                    self._blocks[group] = block
                else:
                    self._copies[group, worker] = block
                keys[group] = str(block.key)
            plans.append(HeldBlocks(keys, mine, self.epochs - 1, self._topic))
        self._ready(self._copies.values(), workers)
        return plans

    def _listen(self, topic: str | None) -> None:
        """Hear which blocks are given back on a topic, and on no other."""
        if self.client is None:
            return
        if self._hearing is not None:
            self._hearing.tell = None
            self.client.unsubscribe_topic(self._topic)
        self._topic, self._hearing = topic or "", _Hearing(self._release) if topic else None
        if self._hearing is not None:
            self.client.subscribe_topic(self._topic, self._hearing)

    def _ready(self, blocks: Iterable[Future], workers: list[str]) -> None:
        """Wait until blocks lie in memory; one that is lost meanwhile is made again by Dask."""
        assert self.client is not None
        waiting = Waiting(self.client, "the rows to lie where they are read", self.say)
        while pending := [block for block in blocks if block.status != "finished"]:
            check_there(self.client, workers)
            for block in pending:
                if block.status in ("error", "cancelled"):
                    raise block.exception() or RuntimeError(f"block {block.key} is {block.status}")
            with suppress(TimeoutError, CancelledError):
                wait(pending, timeout=1.0)
            waiting.look(pending)

    def _release(self, key: str) -> None:
        """Forget a block that its reader has given back; called on the client's event loop."""
        blocks: Iterable[dict[Any, Future]] = (self._blocks, self._copies)
        for held in blocks:
            for at in [at for at, block in held.items() if block.key == key]:
                held.pop(at).release()


@dataclass(frozen=True)
class Sampling:
    """How often rows are used, by weight.

    Attributes
    ----------
    counts, picks : list of int
        Rows of each group, and how many are picked from it in an epoch.
    totals : list of float
        Sum of the weights of each group.
    class_weights : array of shape (n_classes,), optional
        Weight of a row by its class; without, each row has its own.
    class_rows : array of shape (n_groups, n_classes), optional
        Rows of each class in each group.
    """

    counts: list[int]
    picks: list[int]
    totals: list[float]
    seed: int
    class_weights: Any = None
    class_rows: Any = None

    @classmethod
    def of(cls, rows: Rows, target: Target, seed: int) -> Sampling:
        """By the weight column of the rows if they have one, else so that all classes come up alike."""
        weights = per_group = None
        totals = [look.weight for look in rows.looks]
        if rows.weight_name is None:
            if target.classes is None:
                raise ValueError("sampling='balanced' needs classes; for a regression give the name of a weight column")
            names = target.classes.tolist()
            per_group = np.array([[look.label.values.get(name, 0) for name in names] for look in rows.looks])
            weights = balanced_weights(per_group.sum(axis=0))
            totals = (per_group @ weights).tolist()
        picks = picks_per_group(totals, rows.n_rows, seed).tolist()
        return cls(rows.counts, picks, totals, seed, weights, per_group)

    def applied(self, reader: Reader) -> Weighted:
        """Make a reader of picks from a reader of rows."""
        return Weighted(reader, self._line, self.counts, self.picks, self.totals, self.seed)

    def _line(self, group: int) -> ByWeight | ByClass:
        return ByWeight() if self.class_weights is None else ByClass(self.class_weights, self.class_rows[group])


def rows_per_group(order: SampleOrder, rank: int, world_size: int) -> dict[int, int]:
    """Rows that a rank reads of each group in an epoch: those of all its lanes."""
    found: dict[int, int] = {}
    for lane in order.lanes_of(rank, world_size):
        for group, first, stop in order.lane_segments(lane).tolist():
            found[group] = found.get(group, 0) + stop - first
    return found


def owner_of_pieces(counts: Sequence[int], groups: Sequence[Sequence[int]]) -> list[int]:
    """Rank that should hold each piece, given the pieces each rank reads; shared ones go to the emptier rank."""
    readers: dict[int, list[int]] = {}
    for rank, mine in enumerate(groups):
        for piece in mine:
            readers.setdefault(piece, []).append(rank)
    load = [0] * len(groups)
    owners = [0] * len(counts)
    for piece in sorted(range(len(counts)), key=lambda p: len(readers.get(p, ()))):
        owners[piece] = min(readers.get(piece, range(len(groups))), key=lambda r: load[r])
        load[owners[piece]] += counts[piece]
    return owners
