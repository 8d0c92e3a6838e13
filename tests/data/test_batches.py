"""Batches against the plain reference, ``SampleOrder.rows``."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdl.data.batches import RankBatches
from daskdl.data.order import SampleOrder
from daskdl.data.reading import Blocks


def make_blocks(counts: list[int]) -> dict[int, dict[str, np.ndarray]]:
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows = [np.arange(a, b) for a, b in pairwise(starts)]
    return {g: {"row": r, "x": np.stack([r, -r], axis=1).astype("f4")} for g, r in enumerate(rows)}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda c: sum(c) > 8),
    st.integers(8, 40),
    st.integers(1, 7),
    st.integers(1, 60),
)
def test_batches_are_the_rows_of_the_order(counts: list[int], batch: int, world: int, window: int) -> None:
    order = SampleOrder(counts, batch, seed=5, window_rows=window)
    blocks = make_blocks(counts)
    for rank in range(world):
        mine = {g: blocks[g] for g in order.groups_of(rank, world)}
        found = list(RankBatches(order, Blocks(mine), rank, world, epochs=2))
        assert len(found) == 2 * order.steps_per_epoch
        for i, one in enumerate(found):
            epoch, step = divmod(i, order.steps_per_epoch)
            expected = order.rows(epoch, step, rank, world)
            assert np.array_equal(one.arrays["row"], expected)
            assert np.array_equal(one.arrays["x"][:, 0], expected)
            assert (one.epoch, one.step, one.n_rows) == (epoch, i, len(expected))


@pytest.mark.parametrize("stop", [0, 1, 7, 8, 15])
def test_resuming_anywhere_repeats_and_loses_nothing(stop: int) -> None:
    counts = [30, 0, 33]
    order = SampleOrder(counts, 8, seed=2)
    whole = [b.arrays["row"].tolist() for b in RankBatches(order, Blocks(make_blocks(counts)), 1, 2, epochs=2)]
    first = RankBatches(order, Blocks(make_blocks(counts)), 1, 2, epochs=2)
    seen = [b.arrays["row"].tolist() for _, b in zip(range(stop), first, strict=False)]
    second = RankBatches(order, Blocks(make_blocks(counts)), 1, 2, epochs=2)
    second.load_state_dict(first.state_dict())
    assert len(second) == len(whole) - stop
    assert seen + [b.arrays["row"].tolist() for b in second] == whole


@pytest.mark.parametrize("world_size", [2, 3, 8, 11])
def test_resuming_at_a_last_batch_in_which_a_rank_has_no_rows(world_size: int) -> None:
    counts = [5, 4]
    order = SampleOrder(counts, 8, seed=2, window_rows=3)  # the last batch has one row
    for rank in range(world_size):
        blocks = {g: block for g, block in make_blocks(counts).items() if g in order.groups_of(rank, world_size)}
        reader = Blocks(blocks if blocks else make_blocks(counts))
        whole = [b.arrays for b in RankBatches(order, reader, rank, world_size, epochs=3)]
        for stop in (1, 3, 5):
            found = [b.arrays for b in RankBatches(order, reader, rank, world_size, 3, stop)]
            assert [a["row"].tolist() for a in found] == [a["row"].tolist() for a in whole[stop:]]
            assert [a["x"].shape for a in found] == [a["x"].shape for a in whole[stop:]]


def test_a_place_of_another_seed_is_refused() -> None:
    batches = RankBatches(SampleOrder([4], 2, seed=1), Blocks(make_blocks([4])), 0, 1, epochs=1)
    with pytest.raises(ValueError, match="belongs to seed 2, the batches have seed 1"):
        batches.load_state_dict({"step": 1, "seed": 2})


OTHER_ORDERS = [
    {"counts": [4, 8]},
    {"counts": [6, 6]},
    {"counts": [6, 4, 2]},
    {"batch_size": 5},
    {"lanes": 2},
    {"window_rows": 4},
    {"shuffle": False},
    {"drop_last": True},
]


def of(**change: object) -> RankBatches:
    order = SampleOrder(**{"counts": [8, 4], "batch_size": 4, "lanes": 3, **change})  # type: ignore[arg-type]
    return RankBatches(order, Blocks(make_blocks(list(order.counts))), 0, 1, epochs=1)


@pytest.mark.parametrize("change", OTHER_ORDERS, ids=str)
def test_a_place_of_another_order_is_refused(change: dict) -> None:
    batches = of()
    with pytest.raises(ValueError, match=r"this place belongs to the order of 12 rows .* the batches have that of 12"):
        batches.load_state_dict({**of(**change).state_dict(), "step": 1})
    assert batches.next_step == 0


def test_a_place_of_the_same_order_is_taken_and_so_is_an_old_one_that_does_not_say() -> None:
    state = json.loads(json.dumps(of(counts=np.array([8, 4])).state_dict()))
    for place in ({**state, "step": 2}, {"step": 2, "seed": 0}):
        batches = of()
        batches.load_state_dict(place)
        assert batches.next_step == 2
