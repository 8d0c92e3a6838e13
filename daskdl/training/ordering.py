"""The sample order of a training, and how many ranks it has rows for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from daskdl.data.order import Ints, SampleOrder
from daskdl.data.virtual import VirtualOrder
from daskdl.errors import DataError
from daskdl.execution import spmd

SHORTEST_BATCH, SHORTEST_PART = 16, 16  # rows, or this part of a batch, where a module cannot be trained on one row


def make_order(
    counts: Sequence[int] | Ints,
    batch_size: int,
    seed: int,
    layout: Mapping[str, Any],
    virtual: int,
    takes_one_row: bool,
) -> SampleOrder:
    """Make the order, the same for every number of ranks; no batch of it is too short for the module.

    Parameters
    ----------
    virtual : int
        Virtual ranks, or 0.
    takes_one_row : bool
        Whether the module can be trained on one row.

    Raises
    ------
    DataError
        A batch, or a virtual rank, would have one row only, whatever is joined.
    """
    least = 1 if takes_one_row else least_rows(batch_size, virtual)
    options = {**layout, "least_rows": least}
    order = (
        VirtualOrder(counts, batch_size, seed, **options, virtual_ranks=virtual)
        if virtual
        else SampleOrder(counts, batch_size, seed, **options)
    )
    needed, shortest = 2 * max(1, virtual), shortest_batch(order)
    if not takes_one_row and shortest < needed:
        raise DataError(
            f"the module cannot be trained on one row, as batch norm cannot; of {order.n_rows:,} rows in batches of "
            f"{batch_size:,} one has {shortest:,}, and "
            + (f"{virtual} virtual ranks need {needed}, two for each. " if virtual else "it takes 2. ")
            + "Use a larger batch_size, more rows, or a layer such as torch.nn.LayerNorm."
        )
    return order


def least_rows(batch_size: int, virtual: int) -> int:
    """Rows of the shortest last batch for a module that cannot be trained on one row; shorter ones are joined.

    Examples
    --------
    >>> [least_rows(b, 0) for b in (4096, 64, 20, 3)]
    [256, 16, 10, 2]
    """
    wanted = max(SHORTEST_BATCH, -(-batch_size // SHORTEST_PART), 2 * virtual)
    return max(2, min(wanted, -(-batch_size // 2)))


def shortest_batch(order: SampleOrder) -> int:
    """Rows of the shortest global batch of an epoch."""
    return min(order.batch_rows(step) for step in {0, order.steps_per_epoch - 1})


def most_ranks(order: SampleOrder, virtual: int, takes_one_row: bool, num_workers: Any) -> int:
    """Ranks that the batches have rows for.

    Raises
    ------
    DataError
        ``num_workers`` asks for more.
    """
    most = min(order.batch_size, order.n_rows, virtual or order.batch_size)
    if not takes_one_row and not virtual:
        most = min(most, shortest_batch(order) // 2)
    if spmd.span_of(num_workers)[0] > most:
        what, rows = f"batches of {most} rows", "none"
        if virtual:
            what = f"{virtual} virtual ranks"
        elif not takes_one_row:
            what, rows = f"batches of {shortest_batch(order)} rows", "one, on which this module cannot be trained"
        raise DataError(
            f"num_workers={num_workers} ranks cannot share {what}: a rank would have {rows}. Use fewer workers or "
            f"{'a larger reproducible=' if virtual else 'a larger batch_size'}."
        )
    return most
