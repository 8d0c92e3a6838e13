"""The sample order: what it promises, for any row counts, batch size, seed and number of ranks."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdl.data.order import SampleOrder, choose_lanes

orders = st.builds(
    SampleOrder,
    st.lists(st.integers(0, 60), min_size=1, max_size=25),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 2**31),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    lanes=st.none() | st.integers(1, 20),
    window_rows=st.integers(1, 100),
)


def epoch_rows(order: SampleOrder, epoch: int) -> np.ndarray:
    parts = [order.rows(epoch, step) for step in range(order.steps_per_epoch)]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


@given(orders, st.integers(0, 5))
def test_every_row_is_used_once_per_epoch(order: SampleOrder, epoch: int) -> None:
    rows = epoch_rows(order, epoch)
    dropped = order.n_rows % order.batch_size if order.drop_last else 0
    assert len(rows) == order.n_rows - dropped
    assert len(np.unique(rows)) == len(rows)
    assert ((rows >= 0) & (rows < order.n_rows)).all()


@given(orders, st.integers(1, 1024))
def test_any_number_of_ranks_reads_the_same_batches(order: SampleOrder, world_size: int) -> None:
    for step in range(order.steps_per_epoch)[:3]:
        slices = [order.slices(step, rank, world_size) for rank in range(world_size)]
        sizes = [sum(cut.stop - cut.first for cut in mine) for mine in slices]
        assert max(sizes) - min(sizes) <= 1
        flat = [(cut.lane, i) for mine in slices for cut in mine for i in range(cut.first, cut.stop)]
        whole = [(cut.lane, i) for cut in order.slices(step) for i in range(cut.first, cut.stop)]
        assert flat == whole


@settings(max_examples=30)
@given(orders, st.integers(1, 9))
def test_ranks_laid_end_to_end_are_the_batch(order: SampleOrder, world_size: int) -> None:
    for step in range(order.steps_per_epoch):
        parts = [order.rows(1, step, rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(parts), order.rows(1, step))


@given(orders, st.integers(1, 9))
def test_a_rank_reads_only_from_its_groups(order: SampleOrder, world_size: int) -> None:
    starts = np.concatenate([[0], np.cumsum(order.counts)])
    for rank in range(world_size):
        groups = set(order.groups_of(rank, world_size))
        for step in range(order.steps_per_epoch):
            used = np.searchsorted(starts, order.rows(0, step, rank, world_size), side="right") - 1
            assert set(used.tolist()) <= groups


def test_ranks_share_no_group_when_they_divide_lanes_and_groups() -> None:
    order = SampleOrder([100] * 64, batch_size=64, seed=1)
    groups = [set(order.groups_of(rank, 4)) for rank in range(4)]
    assert [len(g) for g in groups] == [16] * 4
    assert len(set.union(*groups)) == 64


def test_epochs_and_seeds_differ_and_repeat_themselves_exactly() -> None:
    counts = [37, 0, 81, 12, 50]
    order = SampleOrder(counts, 16, seed=7)
    again, other = SampleOrder(counts, 16, seed=7), SampleOrder(counts, 16, seed=8)
    epochs = [epoch_rows(order, e).tolist() for e in range(4)]
    assert len({tuple(e) for e in epochs}) == 4
    assert epochs == [epoch_rows(again, e).tolist() for e in range(4)]
    assert epochs[0] != epoch_rows(other, 0).tolist()


def test_order_is_the_one_it_has_always_been() -> None:
    """A run that is resumed with a newer daskdl or numpy must see the same rows: change this and old runs break."""
    rows = epoch_rows(SampleOrder([1000, 300, 0, 700], 128, seed=42), 3)
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() == GOLDEN


GOLDEN = "545861a279e8a75bd1544634a6c604de54b0c150b4dbbf4131d1838258ee757f"


def test_no_shuffle_is_the_order_of_the_rows() -> None:
    assert epoch_rows(SampleOrder([3, 0, 4], 2, shuffle=False), 5).tolist() == list(range(7))


def test_a_batch_takes_alike_from_every_part_of_the_data() -> None:
    order = SampleOrder([1000] * 16, batch_size=160, seed=0, lanes=16)
    groups = order.rows(0, 0) // 1000
    assert np.bincount(groups, minlength=16).tolist() == [10] * 16


def test_a_lane_forgets_the_order_of_the_data() -> None:
    rows = epoch_rows(SampleOrder([10_000] * 4, batch_size=64, seed=0), 0)
    within = rows.reshape(-1, 64)[:, 0]  # one lane, batch after batch
    assert abs(np.corrcoef(within[:-1], within[1:])[0, 1]) < 0.1


@pytest.mark.parametrize("batch_size, lanes", [(4096, 64), (96, 32), (1000, 16), (7, 16)])
def test_lanes_divide_the_batch_where_they_can(batch_size: int, lanes: int) -> None:
    assert choose_lanes(batch_size) == lanes


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"batch_size": 0}, "batch_size must be at least 1 row, got 0"),
        ({"batch_size": 4, "seed": -1}, "seed must be a non-negative integer, got -1"),
        ({"batch_size": 4, "counts": [3, -2]}, "must not be negative, got -2"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleOrder(**{"counts": [5], **kwargs})


def test_steps_and_ranks_out_of_range_are_refused() -> None:
    order = SampleOrder([10], 4)
    with pytest.raises(ValueError, match=r"step must be in \[0, 3\) for 10 rows, got 3"):
        order.rows(0, 3)
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\), got 2"):
        order.slices(0, rank=2, world_size=2)
