"""Whole blocks, shared out among ranks, for a training that needs all rows at once: in the memory of the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from distributed import get_worker, wait

from daskdl.data.encoders import Encoder
from daskdl.data.held import check_there, laid, read_held
from daskdl.data.rows import Rows
from daskdl.waiting import Waiting, as_they_come

LOST = ("lost", "cancelled")


@dataclass(frozen=True)
class HeldPieces:
    """Reader of blocks that lie in the memory of this worker, or on its disk if Dask has spilled them.

    Attributes
    ----------
    keys : list of str
        Dask keys.
    """

    keys: list[str]

    def __iter__(self) -> Iterator[Any]:
        """Yield one block after the other, for the calling task."""
        worker = get_worker()
        for key in self.keys:
            yield read_held(worker, key)


class Pieces:
    """The blocks of all pieces that have rows, each on one worker; making it begins to encode them.

    Parameters
    ----------
    rows : Rows
    encoder : callable
    workers : list of str
        In rank order; empty without a cluster.
    """

    def __init__(self, rows: Rows, encoder: Encoder, workers: Sequence[str]) -> None:
        self.rows, self.client, self.encoder = rows, rows.client, encoder
        self.say: Callable[[str], None] | None = None  # takes what is waited for
        self._filled = [i for i, n in enumerate(rows.counts) if n]
        homes: dict[int, int | None] = {}
        if self.client is not None and rows.source is None:
            for _ in as_they_come(self.client, rows.pieces, "the partitions of the frame"):
                pass
            homes = self._homes(dict(enumerate(rows.pieces)), workers)
        owners = self._owners(homes, workers)
        self._blocks = self._encoded([workers[owner] for owner in owners] if workers else [])

    def close(self) -> None:
        """Free the memory of the workers."""
        self._blocks.clear()

    def readers(self, workers: Sequence[str]) -> list[Any]:
        """Make the reader of each rank: iterable, again and again. Waits until all blocks lie where they are read.

        May be called again for other workers: blocks are shared out evenly among them, and those that were lost are
        made again.

        Raises
        ------
        DataError
            A block could not be made; see ``encode_piece``.
        WorkerLost
            One of the workers is gone.
        """
        if self.client is None:
            return [list(self._blocks.values())]
        self._settle(workers)
        held = self.client.who_has(list(self._blocks.values()))
        owners = self._owners(self._homes(self._blocks, workers), workers)
        for i, block in self._blocks.items():
            worker = workers[owners[i]]
            if tuple(held.get(block.key, ())) != (worker,):  # of one on two workers Dask may drop either: a new key
                self._blocks[i] = laid(self.client, block, worker)
        self._wait(workers)
        if any(block.status in LOST for block in self._blocks.values()):
            return self.readers(workers)  # moved from a worker that went meanwhile, and was not one of these
        keys: list[list[str]] = [[] for _ in workers]
        for i, block in self._blocks.items():
            keys[owners[i]].append(str(block.key))
        return [HeldPieces(mine) for mine in keys]

    def _encoded(self, places: list[str], only: list[int] | None = None) -> dict[int, Any]:
        """Encode pieces, each on its worker."""
        numbers = only if only is not None else range(len(self.rows.counts))
        blocks = self.rows.encode(self.encoder, lambda i: [places[i]] if places else None, only)
        return {i: block for i, block in zip(numbers, blocks, strict=True) if self.rows.counts[i]}

    def _settle(self, workers: Sequence[str]) -> None:
        """Wait until every block lies on some worker; make those again that are lost."""
        self._wait(workers)
        while lost := [i for i in self._filled if self._blocks[i].status in LOST]:
            left = {i: block for i, block in self._blocks.items() if i not in lost}
            owners = self._owners(self._homes(left, workers), workers)
            self._blocks |= self._encoded([workers[owner] for owner in owners], lost)
            self._wait(workers)

    def _homes(self, pieces: dict[int, Any], workers: Sequence[str]) -> dict[int, int | None]:
        """Rank on whose worker each of these lies."""
        assert self.client is not None
        held = self.client.who_has(list(pieces.values()))
        return {
            i: next((workers.index(a) for a in held.get(piece.key, ()) if a in workers), None)
            for i, piece in pieces.items()
        }

    def _owners(self, homes: dict[int, int | None], workers: Sequence[str]) -> list[int]:
        """Rank for each piece, given those that lie on a worker already."""
        counts = self.rows.counts
        return balanced(counts, [homes.get(i) for i in range(len(counts))], max(1, len(workers)))

    def _wait(self, workers: Sequence[str]) -> None:
        """Wait until each block lies in memory or is lost."""
        assert self.client is not None
        waiting = Waiting(self.client, "the rows to lie where they are read", self.say)
        while pending := [b for b in self._blocks.values() if b.status not in ("finished", *LOST)]:
            for block in pending:
                if block.status == "error":
                    raise block.exception()
            check_there(self.client, workers)
            with suppress(TimeoutError, CancelledError):
                wait(pending, timeout=1.0)
            waiting.look(pending)


def balanced(counts: list[int], homes: list[int | None], n_ranks: int) -> list[int]:
    """Give each piece to a rank: where it lies, as long as that rank stays within a tenth of an equal share.

    Every rank gets a piece with rows, if there are as many.
    """
    load = [0] * n_ranks
    owners = [0] * len(counts)
    most = 1.1 * sum(counts) / n_ranks
    for piece in sorted(range(len(counts)), key=lambda p: -counts[p]):
        home = homes[piece]
        stays = home is not None and load[home] + counts[piece] <= most
        owners[piece] = home if stays and home is not None else load.index(min(load))
        load[owners[piece]] += counts[piece]
    for rank in (r for r in range(n_ranks) if not load[r]):
        giver = max(range(n_ranks), key=lambda r: sum(o == r and n > 0 for o, n in zip(owners, counts, strict=True)))
        owners[min((p for p, o in enumerate(owners) if o == giver and counts[p]), key=lambda p: counts[p])] = rank
    return owners
