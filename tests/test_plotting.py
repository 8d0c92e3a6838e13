import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from daskdl import plotting
from daskdl.errors import DataError
from daskdl.tracking.run import Run

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


@pytest.fixture
def make_run(tmp_path):
    def make(name, **curves):
        run = Run.start(name, "torch", {}, root=tmp_path)
        for metric, values in curves.items():
            for step, value in enumerate(values):
                run.log(step, **{metric: value})
        return run

    return make


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


def test_run_is_drawn_with_a_panel_for_the_losses_and_one_for_each_other_metric(make_run):
    run = make_run("a", train_loss=[0.7, 0.6], val_loss=[0.8], val_auc=[0.5, 0.6])
    panels = [sorted(panel.keys()) for panel in run.plot()]
    assert panels == [["train_loss", "val_loss"], ["val_auc"]]


def test_long_run_is_thinned(make_run):
    data = plotting.plot_run_data(make_run("a", train_loss=range(3_000)))
    assert len(data) <= plotting.POINTS + 1
    assert data["step"].iloc[-1] == 2_999


def test_run_without_metrics_says_so(make_run):
    with pytest.raises(DataError, match="has no metrics to draw: it is running"):
        plotting.plot_run(make_run("a"))


def test_comparison_overlays_the_runs(make_run):
    runs = [make_run("a", train_loss=[0.7], val_auc=[0.6]), make_run("b", train_loss=[0.6], other=[1.0])]
    panels = plotting.compare(runs)
    assert [sorted(panel.keys()) for panel in panels] == [["a", "b"]]
    assert [sorted(panel.keys()) for panel in plotting.compare(runs, ["val_auc", "train_loss"])] == [["a", "b"], ["a"]]


def test_runs_of_the_same_name_are_told_apart(make_run):
    runs = [make_run("a", train_loss=[0.7]) for _ in range(2)]
    assert plotting.compare_data(runs)["run"].nunique() == 2


@pytest.mark.parametrize(
    ("runs", "metrics", "message"),
    [
        ([], None, "Nothing to compare"),
        (["a"], ["val_auc"], "No run has the metric val_auc; the runs have: train_loss"),
    ],
)
def test_comparison_that_cannot_be_drawn_says_why(make_run, runs, metrics, message):
    with pytest.raises(ValueError, match=message):
        plotting.compare([make_run(name, train_loss=[0.5]) for name in runs], metrics)


def test_runs_can_be_named_by_id(make_run, tmp_path):
    from daskdl.tracking import folder

    run = make_run("a", train_loss=[0.5, 0.4])
    run.finish()
    folder.set_root(tmp_path)
    try:
        assert plotting.compare_data([run.id])["value"].tolist() == [0.5, 0.4]
    finally:
        folder.set_root(None)


def test_missing_hvplot_says_how_to_get_it(make_run, monkeypatch):
    import sys

    from daskdl.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "hvplot", None)
    with pytest.raises(MissingExtraError, match="pip install hvplot"):
        plotting.plot_run(make_run("a", train_loss=[0.5]))
