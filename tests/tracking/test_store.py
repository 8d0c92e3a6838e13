import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import warnings

import pytest

from daskdl.run import Run, load_run, runs
from daskdl.tracking import mlflow_client
from daskdl.tracking.folder import Folder, set_root
from daskdl.tracking.mirror import Mirror, copier
from daskdl.tracking.record import MAX_POINTS
from daskdl.tracking.store import Store, store_of
from daskdl.tracking.writer import Writer, writer

TWO_NOTEBOOKS = """
import sys
from daskdl.run import Run
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
    assert {"events.jsonl", "model.bin", "run.json"} <= set(run.artifacts())
    assert load_run(run.id, remote).events["text"].tolist() == ["hello"]
    assert store_of(remote).mirror.db == f"{root}/mlflow.db"


def test_remote_default_root_has_its_table_in_the_working_directory(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    set_root("memory://bucket")
    assert Mirror("memory://bucket").db == f"{tmp_path}/daskdl-runs/mlflow.db"


def test_events_are_on_disk_while_the_run_runs(root):
    run = Run.start("n", "a", {})
    run.event("commit", "epoch 1", step=10)
    store_of(root).flush()
    with run.open("events.jsonl", "r") as file:
        (event,) = [json.loads(line) for line in file]
    assert (event["event"], event["text"], event["step"]) == ("commit", "epoch 1", 10)
    assert run.state == "running"


def test_metrics_are_listed_while_the_run_runs(root):
    run = Run.start("under way", "a", {"depth": 8}, seed=5)
    run.log(1, val_auc=0.6)
    row = runs().set_index("id").loc[run.id]
    assert (row["state"], row["metrics.val_auc"], row["params.depth"]) == ("running", 0.6, 8)


def test_mlflow_reads_what_we_wrote(root):
    with Run.start("open to all", "torch", {"lr": 0.1}, seed=5) as run:
        run.log(1, val_auc=0.6)
    mirror = store_of(root).mirror
    assert mirror.flush()
    (found,) = mirror.client().search_runs([mirror.experiment_id()], "run_name = 'open to all'")
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1"}
    assert found.data.metrics == {"val_auc": 0.6}
    assert {"daskdl.id": run.id, "daskdl.algorithm": "torch", "daskdl.seed": "5"}.items() <= found.data.tags.items()


def test_long_values_are_cut_and_odd_names_are_taken(root):
    with Run.start("n" * 400, "a", {"p" * 400: "v" * 10_000}) as run:
        run.log(1, **{"hit@10 [%]": 0.5})
        run.finish("failed", "e" * 20_000)
    row = runs().set_index("id").loc[run.id].dropna()
    assert row["metrics.hit@10 [%]"] == 0.5
    assert row["state"] == "failed"
    assert any(len(str(value)) == 500 for value in row)
    mirror = store_of(root).mirror
    assert mirror.flush() and not mirror.broken
    (found,) = mirror.client().search_runs([mirror.experiment_id()], f"tags.`daskdl.id` = '{run.id}'")
    assert found.data.metrics == {"hit_10 ___": 0.5}


def copied(run):
    run.finish()
    assert copier.flush()


@pytest.fixture
def folder(tmp_path, empty_store):
    """A root with a space in its path, which a shell would split, and an MLflow file."""
    root = tmp_path / "my runs"
    root.mkdir()
    shutil.copy(empty_store, root)
    return root


def an_older_version(db):
    command = (
        "import sys; from alembic import command; from mlflow.store.db.utils import _get_alembic_config\n"
        "command.downgrade(_get_alembic_config('sqlite:///' + sys.argv[1]), '-1')"
    )
    with sqlite3.connect(db) as connection:
        before = connection.execute("select version_num from alembic_version").fetchone()
    subprocess.run([sys.executable, "-c", command, str(db)], check=True, capture_output=True)
    with sqlite3.connect(db) as connection:
        assert connection.execute("select version_num from alembic_version").fetchone() != before


def a_newer_version(db):
    with sqlite3.connect(db) as connection:
        connection.execute("update alembic_version set version_num = 'ffffffffffff'")


def damaged(db):
    db.write_text("this is no database")


def cut_short(db):
    db.write_bytes(db.read_bytes()[:5_000])


FAULTS = {
    an_older_version: r"older MLflow.*: cp '(/.*/my runs/mlflow\.db)' '\1\.before-upgrade' && "
    r"mlflow db upgrade 'sqlite:///\1'",
    a_newer_version: "newer MLflow.*pip install --upgrade mlflow-skinny",
    damaged: r"is damaged.*mv '(/.*/my runs/mlflow\.db)' '\1\.damaged'",
    cut_short: "mlflow.db",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_runs_are_there_whatever_has_become_of_the_file_of_mlflow(folder, fault):
    with Run.start("before", "a", {"depth": 3}, root=folder) as run:
        run.log(1, train_loss=0.5)
    assert copier.flush()
    fault(folder / "mlflow.db")
    mlflow_client._client.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        began = time.monotonic()
        assert runs(folder).set_index("id").loc[run.id, ["name", "params.depth", "metrics.train_loss"]].tolist() == [
            "before", 3, 0.5,
        ]  # fmt: skip
        assert load_run(run.id, folder).metrics.loc[1, "train_loss"] == 0.5
        assert time.monotonic() - began < 5, "nothing of MLflow's is waited for"
    with pytest.warns(RuntimeWarning, match=FAULTS[fault]) as warned:
        copied(Run.start("after", "a", {}, root=folder))
    assert len(warned) == 1 and "read from there all the same" in str(warned[0].message)
    assert sorted(runs(folder)["name"]) == ["after", "before"]


def test_a_file_of_mlflow_that_another_process_holds_is_waited_for_by_nobody(folder):
    script = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('begin exclusive'); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(folder / "mlflow.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with Run.start("held", "a", {}, root=folder) as run:
            run.log(1, train_loss=0.5)
        assert load_run(run.id, folder).state == "finished"
        assert runs(folder)["name"].tolist() == ["held"]
        holder.stdin.close()
    assert copier.flush()
    mirror = store_of(str(folder)).mirror
    assert [found.info.run_name for found in mirror.client().search_runs([mirror.experiment_id()])] == ["held"]


@pytest.mark.parametrize("name", ["a b", "größer", "a#b", "[ab]", "a%20b", "what?", "a&b=c", "$HOME", "*"])
def test_a_root_is_taken_letter_by_letter(tmp_path, empty_store, name):
    (tmp_path / name).mkdir()
    shutil.copy(empty_store, tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow does not take all of them
        with Run.start(name, "a", {"name": name}, root=tmp_path / name) as run:
            run.log(1, train_loss=0.5)
            with run.open(f"{name}/{name}.txt", "w") as file:
                file.write(name)
        assert store_of(str(tmp_path / name)).flush()
    back = load_run(run.id, tmp_path / name)
    assert (back.name, back.params) == (name, {"name": name})
    assert f"{name}/{name}.txt" in back.artifacts()
    assert runs(tmp_path / name)["id"].tolist() == [run.id]


def test_the_file_of_mlflow_is_made_nowhere_else(tmp_path, empty_store):
    names = ["a#b [c] ü", "a%20b", "what?"]
    for name in names:
        (tmp_path / name).mkdir()
        shutil.copy(empty_store, tmp_path / name)
        Run.start("n", "a", {}, root=tmp_path / name).finish()
    with pytest.warns(RuntimeWarning, match="cannot be told of a file whose path has a question mark"):
        assert copier.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert [store_of(str(tmp_path / name)).mirror.broken for name in names] == [False, True, True]


def test_a_root_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"runs cannot be kept in .*file.*daskdl\.connect\(runs="):
        Run.start("n", "a", {}, root=tmp_path / "file")
    with pytest.raises(OSError, match="runs cannot be kept in /proc/nowhere"):
        Run.start("n", "a", {}, root="/proc/nowhere")


def test_a_folder_that_is_half_gone_is_listed_with_what_is_left(tmp_path):
    with Run.start("whole", "a", {"depth": 3}, root=tmp_path) as run:
        run.event("note", "hello")
        run.log(1, train_loss=0.5)
    store_of(str(tmp_path)).flush()
    folder = tmp_path / run.id
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"time": 1.0, "event": "no')  # its machine died here
    (folder / "metrics.json").write_text('{"train_lo')
    back = load_run(run.id, tmp_path)
    assert (back.name, back.events["text"].tolist(), back.metrics.empty) == ("whole", ["hello"], True)
    (folder / "run.json").unlink()
    row = runs(tmp_path).set_index("id").loc[run.id]
    assert (row["state"], abs(row["started"].timestamp() - time.time()) < 60) == ("unknown", True)
    assert load_run(run.id, tmp_path).events["text"].tolist() == ["hello"]
    (tmp_path / "notes").mkdir()
    assert len(runs(tmp_path)) == 1, "a folder that is no run is none"


def test_a_clock_that_goes_back_makes_no_negative_time(tmp_path):
    with Run.start("n", "a", {}, root=tmp_path) as run:
        run.record.started += 3_600
    assert runs(tmp_path)["seconds"].tolist() == [0.0]


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
        with pytest.warns(RuntimeWarning, match="still being written to") as warned:
            assert runs().set_index("id").loc[run.id, "state"] == "unknown"
        assert warned[0].filename == __file__
    finally:
        held.set()
    monkeypatch.undo()
    assert runs().set_index("id").loc[run.id, "state"] == "finished"


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
