"""What ranks print and log reaches the notebook, also that of a rank that died."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from distributed import Client
from processes import wait_until

import daskdl
from daskdl.tracking.logs import FILE_BYTES, lines_of, read_lines, recording

pytestmark = pytest.mark.cluster


def talk(context: daskdl.Context, mark: str, dies: int) -> None:
    for batch in context.batches:
        print(f"step {batch.step}", flush=True)
        if batch.step == 3:
            logging.getLogger("mine").warning("look at rank %s", context.rank)
            print("half a line, ", end="")
            print("the other half", file=sys.stdout)
            print("\r10%\r20%", file=sys.stderr)
        if batch.step == 5 and context.rank == dies and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if batch.step == 5 and dies < 0:
            assert wait_until(Path(mark).exists, 60)


def test_lines_come_with_rank_and_time_and_stay_with_the_run(
    client: Client, planted: pd.DataFrame, tmp_path: Path
) -> None:
    run = daskdl.train(
        talk, (planted[["a"]], planted.late), str(tmp_path / "mark"), 1, num_workers=2, batch_size=400, verbose=0
    ).run
    logs = run.logs()
    of_rank = {rank: lines.text.tolist() for rank, lines in logs.groupby("rank")}
    assert of_rank[0][:4] == ["step 0", "step 1", "step 2", "step 3"] and "step 9" in of_rank[0]
    warned = logs.query("level == 'WARNING'").text.tolist()
    assert {"look at rank 0", "look at rank 1"} <= set(warned)
    assert "half a line, the other half" in of_rank[0] and logs.query("level == 'stderr'").text.tolist()[0] == "20%"
    assert logs.time.is_monotonic_increasing and str(logs.time.dt.tz) == "UTC"
    [cause] = run.events.query("event == 'cause'").text
    assert cause.endswith("The last lines of its log: 20% / step 4 / step 5")
    assert "step 5" in logs[logs["rank"] == 1].text.tolist(), "the lines of the rank that died are not there"
    pd.testing.assert_frame_equal(daskdl.load_run(run.id).logs(), logs)
    assert not any(client.run(lines_of, run.id).values()), "workers keep what the run has taken"
    client.wait_for_workers(2, timeout=60)


def test_they_can_be_asked_for_while_it_trains(client: Client, planted: pd.DataFrame, tmp_path: Path) -> None:
    mark, found = tmp_path / "mark", []

    def ask() -> None:
        try:
            assert wait_until(lambda: any("step 5" in set(run.logs().text) for run in runs), 60)
            found.append(runs[0].logs())
        finally:
            mark.touch()

    runs: list[daskdl.Run] = []
    start = daskdl.Run.start.__func__  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            daskdl.Run, "start", classmethod(lambda cls, *a, **k: runs.append(start(cls, *a, **k)) or runs[-1])
        )
        thread = threading.Thread(target=ask)
        thread.start()
        options = {"num_workers": 2, "batch_size": 400, "verbose": 0}
        daskdl.train(talk, (planted[["a"]], planted.late), str(mark), -1, **options)
        thread.join()
    assert set(found[0]["rank"]) == {0, 1}


def say_much(worker: SimpleNamespace) -> None:
    with recording(worker, "run", 2):
        for i in range(20_000):
            print(f"{i} {'x' * 50}")
        other = threading.Thread(target=print, args=("somebody else",))
        other.start()
        other.join()
        raise ValueError("no")


@pytest.mark.parametrize("address", ["inproc://1", "tcp://127.0.0.1:1"])
def test_a_file_is_bounded_and_knows_whose_process_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    with pytest.raises(ValueError, match="no"):
        say_much(SimpleNamespace(local_directory=str(tmp_path), address=address))
    lines = [line["text"] for line in read_lines(str(tmp_path))]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * FILE_BYTES
    assert lines[-1] == "ValueError: no" and "19999 " + "x" * 50 in lines[-3:] and len(lines) > 1_000
    assert ("somebody else" in lines) == address.startswith("tcp")
    assert capsys.readouterr().out.endswith("somebody else\n"), "what is printed is still printed"
    print("after")
    assert len(read_lines(str(tmp_path))) == len(lines)
