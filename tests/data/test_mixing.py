"""Mixtures: exact ratios, each dataset in its own order, the same batches for any number of ranks."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdl.data.batches import RankBatches
from daskdl.data.mixing import Mixture, mixture
from daskdl.data.order import SampleOrder
from daskdl.data.reading import Blocks

ratio = st.one_of(st.integers(1, 9), st.floats(0.1, 10.0), st.sampled_from([1e-8, 3e-8, 1e9]))


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    """Two to four datasets of ragged groups, none of which is too rare for a batch."""
    counts = draw(st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(sum), min_size=2, max_size=4))
    ratios = [draw(ratio) for _ in counts]
    batch = draw(st.integers(1, 64))
    ratios = [max(r, 1.01 * max(ratios) * len(ratios) / batch) if batch >= 2 * len(ratios) else 1 for r in ratios]
    return mixture(counts, ratios, max(batch, len(ratios) + 1), seed=draw(st.integers(0, 99)))


def rows(mixed: Mixture, step: int, rank: int = 0, world_size: int = 1) -> list[tuple[int, int]]:
    """Dataset and row of what a rank reads at a step, by the plain order of each dataset."""
    found = []
    for dataset, epoch, lane, first, stop in mixed.slices(step, rank, world_size):
        part = mixed.parts[dataset]
        while first < stop:
            window = part.window(lane, epoch, first)
            end = min(stop, window.stop)
            mine = window.rows(part.group_starts)[first - window.start : end - window.start]
            found += [(dataset, int(row)) for row in mine]
            first = end
    return found


@settings(deadline=None)
@given(mixtures(), st.integers(0, 10**7))
def test_ratios_are_exact_to_within_one_row_after_any_number_of_steps(mixed: Mixture, step: int) -> None:
    shares = [Fraction(r) / sum(map(Fraction, mixed.ratios)) for r in mixed.ratios]
    taken = [mixed.taken(k, step) for k in range(len(shares))]
    n = step * mixed.batch_size
    assert sum(taken) == n
    assert all(abs(t - n * share) <= 1 + n / 10**9 for t, share in zip(taken, shares, strict=True))
    sizes = [cut.stop - cut.first for cut in mixed.slices(step)]
    assert sum(sizes) == mixed.batch_size


@settings(deadline=None)
@given(mixtures(), st.integers(1, 1024), st.integers(0, 10**6))
def test_any_number_of_ranks_reads_the_same_batches(mixed: Mixture, world_size: int, step: int) -> None:
    parts = [rows(mixed, step, rank, world_size) for rank in range(world_size)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [row for part in parts for row in part] == rows(mixed, step)


@settings(deadline=None, max_examples=50)
@given(mixtures())
def test_every_row_of_a_dataset_is_used_once_before_any_is_used_again(mixed: Mixture) -> None:
    used = [row for step in range(2 * mixed.steps_per_epoch) for row in rows(mixed, step)]
    for k, part in enumerate(mixed.parts):
        times = np.bincount([row for dataset, row in used if dataset == k], minlength=part.n_rows)
        assert times.max() - times.min() <= 1
        assert times.sum() == mixed.taken(k, 2 * mixed.steps_per_epoch)


def readers_of(mixed: Mixture) -> list[Blocks]:
    """Blocks of rows numbered ``1000 * dataset + row``."""
    return [
        Blocks({g: {"row": 1000 * k + np.arange(n) + part.group_starts[g]} for g, n in enumerate(part.row_counts)})
        for k, part in enumerate(mixed.parts)
    ]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("start", [0, 1, 8, 9, 10, 17])
def test_batches_are_the_rows_of_the_order_from_any_step(world_size: int, start: int) -> None:
    mixed = mixture([[30, 0, 33], [11], [40]], ratios=[3, 2, 1], batch_size=12, seed=4)
    for rank in range(world_size):
        found = RankBatches(mixed, readers_of(mixed), rank, world_size, epochs=2, start=start)
        for step, batch in enumerate(found, start):
            expected = [1000 * dataset + row for dataset, row in rows(mixed, step, rank, world_size)]
            assert batch.arrays["row"].tolist() == expected and batch.n_global == 12


def test_datasets_have_orders_of_their_own() -> None:
    mixed = mixture([[50], [50]], ratios=[1, 1], batch_size=10, seed=0)
    first, second = ([row for step in range(10) for k, row in rows(mixed, step) if k == d] for d in (0, 1))
    assert sorted(first) == sorted(second) and first != second
    assert rows(mixture([[50], [50]], [1, 1], 10, seed=1), 0) != rows(mixed, 0)


def test_an_epoch_is_as_long_as_one_says() -> None:
    assert mixture([[50], [50]], [1, 1], 8).steps_per_epoch == 12
    assert mixture([[50], [50]], [1, 1], 8, epoch_rows=1000).steps_per_epoch == 125
    assert mixture([[2], [2]], [1, 1], 8).steps_per_epoch == 1, "more than a batch of what there is"


def test_datasets_keep_the_layout_their_files_ask_for() -> None:
    mixed = mixture([[90], [90]], [2, 1], 12, layouts=[lambda rows: {"lanes": rows}, lambda rows: {"window_rows": 7}])
    assert (mixed.parts[0].n_lanes, mixed.parts[1].window_rows) == (8, 7)


@pytest.mark.parametrize(
    "counts, ratios, batch_size, message",
    [
        ([[5], [5]], [1], 8, "one ratio per dataset: 2 datasets, 1 ratios"),
        ([], [], 8, "one ratio per dataset: 0 datasets, 0 ratios"),
        ([[5], [5]], [1, 0], 8, r"ratios must be above 0 and finite, got \[1\.0, 0\.0\]; leave a dataset out"),
        ([[5], [5]], [1, float("nan")], 8, "ratios must be above 0 and finite"),
        ([[5], [5]], [1, float("inf")], 8, "ratios must be above 0 and finite"),
        ([[5], [0]], [1, 1], 8, "dataset 1 of the mixture has no rows"),
        ([[5], [5]], [1, 1], 0, "batch_size must be at least 1 row, got 0"),
        ([[5], [5]], [99, 1], 8, r"gives 0\.08 rows in a batch of 8.*batch_size of 101 or more"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(counts: list, ratios: list, batch_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixture(counts, ratios, batch_size)


def test_the_batch_size_that_is_recommended_suffices() -> None:
    assert mixture([[5], [5]], [99, 1], 101).steps_per_epoch == 1
    with pytest.raises(ValueError, match="one ratio per dataset"):
        Mixture((SampleOrder([5], 2),), (1.0, 2.0), 2)
