"""Loading the windows of one rank ahead of need: each in one piece, its rows already in the order of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from daskdl.data.arrays import Array, Block, Ints, alike, inverse, join, n_rows, scatter, take
from daskdl.data.audit import hashes
from daskdl.data.order import SampleOrder, Slice, Window
from daskdl.data.sources.base import WHOLE_GROUP_BYTES, Chunk, Source
from daskdl.errors import DataError

USE = "__use__"  # the field that says for the audit which row stands where

Key = tuple[int, int, int, int]  # dataset, epoch, lane, number of the window


class Reader(Protocol):
    """Gives the encoded rows of groups.

    One that has a method ``open()`` is opened in the task that will read, before it; one that has
    ``used(group, n, epoch)`` is told when rows it gave have been copied, and one with ``where_row(group, row)`` is
    asked for the name of a row that turns out to be broken.
    """

    def read(self, group: int, first: int, stop: int, epoch: int) -> Iterator[Block]:
        """Yield rows ``first`` to ``stop`` of a group in their order, in blocks of any size."""
        ...


def open_reader(reader: Reader) -> Reader:
    """Let a reader find what it needs in the process and thread that will use it."""
    if hasattr(reader, "open"):
        reader.open()
    return reader


def tell_used(reader: Reader, window: Window, epoch: int) -> None:
    """Tell a reader that wants to know that the rows of a window have been copied."""
    if hasattr(reader, "used"):
        for group, first, stop in window.segments.tolist():
            reader.used(group, stop - first, epoch)


def row_named(reader: Reader, group: int, row: int) -> str:
    """Say where a row comes from, as far as its reader knows."""
    return str(reader.where_row(group, row)) if hasattr(reader, "where_row") else f"row {row:,} of partition {group:,}"


class Blocks:
    """Reader of blocks in memory."""

    def __init__(self, blocks: Mapping[int, Block]) -> None:
        self.blocks = blocks

    def read(self, group: int, first: int, stop: int, epoch: int) -> Iterator[Block]:
        """Yield a view."""
        yield {name: array[first:stop] for name, array in self.blocks[group].items()}


class Encoded:
    """Reader of a source, whose chunks become blocks by ``encode(chunk)``."""

    def __init__(self, source: Source, encode: Callable[[Chunk], Block]) -> None:
        self.source, self.encode = source, encode

    def read(self, group: int, first: int, stop: int, epoch: int) -> Iterator[Block]:
        """Yield the blocks of a source's chunks; a small group is read at once, which takes less than an open file."""
        blocks = self._blocks(group, first, stop)
        if (stop - first) * self.source.row_bytes > WHOLE_GROUP_BYTES:
            yield from blocks
            return
        ready = deque(blocks)
        while ready:
            yield ready.popleft()

    def where_row(self, group: int, row: int) -> str:
        """Say which row of the source it is."""
        return self.source.where_row(group, row)

    def _blocks(self, group: int, first: int, stop: int) -> Iterator[Block]:
        for chunk in self.source.read(group, first, stop):
            yield self.encode(chunk)


class _Stream:
    """Goes through a lane piece by piece, keeping its place in a group between two windows."""

    def __init__(self, reader: Reader, counts: np.ndarray) -> None:
        self.reader, self.counts = reader, counts
        self.place = (-1, -1, -1)  # epoch, group, next row
        self.blocks: Iterator[Block] = iter(())
        self.left: Block | None = None

    def read(self, epoch: int, group: int, first: int, stop: int) -> Iterator[Block]:
        if self.place != (epoch, group, first):
            self.blocks, self.left = self.reader.read(group, first, int(self.counts[group]), epoch), None
        while first < stop:
            block = self.left if self.left is not None else self._next(group, first)
            n = min(n_rows(block), stop - first)
            self.left = {k: v[n:] for k, v in block.items()} if n < n_rows(block) else None
            first += n
            yield block if self.left is None else {k: v[:n] for k, v in block.items()}
        self.place = (epoch, group, first)

    def _next(self, group: int, row: int) -> Block:
        try:
            return next(self.blocks)
        except StopIteration:
            raise DataError(
                f"group {group} ended before row {row}, of {self.counts[group]:,} that were counted: the data has "
                "changed since. Make the source anew."
            ) from None

    def close(self) -> None:
        """Let go of the group that is being read, and with it of its file."""
        self.blocks, self.left = iter(()), None


@dataclass
class Plan:
    """What a batch is made of.

    Attributes
    ----------
    pieces : list of (Key, int, int)
        Window, first and end row in it; laid end to end they are the batch.
    starts : dict of Key to int
        Where in their lane these windows begin.
    over : set of Key
        Windows that no later batch reads.
    """

    step: int
    pieces: list[tuple[Key, int, int]] = field(default_factory=list)
    starts: dict[Key, int] = field(default_factory=dict)
    over: set[Key] = field(default_factory=set)


class Windows:
    """The windows of one rank, loaded by the threads of a pool in the order in which they will be needed.

    A lane's next window waits for the one before it, so files are read from front to back. No more than ``ahead``
    windows are loaded before their time: what is held at once is one window per lane, and these.
    """

    def __init__(self, parts: Sequence[SampleOrder], readers: Sequence[Reader], pool: Executor, ahead: int) -> None:
        self.parts, self.readers, self.pool, self.ahead = parts, readers, pool, ahead
        self._offsets = np.concatenate([[0], np.cumsum([part.n_rows for part in parts])])
        self._streams: dict[tuple[int, int], tuple[_Stream, Future[Any] | None]] = {}
        self._loading: dict[Key, Future[dict[str, Array]]] = {}
        self._open: dict[tuple[int, int], Key] = {}  # the window each lane has come to
        self._queue: deque[tuple[Key, int]] = deque()  # planned, not asked for yet
        self._early: set[Key] = set()  # asked for, not used yet
        self._window_rows = max(min(part.window_rows, part.lane_rows(0)) for part in parts)
        self._spare: dict[tuple[Any, ...], list[Any]] = {}
        self._error: BaseException | None = None  # of the first load that failed: no other is begun after it

    def plan(self, step: int, cuts: list[Slice]) -> Plan:
        """Say which rows of which windows a batch is made of. Steps are planned in their order."""
        plan = Plan(step)
        for dataset, epoch, lane, first, stop in cuts:
            part = self.parts[dataset]
            while first < stop:
                number, start, end = part.window_at(lane, first)
                key = (dataset, epoch, lane, number)
                before = self._open.get((dataset, lane))
                if before != key:
                    self._queue.append((key, first))
                    self._open[dataset, lane] = key
                    plan.over |= {before} if before else set()
                plan.pieces.append((key, first - start, min(stop, end) - start))
                plan.starts[key] = start
                if stop >= end:  # at the end of an epoch that is every lane's: they go before the next ones come
                    plan.over.add(key)
                first = min(stop, end)
        return plan

    @property
    def wants_plans(self) -> bool:
        """Whether there is room to load more than is planned."""
        return not self._queue and len(self._early) < self.ahead

    def load(self, plan: Plan | None = None) -> None:
        """Ask for the windows of a plan, and for as many of the next ones as there is room for."""
        if not self._queue:
            return
        needed = {key for key, _, _ in plan.pieces} - self._loading.keys() if plan else set()
        while self._queue and (needed or len(self._early) < self.ahead):
            key, offset = self._queue.popleft()
            needed.discard(key)
            stream, before = self._streams.get((key[0], key[2])) or (self._new_stream(key[0]), None)
            future = self._loading[key] = self.pool.submit(self._load, key, offset, stream, before)
            self._streams[key[0], key[2]] = (stream, future)
            self._early.add(key)

    def _new_stream(self, dataset: int) -> _Stream:
        return _Stream(self.readers[dataset], self.parts[dataset].row_counts)

    def _load(self, key: Key, offset: int, stream: _Stream, before: Future[Any] | None) -> dict[str, Array]:
        if before is not None:
            before.result()
        if self._error is not None:
            raise self._error
        try:
            return self._loaded(key, offset, stream)
        except BaseException as error:
            self._error = error
            raise

    def _loaded(self, key: Key, offset: int, stream: _Stream) -> dict[str, Array]:
        dataset, epoch, lane, _ = key
        part = self.parts[dataset]
        window = part.window(lane, epoch, offset)
        blocks: list[Block] = []
        for group, first, stop in window.segments.tolist():
            blocks += stream.read(epoch, group, first, stop)
        places = inverse(window.permutation)
        ordered = {name: self._ordered([block[name] for block in blocks], name, window, places) for name in blocks[0]}
        del blocks
        tell_used(self.readers[dataset], window, epoch)
        rows = window.rows(part.group_starts) + self._offsets[dataset]
        ordered[USE] = hashes(part.window_places(lane, window), rows)
        return ordered

    def _ordered(self, parts: list[Array], name: str, window: Window, places: Ints) -> Array:
        """Rows of a window in their order, in memory that another one has left: else the heap gets holes."""
        if not alike(parts):
            return take(join(parts), window.permutation)
        arrays: list[npt.NDArray[Any]] = parts  # type: ignore[assignment]
        first = arrays[0]
        spare = self._spare.setdefault((name, first.dtype.str, first.shape[1:]), [])
        buffer = spare.pop() if spare else np.empty((self._window_rows, *first.shape[1:]), first.dtype)
        return scatter(arrays, places, buffer[: len(places)])

    def _let_go(self, key: Key) -> None:
        self._early.discard(key)
        for name, array in (self._loading.pop(key).result() if key in self._loading else {}).items():
            if isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray):
                self._spare[name, array.dtype.str, array.shape[1:]].append(array.base)

    def where_row(self, plan: Plan, row: int) -> str:
        """Say where a row of a batch comes from."""
        for key, first, stop in plan.pieces:
            if row < stop - first:
                dataset, epoch, lane, _ = key
                group, at = self.parts[dataset].window(lane, epoch, plan.starts[key]).place(first + row)
                return row_named(self.readers[dataset], group, at)
            row -= stop - first
        raise IndexError(f"row {row} is not in the batch")

    def close(self) -> None:
        """Let go of what is open, when no thread reads any more: an error's traceback may keep this object."""
        for stream, _ in self._streams.values():
            stream.close()

    def read(self, plan: Plan) -> dict[str, Array]:
        """Wait for the windows of a plan and lay its rows end to end."""
        self.load(plan)
        pieces = [(self._loading[key].result(), first, stop) for key, first, stop in plan.pieces]
        self._early.difference_update(key for key, _, _ in plan.pieces)
        batch = {name: join([rows[name][first:stop] for rows, first, stop in pieces]) for name in pieces[0][0]}
        for key in plan.over:
            self._let_go(key)
        return batch
