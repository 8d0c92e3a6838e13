"""How pieces are shared out among ranks."""

from __future__ import annotations

import pytest

from daskdl.data.pieces import balanced


@pytest.mark.parametrize(
    "counts, homes, n_ranks, owners",
    [
        ([10, 10, 10, 10], [0, 0, 1, 1], 2, [0, 0, 1, 1]),  # nothing moves when it lies even
        ([10, 10, 10, 10], [0, 0, 0, 0], 2, [0, 0, 1, 1]),  # all on one worker: half of it moves
        ([100, 1, 1], [0, 0, 0], 2, [0, 1, 1]),
        ([100, 100, 3], [0, 1, 1], 3, [0, 1, 2]),  # no rank goes without
        ([5], [None], 1, [0]),
    ],
)
def test_pieces_stay_where_they_are_unless_that_is_uneven(
    counts: list[int], homes: list[int | None], n_ranks: int, owners: list[int]
) -> None:
    assert balanced(counts, homes, n_ranks) == owners
