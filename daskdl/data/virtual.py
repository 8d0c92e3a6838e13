"""The sample order for a number of ranks that stays the same, of which each real rank does several."""

from __future__ import annotations

from dataclasses import dataclass

from daskdl.data.order import SampleOrder, Slice, share

VIRTUAL_RANKS = 8


@dataclass(frozen=True, eq=False)
class VirtualOrder(SampleOrder):
    """A sample order whose global batches are cut for ``virtual_ranks``, whatever the number of ranks.

    A rank reads the rows of a run of virtual ranks, one after the other, so what a virtual rank computes is the same
    wherever it is computed.

    Parameters
    ----------
    virtual_ranks : int
        The most ranks there can be.

    Examples
    --------
    >>> order = VirtualOrder([5, 7], batch_size=6, virtual_ranks=4)
    >>> order.pieces(step=0, rank=1, world_size=2)
    [(2, 1), (3, 2)]
    """

    virtual_ranks: int = VIRTUAL_RANKS

    def slices(self, global_step: int, rank: int = 0, world_size: int = 1) -> list[Slice]:
        """What a rank reads at a step, virtual rank by virtual rank; see ``SampleOrder.slices``."""
        n = self.virtual_ranks
        return [
            cut
            for v in range(*share(n, rank, world_size))
            for cut in super(VirtualOrder, self).slices(global_step, v, n)
        ]

    def pieces(self, step: int, rank: int, world_size: int) -> list[tuple[int, int]]:
        """Virtual ranks that a rank does at a step, and how many rows each has: some may have none."""
        n_rows, n = self.batch_rows(step % self.steps_per_epoch), self.virtual_ranks
        shares = [(v, share(n_rows, v, n)) for v in range(*share(n, rank, world_size))]
        return [(v, stop - first) for v, (first, stop) in shares]
