"""A killed worker costs the steps since the last commit: the others go on, and every row is used once all the same."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import dask.dataframe as dd
import pandas as pd
import pytest
import torch
from distributed import Client

import daskdl
from daskdl.errors import RankFailed

pytestmark = pytest.mark.cluster


def linear(context: daskdl.Context, mark: str, killed: tuple[int, ...], at: int) -> list[float]:
    """A loop with a model and an optimizer; ranks of ``killed`` die at a step, the first time they come to it."""
    model = context.prepare(torch.nn.Linear(context.schema.n_numbers, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    context.keep(optimizer=optimizer)
    for batch in context.batches:
        if batch.step == at and context.rank in killed and not Path(mark).exists():
            time.sleep(0.2)  # the others wait in their collective
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch.x).squeeze(1), batch.y.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        context.report(loss=loss)
    return [float(p.detach().double().sum()) for p in model.parameters()]


@pytest.mark.parametrize(
    "kind, killed, at", [("pandas", (0,), 33), ("source", (1,), 120), ("dask", (0, 2), 64), ("dask", (2,), 0)], ids=str
)
def test_training_goes_on_with_those_that_are_left(
    three: Client, planted: pd.DataFrame, tmp_path: Path, kind: str, killed: tuple[int, ...], at: int
) -> None:
    three.wait_for_workers(3)
    frame = planted[["a", "b", "flag", "late"]]
    data: tuple = {
        "pandas": lambda: (frame.drop(columns="late"), frame.late),
        "dask": lambda: (dd.from_pandas(frame, npartitions=7), "late"),
        "source": lambda: (daskdl.MemorySource(frame, group_rows=500), "late"),
    }[kind]()
    options = {"num_workers": 3, "batch_size": 96, "epochs": 3, "seed": 1, "verbose": 0}
    mark = str(tmp_path / "killed")
    result = daskdl.train(linear, data, mark, killed, at, **options)
    assert Path(mark).exists(), "nobody was killed"
    lost = result.run.events.query("event == 'worker_lost'")
    assert len(lost) == 1 and f"with {3 - len(killed)} of 3 ranks" in lost.text.iloc[0]
    assert 0 <= lost.step.iloc[0] <= at
    audit = result.run.audit()
    assert audit.as_planned.all() and audit["min"].eq(1).all() and audit["max"].eq(1).all() and len(audit) == 3
    three.wait_for_workers(3)
    whole = daskdl.train(linear, data, mark, (), at, **options)
    assert audit.digest.tolist() == whole.run.audit().digest.tolist()
    assert result.value == pytest.approx(whole.value, rel=1e-3), "the weights are those of an undisturbed run"


def accumulating(context: daskdl.Context, mark: str, at: int) -> list[torch.Tensor]:
    """A loop with two modules, whose optimizer steps after every third batch."""
    encoder = context.prepare(torch.nn.Linear(context.schema.n_numbers, 4))
    head = context.prepare(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.3, momentum=0.5)
    context.keep(optimizer=optimizer)
    optimizer.zero_grad()
    for batch in context.batches:
        if batch.step == at and context.rank == 1 and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        output = head(encoder(batch.x).tanh()).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(output, batch.y.float())
        (loss / 3).backward()
        if batch.step % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
        context.report(loss=loss)
    return [p.detach() for module in (encoder, head) for p in module.parameters()]


def test_each_module_gets_its_own_weights_back_and_what_was_accumulated(
    three: Client, planted: pd.DataFrame, tmp_path: Path
) -> None:
    three.wait_for_workers(3)
    data, mark = (planted[["a", "b"]], planted.late), tmp_path / "killed"
    options = {"num_workers": 3, "batch_size": 96, "seed": 1, "verbose": 0}
    result = daskdl.train(accumulating, data, str(mark), 34, **options)  # the commit of step 32 has two batches
    assert mark.exists() and "worker_lost" in result.run.events.event.tolist()
    assert set(result.state) == {"model", "model_2", "optimizer"}
    three.wait_for_workers(3)
    whole = daskdl.train(accumulating, data, str(mark), 34, **options)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(result.value, whole.value, strict=True))


def always_dies(context: daskdl.Context) -> None:
    for batch in context.batches:
        if batch.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def test_when_nobody_is_left_the_error_says_so(three: Client, planted: pd.DataFrame) -> None:
    three.wait_for_workers(3)
    with pytest.raises(RankFailed, match="is lost: its worker"):
        daskdl.train(always_dies, (planted[["a"]], planted.late), num_workers=3, verbose=0)


def test_an_estimator_keeps_its_best_weights_through_a_loss(
    three: Client, planted: pd.DataFrame, tmp_path: Path
) -> None:
    three.wait_for_workers(3)
    mark = tmp_path / "killed"

    def kill_once(arrays: dict, keys: object, mark: str = str(mark), client: int = os.getpid()) -> dict:
        if os.getpid() == client:  # which tries it out
            return arrays
        Path(mark + str(os.getpid())).touch()
        if len(list(Path(mark).parent.glob("killed*"))) == 3 and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return arrays

    X, y = planted[["a", "b", "city"]], planted.late
    clf = daskdl.TorchClassifier(
        epochs=4, batch_size=64, patience=3, batch_transform=kill_once, num_workers=3, verbose=0
    )
    clf.fit(X, y, validation_data=(X, y))
    assert mark.exists() and clf.score(X, y) > 0.8
    assert "worker_lost" in clf.run_.events.event.tolist()
    assert clf.run_.audit()["max"].eq(1).all()
