import json
import math
import re
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial

import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster, get_worker
from messages import curve, end, event, metrics, ranks, record_of, start

import daskdl
from daskdl.dashboard import install, panels, style, view
from daskdl.dashboard.page import Pane, Training, kill_a_worker
from daskdl.dashboard.plugin import MAX_RUNS, NAME, TrainingPlugin
from daskdl.run import Run
from daskdl.tracking.record import MAX_POINTS, TOPIC


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster):
    with Client(cluster) as client:
        install(client)
        install(client)
        yield client


def get(cluster, path):
    port = cluster.scheduler.http_server.port
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=20) as answer:
        return answer.read().decode()


def page_of(*records):
    page = Training(lambda: {record.id: record for record in records})
    page.update()
    return page


# the page on a real dashboard


PANES = ["loss", "score", "speed", "breakdown", "memory", "signals", "runs"]


@pytest.mark.parametrize(
    "path", ["individual-daskdl-training", "individual-training", *(f"individual-training-{pane}" for pane in PANES)]
)
def test_page_is_served_without_the_navigation_bar(client, cluster, path):
    html = get(cluster, path)
    assert "Dask: Training" in html
    assert "navbar" not in html
    assert "navbar" in get(cluster, "status")


def test_page_is_in_the_menu_once(client, cluster):
    html = get(cluster, "status")
    assert html.count("individual-daskdl-training") == 1
    assert "individual-training" not in html


def test_jupyterlab_finds_page_and_panels_under_their_names(client, cluster):
    listed = json.loads(get(cluster, "individual-plots.json"))
    names = {name.removeprefix("Individual "): url for name, url in listed.items() if "training" in url}
    assert names.pop("Training") == "/individual-training"
    assert names == {f"Training {pane.title()}": f"/individual-training-{pane}" for pane in PANES}


def test_registering_again_keeps_page_and_menu_single(client, cluster):
    client.unregister_scheduler_plugin(NAME)
    install(client)
    assert get(cluster, "status").count("individual-daskdl-training") == 1
    assert "Dask: Training" in get(cluster, "individual-daskdl-training")


def test_what_client_and_workers_say_is_collected(client, cluster, tmp_path):
    def talk(run_id):
        get_worker().log_event(TOPIC, metrics(run_id, [1, {"train_loss": 0.5}]))

    run = Run.start("flights", "torch", {}, client=client, root=tmp_path)
    client.submit(talk, run.id).result()
    assert run.wait_for_messages(1)
    run.finish()
    record = cluster.scheduler.plugins[NAME].records[run.id]
    assert (record.name, record.state) == ("flights", "finished")
    assert record.curves["train_loss"].xy() == ([1], [0.5])
    assert run.record.curves == record.curves


def test_late_plugin_catches_up(client, cluster, tmp_path):
    with Run.start("before", "torch", {}, client=client, root=tmp_path) as run:
        run.log(1, train_loss=0.5)
    client.unregister_scheduler_plugin(NAME)
    install(client)
    assert cluster.scheduler.plugins[NAME].records[run.id].state == "finished"


def test_prefix_of_the_dashboard_is_kept():
    options = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"http_prefix": "some/place"}}
    with LocalCluster(n_workers=0, processes=False, **options) as cluster, Client(cluster) as client:
        install(client)
        assert "Dask: Training" in get(cluster, "some/place/individual-daskdl-training")


def test_without_a_dashboard_it_only_collects():
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        install(client)
        client.log_event(TOPIC, start("r"))
        assert list(cluster.scheduler.plugins[NAME].records) == ["r"]


def test_preload_adds_the_page():
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--preload", "daskdl.dashboard"]
    options = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            address = next(line for line in process.stderr if "dashboard at" in line).split("dashboard at:")[1].strip()
            deadline = time.monotonic() + 20
            found = {}
            while "Individual Training" not in found and time.monotonic() < deadline:
                with urllib.request.urlopen(address.replace("/status", "/individual-plots.json")) as answer:
                    found = json.loads(answer.read())
        finally:
            process.terminate()
    assert "Individual Training" in found


def test_import_loads_no_bokeh():
    script = "import sys, daskdl.dashboard; print('bokeh' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# what it collects


def test_plugin_keeps_the_newest_runs_and_those_that_run():
    plugin = TrainingPlugin()
    for n in range(MAX_RUNS + 5):
        plugin.log_event(TOPIC, start(f"run {n}"))
        if n != 1:
            plugin.log_event(TOPIC, {"run": f"run {n}", "kind": "end", "time": 2.0, "state": "finished"})
    assert len(plugin.records) == MAX_RUNS
    assert list(plugin.records)[:2] == ["run 1", "run 6"]


def test_a_million_steps_of_many_runs_stay_small():
    names = ("train_loss", "val_loss", "val_auc", "rows_per_s", "grad_norm", "learning_rate")
    plugin = TrainingPlugin()
    for run in range(MAX_RUNS):
        plugin.log_event(TOPIC, start(f"run {run}"))
        last = 100_000 if run == 0 else MAX_POINTS  # as full as curves can be; a million of each would take minutes
        for first in range(0, last, 500):
            points = [[s, {n: float(s) + i for i, n in enumerate(names)}] for s in range(first, first + 500)]
            plugin.log_event(TOPIC, metrics(f"run {run}", *points))
    curves = [curve for record in plugin.records.values() for curve in record.curves.values()]
    assert max(len(curve.steps) for curve in curves) == MAX_POINTS
    assert sum(sys.getsizeof(curve.steps) + sys.getsizeof(curve.values) for curve in curves) < 50 * 2**20 / 3
    page = Training(lambda: plugin.records)
    page.update()
    assert page.source.data["xs"][-1][-1] == MAX_POINTS - 1
    assert sum(map(len, page.source.data["xs"])) < 4 * len(view.PALETTE) * (view.POINTS + 2)


def test_plugin_ignores_what_is_not_a_message():
    plugin = TrainingPlugin()
    for topic, message in [("other", start("r")), (TOPIC, "text"), (TOPIC, {"kind": "start"})]:
        plugin.log_event(topic, message)
    assert plugin.records == {}


# what it draws


def test_empty_page_says_what_to_do():
    page = page_of()
    assert page.empty.visible
    assert not page.content.visible
    assert "No run yet" in page.empty.text
    assert "clf.fit(X, y)" in page.empty.text


def test_first_run_replaces_the_empty_page():
    records = {}
    page = Training(lambda: records)
    page.update()
    records["r"] = curve()
    page.update()
    assert not page.empty.visible
    assert page.content.visible


def test_a_run_without_a_step_says_what_it_prepares():
    record = record_of(start("r", name="<b>"), event("r", "note", text="4,000,000 rows, 1.2 s"))
    page = page_of(record)
    assert page.loss.waiting.visible and not page.loss.figure.visible
    assert "&lt;b&gt;" in page.loss.waiting.text and "4,000,000 rows" in page.loss.waiting.text
    assert "preparing" in page.runs.table.text
    record.apply(metrics("r", [1, {"train_loss": 1.0}]))
    page.update()
    assert not page.loss.waiting.visible and page.loss.figure.visible


def test_a_run_without_a_loss_leaves_the_place_to_its_scores():
    page = page_of(record_of(start("r"), metrics("r", [1, {"inertia": 3.0, "rows_per_s": 2.0}])))
    assert not page.loss.root.visible and page.score.root.visible and page.speed.root.visible


def test_runs_differ_by_color_and_validation_is_dashed():
    page = page_of(curve("a"), curve("b"))
    data = page.source.data
    assert data["metric"] == ["train_loss", "val_loss"] * 2
    assert data["dash"] == ["solid", "dashed"] * 2
    assert data["color"][0] == data["color"][1] != data["color"][2]
    assert data["xs"][0].tolist() == [0, 1, 2, 3, 4]
    assert data["ys"][1].tolist() == [0.5]


def test_charts_show_score_and_speed():
    page = page_of(curve())
    assert page.score.source.data["metric"] == ["val_auc"]
    assert page.score.choice.value == "val_auc" and "highest" in page.score.key.text
    assert page.speed.source.data["ys"][0].tolist() == [100.0] * 5


def test_charts_without_data_are_hidden():
    page = page_of(record_of(start("r"), metrics("r", [1, {"train_loss": 0.5}])))
    assert not page.side.root.visible and not page.lower.visible


def test_losses_of_xgboost_are_losses():
    page = page_of(record_of(start("r"), metrics("r", [1, {"train_rmse": 2.0, "val_rmse": 3.0, "val_mae": 1.0}])))
    assert page.source.data["metric"] == ["train_rmse", "val_rmse"]


def test_gradient_norm_and_learning_rate_are_signals():
    page = page_of(record_of(start("r"), metrics("r", [1, {"grad_norm": 2.0, "learning_rate": 0.1}])))
    norm, rate = page.signals.panels
    assert norm.source.data["metric"] == ["grad_norm"] and rate.source.data["metric"] == ["learning_rate"]
    assert page.lower.visible and not page.score.root.visible


def test_new_messages_are_drawn_and_silence_changes_nothing():
    record = curve()
    record.apply(end("r", when=5.0))
    page = page_of(record)
    record.curves["train_loss"].add(7, 0.1)  # behind its back: to see these two, the page would draw for nothing
    record.name = "renamed"
    page.update()
    assert page.source.data["xs"][0][-1] == 4
    assert "renamed" not in page.runs.table.text
    record.apply(metrics("r", [9, {"train_loss": 0.05}], when=6.0))
    page.update()
    assert page.source.data["xs"][0][-1] == 9


def test_of_runs_that_said_nothing_nothing_is_computed():
    silent, talking = curve("a"), curve("b")
    page = page_of(silent, talking)
    before = list(page.source.data["ys"])
    talking.apply(metrics("b", [9, {"train_loss": 0.05}], when=6.0))
    page.update()
    after = page.source.data["ys"]
    assert after[0] is before[0] and after[2] is not before[2]


def test_time_left_moves_on_in_silence():
    record = curve()
    record.apply(metrics("r", [50, {"train_loss": 0.1}], when=11.0))
    times = iter([11.0, 13.0])
    page = Training(lambda: {"r": record}, clock=lambda: next(times))
    page.update()
    before = page.runs.table.text
    page.update()
    assert page.runs.table.text != before


def test_marks_lie_on_the_loss():
    record = curve()
    for step, kind in [(2, "commit"), (3, "note"), (4, "early_stop"), (None, "worker_lost"), (3, "resize")]:
        record.apply(event("r", kind, step))
    record.apply(end("r", "failed", "boom"))
    page = page_of(record)
    marks = page.loss.marks.data
    found = dict(zip(marks["event"], zip(marks["x"], marks["y"], strict=True), strict=True))
    assert found == {
        "commit": (2, 1 / 3),
        "early stop": (4, 1 / 5),
        "joined": (3, 1 / 4),
        "failed": (5, 1 / 5),
        "best": (5, 0.5),
    }
    assert len(set(marks["marker"])) == 5
    for words in ("● commit", "★ best", "✕ failed"):
        assert words in page.loss.figure.title.text


def test_a_stop_is_marked():
    record = curve()
    record.apply(end("r", "stopped", "the stop button"))
    marks = page_of(record).loss.marks.data
    assert ("stopped", "the stop button") in zip(marks["event"], marks["text"], strict=True)


def test_the_best_step_of_a_validation_is_exact_however_the_curve_was_thinned():
    points = [
        [s, {"train_loss": 1.0, "val_loss": 1.0 - (s == 12_345), "val_auc": 0.0 + (s == 777)}] for s in range(30_000)
    ]
    page = page_of(record_of(start("r"), metrics("r", *points)))
    assert (page.loss.marks.data["x"], page.loss.marks.data["y"]) == ([12_345], [0.0])
    assert (page.score.marks.data["x"], page.score.marks.data["y"]) == ([777], [1.0])


def test_curves_are_thinned_and_noise_is_smoothed():
    points = [[s, {"train_loss": 1.0 + (-1) ** s * 0.5}] for s in range(1_900)]
    data = page_of(record_of(start("r"), metrics("r", *points))).source.data
    assert data["alpha"] == [0.3, 1.0]
    assert all(len(xs) <= view.POINTS + 1 for xs in data["xs"])
    assert data["xs"][0][-1] == 1_899
    raw, smooth = data["ys"]
    assert max(smooth[20:-20]) - min(smooth[20:-20]) <= max(raw) - min(raw)


def test_smoothing_keeps_a_line_and_skips_nan():
    line = [float(i) for i in range(200)]
    assert view.smooth(line) == pytest.approx(line)
    assert not any(math.isnan(v) for v in view.smooth([math.nan if i == 50 else 1.0 for i in range(200)]))


def test_one_bad_batch_does_not_bend_the_end():
    assert max(view.smooth([1.0] * 199 + [3.0])) < 1.7
    assert math.isnan(view.smooth([math.nan] * 200)[-1])


def test_infinite_loss_does_not_spoil_the_axis():
    data = page_of(
        record_of(start("r"), metrics("r", [1, {"train_loss": 0.5}], [2, {"train_loss": math.inf}]))
    ).source.data
    assert data["ys"][0][0] == 0.5
    assert math.isnan(data["ys"][0][1])


# how it is wanted


def test_curves_are_those_of_the_chosen_runs():
    page = page_of(curve("a", name="first"), curve("b", name="second"), curve("c", name="second"))
    assert page.look.runs.options == [("c", "second (c)"), ("b", "second (b)"), ("a", "first")]
    colors = set(page.source.data["color"])
    page.look.runs.value = ["a"]
    page.update()
    assert set(page.source.data["run"]) == {"first"} and set(page.source.data["color"]) < colors
    assert "second" in page.runs.table.text


def test_loss_is_drawn_on_a_logarithmic_axis_and_as_it_is():
    points = [[s, {"train_loss": 1.0 + (-1) ** s * 0.5}] for s in range(200)]
    page = page_of(record_of(start("r"), metrics("r", *points)))
    page.look.how.active = [0]
    page.update()
    assert page.loss.log_figure.visible and not page.loss.figure.visible
    assert page.source.data["alpha"] == [1.0]


def test_a_new_run_leaves_the_choice():
    records = {"a": curve("a")}
    page = Training(lambda: records)
    page.update()
    page.look.runs.value = ["a"]
    records["b"] = curve("b")
    page.update()
    assert page.look.runs.value == ["a"] and set(page.source.data["color"]) == {view.PALETTE[0]}


# which metric


def several(run_id, values, **keys):
    """A run of three steps that says these metrics, each by a tenth more at every step."""
    points = [[s, {name: value + s / 10 for name, value in values.items()}] for s in (1, 2, 3)]
    return record_of(start(run_id, name=run_id, **keys), metrics(run_id, *points))


OWN = {"train_loss": 1.0, "val_auc": 0.5, "reward": 2.0, "val_mae": 3.0, "learning_rate": 0.1, "rows_per_s": 9.0}


@pytest.fixture(params=["page", "pane"])
def score_of(request):
    """Make the score chart of the page, or the one that is a pane; returns it and what brings it up to date."""

    def make(records):
        if request.param == "page":
            page = Training(lambda: records)
            page.update()
            return page.score, page.update
        pane = Pane(lambda: records, panels.Score())
        pane.update()
        return pane.panel, pane.update

    return make


def test_every_metric_of_the_runs_can_be_chosen(score_of):
    score, _ = score_of({"a": several("a", OWN), "b": several("b", {"val_f1": 0.1})})
    assert score.choice.options == [
        "val_auc", "val_f1", "reward", "val_mae", "train_loss", "learning_rate", "rows_per_s"
    ]  # fmt: skip
    assert score.choice.value == "val_auc"
    score.choice.value = "reward"
    assert score.source.data["metric"] == ["reward"] and score.source.data["ys"][0].tolist() == [2.1, 2.2, 2.3]


@pytest.mark.parametrize("metric, best, words", [("reward", 3, "highest"), ("val_mae", 1, "lowest")])
def test_the_best_step_of_the_chosen_metric_is_marked(score_of, metric, best, words):
    score, _ = score_of({"a": several("a", OWN)})
    score.choice.value = metric
    assert score.marks.data["x"] == [best] and score.marks.data["event"] == ["best"]
    assert f"best: {words}" in score.key.text


@pytest.mark.parametrize("metric", ["learning_rate", "rows_per_s"])
def test_no_step_of_a_signal_or_a_speed_is_the_best(score_of, metric):
    score, _ = score_of({"a": several("a", OWN)})
    score.choice.value = metric
    assert score.source.data["metric"] == [metric]
    assert score.marks.data["x"] == [] and score.key.text == ""


def test_a_chosen_metric_stays_while_runs_come(score_of):
    records = {"a": several("a", OWN)}
    score, update = score_of(records)
    score.choice.value = "reward"
    records["b"] = several("b", {"val_auc": 0.5, "val_accuracy": 0.4})
    records["c"] = several("c", {"reward": 7.0})
    update()
    assert score.choice.value == "reward" and score.source.data["run"] == ["a", "c"]
    assert "val_accuracy" in score.choice.options


def test_without_a_choice_the_score_is_that_of_most_runs(score_of):
    records = {"a": several("a", {"val_auc": 0.5})}
    score, update = score_of(records)
    records |= {name: several(name, {"val_accuracy": 0.5}) for name in "bc"}
    update()
    assert score.choice.value == "val_accuracy" and score.source.data["run"] == ["b", "c"]


def test_runs_without_the_chosen_metric_leave_a_word():
    records = {"a": several("a", OWN), "b": several("b", {"val_auc": 0.5, "<b>": 1.0})}
    page = Training(lambda: records)
    page.update()
    score = page.score
    score.choice.value = "<b>"
    page.look.runs.value = ["a"]
    page.update()
    assert score.root.visible and score.missing.visible and not score.figure.visible
    assert "&lt;b&gt;" in score.missing.text and score.choice.value == "<b>" in score.choice.options
    assert score.source.data["xs"] == [] and score.key.text == ""
    score.choice.value = "val_auc"
    assert score.figure.visible and not score.missing.visible and score.source.data["run"] == ["a"]
    records["c"] = record_of(start("c"))
    page.look.runs.value = ["c"]
    page.update()
    assert score.missing.visible, "a run that prepares has no metric yet"


def test_a_loss_that_no_other_chart_shows_is_shown_where_there_is_no_score(score_of):
    score, _ = score_of({"r": several("r", {"train_rmse": 2.0, "val_rmse": 3.0, "val_mae": 1.0})})
    assert score.root.visible and score.choice.value == "val_mae"


def test_the_choice_has_the_colors_of_the_theme():
    """Light and dark are CSS variables of the page; a color of its own would be right in one of them only."""
    for part in (style.METRIC, style.WORDS, style.NOTICE):
        assert "var(--daskdl-" in part and not re.search(r"#[0-9a-f]{3,8}\b", part)


# the ranks


SLOW = {"data": 0.06, "forward": 0.01, "backward": 0.02}
FAST = {"data": 0.01, "forward": 0.01, "backward": 0.02, "all-reduce": 0.05}


def test_the_breakdown_is_stacked_by_rank_with_its_verdict():
    record = record_of(start("r"), metrics("r", [1, {"train_loss": 1.0}], ranks=ranks(FAST, SLOW)))
    panel = page_of(record).breakdown
    data = panel.source.data
    assert panel.root.visible
    assert panel.figure.y_range.factors == ["rank 1", "rank 0"], "rank 0 on top"
    first = [i for i, rank in enumerate(data["rank"]) if rank == "rank 0"]
    assert [data["what"][i] for i in first] == ["data", "forward", "backward", "all-reduce"]
    assert [round(data["right"][i] - data["left"][i]) for i in first] == [10, 10, 20, 50]
    assert data["left"][first[-1]] == pytest.approx(40)
    assert "Rank 1 is the straggler: 67&nbsp;% of its step is waiting for data" in panel.heading.text
    assert "the last 10 steps" in panel.heading.text
    record.apply(end("r"))
    assert "all 10 steps" in page_of(record).breakdown.heading.text


def test_colors_of_phases_differ_within_a_run():
    from daskdl.tracking.breakdown import PHASES
    from daskdl.tracking.colors import PHASE_COLORS

    assert list(PHASE_COLORS) == list(PHASES)
    assert len({color for phase, color in PHASE_COLORS.items() if phase != "boost"}) == len(PHASES) - 1


def test_of_many_ranks_the_busiest_and_the_least_busy_are_shown():
    said = ranks(*({"data": 0.001 * i, "all-reduce": 0.1 - 0.001 * i} for i in range(64)))
    page = page_of(record_of(start("r"), metrics("r", [1, {"train_loss": 1.0}], ranks=said)))
    shown = page.breakdown.figure.y_range.factors[::-1]
    assert shown[:2] == ["rank 63", "rank 62"] and shown[-1] == "rank 0" and len(shown) == 8
    assert "the 4 busiest and the 4 least busy of 64 ranks" in page.breakdown.heading.text
    assert len(page.memory.figure.y_range.factors) == 8
    assert "8 of 64 ranks, those with the most" in page.memory.heading.text


def test_the_breakdown_is_of_the_newest_running_run_or_of_the_chosen_one():
    def run(name, *more):
        return record_of(start(name, name=name), metrics(name, [1, {"train_loss": 1.0}], ranks=ranks(SLOW)), *more)

    page = page_of(run("a", end("a")), run("b"), run("c", end("c")), curve("d"))
    assert "b, mean" in page.breakdown.heading.text
    page.look.runs.value = ["a"]
    page.update()
    assert "a, mean" in page.breakdown.heading.text


def test_memory_has_now_and_peak_of_host_and_gpu():
    first, second = ranks(SLOW, SLOW, host=2**30, gpu=2**31), ranks(SLOW, SLOW, host=2**29, gpu=2**31)
    record = record_of(start("r"), metrics("r", [1, {"a": 1.0}], ranks=first), metrics("r", [2, {}], ranks=second))
    panel = page_of(record).memory
    data = panel.source.data
    assert data["what"] == ["host", "GPU"] * 2
    assert (data["now"][0], data["peak"][0]) == (2**29, 2**30)
    assert data["text"][0] == "512.00 MiB now, 1.00 GiB at its peak"
    assert data["rank"][0][0] == "rank 0" and data["rank"][0][1] < 0 < data["rank"][1][1]
    assert "GPU" in panel.heading.text
    without = page_of(record_of(start("r"), metrics("r", [1, {"a": 1.0}], ranks=ranks(SLOW)))).memory
    assert without.source.data["what"] == ["host"] and "GPU" not in without.heading.text


# the panels by themselves


@pytest.mark.parametrize(
    "make", [panels.Loss, panels.Score, panels.speed, panels.signals, panels.Breakdown, panels.Memory]
)
def test_a_pane_says_what_it_waits_for_and_whose_curves_it_has(make):
    records = {}
    pane = Pane(lambda: records, make())
    pane.update()
    assert pane.empty.visible and "No run yet" in pane.empty.text and not pane.panel.root.visible
    records["r"] = record_of(start("r"), metrics("r", [1, {"other_per_s": 1.0}]))
    pane.update()
    assert pane.empty.visible and "here when" in pane.empty.text
    values = {"train_loss": 1.0, "val_auc": 0.5, "rows_per_s": 1.0, "grad_norm": 1.0, "learning_rate": 1.0}
    records["r"].apply(metrics("r", [2, values], ranks=ranks(SLOW, FAST)))
    pane.update()
    assert not pane.empty.visible and pane.panel.root.visible
    assert "flights" in pane.key.text


def test_the_pane_of_runs_comes_and_goes():
    records = {}
    pane = Pane(lambda: records, panels.Runs(None, None), key=False)
    pane.update()
    assert pane.empty.visible
    records["r"] = curve()
    pane.update()
    assert pane.panel.root.visible and not pane.empty.visible and not pane.key.visible


# the table


def test_table_tells_each_run_newest_first():
    first, second = curve("a", name="first"), curve("b", name="second", algorithm="xgboost", steps=10)
    second.apply(end("b"))
    text = page_of(first, second).runs.table.text
    assert text.index("second") < text.index("first")
    for part in ("xgboost", "finished", "100%", "took 1 min 01 s", "running", "5%", "0.2", "0.6 <small>val_auc"):
        assert part in text


def test_table_escapes_what_users_write():
    record = curve(name="<script>1</script>", algorithm="<b>")
    record.apply(end("r", "failed", "<img src=x>\nmore"))
    text = page_of(record).runs.table.text
    assert "<script>" not in text
    assert "<img" not in text
    assert "&lt;img src=x&gt;" in text


def test_table_tells_the_last_news_of_a_run_that_goes_on():
    record = curve()
    record.apply(event("r", "worker_lost", 4, "tcp://1 left the cluster."))
    assert "step 4: tcp://1 left the cluster." in page_of(record).runs.table.text
    record.apply(end("r"))
    assert "left the cluster" not in page_of(record).runs.table.text


def test_only_what_went_wrong_is_told_as_an_error():
    stopped, failed = curve("a"), curve("b")
    stopped.apply(end("a", "stopped", "the stop button"))
    failed.apply(end("b", "failed", "boom"))
    text = page_of(stopped, failed).runs.table.text
    assert re.search('class="news"[^>]*><td[^>]*>the stop button', text)
    assert re.search('class="error"[^>]*><td[^>]*>boom', text)


def test_the_stop_button_is_there_while_a_run_is_and_says_so_once():
    said = []
    records = {"r": record_of(start("r")), "s": record_of(start("s", name="other"))}
    page = Training(lambda: records, clock=lambda: 5.0, say=said.append)
    page.update()
    runs = page.runs
    assert runs.controls.visible and runs.choice.visible and runs.choice.value == "s", "the newest is offered first"
    runs.choice.value = "r"
    runs.ask_to_stop()
    assert [(m["run"], m["kind"]) for m in said] == [("r", "stop")]
    page.update()
    assert runs.stop.disabled and runs.stop.label == "Stopping ..."
    records["r"].apply(end("r", "stopped"))
    page.update()
    assert runs.choice.value == "s" and not runs.stop.disabled and not runs.choice.visible
    records["s"].apply(end("s"))
    page.update()
    assert not runs.controls.visible


def test_no_worker_is_killed_unless_the_scheduler_is_set_to_show_the_button():
    assert not Training(dict).runs.kill.visible and Training(dict, kill=lambda: None).runs.kill.visible


def test_the_buttons_act_on_a_real_run():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(3_000, 4)), columns=list("abcd"))
    client = daskdl.connect("cpu", n_workers=2, dashboard_address="127.0.0.1:0")
    with client.as_current():
        classifier = daskdl.TorchClassifier(epochs=10_000, verbose=0)
        fit = threading.Thread(target=classifier.fit, args=(X, (X.a > 0).astype(int)))
        fit.start()
        while not hasattr(classifier, "run_") or classifier.run_.record.step < 50:
            time.sleep(0.02)
        scheduler = client.cluster.scheduler
        records = scheduler.plugins["daskdl"].records
        page = Training(lambda: records, say=partial(scheduler.log_event, "daskdl"))
        page.update()
        scheduler.loop.add_callback(kill_a_worker, scheduler)
        while "worker_lost" not in classifier.run_.events.event.tolist():
            time.sleep(0.02)
        scheduler.loop.add_callback(page.runs.ask_to_stop)
        fit.join(30)
        assert not fit.is_alive() and classifier.run_.state == "stopped"
        assert "the stop button of the Training page" in classifier.run_.error
    client.shutdown()
