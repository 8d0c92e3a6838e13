import pytest

from daskdl import plotting
from daskdl.errors import DataError
from daskdl.run import Run


@pytest.fixture
def make_run(tmp_path):
    def make(name, **curves):
        run = Run.start(name, "torch", {}, root=tmp_path)
        for metric, values in curves.items():
            for step, value in enumerate(values):
                run.log(step, **{metric: value})
        return run

    return make


def test_run_is_drawn_with_a_panel_for_the_losses_and_one_for_each_other_metric(make_run):
    run = make_run("a", train_loss=[0.7, 0.6], val_loss=[0.8], rows_per_s=[5.0, 6.0])
    panels = [sorted(panel.keys()) for panel in run.plot()]
    assert panels == [["train_loss", "val_loss"], ["rows_per_s"]]


def test_best_steps_of_validation_are_marked(make_run):
    run = make_run("a", train_loss=[0.9, 0.1, 0.2], val_loss=[0.9, 0.5, 0.6], val_auc=[0.6, 0.7, 0.8])
    marks = plotting.run_marks_data(run)
    assert marks[["metric", "step", "value", "mark"]].values.tolist() == [
        ["val_loss", 1, 0.5, "best"],
        ["val_auc", 2, 0.8, "best"],
    ]
    assert marks["text"].tolist() == ["best val_loss: 0.5", "best val_auc: 0.8"]
    losses, score = run.plot()
    assert sorted(next(iter(losses)).keys()) == ["train_loss", "val_loss"]
    assert [(list(panel)[1].label, list(panel)[1].array([0, 1]).tolist()) for panel in (losses, score)] == [
        ("best", [[1, 0.5]]),
        ("best", [[2, 0.8]]),
    ]


def test_events_are_marked_on_the_training_loss(make_run):
    run = make_run("a", train_loss=[0.8, 0.6, 0.4])
    run.event("worker_lost", "rank 1 is gone", step=1)
    run.event("commit", "step 2", step=2)
    run.event("early_stop", "no better since", step=2)
    run.event("resize", "from 1 to 2")
    marks = plotting.run_marks_data(run)
    assert marks[["step", "metric", "value", "mark", "text"]].values.tolist() == [
        [1, "train_loss", 0.6, "worker_lost", "rank 1 is gone"],
        [2, "train_loss", 0.4, "early_stop", "no better since"],
    ]
    (panel,) = run.plot()
    assert [element.label for element in panel][1:] == ["worker_lost", "early_stop"]


def test_run_without_a_loss_has_events_nowhere(make_run):
    run = make_run("a", rows_per_s=[1.0])
    run.event("worker_lost", "rank 1 is gone", step=0)
    assert plotting.run_marks_data(run).empty


def test_log_scale_is_for_losses_only(make_run):
    import holoviews as hv

    run = make_run("a", train_loss=[0.8, 0.08], val_loss=[0.9, 0.1], val_auc=[0.5, 0.6], rows_per_s=[1e5, 2e5])
    figures = [hv.render(panel, backend="bokeh") for panel in run.plot(logy=True)]
    assert [type(figure.yaxis[0]).__name__ for figure in figures] == ["LogAxis", "LinearAxis", "LinearAxis"]


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
