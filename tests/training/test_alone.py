"""A run of one rank: another process holds its commits, and goes on from them when its worker dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from distributed import Client
from processes import wait_until

import daskdl
from daskdl.execution import deposits
from daskdl.execution.holders import deposits_of
from daskdl.execution.queue import queue_of
from daskdl.training.commit import Commit, _pack, _unpack

pytestmark = pytest.mark.cluster

AT = 40


@pytest.fixture(scope="module")
def two() -> Iterator[Client]:
    """Two workers, with another limit than those that all tests share: connect would give us these, to be shut down."""
    with daskdl.connect("cpu", n_workers=2, memory_limit="1.5GiB", dashboard_address="127.0.0.1:0") as client:
        with client.as_current():
            yield client
        client.shutdown()


@pytest.fixture(scope="module")
def one() -> Iterator[Client]:
    """One worker with its nanny, and nobody else."""
    with daskdl.connect("cpu", n_workers=1, memory_limit="2GiB", dashboard_address="127.0.0.1:0") as client:
        yield client
        client.shutdown()


class Net(torch.nn.Module):
    """With what makes bits differ easily: dropout, and layers with running statistics."""

    def __init__(self, n_inputs: int) -> None:
        super().__init__()
        self.first, self.norm = torch.nn.Linear(n_inputs, 64), torch.nn.BatchNorm1d(64)
        self.last = torch.nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.nn.functional.dropout(self.norm(self.first(x)), 0.2, self.training)).squeeze(1)


def loop(context: daskdl.Context, marks: str = "") -> bytes:
    """Dies at a step, once, when the file ``go`` is there."""
    torch.manual_seed(7)
    model = context.prepare(Net(context.schema.n_numbers))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    context.keep(optimizer=optimizer)
    folder = Path(marks)
    for batch in context.batches:
        if marks and batch.step == AT and not (folder / "died").exists():
            (folder / "waits").write_text(str(os.getpid()))
            while not (folder / "go").exists():
                time.sleep(0.01)
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch.x), batch.y.float())
        loss.backward()
        optimizer.step()
        context.report(loss=loss)
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


def of_scheduler(dask_scheduler: Any) -> dict[str, set[str]]:
    overseer = dask_scheduler.plugins.get("daskdl-overseer")
    return dict(overseer.holders.chosen) if overseer is not None else {}


def held(client: Client, but: str = "", least: int = 1) -> tuple[str, int] | None:
    """Who holds a commit of that step or a later one, but one; and the step."""
    for run in client.run_on_scheduler(of_scheduler):
        for holder, (step, _) in deposits_of(client, run).items():
            if holder != but and step >= least:
                return holder, step
    return None


def anybody_holds(client: Client) -> bool:
    there = client.run(lambda: len(deposits._deposits) + len(deposits._arriving))
    return any(there.values()) or bool(deposits._deposits or deposits._arriving)


def aside(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("cluster_of", ["one", "two"])
def test_it_goes_on_from_what_another_process_holds(
    cluster_of: str, request: pytest.FixtureRequest, planted: pd.DataFrame, tmp_path: Path
) -> None:
    client: Client = request.getfixturevalue(cluster_of)
    client.wait_for_workers(1 if cluster_of == "one" else 2)
    options: dict[str, Any] = {"num_workers": 1, "batch_size": 64, "epochs": 2, "verbose": 0, "client": client}
    found: list[tuple[str, int]] = []

    def let_it_die() -> None:
        wait_until(lambda: (tmp_path / "waits").exists() and held(client, least=32), 60)
        found.append(held(client) or ("nobody", 0))
        (tmp_path / "go").touch()

    data = planted[["a", "b", "flag"]], planted.late
    thread = aside(let_it_die)
    result = daskdl.train(loop, data, str(tmp_path), **options)
    thread.join()
    (holder, step) = found[0]
    lost = result.run.events.query("event == 'worker_lost'")
    assert lost.step.tolist() == [step] and 32 <= step <= AT
    nannies = {about["nanny"] for about in client.scheduler_info()["workers"].values()}
    assert (holder in nannies) == (cluster_of == "one")
    assert result.value == daskdl.train(loop, data, **options).value
    audit = result.run.audit()
    assert audit.as_planned.all() and audit["min"].eq(1).all() and audit["max"].eq(1).all()
    assert wait_until(lambda: not anybody_holds(client))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["leaves", "freezes"])
def test_another_one_is_chosen_when_the_holder(
    two: Client, how: signal.Signals, planted: pd.DataFrame, tmp_path: Path
) -> None:
    two.wait_for_workers(2)
    options: dict[str, Any] = {"num_workers": 1, "batch_size": 64, "epochs": 2, "verbose": 0, "client": two}
    found: list[tuple[str, int] | None] = []
    pids: list[int] = []

    def disturb() -> None:
        wait_until(lambda: (tmp_path / "waits").exists() and held(two, least=32), 60)
        first = held(two)
        assert first is not None
        mine = int((tmp_path / "waits").read_text())
        pids.extend(nanny.pid for nanny in two.cluster.workers.values() if nanny.pid != mine)
        os.kill(pids[0], how)
        wait_until(lambda: held(two, but=first[0], least=32), 60)
        found.extend([first, held(two, but=first[0], least=32)])
        (tmp_path / "go").touch()

    data = daskdl.MemorySource(planted[["a", "b", "flag", "late"]], group_rows=500), "late"  # none lies on the other
    thread = aside(disturb)
    result = daskdl.train(loop, data, str(tmp_path), **options)
    thread.join()
    with suppress(ProcessLookupError):
        os.kill(pids[0], signal.SIGCONT)  # and it is to forget what it holds
    assert len(found) == 2 and found[1] is not None, found
    assert result.run.events.query("event == 'worker_lost'").step.tolist() == [found[1][1]]
    two.wait_for_workers(2)
    assert result.value == daskdl.train(loop, data, **options).value
    assert wait_until(lambda: not anybody_holds(two))


def gives_nothing(dask_worker: Any) -> None:
    dask_worker.handlers[deposits.GIVE] = lambda run, step, number: None


def test_a_commit_that_cannot_be_had_is_told_of(two: Client, planted: pd.DataFrame, tmp_path: Path) -> None:
    two.wait_for_workers(2)
    options: dict[str, Any] = {"num_workers": 1, "batch_size": 64, "epochs": 1, "verbose": 0, "client": two}

    def break_it() -> None:
        wait_until(lambda: (tmp_path / "waits").exists() and held(two), 60)
        two.run(gives_nothing)
        (tmp_path / "go").touch()

    data = planted[["a", "b", "flag"]], planted.late
    thread = aside(break_it)
    result = daskdl.train(loop, data, str(tmp_path), **options)
    thread.join()
    [warning] = result.run.events.query("event == 'warning'").text
    assert "cannot be had" in warning and warning.endswith("Training goes on from step 0.")
    assert result.value == daskdl.train(loop, data, **options).value
    assert result.run.audit()["max"].eq(1).all()


def test_what_is_held_is_dropped_when_there_are_several_ranks_again(two: Client, planted: pd.DataFrame) -> None:
    two.wait_for_workers(2)
    clf = daskdl.TorchClassifier(epochs=100_000, batch_size=256, verbose=0)
    found: list[bool] = []

    def kill_and_look() -> None:
        wait_until(lambda: hasattr(clf, "run_") and clf.run_.record.step > 20, 60)
        os.kill(max(nanny.pid for nanny in two.cluster.workers.values()), signal.SIGKILL)
        found.append(wait_until(lambda: held(two), 60))
        found.append(wait_until(lambda: "resize" in clf.run_.events.event.tolist(), 60))
        found.append(wait_until(lambda: not anybody_holds(two)) and clf.run_.state == "running")
        clf.run_.stop()

    with two.as_current():
        thread = aside(kill_and_look)
        clf.fit(planted[["a", "b"]], planted.late)
        thread.join()
    assert found == [True, True, True]


def test_boosting_alone_goes_on_from_what_another_process_holds(two: Client, planted: pd.DataFrame) -> None:
    two.wait_for_workers(2)
    options: dict[str, Any] = {"num_workers": 1, "max_depth": 2, "verbose": 0}
    clf = daskdl.XGBClassifier(n_estimators=100_000, **options)
    data = planted[["a", "b", "flag", "city"]], planted.late
    found: list[int] = []

    def kill_and_stop() -> None:
        wait_until(lambda: held(two), 60)
        (_, step) = held(two) or ("nobody", 0)
        found.append(step)
        [rank] = two.run_on_scheduler(_seated)
        os.kill(two.run(os.getpid, workers=[rank])[rank], signal.SIGKILL)
        wait_until(lambda: "worker_lost" in clf.run_.events.event.tolist() and clf.run_._from_workers[1], 60)
        clf.run_.stop()

    with two.as_current():
        thread = aside(kill_and_stop)
        clf.fit(*data)
        thread.join()
        done = clf.model_.num_boosted_rounds()
        whole = daskdl.XGBClassifier(n_estimators=done, **options).fit(*data)
    lost = clf.run_.events.query("event == 'worker_lost'")
    assert len(lost) == 1 and done >= lost.step.iloc[0] >= found[0] > 0
    assert clf.model_.save_raw("ubj") == whole.model_.save_raw("ubj")
    assert wait_until(lambda: not anybody_holds(two))


def _seated(dask_scheduler: Any) -> list[str]:
    return list(queue_of(dask_scheduler).held)


CLIENT = """
import sys, time, daskdl, pandas as pd, torch
from distributed import Client

def loop(context):
    context.prepare(torch.nn.Linear(context.schema.n_numbers, 1))
    for batch in context.batches:
        time.sleep(0.02)
        context.report(loss=1.0)

if __name__ == "__main__":
    frame = pd.read_parquet(sys.argv[2])
    with Client(sys.argv[1]) as client:
        daskdl.train(loop, (frame[["a"]], frame.late), num_workers=1, batch_size=4, epochs=1000, verbose=0)
"""


def test_it_is_freed_when_the_client_dies(two: Client, planted: pd.DataFrame, tmp_path: Path) -> None:
    two.wait_for_workers(2)
    (tmp_path / "client.py").write_text(CLIENT)
    planted.to_parquet(tmp_path / "rows.parquet")
    arguments = [str(tmp_path / "client.py"), two.scheduler.address, str(tmp_path / "rows.parquet")]
    process = subprocess.Popen([sys.executable, *arguments], cwd=tmp_path)
    try:
        assert wait_until(lambda: held(two), 60)
    finally:
        process.kill()
        process.wait()
    assert wait_until(lambda: not anybody_holds(two) and not two.run_on_scheduler(of_scheduler), 30)


class Kept:
    """What a user may keep besides tensors."""

    def __init__(self, words: str) -> None:
        self.words = words


def test_what_is_sent_is_what_was_committed() -> None:
    state = {
        "model": {"half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "none": torch.empty(0, 4)},
        "large": torch.arange(3 << 20, dtype=torch.float32),
        "more": {"n": 3, "scalar": torch.tensor(1.5), "kept": Kept("hello")},
    }
    pieces = _pack(Commit(7, state, {0: (0, 7, 70, 99)}))
    assert len(pieces) > 2 and max(map(len, pieces)) <= 2 * deposits.PIECE_BYTES
    commit = _unpack(pieces)
    assert (commit.step, commit.uses) == (7, {0: (0, 7, 70, 99)})
    for name in ("half", "none"):
        assert torch.equal(commit.state["model"][name], state["model"][name])
    assert torch.equal(commit.state["large"], state["large"]) and commit.state["more"]["kept"].words == "hello"
