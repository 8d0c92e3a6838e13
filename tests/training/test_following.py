"""Runs in the background: the notebook that began one may die; others follow it, stop it, and load what it trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask.dataframe as dd
import pandas as pd
import pytest
import torch
from distributed import Client

import daskdl
from daskdl.errors import NotEnoughWorkers
from daskdl.tracking.folder import resolve_root
from daskdl.training.private import private_folder

pytestmark = pytest.mark.cluster

NOTEBOOK = """
import os, sys, daskdl, pandas as pd
if __name__ == "__main__":
    daskdl.connect("cpu", n_workers=1, dashboard_address="127.0.0.1:0", runs=sys.argv[1])
    frame = pd.read_parquet(sys.argv[2])
    fit = daskdl.TorchClassifier(epochs=int(sys.argv[3]), batch_size=64, verbose=0).fit
    print(fit(frame, "late", background=True).run_.id, flush=True)
    os.kill(os.getpid(), 9)
"""


LOOP_NOTEBOOK = """
import os, sys, time, daskdl, torch

class Line(torch.nn.Linear):  # that only the notebook knows
    pass

def loop(context, words, brake):
    model = context.prepare(Line(context.schema.n_numbers, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    context.keep(optimizer=optimizer)
    for batch in context.batches:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch.x).squeeze(1), batch.y.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        context.report(loss=loss)
        time.sleep(0.1 if os.path.exists(brake) else 0.005)
    return {"words": words, "steps": context.step, "model": model}

if __name__ == "__main__":
    daskdl.connect("cpu", n_workers=1, dashboard_address="127.0.0.1:0", runs=sys.argv[1])
    data = daskdl.ParquetSource(sys.argv[2]), "late"
    options = dict(epochs=int(sys.argv[3]), batch_size=64, verbose=0, background=True)
    result = daskdl.train(loop, data, "hello", sys.argv[4], **options)
    print(result.run.id, flush=True)
    os.kill(os.getpid(), 9)
"""


def begun_in_a_notebook_that_dies(tmp_path: Path, frame: pd.DataFrame, epochs: int, notebook: str = NOTEBOOK) -> str:
    (tmp_path / "notebook.py").write_text(notebook)
    frame.to_parquet(tmp_path / "rows.parquet")
    arguments = [
        tmp_path / "notebook.py",
        resolve_root(),
        tmp_path / "rows.parquet",
        str(epochs),
        tmp_path / "brake",
    ]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.split()[-1]


def test_a_run_outlives_its_notebook_and_is_stopped_from_another(tmp_path: Path, planted: pd.DataFrame) -> None:
    frame = planted[["a", "b", "late"]]
    run = daskdl.attach(begun_in_a_notebook_that_dies(tmp_path, frame, 100_000))
    while run.record.step < 100:
        assert run.state in ("waiting", "running")
        time.sleep(0.05)
    run.stop("seen enough")
    assert run.wait(timeout=60, verbose=0) == "stopped" and "seen enough" in str(run.error)
    folder = Path(run.folder)
    assert daskdl.load(str(folder / "model")).score(frame[["a", "b"]], frame.late) > 0.7
    deadline = time.monotonic() + 30
    while (folder / "session.json").exists():
        assert time.monotonic() < deadline, sorted(folder.iterdir())
        time.sleep(0.1)
    assert daskdl.attach(run.id).state == "stopped"


def test_a_loop_outlives_its_notebook_and_another_one_gets_what_it_returns(
    tmp_path: Path, planted: pd.DataFrame, runs_root: Path
) -> None:
    frame = planted[["a", "b", "late"]]
    run_id = begun_in_a_notebook_that_dies(tmp_path, frame, 3, LOOP_NOTEBOOK)
    result = daskdl.load_result(run_id)
    value = result.value  # waits
    assert result.run.state == "finished" and value["words"] == "hello" and value["steps"] == 3 * 63
    assert type(value["model"]).__name__ == "Line" and set(result.state) == {"model", "optimizer"}
    assert torch.equal(value["model"].weight, result.state["model"]["weight"])
    assert result.schema.names == ["a", "b"] and result.target.classes.tolist() == [0, 1]
    again = daskdl.load_result(run_id)
    assert again.run.state == "finished" and again.value["steps"] == value["steps"]
    path = private_folder("results") / run_id
    assert path.stat().st_mode & 0o077 == 0
    path.chmod(0o666)
    with pytest.raises(PermissionError, match="could run anything"):
        daskdl.load_result(run_id)


def test_a_loop_in_the_background_is_stopped_and_resumed(tmp_path: Path, planted: pd.DataFrame) -> None:
    brake = tmp_path / "brake"
    brake.touch()  # 126 s are left to stop it
    run_id = begun_in_a_notebook_that_dies(tmp_path, planted[["a", "b", "late"]], 20, LOOP_NOTEBOOK)
    result = daskdl.load_result(run_id)
    while result.run.record.step < 20:
        assert result.run.state in ("waiting", "running")
        time.sleep(0.05)
    result.run.stop()
    stopped = result.value["steps"]
    assert result.run.state == "stopped" and 20 <= stopped < 20 * 63
    brake.unlink()
    resumed = daskdl.resume(run_id)
    assert resumed.value["steps"] == 20 * 63 and f"from step {stopped:,}" in resumed.run.events.text.str.cat()


def test_who_waits_for_a_process_that_is_killed_is_told(tmp_path: Path, planted: pd.DataFrame, runs_root: Path) -> None:
    run_id = begun_in_a_notebook_that_dies(tmp_path, planted[["a", "b", "late"]], 100_000, LOOP_NOTEBOOK)
    result = daskdl.load_result(run_id)
    pid = json.loads((runs_root / run_id / "session.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ValueError, match="has failed: its process and its scheduler are gone.*left no result"):
        _ = result.value
    assert daskdl.attach(run_id).wait(verbose=0) in ("waiting", "running"), (
        "nobody is left to say more: it is not waited for"
    )


def ends(context: daskdl.Context, value: object = None) -> object:
    for _ in context.batches:
        pass
    return value


def test_a_loop_on_a_cluster_that_lives_on(client: Client, planted: pd.DataFrame, runs_root: Path) -> None:
    lazy = dd.from_pandas(planted[["a", "b", "late"]], npartitions=4)
    with Client(client.scheduler.address) as other:
        result = daskdl.train(ends, (lazy, "late"), (1, "a"), verbose=0, background=True, client=other)
        assert result.value == (1, "a") and result.run.record.num_workers == 2
        with pytest.raises(NotEnoughWorkers, match="num_workers=9 asked for"):
            daskdl.train(ends, (lazy, "late"), num_workers=9, background=True)
        with pytest.raises(ValueError, match="left no result"):
            daskdl.load_result(daskdl.train(ends, (lazy, "late"), verbose=0, client=other).run.id)


def test_on_a_cluster_that_lives_on_it_is_used(client: Client, planted: pd.DataFrame, runs_root: Path) -> None:
    address = client.scheduler.address
    with Client(address) as other:
        lazy = dd.from_pandas(planted[["a", "b", "late"]], npartitions=4)
        fitted = daskdl.XGBClassifier(n_estimators=20, verbose=0).fit(lazy, "late", background=True)
        assert other.cluster is None
        assert fitted.run_.wait(timeout=60, verbose=0) == "finished"
    assert fitted.run_.record.step == 20


def test_what_is_refused_is_said_at_once(client: Client, planted: pd.DataFrame, runs_root: Path) -> None:
    lazy = dd.from_pandas(planted[["a", "late"]], npartitions=2).persist()
    with pytest.raises(ValueError, match="cannot use a persisted frame"):
        daskdl.TorchClassifier(verbose=0).fit(lazy, "late", background=True)
    with pytest.raises(RuntimeError, match="(?s)did not begin its run.*DataError: Found input variables"):
        daskdl.TorchClassifier(verbose=0).fit(lazy[["a"]].head(10), planted.late, background=True)
    before = os.listdir(runs_root)
    with pytest.raises(ValueError, match="cannot use a persisted frame"):
        daskdl.train(ends, (lazy, "late"), background=True)
    with pytest.raises(TypeError, match="cannot be pickled for it.*lock"):
        daskdl.train(ends, (planted[["a"]], planted.late), threading.Lock(), background=True)
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        daskdl.train(ends, (planted[["a"]], planted.late), epochs=0, background=True)
    with pytest.raises(TypeError, match="a number or a pair"):
        daskdl.train(ends, (planted[["a"]], planted.late), num_workers="2", background=True)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="(?s)did not begin its run.*DataError"):
        daskdl.train(ends, (planted[["a"]][:10], planted.late), background=True)
    assert len(os.listdir(runs_root)) == len(before) + 1, "no process was started but the last one"
    with pytest.raises(ValueError, match="No run 'nothing'"):
        daskdl.attach("nothing")
    assert not os.path.exists("nothing")
