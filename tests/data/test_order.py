"""The sample order: what it promises, for any row counts, batch size, seed and number of ranks."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdl.data.lanes import HELD_BYTES, choose_lanes, layout
from daskdl.data.order import SampleOrder

orders = st.builds(
    SampleOrder,
    st.lists(st.integers(0, 60), min_size=1, max_size=25),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 2**31),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    lanes=st.none() | st.integers(1, 20),
    window_rows=st.integers(1, 100),
    least_rows=st.integers(1, 60),
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


@given(orders)
def test_a_short_last_batch_is_joined_to_the_one_before(order: SampleOrder) -> None:
    sizes = [order.batch_rows(step) for step in range(order.steps_per_epoch)]
    assert all(size == order.batch_size for size in sizes[:-1])
    if len(sizes) > 1 and not order.drop_last:
        assert min(order.least_rows, order.batch_size) <= sizes[-1] < order.batch_size + order.least_rows
    assert sum(sizes) == sum(stop - first for _, _, first, stop in order.ranges(0, order.steps_per_epoch))


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


@settings(deadline=None)
@given(orders.filter(lambda order: order.steps_per_epoch > 0), st.integers(0, 10**6), st.data())
def test_a_step_reached_at_once_is_the_one_reached_by_going_there(
    order: SampleOrder, epoch: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    replayed = [order.rows(e, s) for e in (epoch, epoch + 1) for s in range(order.steps_per_epoch)]
    fresh = replace(order)  # has computed nothing
    assert np.array_equal(fresh.rows(epoch + 1, step), replayed[order.steps_per_epoch + step])
    assert np.array_equal(replace(order).rows(epoch, step), replayed[step])


@pytest.mark.parametrize("options", [{}, {"lanes": 4, "window_rows": 16}], ids=["memory", "files"])
def test_no_two_of_twenty_epochs_are_equal(options: dict) -> None:
    order = SampleOrder([37, 0, 81, 12, 50], 16, seed=7, **options)
    assert len({tuple(epoch_rows(order, epoch).tolist()) for epoch in range(20)}) == 20


def test_rows_side_by_side_in_one_epoch_are_apart_in_the_next() -> None:
    order = SampleOrder([2_000] * 8, 128, seed=0)
    places = [np.argsort(epoch_rows(order, epoch)) for epoch in (0, 1)]
    row, neighbour = epoch_rows(order, 0)[:-1], epoch_rows(order, 0)[1:]
    together = np.abs(places[1][row] - places[1][neighbour]) == 1
    assert together.mean() < 0.01


def test_batches_are_drawn_from_the_whole_data_alike() -> None:
    """Of the mean row number of a batch: a full shuffle strays as far from the average, or further."""
    order = SampleOrder([1_000] * 32, 256, seed=0)
    means = epoch_rows(order, 0).reshape(-1, 256).mean(axis=1)
    assert means.std() < order.n_rows / np.sqrt(12 * 256)


def test_rows_of_a_file_are_spread_over_the_epoch_and_its_groups_are_read_once() -> None:
    order = SampleOrder([1_000] * 64, 512, seed=0, lanes=16, window_rows=2_000)
    places = np.argsort(epoch_rows(order, 0)).reshape(64, 1_000)
    assert places.std(axis=1).min() > 10 * 1_000 / np.sqrt(12), "ten times further than in the file"
    for world_size in (1, 2, 4, 8, 16):
        readers = [set(order.groups_of(rank, world_size)) for rank in range(world_size)]
        assert sum(map(len, readers)) == len(set.union(*readers)) == 64


@pytest.mark.parametrize("n_groups", [1, 3, 20])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_groups_sorted_by_their_label_give_mixed_batches(n_groups: int, share: float) -> None:
    """Large groups, read from the front: every batch of an epoch has its share of both classes, to within a lane."""
    n = 24_000_000 // n_groups
    counts = np.full(n_groups, n)
    lanes, window_rows = layout(counts, 1024, row_bytes=100.0, open_bytes=1e6)
    assert lanes == 16 and window_rows < n
    order = SampleOrder(counts, 1024, seed=1, lanes=lanes, window_rows=window_rows)
    label = np.zeros(order.n_rows, bool)
    label[-int(share * len(label)) :] = True
    means = [label[order.rows(0, step)].mean() for step in np.linspace(0, order.steps_per_epoch - 2, 12).astype(int)]
    assert max(abs(mean - share) for mean in means) <= 1.01 / lanes


def test_small_groups_are_read_once() -> None:
    assert layout(np.array([50_000]), 1024, row_bytes=32.0, open_bytes=1.6e6)[0] == 1, "a window holds them all"
    assert layout(np.full(5, 50_000), 1024, row_bytes=32.0, open_bytes=1.6e6)[0] == 4


@pytest.mark.parametrize("row_bytes", [8.0, 100.0, 1e5, 1e7])
def test_windows_of_rows_in_any_place_stay_small(row_bytes: float) -> None:
    lanes, window_rows = layout(np.full(1_000, 32), 256, row_bytes, 0.0, random_access=True)
    assert lanes * window_rows * row_bytes <= max(HELD_BYTES, 64 * row_bytes) and lanes >= 4
    if row_bytes <= 8:
        assert (lanes, window_rows) == (choose_lanes(256), SampleOrder([1], 1).window_rows)
