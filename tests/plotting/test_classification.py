import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from daskdl import plotting
from daskdl.errors import DataError

N = 40_000


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(0)
    p = rng.beta(2, 5, N)
    return (rng.random(N) < p).astype(int), p


@pytest.fixture(scope="module")
def lazy(truth):
    y, p = truth
    return dd.from_pandas(pd.DataFrame({"y": y, "p": p, "q": 1 - p}), npartitions=5)


def exact_auc(y, p):
    """Share of pairs in the right order, from ranks (Mann and Whitney 1947)."""
    ranks = pd.Series(p).rank().to_numpy()
    n1 = y.sum()
    return (ranks[y == 1].sum() - n1 * (n1 + 1) / 2) / (n1 * (len(y) - n1))


def test_roc_agrees_with_ranks_and_is_bounded(truth):
    data = plotting.roc_data(*truth)
    assert data.attrs["auc"] == pytest.approx(exact_auc(*truth), abs=1e-4)
    assert len(data) <= plotting.POINTS
    assert data[["fpr", "tpr"]].iloc[0].tolist() == [0.0, 0.0]
    assert data[["fpr", "tpr"]].iloc[-1].tolist() == [1.0, 1.0]
    assert data["fpr"].is_monotonic_increasing
    assert data["threshold"].is_monotonic_decreasing


def test_perfect_and_useless_predictions():
    y = np.array([0, 0, 1, 1])
    assert plotting.roc_data(y, np.array([0.1, 0.2, 0.8, 1.0])).attrs["auc"] == 1.0
    assert plotting.roc_data(y, np.full(4, 0.5)).attrs["auc"] == 0.5


@pytest.mark.parametrize(
    "pick",
    [
        lambda f: (f["y"], f["p"]),
        lambda f: (f["y"], f[["q", "p"]]),
        lambda f: (f["y"].to_dask_array(lengths=True), f["p"].to_dask_array(lengths=True)),
        lambda f: (f["y"].values, f["p"]),
        lambda f: (f["y"].compute(), f[["q", "p"]].compute().to_numpy()),
    ],
)
def test_all_collections_give_the_same(lazy, truth, pick):
    y, p = pick(lazy)
    pd.testing.assert_frame_equal(plotting.roc_data(y, p), plotting.roc_data(*truth))
    pd.testing.assert_frame_equal(plotting.calibration_data(y, p), plotting.calibration_data(*truth))


def test_any_label_can_be_the_positive_one(truth):
    y, p = truth
    names = np.where(y == 1, "late", "on time")
    assert plotting.roc_data(names, p, positive="late").attrs == plotting.roc_data(y, p).attrs


def test_calibration_of_calibrated_probabilities_is_the_diagonal(truth):
    data = plotting.calibration_data(*truth, bins=5)
    assert data["rows"].sum() == N
    big = data[data["rows"] > 1_000]
    assert big["observed"].to_numpy() == pytest.approx(big["predicted"].to_numpy(), abs=0.03)


@pytest.mark.parametrize(
    ("y", "p", "error", "message"),
    [
        ([0, 1], [0.5, 1.5], DataError, "probabilities from 0 to 1"),
        ([0, 1], [0.5, np.nan], DataError, "or NaN"),
        ([0, 1, 1], [0.5, 0.5], DataError, "y has 3 rows and p 2"),
        ([0, 1], np.full((2, 3), 0.3), DataError, "p has 3 columns"),
        (np.eye(2), [0.5, 0.5], DataError, "y must be one column"),
        ([0, np.nan], [0.5, 0.5], DataError, "y holds missing labels"),
        ([0, 0], [0.5, 0.6], DataError, "only one kind"),
        (da.ones(4), np.ones(4), TypeError, "both be Dask collections"),
    ],
)
def test_what_cannot_be_drawn_says_why(y, p, error, message):
    y, p = (v if isinstance(v, da.Array) else np.array(v) for v in (y, p))
    with pytest.raises(error, match=message):
        plotting.roc_data(y, p)


def test_partitions_that_do_not_pair_are_refused(lazy):
    with pytest.raises(ValueError, match="y has 5 partitions and p 2"):
        plotting.roc_data(lazy["y"], lazy["p"].repartition(npartitions=2))


def test_plots_of_predictions_draw_their_data(lazy):
    import holoviews as hv

    roc = plotting.plot_roc(lazy["y"], lazy["p"])
    auc = plotting.roc_data(lazy["y"], lazy["p"]).attrs["auc"]
    assert f"{auc:.4f}" in str(hv.Store.lookup_options("bokeh", list(roc)[1], "plot").kwargs)
    assert [len(element) for element in roc][1] <= plotting.POINTS
    calibration = plotting.plot_calibration(lazy["y"], lazy["p"], bins=4)
    assert len(list(calibration)[1]) == 4


@pytest.fixture(scope="module")
def coarse(truth):
    """Few enough different probabilities that each has a bin of its own, with many ties."""
    y, p = truth[0][:3_000], truth[1][:3_000].round(2)
    return y, np.clip(p, 0, 0.99)


def test_precision_and_recall_are_those_of_scikit_learn(coarse):
    data = plotting.precision_recall_data(*coarse)
    precision, recall, thresholds = metrics.precision_recall_curve(*coarse)
    assert data["precision"].to_numpy() == pytest.approx(precision[::-1])
    assert data["recall"].to_numpy() == pytest.approx(recall[::-1])
    assert data["threshold"].to_numpy()[1:] == pytest.approx(thresholds[::-1], abs=1 / plotting.BINS)
    assert data.attrs["average_precision"] == pytest.approx(metrics.average_precision_score(*coarse))
    assert data.attrs["positives"] == pytest.approx(coarse[0].mean())


def test_precision_recall_of_many_probabilities_is_close_and_bounded(lazy, truth):
    data = plotting.precision_recall_data(lazy["y"], lazy["p"])
    assert data.attrs["average_precision"] == pytest.approx(metrics.average_precision_score(*truth), abs=1e-3)
    assert len(data) <= plotting.POINTS
    pd.testing.assert_frame_equal(data, plotting.precision_recall_data(*truth))


def test_precision_recall_without_positive_rows_says_why():
    with pytest.raises(DataError, match="needs rows with the label 'late'; y has none"):
        plotting.precision_recall_data(np.array(["early"]), np.array([0.5]), positive="late")


def test_precision_recall_is_drawn_over_the_precision_of_chance(lazy, truth):
    import holoviews as hv

    chance, curve = plotting.plot_precision_recall(lazy["y"], lazy["p"])
    assert chance.array()[:, 1] == pytest.approx([truth[0].mean()] * 2)
    assert len(curve) <= plotting.POINTS
    title = hv.Store.lookup_options("bokeh", curve, "plot").kwargs["title"]
    assert title.startswith("Average precision 0.")
