import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from daskdl import plotting
from daskdl.errors import DataError

N = 20_000


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    predicted = rng.uniform(1_000, 1_100, N)
    return pd.DataFrame({"y": predicted + rng.normal(0.5, 3.0, N), "predicted": predicted})


@pytest.fixture(scope="module")
def lazy(frame):
    return dd.from_pandas(frame, npartitions=6)


def test_errors_are_those_of_scikit_learn_and_points_are_bounded(frame, lazy):
    for rows in (frame, lazy):
        data = plotting.residuals_data(rows["y"], rows["predicted"], points=800)
        assert data.attrs["rows"] == N
        assert data.attrs["bias"] == pytest.approx((frame.y - frame.predicted).mean())
        assert data.attrs["mae"] == pytest.approx(metrics.mean_absolute_error(frame.y, frame.predicted))
        assert data.attrs["rmse"] == pytest.approx(metrics.root_mean_squared_error(frame.y, frame.predicted))
        assert data.attrs["r2"] == pytest.approx(metrics.r2_score(frame.y, frame.predicted))
        assert len(data) == 800


def test_sample_is_of_rows_that_are_there_and_seeded(frame, lazy):
    data = plotting.residuals_data(lazy["y"], lazy["predicted"], points=100, seed=3)
    true = set((data["predicted"] + data["residual"]).round(6))
    assert true <= set(frame["y"].round(6))
    pd.testing.assert_frame_equal(data, plotting.residuals_data(lazy["y"], lazy["predicted"], points=100, seed=3))
    assert set(data["predicted"]) != set(plotting.residuals_data(lazy["y"], lazy["predicted"], points=100)["predicted"])


def test_quantiles_are_those_of_the_residuals(frame, lazy):
    found = plotting.residuals_data(lazy["y"], lazy["predicted"]).attrs["quantiles"]
    exact = (frame.y - frame.predicted).quantile(list(found))
    assert list(found.values()) == pytest.approx(exact.tolist(), abs=0.3)


def test_constant_labels_have_no_r2():
    assert np.isnan(plotting.residuals_data([1.0, 1.0], [1.0, 2.0]).attrs["r2"])


@pytest.mark.parametrize(
    ("y", "predicted", "message"),
    [
        ([1.0, np.nan], [1.0, 1.0], "y holds 1 values that are missing or infinite, such as nan"),
        ([1.0, 2.0], [1.0, np.inf], "predicted holds 1 values .* such as inf, .*frame.dropna"),
        (["late", "early"], [1.0, 1.0], "y must hold numbers; it holds such as 'late'"),
        ([], [], "y has none"),
    ],
)
def test_what_cannot_be_compared_says_why(y, predicted, message):
    with pytest.raises(DataError, match=message):
        plotting.residuals_data(np.array(y), np.array(predicted))


def test_residuals_are_drawn_with_a_band_and_a_median(lazy):
    dots, band, median, zero = plotting.plot_residuals(lazy["y"], lazy["predicted"], points=600)
    assert len(dots) == 600
    assert len(band) == len(median) == 10
    low, high = (band.dimension_values(name) for name in ("low", "high"))
    assert (low < median.dimension_values("median")).all()
    assert (median.dimension_values("median") < high).all()
    assert zero.array()[:, 1].tolist() == [0.0, 0.0]


def test_a_handful_of_rows_can_be_drawn():
    _, band, *_ = plotting.plot_residuals([1.0, 2.0, 3.0], [1.0, 2.5, 2.0])
    assert len(band) == 3
