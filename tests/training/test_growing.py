"""Gangs that grow back, stop at a step, go on in another session; and what the weights are then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from watching import when_at

import daskdl
from daskdl.errors import DataError, NotEnoughWorkers
from daskdl.training.checkpoints import CheckpointFolder

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def rows() -> tuple[pd.DataFrame, pd.Series]:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(6_000, 6)).astype("float32"), columns=list("abcdef"))
    return X, (X.a + X.b > 0).astype(int)


class Net(torch.nn.Module):
    """With what makes bits differ easily: dropout, and layers with running statistics."""

    def __init__(self, n_inputs: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(n_inputs, 64),
            torch.nn.BatchNorm1d(64),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(64, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).squeeze(1)


def loop(context: daskdl.Context, marks: str, kills: tuple[tuple[int, int], ...], seconds: float = 0.0) -> Any:
    """Ranks kill themselves at (step, rank), each once; returns the weights as bytes.

    While a rank is missing, steps take some `seconds`, so that it is back before the run ends.
    """
    torch.manual_seed(7)
    net = Net(context.schema.n_numbers)
    model = context.prepare(net)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    context.keep(optimizer=optimizer)
    for batch in context.batches:
        if marks and context.rank == 0:
            with open(f"{marks}-steps", "a") as file:
                print(context.world_size, batch.step, file=file)
        if (batch.step, context.rank) in kills and not Path(f"{marks}-{batch.step}").exists():
            Path(f"{marks}-{batch.step}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if context.world_size < 3:
            time.sleep(seconds)
        optimizer.zero_grad()
        loss = context.backward(
            batch,
            lambda part: torch.nn.functional.binary_cross_entropy_with_logits(model(part.x), part.y.float()),
        )
        optimizer.step()
        context.report(loss=loss)
    return b"".join(tensor.numpy().tobytes() for tensor in net.state_dict().values())


def events(run: daskdl.Run) -> list[str]:
    return run.events.event.tolist()


def exactly_once(run: daskdl.Run) -> bool:
    audit = run.audit()
    return bool(audit.as_planned.all() and audit["min"].eq(1).all() and audit["max"].eq(1).all())


def test_it_grows_back_at_a_step_without_going_back(three: Client, rows: Any, tmp_path: Path) -> None:
    three.wait_for_workers(3)
    kills, options = ((40, 1),), {"batch_size": 96, "epochs": 6, "verbose": 0}
    run = daskdl.train(loop, rows, str(tmp_path / "a"), kills, 0.2, num_workers=3, **options).run
    assert events(run).index("worker_lost") < events(run).index("resize")
    lost, resized = (run.events[run.events.event == event].iloc[0] for event in ("worker_lost", "resize"))
    assert resized.text.startswith("3 ranks instead of 2 from step")
    assert lost.step < resized.step < run.record.total_steps
    done = [tuple(map(int, line.split())) for line in (tmp_path / "a-steps").read_text().splitlines()]
    first = done.index((3, resized.step), [ranks for ranks, _ in done].index(2))  # with all three again
    assert done[first - 1] == (2, resized.step - 1), "it went back"
    assert [step for _, step in done[first:]] == list(range(resized.step, run.record.total_steps))
    assert exactly_once(run) and run.record.step == run.record.total_steps


def test_weights_are_those_of_an_undisturbed_run_when_the_size_is_kept(
    three: Client, rows: Any, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"batch_size": 90, "epochs": 2, "num_workers": (3, 3), "verbose": 0}
    three.wait_for_workers(3)
    whole = daskdl.train(loop, rows, "", (), **options)
    killed = daskdl.train(loop, rows, str(tmp_path / "a"), ((0, 2), (37, 0), (38, 1), (130, 1)), **options)
    assert events(killed.run).count("worker_lost") == 4 and "resize" not in events(killed.run)
    assert killed.value == whole.value
    assert exactly_once(killed.run)


def test_reproducible_weights_have_the_same_bits_at_any_size(three: Client, rows: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "batch_size": 100,
        "epochs": 2,
        "reproducible": 5,
        "verbose": 0,
    }  # no part is like another
    three.wait_for_workers(3)
    found = {n: daskdl.train(loop, rows, "", (), num_workers=n, **options).value for n in (1, 2, 3)}
    disturbed = daskdl.train(loop, rows, str(tmp_path / "a"), ((10, 0), (50, 1)), 0.2, num_workers=3, **options)
    assert {"worker_lost", "resize"} <= set(events(disturbed.run))
    assert found[1] == found[2] == found[3] == disturbed.value
    with three.as_current():
        other = daskdl.train(loop, rows, "", (), num_workers=3, seed=1, **options).value
    assert other != found[1]


def test_reproducible_needs_backward(three: Client, rows: Any) -> None:
    def forgets(context: daskdl.Context) -> None:
        model = context.prepare(Net(context.schema.n_numbers))
        for batch in context.batches:
            model(batch.x).mean().backward()

    with pytest.raises(daskdl.errors.RankFailed, match="step 0 ended without context.backward"):
        daskdl.train(forgets, rows, reproducible=True, verbose=0)
    with pytest.raises(DataError, match="num_workers=3 ranks cannot share 2 virtual ranks"):
        daskdl.train(loop, rows, "", (), num_workers=3, reproducible=2, verbose=0)


def test_fewest_and_most(three: Client, rows: Any) -> None:
    three.wait_for_workers(3)
    assert daskdl.train(loop, rows, "", (), num_workers=(1, 2), verbose=0).run.record.num_workers == 2
    with pytest.raises(NotEnoughWorkers, match=r"num_workers=\(4, 5\) asked for, but the cluster at tcp.* has 3"):
        daskdl.train(loop, rows, "", (), num_workers=(4, 5), verbose=0)
    with pytest.raises(ValueError, match="must not fall"):
        daskdl.train(loop, rows, "", (), num_workers=(3, 2), verbose=0)
    with pytest.raises(TypeError, match="a number or a pair"):
        daskdl.train(loop, rows, "", (), num_workers=(1, 2, 3), verbose=0)  # type: ignore[arg-type]


def test_an_interrupt_keeps_the_weights_and_resume_ends_with_those_of_an_undisturbed_run(
    three: Client, rows: Any
) -> None:
    three.wait_for_workers(3)
    options: dict[str, Any] = {"epochs": 20, "batch_size": 64, "num_workers": (2, 2), "verbose": 0}
    whole = daskdl.TorchClassifier(**options).fit(*rows)
    stopped = daskdl.TorchClassifier(**options)

    def interrupt() -> None:
        while not hasattr(stopped, "run_") or stopped.run_.record.step < 200:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(*rows)
    run = stopped.run_
    assert run.state == "stopped" and "interrupted" in str(run.error)
    assert 200 <= run.record.step < run.record.total_steps
    assert stopped.score(*rows) > 0.5, "the weights of that step are the estimator's"
    assert not any(three.processing().values())
    resumed = daskdl.resume(run.id)
    assert resumed.run_.record.step == run.record.total_steps
    assert resumed.run_.metrics.index.tolist() == list(range(1, run.record.total_steps + 1)), "the curve is whole"
    assert exactly_once(resumed.run_) and len(resumed.run_.audit()) == 20
    expected = whole.model_.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model_.state_dict().items())


def test_a_frame_in_memory_is_gone_on_with_on_another_cluster_in_the_same_order(
    three: Client, rows: Any, started_runs: list[daskdl.Run]
) -> None:
    three.wait_for_workers(3)
    options: dict[str, Any] = {"epochs": 20, "batch_size": 64, "verbose": 0}
    when_at(started_runs, 200, lambda: started_runs[0].stop())
    stopped = daskdl.TorchClassifier(**options).fit(*rows).run_
    assert stopped.state == "stopped" and stopped.record.num_workers == 3
    with daskdl.connect("cpu", n_workers=1, memory_limit="1GiB", dashboard_address=None) as one, one.as_current():
        resumed = daskdl.resume(stopped.id).run_
        one.shutdown()
    assert resumed.state == "finished" and resumed.record.num_workers == 1
    whole = daskdl.TorchClassifier(**options).fit(*rows).run_
    assert exactly_once(resumed) and resumed.audit().digest.tolist() == whole.audit().digest.tolist()


def test_stop_from_elsewhere(three: Client, rows: Any) -> None:
    three.wait_for_workers(3)
    classifier = daskdl.TorchClassifier(epochs=10_000, batch_size=64, verbose=0)

    def stop() -> None:
        while not hasattr(classifier, "run_") or classifier.run_.record.step < 20:
            time.sleep(0.01)
        classifier.run_.stop()

    threading.Thread(target=stop).start()
    classifier.fit(*rows)
    assert classifier.run_.state == "stopped" and classifier.run_.record.step < 10_000
    with pytest.raises(RuntimeError, match="Cannot stop run .*: it has stopped"):
        classifier.run_.stop()


def test_resume_after_cluster_and_session_were_killed(
    three: Client, rows: Any, tmp_path: Path, runs_root: Path, started_runs: list[daskdl.Run]
) -> None:
    rows[0].assign(y=rows[1]).to_parquet(tmp_path / "rows.parquet")
    code = f"""
import daskdl, dask.dataframe as dd
if __name__ == "__main__":
    client = daskdl.connect("cpu", n_workers=2, dashboard_address="127.0.0.1:0", runs={str(runs_root)!r})
    frame = dd.read_parquet({str(tmp_path / "rows.parquet")!r})
    rules = daskdl.Checkpoints(every_steps=50)
    daskdl.TorchClassifier(epochs=1000, batch_size=64, checkpoints=rules, num_workers=2).fit(frame, "y")
"""
    (tmp_path / "session.py").write_text(code)
    session = subprocess.Popen(
        [sys.executable, str(tmp_path / "session.py")], start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not list(runs_root.glob("*/checkpoints/*.json")):
            assert time.monotonic() < deadline and session.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(session.pid, signal.SIGKILL)
        session.wait()
    (folder,) = runs_root.glob("2*")
    call = Path(os.environ["XDG_STATE_HOME"]) / "daskdl" / "calls" / folder.name
    assert call.stat().st_mode & 0o077 == 0
    call.chmod(0o622)
    with pytest.raises(PermissionError, match="can be written by others than you"):
        daskdl.resume(folder.name)
    call.chmod(0o600)
    with daskdl.connect("cpu", n_workers=1, dashboard_address="127.0.0.1:0") as client, client.as_current():
        ((step, steps),) = [(commit.step, 1000 * 94) for commit in [CheckpointFolder(f"{folder}/checkpoints").newest()]]
        assert 0 < step < steps
        when_at(started_runs, step + 10, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            daskdl.resume(folder.name)
    (again,) = [each for each in runs_root.glob("2*") if each != folder]
    run = daskdl.load_run(again.name)
    assert f"goes on with run {folder.name} from step {step:,}" in run.events.text.tolist()
    audit = run.audit()
    assert audit.as_planned.all() and audit["min"].iloc[:-1].eq(1).all() and audit["max"].eq(1).all()

    frame = pd.read_parquet(tmp_path / "rows.parquet")
    frame.loc[5, "a"] += 1
    frame.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="the data is not what run .* was trained on"):
        daskdl.resume(folder.name)
