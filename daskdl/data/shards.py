"""What each rank reads, and where it lies: in files, or as blocks in the memory of the worker that reads them."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from distributed import Future, get_worker, wait
from distributed.utils import sync

from daskdl.data.arrays import Block
from daskdl.data.order import SampleOrder
from daskdl.data.reading import Blocks, Encoded, Reader
from daskdl.data.rows import WEIGHT, Encoder, Rows
from daskdl.data.sampling import Weighted, balanced_weights, picks_per_group
from daskdl.data.target import Target


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
        block = sync(self._worker.loop, self._get, self.keys[group])
        yield {name: array[first:stop] for name, array in block.items()}

    async def _get(self, key: str) -> Block:
        """Read the worker's memory on its event loop, where all else does."""
        if key not in self._worker.data:
            raise RuntimeError(f"block {key} is not on {self._worker.address} any more: it was cancelled or moved away")
        block: Block = self._worker.data[key]
        return block

    def used(self, group: int, n: int, epoch: int) -> None:
        """Count rows that have been copied out; gives the block back after the last."""
        if epoch == self.last_epoch:
            with self._counting:
                self.uses[group] -= n
                done = self.uses[group] == 0
            if done:
                self._worker.log_event(self.topic, self.keys[group])


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
        In rank order; empty without a cluster.
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
        self.client, self.source, self.order, self.epochs = rows.client, rows.source, order, epochs
        self.encoder, self.workers, self.sampling = encoder, list(workers), sampling
        self.topic = f"daskdl-blocks-{uuid.uuid4().hex[:8]}"
        self._blocks: list[Any] = []
        if self.source is None:
            n = max(1, len(self.workers))
            owners = owner_of_pieces(rows.counts, [order.groups_of(r, n) for r in range(n)])
            self._blocks = rows.encode(encoder, lambda i: [self.workers[owners[i]]] if self.workers else None)
        self._futures = {block.key: block for block in self._blocks if isinstance(block, Future)}

    def __enter__(self) -> Self:
        if self._futures and self.client is not None:
            self.client.subscribe_topic(self.topic, self._release)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._futures and self.client is not None:
            self.client.unsubscribe_topic(self.topic)
        self._futures.clear()
        self._blocks.clear()

    def readers(self) -> list[Any]:
        """Make the reader of each rank. Blocks that are not where they are read are copied there, and waited for.

        Raises
        ------
        DataError
            A block could not be made; see ``encode_piece``.
        """
        if self.source is not None:
            found: list[Any] = [Encoded(self.source, self.encoder)] * max(1, len(self.workers))
        elif self.workers:
            found = self._held()
        else:
            found = [Blocks(dict(enumerate(self._blocks)))]
        return [self.sampling.applied(reader) for reader in found] if self.sampling else found

    def _held(self) -> list[HeldBlocks]:
        assert self.client is not None
        blocks = list(self._futures.values())
        self._ready(blocks)
        held = self.client.who_has(blocks)
        uses = [rows_per_group(self.order, rank, len(self.workers)) for rank in range(len(self.workers))]
        readers = Counter(group for mine in uses for group in mine)
        plans = []
        for worker, mine in zip(self.workers, uses, strict=True):
            keys = {}
            for group in mine:
                key = self._blocks[group].key
                at_home = readers[group] == 1 and tuple(held[key]) == (worker,)
                keys[group] = key if at_home else self._copy(key, worker)
            plans.append(HeldBlocks(keys, mine, self.epochs - 1, self.topic))
        self._blocks.clear()
        self._ready(list(self._futures.values()))
        read = {key for plan in plans for key in plan.keys.values()}
        for key in [key for key in self._futures if key not in read]:
            del self._futures[key]
        return plans

    def _copy(self, key: str, worker: str) -> str:
        """Lay a block on a worker under a key of its own: of a key on two workers Dask may drop either one."""
        assert self.client is not None
        copy = self.client.submit(_same, self._futures[key], workers=[worker], pure=False)
        self._futures[copy.key] = copy
        return str(copy.key)

    def _ready(self, futures: list[Future]) -> None:
        """Wait until all blocks lie in memory; one that is lost meanwhile is made again by Dask."""
        while pending := [future for future in futures if future.status != "finished"]:
            for future in pending:
                if future.status in ("error", "cancelled", "lost"):
                    raise future.exception() or RuntimeError(f"block {future.key} is {future.status}")
            wait(pending)

    def _release(self, event: tuple[float, str]) -> None:
        """Forget a block that its reader has given back; called on the client's event loop."""
        future = self._futures.pop(event[1], None)
        if future is not None:
            future.release()


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
    """

    counts: list[int]
    picks: list[int]
    totals: list[float]
    seed: int
    class_weights: Any = None

    @classmethod
    def of(cls, rows: Rows, target: Target, seed: int) -> Sampling:
        """By the weight column of the rows if they have one, else so that all classes come up alike."""
        weights = None
        totals = [look.weight for look in rows.looks]
        if rows.weight_name is None:
            if target.classes is None:
                raise ValueError("sampling='balanced' needs classes; for a regression give the name of a weight column")
            names = target.classes.tolist()
            per_group = np.array([[look.label.values.get(name, 0) for name in names] for look in rows.looks])
            weights = balanced_weights(per_group.sum(axis=0))
            totals = (per_group @ weights).tolist()
        picks = picks_per_group(totals, rows.n_rows, seed).tolist()
        return cls(rows.counts, picks, totals, seed, weights)

    def applied(self, reader: Reader) -> Weighted:
        """Make a reader of picks from a reader of rows."""
        return Weighted(reader, self._weigh, self.counts, self.picks, self.totals, self.seed)

    def _weigh(self, block: Block) -> Any:
        return block[WEIGHT] if self.class_weights is None else self.class_weights[block["y"]]


def _same(block: Any) -> Any:
    return block


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
