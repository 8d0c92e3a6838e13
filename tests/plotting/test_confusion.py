import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from daskdl import plotting
from daskdl.errors import DataError


@pytest.fixture(scope="module")
def cities():
    rng = np.random.default_rng(0)
    names = np.array(["Rome", "Oslo", "Lima", "Bern"])
    y = rng.choice(names, 2_000, p=[0.5, 0.3, 0.15, 0.05])
    frame = pd.DataFrame({"y": y, "guess": np.where(rng.random(2_000) < 0.7, y, rng.choice(names, 2_000))})
    return frame.assign(late=rng.random(2_000) < 0.3, late_guess=rng.integers(0, 2, 2_000))


@pytest.mark.parametrize("normalize", [None, "true", "pred", "all"])
def test_confusion_is_that_of_scikit_learn(cities, normalize):
    lazy = dd.from_pandas(cities, npartitions=7)
    for y, guess in (("y", "guess"), ("late", "late_guess")):
        data = plotting.confusion_data(lazy[y], lazy[guess], normalize)
        expected = metrics.confusion_matrix(cities[y], cities[guess], normalize=normalize)
        assert data.to_numpy() == pytest.approx(expected)
        assert data.index.tolist() == data.columns.tolist() == sorted(set(cities[y]))
        assert data.attrs["accuracy"] == pytest.approx((cities[y] == cities[guess]).mean())
        pd.testing.assert_frame_equal(data, plotting.confusion_data(cities[y], cities[guess].to_numpy(), normalize))


def test_label_that_was_never_there_has_a_row_of_zeros():
    data = plotting.confusion_data([1, 1], [1, 2], normalize="true")
    assert data.values.tolist() == [[0.5, 0.5], [0.0, 0.0]]


def test_labels_of_several_types_are_told_apart():
    data = plotting.confusion_data(np.array(["1", 1], dtype=object), np.array([1, 1], dtype=object))
    assert data.loc["1", 1] == 1
    assert data.loc[1, 1] == 1


@pytest.mark.parametrize(
    ("y", "predicted", "error", "message"),
    [
        (["a", None], ["a", "a"], DataError, "y holds 1 missing labels"),
        (np.arange(500), np.arange(500) / 7, DataError, "y has 500 different values or more, such as 0, 1, 10"),
        ([0, 1], [0], DataError, "y has 2 rows and predicted 1"),
        ([0, 1], np.full((2, 2), 0.5), DataError, "predicted must be one column, and has the shape"),
        ([], [], DataError, "y has none"),
    ],
)
def test_confusion_that_cannot_be_counted_says_why(y, predicted, error, message):
    with pytest.raises(error, match=message):
        plotting.confusion_data(y, predicted)


def test_too_many_labels_are_found_when_partitions_are_put_together():
    lazy = dd.from_pandas(pd.DataFrame({"id": range(300)}), npartitions=3)
    with pytest.raises(DataError, match="at most 200 classes"):
        plotting.confusion_data(lazy["id"], lazy["id"])


def test_unknown_normalization_names_the_known_ones():
    with pytest.raises(ValueError, match='"true", "pred", "all" or None, got \'rows\''):
        plotting.confusion_data([0], [0], normalize="rows")


def test_confusion_is_drawn_with_its_numbers(cities):
    import holoviews as hv

    table = plotting.confusion_data(cities["y"], cities["guess"])
    cells, numbers = plotting.plot_confusion(cities["y"], cities["guess"])
    drawn = {(guess, true): rows for guess, true, rows in cells.dframe()[["predicted", "label", "rows"]].to_numpy()}
    assert drawn == {(guess, true): table.loc[true, guess] for guess in table for true in table}
    assert set(numbers.dimension_values("text")) == {f"{v:,}" for v in table.to_numpy().ravel()}
    figure = hv.render(cells * numbers, backend="bokeh")
    assert figure.x_range.factors == ["Bern", "Lima", "Oslo", "Rome"]
    assert figure.y_range.factors == ["Rome", "Oslo", "Lima", "Bern"]  # from the bottom


def test_large_confusion_is_drawn_without_numbers():
    import holoviews as hv

    assert isinstance(plotting.plot_confusion(np.arange(100), np.arange(100), "true"), hv.HeatMap)
