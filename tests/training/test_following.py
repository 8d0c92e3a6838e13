"""Runs in the background: the notebook that began one may die; others follow it, stop it, and load what it trained."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask.dataframe as dd
import pandas as pd
import pytest
from distributed import Client

import daskdl

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


def begun_in_a_notebook_that_dies(tmp_path: Path, frame: pd.DataFrame, epochs: int) -> str:
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    frame.to_parquet(tmp_path / "rows.parquet")
    arguments = [tmp_path / "notebook.py", tmp_path / "runs", tmp_path / "rows.parquet", str(epochs)]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.split()[-1]


def test_a_run_outlives_its_notebook_and_is_stopped_from_another(tmp_path: Path, planted: pd.DataFrame) -> None:
    frame = planted[["a", "b", "late"]]
    run = daskdl.attach(begun_in_a_notebook_that_dies(tmp_path, frame, 100_000), root=tmp_path / "runs")
    while run.record.step < 100:
        assert run.state in ("waiting", "running")
        time.sleep(0.05)
    run.stop("seen enough")
    assert run.wait(timeout=60, verbose=0) == "stopped" and "seen enough" in str(run.error)
    folder = Path(run.folder)
    deadline = time.monotonic() + 30
    while not (folder / "model").exists() or (folder / "session.json").exists():
        assert time.monotonic() < deadline, sorted(folder.iterdir())
        time.sleep(0.1)
    assert daskdl.load(str(folder / "model")).score(frame[["a", "b"]], frame.late) > 0.7
    assert daskdl.attach(run.id, root=tmp_path / "runs").state == "stopped"


def test_on_a_cluster_that_lives_on_it_is_used(client: Client, planted: pd.DataFrame, runs_root: Path) -> None:
    address = client.scheduler.address
    with Client(address) as other:
        lazy = dd.from_pandas(planted[["a", "b", "late"]], npartitions=4)
        fitted = daskdl.XGBClassifier(n_estimators=20, verbose=0).fit(lazy, "late", background=True)
        assert other.cluster is None
        assert fitted.run_.wait(timeout=60, verbose=0) == "finished"
    assert fitted.run_.record.step == 20


def test_what_is_refused_is_said_at_once(client: Client, planted: pd.DataFrame) -> None:
    lazy = dd.from_pandas(planted[["a", "late"]], npartitions=2).persist()
    with pytest.raises(ValueError, match="cannot use a persisted frame"):
        daskdl.TorchClassifier(verbose=0).fit(lazy, "late", background=True)
    with pytest.raises(RuntimeError, match="(?s)did not begin its run.*DataError: Found input variables"):
        daskdl.TorchClassifier(verbose=0).fit(lazy[["a"]].head(10), planted.late, background=True)
    with pytest.raises(ValueError, match="No run 'nothing'"):
        daskdl.attach("nothing")
    assert not os.path.exists("nothing")
