"""daskdl.train with a loop of one's own: batches, reports, state, and what goes wrong."""

from __future__ import annotations

import os
import threading
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from torch import nn

import daskdl
from daskdl.errors import RankFailed
from daskdl.execution import ranks

FEATURES = ["a", "b", "flag", "city"]


def plain_loop(context: daskdl.Context) -> nn.Module:
    model = context.prepare(daskdl.TabularNet(context.schema, 1, hidden=(16,), dropout=0.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    context.keep(optimizer=optimizer)
    for batch in context.batches:
        loss = nn.functional.binary_cross_entropy_with_logits(model(*batch.inputs).squeeze(1), batch.y.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        context.report(loss=loss, rank=float(context.rank))
    return model


def test_a_loop_of_ones_own(client: Client, ragged: dd.DataFrame) -> None:
    result = daskdl.train(plain_loop, (ragged[FEATURES], ragged["late"]), batch_size=128, epochs=3, verbose=0)
    assert isinstance(result.value, daskdl.TabularNet)
    assert set(result.state) == {"model", "optimizer"}
    metrics = result.run.metrics
    assert metrics.index.tolist() == list(range(1, 3 * 32 + 1))
    assert metrics.train_loss.iloc[-5:].mean() < 0.6 * metrics.train_loss.iloc[0]
    assert metrics["rank"].iloc[0] == pytest.approx(0.5)  # the mean over both ranks
    assert result.run.record.num_workers == 2


def collect_rows(context: daskdl.Context) -> list[tuple[int, int, list[float]]]:
    import torch.distributed as dist

    seen = [(batch.step, batch.n_global, batch.y.tolist()) for batch in context.batches]
    everyone: list = [None] * context.world_size
    dist.all_gather_object(everyone, seen)
    return everyone


def test_every_label_is_seen_once_an_epoch_and_batches_are_the_same_for_any_number_of_ranks(client: Client) -> None:
    frame = pd.DataFrame({"x": np.arange(1000.0), "y": np.arange(1000.0)})
    lazy = dd.from_pandas(frame, npartitions=5)
    batches = {}
    for world in (1, 2):
        ranks = daskdl.train(
            collect_rows, (lazy[["x"]], lazy["y"]), batch_size=96, classes=False, num_workers=world, verbose=0
        ).value
        assert len({len(seen) for seen in ranks}) == 1  # equal steps on every rank
        batches[world] = [[y for seen in ranks for y in seen[i][2]] for i in range(len(ranks[0]))]
    assert batches[1] == batches[2]
    assert sorted(y for batch in batches[1] for y in batch) == pytest.approx(
        sorted((frame.y - 499.5) / frame.y.std(ddof=0))
    )


def test_the_failing_ranks_traceback_is_seen(client: Client, ragged: dd.DataFrame) -> None:
    def loop(context: daskdl.Context) -> None:
        for batch in context.batches:
            if context.rank == 1 and batch.step == 3:
                raise KeyError("planted")
            context.report(loss=0.5)

    with pytest.raises(RankFailed, match="rank 1 of 2 on tcp://.*KeyError: 'planted'"):
        daskdl.train(loop, (ragged[FEATURES], ragged["late"]), batch_size=64, verbose=0)
    failed = daskdl.runs().iloc[0]
    assert failed["state"] == "failed"


def test_a_stop_at_a_step_ends_all_ranks_there(client: Client, ragged: dd.DataFrame) -> None:
    def loop(context: daskdl.Context) -> int:
        for batch in context.batches:
            context.report(loss=1.0)
            if batch.step == 4:
                context.stop()
        return context.step

    result = daskdl.train(loop, (ragged[FEATURES], ragged["late"]), batch_size=64, epochs=9, verbose=0)
    assert result.value == 5
    assert len(result.run.metrics) == 5


class ToldWhileCopied:
    """Its gang is told to stop while its state is copied, after the step that the commit is of."""

    def state_dict(self) -> dict:
        (gang,) = ranks._running
        ranks._stopping.add(gang)
        return {}


def test_a_commit_during_which_the_gang_is_told_to_stop_is_not_kept(client: Client, ragged: dd.DataFrame) -> None:
    def loop(context: daskdl.Context) -> None:
        context.prepare(nn.Linear(1, 1))
        try:
            for batch in context.batches:
                if batch.step == 7:  # a commit follows
                    before = context._commit
                    context.keep(told=ToldWhileCopied())
        except RuntimeError:
            raise ValueError(f"{before.step} steps were kept, and now {context._commit.step}") from None

    with pytest.raises(RankFailed, match=r"(\d) steps were kept, and now \1"):
        daskdl.train(loop, (ragged[FEATURES], ragged["late"]), batch_size=128, verbose=0)


def test_validation_loss_logged_by_the_loop(client: Client, ragged: dd.DataFrame) -> None:
    def loop(context: daskdl.Context) -> None:
        for batch in context.batches:
            if batch.last_of_epoch:
                context.log(val_loss=float(batch.epoch))

    run = daskdl.train(loop, (ragged[FEATURES], ragged["late"]), batch_size=1000, epochs=2, verbose=0).run
    assert run.metrics.val_loss.dropna().tolist() == [0.0, 1.0]


def test_more_than_one_number_a_report_is_refused(client: Client, ragged: dd.DataFrame) -> None:
    def loop(context: daskdl.Context) -> None:
        for batch in context.batches:
            context.report(loss=batch.x)

    with pytest.raises(RankFailed, match=r"report\(loss=...\) takes one number per step, got a tensor of shape"):
        daskdl.train(loop, (ragged[["a", "b"]], ragged["late"]), verbose=0)


def test_wrong_arguments_are_refused_before_anything_runs() -> None:
    lock = threading.Lock()
    with pytest.raises(
        TypeError, match="cannot be sent to the workers: cannot pickle '_thread.lock' object. What it uses"
    ):
        daskdl.train(lambda context: lock.acquire(), ([], []))
    with pytest.raises(TypeError, match="loop must be a function that takes a Context, got int"):
        daskdl.train(3, ([], []))
    with pytest.raises(TypeError, match=r"data must be \(X, y\), or X alone.* got list"):
        daskdl.train(plain_loop, [])


def test_the_random_state_of_the_process_is_left_alone(planted: pd.DataFrame) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    daskdl.train(plain_loop, (planted[FEATURES], planted["late"]), batch_size=500, verbose=0)
    assert torch.equal(torch.rand(3), expected)


def test_worker_threads_and_environment_are_put_back(client: Client, ragged: dd.DataFrame) -> None:
    before = client.run(lambda: (torch.get_num_threads(), dict(os.environ)))
    daskdl.train(plain_loop, (ragged[FEATURES], ragged["late"]), batch_size=500, verbose=0)
    assert client.run(lambda: (torch.get_num_threads(), dict(os.environ))) == before


def rebuild(context: daskdl.Context) -> list[Any]:
    model = context.prepare(torch.nn.Linear(context.schema.n_numbers, context.schema.n_numbers))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shapes = []
    for batch in context.batches:
        loss = ((model(batch.x) - batch.x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shapes.append((tuple(batch.x.shape), tuple(batch.y.shape)))
    return shapes


def test_rows_without_labels_and_with_several(client: Client, planted: pd.DataFrame) -> None:
    alone = daskdl.train(rebuild, planted[["a", "b"]], num_workers=1, batch_size=2000, verbose=0)
    assert alone.value == [((2000, 2), (0,))] * 2 and alone.run.audit().as_planned.all()
    options = {"classes": False, "num_workers": 1, "batch_size": 2000, "verbose": 0}
    pair = daskdl.train(rebuild, (planted[["b"]], planted[["a", "delay"]]), **options)
    assert pair.value == [((2000, 1), (2000, 2))] * 2
    assert pair.target.names == ("a", "delay")
