import json
import math
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

import daskdl
from daskdl.dashboard import install, view
from daskdl.dashboard.page import Training, kill_a_worker
from daskdl.dashboard.plugin import MAX_RUNS, NAME, TrainingPlugin
from daskdl.tracking.record import TOPIC, RunRecord
from daskdl.tracking.run import Run


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


def start(run_id, name="flights", algorithm="torch", steps=100, when=0.0):
    said = {"name": name, "algorithm": algorithm, "params": {}, "total_steps": steps, "num_workers": 1}
    return {"run": run_id, "kind": "start", "time": when, **said}


def metrics(run_id, *points, when=1.0):
    return {"run": run_id, "kind": "metrics", "time": when, "points": list(points), "epoch": None}


def record_of(*messages):
    record = RunRecord(messages[0]["run"])
    for message in messages:
        record.apply(message)
    return record


def curve(run_id="r", n=5, **keys):
    points = [[s, {"train_loss": 1.0 / (s + 1), "rows_per_s": 100.0}] for s in range(n)]
    points.append([n, {"val_loss": 0.5, "val_auc": 0.6}])
    return record_of(start(run_id, **keys), metrics(run_id, *points))


def page_of(*records):
    page = Training(lambda: {record.id: record for record in records})
    page.update()
    return page


# the page on a real dashboard


@pytest.mark.parametrize("path", ["individual-daskdl-training", "individual-training"])
def test_page_is_served_without_the_navigation_bar(client, cluster, path):
    html = get(cluster, path)
    assert "Dask: Training" in html
    assert "navbar" not in html
    assert "navbar" in get(cluster, "status")


def test_page_is_in_the_menu_once(client, cluster):
    html = get(cluster, "status")
    assert html.count("individual-daskdl-training") == 1


def test_jupyterlab_finds_it_under_its_name(client, cluster):
    listed = json.loads(get(cluster, "individual-plots.json"))
    assert listed["Individual Training"] == "/individual-training"
    assert sum("training" in url for url in listed.values()) == 1


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


def test_runs_differ_by_color_and_validation_is_dashed():
    page = page_of(curve("a"), curve("b"))
    data = page.source.data
    assert data["metric"] == ["train_loss", "val_loss"] * 2
    assert data["dash"] == ["solid", "dashed"] * 2
    assert data["color"][0] == data["color"][1] != data["color"][2]
    assert data["xs"][0] == [0, 1, 2, 3, 4]
    assert data["ys"][1] == [0.5]


def test_charts_show_score_and_speed():
    page = page_of(curve())
    assert page.scores.data["metric"] == ["val_auc"]
    assert page.score_figure.title.text == "val_auc"
    assert page.speeds.data["ys"] == [[100.0] * 5]


def test_charts_without_data_are_hidden():
    page = page_of(record_of(start("r"), metrics("r", [1, {"train_loss": 0.5}])))
    assert not page.score_figure.visible
    assert not page.speed_figure.visible


def test_losses_of_xgboost_are_losses():
    page = page_of(record_of(start("r"), metrics("r", [1, {"train_rmse": 2.0, "val_rmse": 3.0, "val_mae": 1.0}])))
    assert page.source.data["metric"] == ["train_rmse", "val_rmse"]


def test_new_messages_are_drawn_and_silence_changes_nothing():
    record = curve()
    record.apply({"kind": "end", "time": 5.0, "state": "finished"})
    page = page_of(record)
    record.curves["train_loss"].add(7, 0.1)  # behind its back: to see these two, the page would draw for nothing
    record.name = "renamed"
    page.update()
    assert page.source.data["xs"][0][-1] == 4
    assert "renamed" not in page.table.text
    record.apply(metrics("r", [9, {"train_loss": 0.05}], when=6.0))
    page.update()
    assert page.source.data["xs"][0][-1] == 9


def test_time_left_moves_on_in_silence():
    record = curve()
    record.apply(metrics("r", [50, {"train_loss": 0.1}], when=11.0))
    times = iter([11.0, 13.0])
    page = Training(lambda: {"r": record}, clock=lambda: next(times))
    page.update()
    before = page.table.text
    page.update()
    assert page.table.text != before


def test_marks_lie_on_the_loss():
    record = curve()
    for step, event in [(2, "commit"), (3, "note"), (4, "early_stop"), (None, "worker_lost")]:
        record.apply({"kind": "event", "time": 3.0, "event": event, "text": f"{event} happened", "step": step})
    record.apply({"kind": "end", "time": 4.0, "state": "failed", "error": "boom"})
    marks = page_of(record).marks.data
    assert list(zip(marks["event"], marks["x"], strict=True)) == [("commit", 2), ("early_stop", 4), ("failed", 5)]
    assert marks["y"] == [1 / 3, 1 / 5, 1 / 5]
    assert len(set(marks["marker"])) == 3


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


def test_infinite_loss_does_not_spoil_the_axis():
    data = page_of(
        record_of(start("r"), metrics("r", [1, {"train_loss": 0.5}], [2, {"train_loss": math.inf}]))
    ).source.data
    assert data["ys"][0][0] == 0.5
    assert math.isnan(data["ys"][0][1])


def test_table_tells_each_run_newest_first():
    first, second = curve("a", name="first"), curve("b", name="second", algorithm="xgboost", steps=10)
    second.apply({"kind": "end", "time": 61.0, "state": "finished"})
    text = page_of(first, second).table.text
    assert text.index("second") < text.index("first")
    for part in ("xgboost", "finished", "100%", "took 1 min 01 s", "running", "5%", "0.2", "0.6 <small>val_auc"):
        assert part in text


def test_table_escapes_what_users_write():
    record = curve(name="<script>1</script>", algorithm="<b>")
    record.apply({"kind": "end", "time": 4.0, "state": "failed", "error": "<img src=x>\nmore"})
    text = page_of(record).table.text
    assert "<script>" not in text
    assert "<img" not in text
    assert "&lt;img src=x&gt;" in text


def test_the_stop_button_is_there_while_a_run_is_and_says_so_once():
    said = []
    records = {"r": record_of(start("r")), "s": record_of(start("s", name="other"))}
    page = Training(lambda: records, clock=lambda: 5.0, say=said.append)
    page.update()
    assert page.controls.visible and page.choice.visible and page.choice.value == "s", "the newest is offered first"
    page.choice.value = "r"
    page.ask_to_stop()
    assert [(m["run"], m["kind"]) for m in said] == [("r", "stop")]
    page.update()
    assert page.stop.disabled and page.stop.label == "Stopping ..."
    records["r"].apply({"run": "r", "kind": "end", "time": 6.0, "state": "stopped", "error": None})
    page.update()
    assert page.choice.value == "s" and not page.stop.disabled and not page.choice.visible
    records["s"].apply({"run": "s", "kind": "end", "time": 6.0, "state": "finished", "error": None})
    page.update()
    assert not page.controls.visible


def test_no_worker_is_killed_unless_the_scheduler_is_set_to_show_the_button():
    assert not Training(dict).kill.visible and Training(dict, kill=lambda: None).kill.visible


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
        scheduler.loop.add_callback(page.ask_to_stop)
        fit.join(30)
        assert not fit.is_alive() and classifier.run_.state == "stopped"
        assert "the stop button of the Training page" in classifier.run_.error
    client.shutdown()
