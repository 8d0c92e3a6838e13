"""The audit: one hash for any number of ranks, after a stop and resume, and it sees what goes wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

import daskdl
from daskdl.data.audit import MASK, audit_table, expected, order_from_bytes, order_to_bytes
from daskdl.data.batches import RankBatches
from daskdl.data.mixing import Mixture, mixture
from daskdl.data.order import SampleOrder
from daskdl.data.reading import Blocks
from daskdl.tracking.writer import writer
from daskdl.training.clock import Clock
from daskdl.training.report import Report


def blocks_of(order: SampleOrder) -> Blocks:
    return Blocks({g: {"row": np.arange(n) + order.group_starts[g]} for g, n in enumerate(order.row_counts)})


def digests(order: SampleOrder | Mixture, world_size: int, epochs: int = 2, start: int = 0) -> list[int]:
    """Digest of each step, added up over ranks."""
    sums = [0] * (epochs * order.steps_per_epoch - start)
    readers = [blocks_of(part) for part in order.parts]
    for rank in range(world_size):
        for batch in RankBatches(order, readers, rank, world_size, epochs, start):
            sums[batch.step - start] = (sums[batch.step - start] + batch.digest) & MASK
    return sums


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
@pytest.mark.parametrize(
    "order",
    [SampleOrder([70, 0, 31, 400], 32, seed=3, window_rows=50), mixture([[90, 10], [50]], [3, 1], 16, seed=1)],
    ids=["one", "mixture"],
)
def test_the_digest_of_every_step_is_that_of_one_rank(order: SampleOrder | Mixture, world_size: int) -> None:
    assert digests(order, world_size) == digests(order, 1)


def test_the_digest_is_the_one_the_order_predicts_before_and_after_a_resume_at_any_step() -> None:
    order = SampleOrder([70, 0, 31, 400], 32, seed=3, window_rows=50)
    whole = digests(order, 2)
    for stop in (0, 1, 15, 16, 17, 31):
        resumed = digests(order, 3, start=stop)
        assert whole[:stop] + resumed == whole
        assert sum(whole[:stop]) & MASK == expected(order, 0, stop)[0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(sum),
    st.integers(1, 40),
    st.integers(1, 30),
    st.integers(0, 3),
)
def test_what_is_expected_of_an_epoch_is_every_row_once(counts: list[int], batch: int, window: int, epoch: int) -> None:
    order = SampleOrder(counts, batch, seed=9, window_rows=window)
    steps = order.steps_per_epoch
    _, (used,) = expected(order, epoch * steps, (epoch + 1) * steps)
    assert (used == 1).all()
    _, (half,) = expected(order, epoch * steps, epoch * steps + steps // 2)
    assert half.sum() == min(order.n_rows, steps // 2 * batch)


def test_a_row_twice_or_at_another_place_is_seen() -> None:
    order = SampleOrder([40], 8, seed=0)
    uses = [(step, step + 1, 8, value) for step, value in enumerate(digests(order, 2, epochs=1))]
    good = audit_table(order, uses).loc[0]
    assert (good["min"], good["max"], good["rows"], good["as_planned"]) == (1, 1, 40, True)
    assert not audit_table(order, [*uses[:-1], (4, 5, 8, uses[0][3])]).loc[0, "as_planned"]
    missing = audit_table(order, uses[:-1]).loc[0]
    assert (missing["min"], missing["max"], missing["rows"]) == (0, 1, 32)


@pytest.mark.parametrize("order", [SampleOrder([5, 7], 4, seed=2, window_rows=3), mixture([[9], [4]], [1, 2], 6)])
def test_an_order_is_kept_and_read_back(order: SampleOrder | Mixture) -> None:
    again = order_from_bytes(order_to_bytes(order))
    assert [again.slices(s) for s in range(4)] == [order.slices(s) for s in range(4)]
    assert digests(again, 1) == digests(order, 1)


def read_only(context: daskdl.Context) -> int:
    return sum(batch.n_rows for batch in context.batches)


@pytest.mark.cluster
def test_a_run_is_audited_with_the_same_hash_for_one_rank_and_two_and_after_it_is_loaded(
    client: Client, planted: pd.DataFrame
) -> None:
    X, y = planted[["a", "b", "city"]], planted.late
    tables = []
    for n in (1, 2):
        result = daskdl.train(read_only, (X, y), num_workers=n, batch_size=96, epochs=3, seed=4, verbose=0)
        tables.append(result.run.audit())
    assert tables[0].equals(tables[1])
    assert tables[0]["min"].eq(1).all() and tables[0]["max"].eq(1).all() and tables[0].as_planned.all()
    assert tables[0].digest.nunique() == 3, "no epoch repeats another"
    assert writer.flush(120), "the runs of earlier tests are written first"
    assert daskdl.load_run(result.run.id).audit().equals(tables[1])


@pytest.mark.cluster
def test_xgboost_has_no_order_to_audit(client: Client, planted: pd.DataFrame) -> None:
    clf = daskdl.XGBClassifier(n_estimators=1, verbose=0).fit(planted[["a"]], planted.late)
    with pytest.raises(ValueError, match="recorded no use of rows"):
        clf.run_.audit()


def test_a_run_that_is_resumed_at_its_end_tells_what_was_used_before() -> None:
    said: list[dict] = []
    report = Report("run", 0, said.append, 0, 1, torch.device("cpu"), 10, {0: (0, 10, 100, 5)}, Clock())
    report.send_all(0.5)
    assert not said
    report.send_all(None)
    assert said[-1]["uses"] == [(0, 10, 100, 5)] and said[-1]["ranks"] is None
