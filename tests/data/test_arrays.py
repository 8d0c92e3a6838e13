"""Rows laid end to end and in their order, whatever they are made of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from daskdl.data.arrays import Block, inverse, join, scatter
from daskdl.data.batches import RankBatches
from daskdl.data.order import SampleOrder


@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (0,)])
@pytest.mark.parametrize("dtype", ["f4", "i8", "u1", "M8[s]"])
def test_rows_of_any_shape_are_joined_and_put_in_order(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 100, (n, *shape)).astype(dtype) for n in (4, 0, 7)]
    whole, order = np.concatenate(parts), rng.permutation(11)
    assert np.array_equal(join(parts), whole)
    out = np.empty_like(whole)
    assert np.array_equal(scatter(parts, inverse(order), out), whole[order])


def test_arrays_of_several_types_are_joined_in_the_one_that_holds_all() -> None:
    found = join([np.array([[1, 2]]), np.array([[0.5, 3.0]])])
    assert found.dtype == float
    assert found.tolist() == [[1.0, 2.0], [0.5, 3.0]]
    assert join([np.array([[1]]), np.array([["a"]], dtype=object)]).tolist() == [[1], ["a"]]


class Mixed:
    """A reader whose blocks of one row are whole numbers, then halves, and so on; and a field without columns."""

    def read(self, group: int, first: int, stop: int, epoch: int) -> Iterator[Block]:
        for row in range(first, stop):
            x = np.array([[row, group]]) if row % 2 else np.array([[row + 0.5, group]])
            yield {"x": x, "nothing": np.empty((1, 0), dtype="f4")}


def test_blocks_of_a_window_may_differ_in_type() -> None:
    batches = RankBatches(SampleOrder([9, 8], 4, seed=1), Mixed(), 0, 1, epochs=1)
    found = [batch.arrays for batch in batches]
    rows = np.concatenate([arrays["x"] for arrays in found])
    expected = [[row + (0 if row % 2 else 0.5), group] for group, n in enumerate((9, 8)) for row in range(n)]
    assert sorted(rows.tolist()) == sorted(expected)
    assert [arrays["nothing"].shape for arrays in found] == [(4, 0)] * 4 + [(1, 0)]
