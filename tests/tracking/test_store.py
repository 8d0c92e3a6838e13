import json
import os
import subprocess
import sys
import threading
import time

import pytest

from daskdl.tracking import mlflow_client
from daskdl.tracking.folder import Folder, set_root
from daskdl.tracking.plain import from_text, to_text
from daskdl.tracking.record import MAX_POINTS
from daskdl.tracking.run import Run, load_run, runs
from daskdl.tracking.store import Store, store_of
from daskdl.tracking.writer import Writer, writer

TWO_NOTEBOOKS = """
import sys
from daskdl.tracking.run import Run
for n in range(3):
    with Run.start(f"{sys.argv[2]} {n}", "torch", {"n": n}, root=sys.argv[1]) as run:
        for step in range(700):
            run.log(step, train_loss=1.0 / (step + 1))
"""


def python(script, *args):
    return subprocess.Popen([sys.executable, "-c", script, *args], stderr=subprocess.PIPE, text=True)


def test_two_processes_share_a_new_file(tmp_path):
    processes = [python(TWO_NOTEBOOKS, str(tmp_path), name) for name in ("left", "right")]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert errors == ["", ""]  # neither failed nor announced its tables
    table = runs(tmp_path)
    assert sorted(table["name"]) == [f"{side} {n}" for side in ("left", "right") for n in range(3)]
    assert set(table["state"]) == {"finished"}
    for run_id in table["id"]:
        assert len(load_run(run_id, tmp_path).metrics) == 700


def test_mlflow_does_not_phone_home_and_the_environment_stays(tmp_path):
    script = (
        "import os, sys; before = dict(os.environ)\n"
        "from daskdl.tracking.mlflow_client import open_client; open_client(sys.argv[1])\n"
        "from mlflow.telemetry import get_telemetry_client\n"
        "print(get_telemetry_client(), dict(os.environ) == before)\n"
    )
    # a bare environment: MLflow is silent by itself where it sees pytest or a CI service
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path / "mlflow.db")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "True"]


def test_million_points_become_a_bounded_number(root):
    run = Run.start("long", "a", {})
    points = [[step, {"train_loss": 1.0}] for step in range(100_000)]
    run.receive({"run": run.id, "kind": "metrics", "time": time.time(), "points": points, "epoch": None})
    run.finish()
    back = load_run(run.id).metrics
    assert MAX_POINTS // 2 <= len(back) <= MAX_POINTS + 3
    assert back.index[-1] == 99_999


def test_best_point_is_kept_though_thinned_out(root):
    run = Run.start("spiky", "a", {})
    points = [[step, {"val_auc": 0.9 if step == 77_777 else 0.5}] for step in range(80_000)]
    run.receive({"run": run.id, "kind": "metrics", "time": time.time(), "points": points, "epoch": None})
    run.finish()
    assert load_run(run.id).record.curves["val_auc"].high == (77_777, 0.9)


def test_remote_root_keeps_files_there_and_the_table_here(root):
    remote = "memory://bucket/experiments"
    with Run.start("far away", "torch", {"lr": 1}, root=remote) as run:
        run.event("note", "hello")
        with run.open("model.bin", "wb") as file:
            file.write(b"123")
    assert run.folder == f"{remote}/{run.id}"
    assert runs(remote)["name"].tolist() == ["far away"]
    assert "far away" not in runs()["name"].tolist()
    assert run.artifacts() == ["events.jsonl", "model.bin"]
    assert load_run(run.id, remote).events["text"].tolist() == ["hello"]
    assert store_of(remote).db == f"{root}/mlflow.db"


def test_remote_default_root_has_its_table_in_the_working_directory(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    set_root("memory://bucket")
    assert Store("memory://bucket").db == f"{tmp_path}/daskdl-runs/mlflow.db"


def test_events_are_on_disk_while_the_run_runs(root):
    run = Run.start("n", "a", {})
    run.event("commit", "epoch 1", step=10)
    store_of(root).flush()
    with run.open("events.jsonl", "r") as file:
        (event,) = [json.loads(line) for line in file]
    assert (event["event"], event["text"], event["step"]) == ("commit", "epoch 1", 10)
    assert run.state == "running"


def test_metrics_are_in_mlflow_while_the_run_runs(root):
    run = Run.start("under way", "a", {"depth": 8}, seed=5)
    run.log(1, val_auc=0.6)
    row = runs().set_index("id").loc[run.id]
    assert (row["state"], row["metrics.val_auc"], row["params.depth"]) == ("running", 0.6, 8)


def test_mlflow_reads_what_we_wrote(root):
    with Run.start("open to all", "torch", {"lr": 0.1}, seed=5) as run:
        run.log(1, val_auc=0.6)
    store = store_of(root)
    store.flush()
    (found,) = store.client().search_runs([store.experiment_id()], "run_name = 'open to all'")
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1"}
    assert found.data.metrics == {"val_auc": 0.6}
    assert {"daskdl.id": run.id, "daskdl.algorithm": "torch", "daskdl.seed": "5"}.items() <= found.data.tags.items()


def test_long_values_are_cut_and_odd_names_are_taken(root):
    with Run.start("n" * 400, "a", {"p" * 400: "v" * 10_000}) as run:
        run.log(1, **{"hit@10 [%]": 0.5})
        run.finish("failed", "e" * 20_000)
    row = runs().set_index("id").loc[run.id].dropna()
    assert row["metrics.hit_10 ___"] == 0.5
    assert row["state"] == "failed"
    assert any(len(str(value)) == 500 for value in row)


def test_training_outlives_a_store_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("daskdl.tracking.store.ATTEMPTS", 1)
    (tmp_path / "mlflow.db").write_text("this is no database")

    def train():
        with Run.start("n", "a", {}, root=tmp_path) as run:
            run.log(1, train_loss=0.5)
        store_of(str(tmp_path)).flush()
        return run

    with pytest.warns(RuntimeWarning, match=r"could not be kept in .*mlflow\.db"):
        run = train()
    assert run.metrics.loc[1, "train_loss"] == 0.5


@pytest.mark.parametrize("value", [1, -2.5, True, None, "adam", "1", "None", "1e-3", [1, "2"], {"a": None}, "it's"])
def test_text_of_a_parameter_reads_back(value):
    back = from_text(to_text(value))
    assert back == value
    assert type(back) is type(value)


def test_infinity_comes_back():
    assert [mlflow_client.value_of(v) for v in (sys.float_info.max, -sys.float_info.max, 1.5)] == [
        float("inf"), float("-inf"), 1.5,
    ]  # fmt: skip


def test_writer_does_each_job_once_a_round_and_flush_waits():
    writer, calls = Writer(), []

    def job():
        time.sleep(0.05)
        calls.append(1)

    writer.ask(job)
    assert writer.flush()
    assert calls == [1]
    for _ in range(5):
        writer.ask(job)
    assert writer.flush()
    assert len(calls) <= 3


def test_runs_that_are_not_written_yet_are_said_to_be_missing(root, monkeypatch):
    monkeypatch.setattr(Store, "flush", lambda self: writer.flush(timeout=0.1))
    held = threading.Event()
    writer.ask(held.wait)
    try:
        run = Run.start("late", "torch", {})
        run.finish()
        with pytest.warns(RuntimeWarning, match="still being written.*mlflow.db") as warned:
            assert run.id not in set(runs().id)
        assert warned[0].filename == __file__
    finally:
        held.set()
    monkeypatch.undo()
    assert run.id in set(runs().id)


def test_who_reads_a_file_while_it_is_written_gets_a_whole_one(tmp_path):
    folder, texts = Folder(str(tmp_path)), [letter * 1_000_000 for letter in "ab"]
    folder.write("text", texts[0].encode())
    seen, written = [], threading.Event()

    def read():
        while not written.is_set():
            with folder.open("text", "r") as file:
                seen.append(file.read())

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(100):
        folder.write("text", texts[n % 2].encode())
    written.set()
    reader.join()
    assert set(seen) <= set(texts) and seen
    assert folder.names() == ["text"]
