import asyncio
import copy
import gc
import math
import pickle
import re
import subprocess
import sys
import weakref

import pytest
from distributed import Client, get_worker

from daskdl.run import Run, load_run, runs
from daskdl.tracking.feed import feed_of, merge
from daskdl.tracking.record import TOPIC


@pytest.fixture
def run(root):
    return Run.start("flights", "torch", {"lr": 0.1}, seed=7, total_steps=10, num_workers=2)


def talk(run_id, n):
    """What a rank does: send n messages and tell how many."""
    for step in range(n):
        points = [[step, {"train_loss": 1.0 / (step + 1)}]]
        get_worker().log_event(TOPIC, {"run": run_id, "kind": "metrics", "time": 0.0, "points": points, "epoch": None})
    return n


def test_attributes_of_a_new_run(run, root):
    assert re.fullmatch(r"\d{8}-\d{6}-[a-z]+-[a-z]+", run.id)
    assert (run.name, run.algorithm, run.params, run.seed) == ("flights", "torch", {"lr": 0.1}, 7)
    assert (run.state, run.error, run.folder) == ("running", None, f"{root}/{run.id}")
    assert {"python", "platform", "daskdl", "dask"} <= set(run.environment)
    assert run.metrics.empty
    assert run.events.empty


def test_ids_are_unique_within_a_second(root):
    ids = [Run.start("n", "a", {}).id for _ in range(60)]
    assert len(set(ids)) == 60


def test_ids_leave_the_random_state_of_the_caller_alone(root):
    import random

    random.seed(0)
    before = random.getstate()
    Run.start("n", "a", {})
    assert random.getstate() == before


def test_metrics_are_wide(run):
    run.log(1, train_loss=0.7)
    run.log(2, train_loss=0.6, val_auc=0.65)
    assert run.metrics.index.tolist() == [1, 2]
    assert run.metrics["train_loss"].tolist() == [0.7, 0.6]
    assert math.isnan(run.metrics.loc[1, "val_auc"])
    assert run.metrics.loc[2, "val_auc"] == 0.65


def test_events_are_a_frame(run):
    run.event("commit", "epoch 1", step=5)
    run.event("note", "hello")
    assert run.events[["event", "text"]].to_numpy().tolist() == [["commit", "epoch 1"], ["note", "hello"]]
    assert run.events["step"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (None, "finished", None),
        (ValueError("too wide"), "failed", "ValueError: too wide"),
        (KeyboardInterrupt(), "stopped", "stopped by KeyboardInterrupt"),
    ],
)
def test_block_ends_the_run(run, error, state, text):
    if error is None:
        with run:
            pass
    else:
        with pytest.raises(type(error)), run:
            raise error
    assert (run.state, run.error) == (state, text)


def test_first_end_counts(run):
    run.finish("failed", "out of memory")
    run.finish()
    assert (run.state, run.error) == ("failed", "out of memory")


def test_ended_run_takes_no_more(run):
    run.finish()
    with pytest.raises(RuntimeError, match=r"Cannot log run .*: it has finished\. Start a new run"):
        run.log(1, train_loss=0.5)


def test_unknown_state_is_refused(run):
    with pytest.raises(ValueError, match="finished, failed, stopped; got 'done'"):
        run.finish("done")


def test_worker_messages_reach_the_run_once(client, root):
    run = Run.start("flights", "torch", {}, client=client)
    sent = client.submit(talk, run.id, 20, pure=False).result()
    assert run.wait_for_messages(sent)
    run.log(20, train_loss=0.01)
    run.event("note", "only once")
    assert run.metrics["train_loss"].tolist() == [*(1.0 / (s + 1) for s in range(20)), 0.01]
    run.finish()
    assert client.submit(talk, "another run", 1, pure=False).result() == 1
    assert run.record.changes == 20 + 4  # start, metrics, event, end: their echoes are not counted
    assert len(run.events) == 1


def test_client_messages_reach_the_scheduler_in_order(client, root):
    run = Run.start("flights", "torch", {}, client=client)
    for step in range(1_000):
        run.log(step, train_loss=1.0)
    run.event("note", "after the metrics")
    run.finish()
    messages = [m for _, m in client.get_events(TOPIC) if m["run"] == run.id]
    assert [m["kind"] for m in messages if m["kind"] != "metrics"] == ["start", "event", "end"]
    steps = [step for m in messages if m["kind"] == "metrics" for step, _ in m["points"]]
    assert steps == list(range(1_000))
    assert len(messages) < 50  # merged on the way


def test_run_of_an_asynchronous_client_does_not_block_its_loop(root):
    async def main():
        async with Client(processes=False, n_workers=1, dashboard_address=None, asynchronous=True) as client:
            with Run.start("flights", "torch", {}, client=client) as run:
                run.log(1, train_loss=0.5)
            while len(messages := await client.get_events(TOPIC)) < 3:
                await asyncio.sleep(0.01)
            return [message["kind"] for _, message in messages]

    assert asyncio.run(main()) == ["start", "metrics", "end"]


def test_waiting_for_messages_that_never_come_ends(run):
    assert run.wait_for_messages(0)
    assert not run.wait_for_messages(1, timeout=0.05)


def test_forgotten_run_is_not_kept_by_the_feed(client, root):
    run = Run.start("flights", "torch", {}, client=client)
    assert feed_of(client) is feed_of(client)
    gone = weakref.ref(run)
    run.finish()
    del run
    gc.collect()
    assert gone() is None


def test_merge_joins_neighbours_of_one_run_only():
    def m(run, step):
        return {"run": run, "kind": "metrics", "points": [[step, {}]]}

    merged = merge([m("a", 1), m("a", 2), m("b", 3), m("a", 4), {"run": "a", "kind": "event"}, m("a", 5)])
    assert [(x["run"], [s for s, _ in x.get("points", [])]) for x in merged] == [
        ("a", [1, 2]), ("b", [3]), ("a", [4]), ("a", []), ("a", [5]),
    ]  # fmt: skip


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda run: pickle.loads(pickle.dumps(run))])
def test_copy_is_what_was_known(client, root, copied):
    run = Run.start("flights", "torch", {"lr": 0.1}, client=client)
    run.log(1, train_loss=0.5)
    other = copied(run)
    run.log(2, train_loss=0.4)
    assert other.metrics["train_loss"].tolist() == [0.5]
    assert (other.id, other.folder, other.environment) == (run.id, run.folder, run.environment)
    other.finish("stopped")
    assert run.state == "running"
    run.finish()
    assert runs().set_index("id").loc[run.id, "state"] == "finished"


@pytest.mark.parametrize("url", [None, "memory://bucket/runs"])
def test_artifacts(root, url):
    run = Run.start("flights", "torch", {}, root=url)
    with run.open("plots/loss.txt", "w") as file:
        file.write("größer")
    with run.open("plots/loss.txt") as file:
        assert file.read() == "größer".encode()
    assert "plots/loss.txt" in run.artifacts()


def test_repr_is_one_line(run):
    run.log(5, train_loss=0.25)
    run.finish("failed", "ValueError: one\ntwo")
    assert "\n" not in repr(run)
    for part in (run.id, "flights", "torch", "failed", "step 5 of 10", "loss 0.25", "ValueError: one"):
        assert part in repr(run)


def test_html_is_static_and_escaped(root):
    run = Run.start("<script>x</script>", "a&b", {"<i>": "<img src=x>"})
    for step in range(3):
        run.log(step, train_loss=1.0 / (step + 1), **{"<b>": 1.0})
    run.finish("failed", "<script>y</script>")
    html = run._repr_html_()
    assert not re.search(r"<(script|img|i|b)>", html.replace(f"<b>{'&lt;script&gt;x&lt;/script&gt;'}</b>", ""))
    assert "&lt;script&gt;y&lt;/script&gt;" in html
    assert html.count("<polyline") == 1
    assert "currentColor" in html


def test_finished_run_is_read_back_as_it_was(run):
    for step in range(30):
        run.log(step, train_loss=1.0 / (step + 1), odd=(math.nan, math.inf, -math.inf)[step % 3])
    run.event("commit", "epoch 1", step=10)
    run.finish("failed", "ValueError: too wide")
    back = load_run(run.id)
    assert back.metrics.equals(run.metrics)
    assert back.events["text"].tolist() == ["epoch 1"]
    for name in ("id", "name", "algorithm", "params", "seed", "state", "error", "folder", "environment"):
        assert getattr(back, name) == getattr(run, name)
    assert back.record.progress == run.record.progress


@pytest.mark.parametrize(
    "params", [{"a": 1, "b": 0.5, "c": None, "d": True, "e": "1", "f": "adam", "g": [1, {"x": 2}]}]
)
def test_plain_parameters_come_back_with_their_types(root, params):
    with Run.start("n", "a", params) as run:
        pass
    assert load_run(run.id).params == params


def test_parameters_that_are_not_plain_are_described(root):
    import numpy as np

    params = {"width": np.int64(3), "kind": dict, "rows": list(range(1_000)), "long": "x" * 9_000, "odd name!": 1}
    with Run.start("n", "a", params) as run:
        pass
    assert (run.params["width"], run.params["kind"]) == (3, "dict")
    assert len(run.params["long"]) == 500
    assert len(run.params["rows"]) <= 500
    assert load_run(run.id).params["odd name!"] == 1


def test_runs_lists_the_newest_first(root):
    for n in range(3):
        with Run.start(f"run {n}", "torch", {"lr": n}) as run:
            run.log(1, val_auc=n / 10)
    table = runs()
    assert table["id"].is_monotonic_decreasing
    assert {"run 0", "run 1", "run 2"} <= set(table["name"])
    row = table.set_index("name").loc["run 2"]
    assert (row["state"], row["params.lr"], row["metrics.val_auc"]) == ("finished", 2, 0.2)
    assert row["seconds"] >= 0
    assert list(table.columns[:6]) == ["id", "name", "algorithm", "state", "started", "seconds"]


def test_no_runs_is_an_empty_table_and_makes_no_file(tmp_path):
    table = runs(tmp_path / "nothing")
    assert table.empty
    assert list(table.columns) == ["id", "name", "algorithm", "state", "started", "seconds"]
    assert not (tmp_path / "nothing").exists()


def test_unknown_id_names_root_and_nearest(run, root):
    with pytest.raises(ValueError, match="No run") as error:
        load_run(run.id[:-1])
    assert run.id in str(error.value)
    assert root in str(error.value)
    with pytest.raises(ValueError, match="There are no runs under it"):
        load_run("x", root + "-elsewhere")


def test_starting_a_run_imports_no_mlflow(tmp_path):
    script = (
        "import sys, threading; from daskdl.run import Run\n"
        "from daskdl.tracking.writer import writer; writer._work = threading.Event().wait\n"
        f"run = Run.start('n', 'a', {{}}, root={str(tmp_path)!r}); run.log(1, train_loss=1.0)\n"
        "print(sorted({'mlflow', 'torch', 'xgboost', 'bokeh', 'hvplot'} & set(sys.modules)), flush=True)\n"
        "import os; os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
