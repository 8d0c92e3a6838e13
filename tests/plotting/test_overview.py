import pickle

import numpy as np
import pytest

from daskdl.plotting.overview import Moments, Sample, overview


def test_what_a_partition_sends_home_does_not_grow_with_its_rows():
    sizes = [len(pickle.dumps(overview(100, 0, np.ones((n, 3))))) for n in (1_000, 100_000)]
    assert sizes == pytest.approx([3_600, 3_600], abs=500)


def test_moments_do_not_depend_on_the_split():
    rows = np.random.default_rng(0).normal(1e6, 1.0, (1_000, 3)) * [1, 10, 0.1]
    parts = [Moments.of(part) for part in np.split(rows, [0, 10, 700, 700, 999])]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert merged.n == 1_000
    np.testing.assert_allclose(merged.mean, rows.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(merged.scatter / 1_000, np.cov(rows.T, bias=True), rtol=1e-8)


def test_sample_is_bounded_seeded_and_even():
    parts = np.split(np.arange(10_000.0), [100, 4_000])

    def draw(seed):
        first, *rest = [Sample.of(500, seed, part, part * 2) for part in parts]
        for other in rest:
            first = first.merge(other, 500)
        return first.columns

    x, double = draw(0)
    assert len(x) == len(set(x)) == 500
    assert (double == 2 * x).all()
    assert (draw(0)[0] == x).all()
    assert (draw(1)[0] != x).any()
    assert np.mean([np.mean(draw(seed)[0] < 4_000) for seed in range(20)]) == pytest.approx(0.4, abs=0.02)


def test_small_data_is_sampled_whole():
    (x,) = Sample.of(500, 0, np.arange(10.0)).columns
    assert sorted(x) == list(range(10))
