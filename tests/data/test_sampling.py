"""Rows used by weight: how often, exactly; and the same for any blocks, windows and numbers of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

import daskdl
from daskdl.data.arrays import Block
from daskdl.data.batches import RankBatches
from daskdl.data.order import SampleOrder
from daskdl.data.sampling import WEIGHT, ByClass, ByWeight, Weighted, balanced_weights, picks_per_group
from daskdl.errors import DataError


class Cut:
    """Reader of blocks in memory, in pieces of ``size`` rows."""

    def __init__(self, blocks: list[Block], size: int) -> None:
        self.blocks, self.size = blocks, size

    def read(self, group: int, first: int, stop: int, epoch: int) -> Iterator[Block]:
        for a, b in pairwise([*range(first, stop, self.size), stop]):
            yield {name: array[a:b] for name, array in self.blocks[group].items()}


def weighted(weights: list[list[float]], size: int = 10**9, seed: int = 0) -> tuple[Weighted, list[int]]:
    """Reader of groups with these weights, whose rows are numbered; and the picks of each."""
    counts = [len(group) for group in weights]
    starts = np.cumsum([0, *counts])
    blocks = [
        {"row": np.arange(a, b), WEIGHT: np.asarray(w, "f8")}
        for (a, b), w in zip(pairwise(starts), weights, strict=True)
    ]
    totals = [float(np.sum(group)) for group in weights]
    picks = picks_per_group(totals, sum(counts), seed).tolist()
    return Weighted(Cut(blocks, size), lambda group: ByWeight(), counts, picks, totals, seed), picks


def used(reader: Weighted, picks: list[int], epoch: int) -> np.ndarray:
    """How often each row is picked in an epoch."""
    rows = [b["row"] for g, n in enumerate(picks) if n for b in reader.read(g, 0, n, epoch)]
    return np.bincount(np.concatenate(rows), minlength=sum(reader.counts))


weight = st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.integers(1, 5).map(float))
groups = st.lists(st.lists(weight, max_size=30), min_size=1, max_size=6).filter(lambda found: sum(map(sum, found)) > 0)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(sum), st.integers(0, 10**6), st.integers(0, 99))
def test_groups_get_their_share_of_the_picks_to_within_one(totals: list[float], n: int, seed: int) -> None:
    picks = picks_per_group(totals, n, seed)
    assert picks.sum() == n and (picks >= 0).all()
    assert np.abs(picks - np.array(totals) / sum(totals) * n).max() <= 1 + 1e-6
    assert not picks[np.array(totals) == 0].any()


@settings(deadline=None)
@given(groups, st.integers(0, 99), st.integers(0, 3))
def test_a_row_is_used_as_often_as_its_weight_says(weights: list[list[float]], seed: int, epoch: int) -> None:
    reader, picks = weighted(weights, seed=seed)
    times = used(reader, picks, epoch)
    assert times.sum() == len(times), "an epoch has as many picks as rows"
    scales = [n / total if total else 0.0 for n, total in zip(picks, reader.totals, strict=True)]
    expected = np.concatenate([np.array(group) * scale for group, scale in zip(weights, scales, strict=True)])
    assert (times >= np.floor(expected - 1e-6)).all() and (times <= np.ceil(expected + 1e-6)).all()
    assert not times[expected == 0].any()


@settings(deadline=None)
@given(groups, st.integers(1, 40), st.data())
def test_picks_do_not_depend_on_how_rows_are_cut_or_where_reading_begins(
    weights: list[list[float]], size: int, data: st.DataObject
) -> None:
    (reader, picks), (pieces, _) = weighted(weights), weighted(weights, size)
    for g in [g for g, n in enumerate(picks) if n]:
        (whole,) = (b["row"] for b in reader.read(g, 0, picks[g], 0))
        first, stop = sorted((data.draw(st.integers(0, picks[g])), data.draw(st.integers(0, picks[g]))))
        found = [b["row"] for b in pieces.read(g, first, stop, 0)]
        assert np.concatenate([*found, []]).tolist() == whole[first:stop].tolist()
        assert all(map(len, found)) and all(WEIGHT not in b for b in reader.read(g, 0, picks[g], 0))


@settings(max_examples=30, deadline=None)
@given(
    groups.filter(lambda found: sum(map(len, found)) >= 8), st.integers(1, 12), st.integers(0, 40), st.integers(1, 50)
)
def test_ranks_share_the_picks_and_resume_anywhere(
    weights: list[list[float]], world_size: int, start: int, window: int
) -> None:
    reader, picks = weighted(weights, size=7)
    order = SampleOrder(picks, 8, seed=1, window_rows=window)
    start = min(start, 2 * order.steps_per_epoch)

    def steps(world_size: int, first: int) -> list[list[int]]:
        ranks = [RankBatches(order, reader, r, world_size, 2, first) for r in range(world_size)]
        return [np.concatenate([b.arrays["row"] for b in batches]).tolist() for batches in zip(*ranks, strict=True)]

    alone = steps(1, 0)
    first = np.concatenate(alone[: order.steps_per_epoch])
    assert np.bincount(first, minlength=sum(reader.counts)).tolist() == used(reader, picks, 0).tolist()
    assert steps(world_size, start) == alone[start:]


def test_epochs_pick_others_and_in_the_long_run_all_alike() -> None:
    reader, picks = weighted([[1.5] * 40, [0.5] * 40], seed=3)
    epochs = np.stack([used(reader, picks, epoch) for epoch in range(400)])
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert np.abs(epochs[:, :40].mean(0) - 1.5).max() < 0.15
    assert np.abs(epochs[:, 40:].mean(0) - 0.5).max() < 0.15


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=60), min_size=1, max_size=5).filter(lambda y: sum(map(len, y)) > 8),
    st.integers(1, 70),
)
def test_classes_come_up_alike_to_within_one_in_each_group(labels: list[list[int]], size: int) -> None:
    per_group = np.array([np.bincount(np.array(y, int), minlength=4) for y in labels])
    weights = balanced_weights(per_group.sum(0))
    totals = (per_group @ weights).tolist()
    counts = per_group.sum(1).tolist()
    picks = picks_per_group(totals, sum(counts), 0).tolist()
    blocks: list[Block] = [{"y": np.array(y, int)} for y in labels]
    reader = Weighted(Cut(blocks, size), lambda g: ByClass(weights, per_group[g]), counts, picks, totals, 0)
    for g in [g for g, n in enumerate(picks) if n]:
        found = np.concatenate([b["y"] for b in reader.read(g, 0, picks[g], 0)])
        expected = per_group[g] * weights * picks[g] / totals[g]
        assert len(found) == picks[g]
        assert np.abs(np.bincount(found, minlength=4) - expected).max() <= 1 + 1e-6


@pytest.mark.parametrize("totals", [[0.0, 0.0], [1.0, -0.5], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_weights_that_are_none_are_refused(totals: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be 0 or more"):
        picks_per_group(totals, 10, 0)


# -- training -----------------------------------------------------------------------------------------------------


def rare(rows: int = 3_000) -> pd.DataFrame:
    """A rare class, and weights that leave out every third row."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=rows), "often": np.arange(rows) % 3, "late": rng.random(rows) < 0.05})
    return frame.assign(x=frame.x + frame.late)


def count_labels(context: daskdl.Context) -> list[int]:
    import torch

    counts = torch.zeros(2, dtype=torch.int64)
    for batch in context.batches:
        counts += torch.bincount(batch.y[: batch.n_rows], minlength=2)
    return context.sum(counts).tolist()


@pytest.mark.cluster
def test_balanced_classes_are_used_alike(client: Client) -> None:
    frame = dd.from_pandas(rare(), npartitions=6)
    results = [
        daskdl.train(count_labels, (frame[["x", "late"]], "late"), sampling="balanced", num_workers=n, verbose=0)
        for n in (1, 2)
    ]
    assert sum(results[0].value) == 3_000 and abs(results[0].value[0] - 1_500) <= 6
    assert results[1].value == results[0].value
    audit = results[0].run.audit()
    assert audit["min"].eq(1).all() and audit["max"].eq(1).all() and audit.as_planned.all(), "of the picks"
    assert results[1].run.audit().equals(audit)


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["dask", "pandas", "parquet"])
def test_an_estimator_learns_by_weight_and_the_weights_are_no_feature(
    client: Client, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    frame = rare()
    X: object = frame
    if kind == "dask":
        X = dd.from_pandas(frame, npartitions=5)
    elif kind == "parquet":
        path = tmp_path_factory.mktemp("rare") / "rare.parquet"
        frame.to_parquet(path, row_group_size=700)
        X = daskdl.ParquetSource(str(path))
    clf = daskdl.TorchClassifier(epochs=2, batch_size=256, sampling="often", verbose=0)
    clf.fit(X, "late", validation_data=(frame[["x"]], frame.late))
    assert clf.schema_.names == ["x"] and clf.n_features_in_ == 1
    assert clf.run_.audit()["rows"].tolist() == [3_000] * 2 and clf.run_.audit().as_planned.all()
    assert clf.predict(frame[["x"]]).shape == (3_000,)


@pytest.mark.parametrize("form", [pd.DataFrame, daskdl.MemorySource], ids=["frame", "source"])
def test_validation_and_prediction_take_rows_with_and_without_the_weights(form: Callable[..., Any]) -> None:
    frame = rare().assign(late=lambda df: df.x > 0.5)
    with_weights, without = form(frame), form(frame[["x", "late"]])
    losses, predictions = [], []
    for validation in (with_weights, without):
        clf = daskdl.TorchClassifier(epochs=1, batch_size=256, sampling="often", verbose=0)
        clf.fit(with_weights, "late", validation_data=(validation, "late"))
        losses.append(clf.run_.metrics.val_loss.dropna().tolist())
        for X in (frame[["x", "often"]], frame[["x"]], with_weights, without):
            X = X.drop(columns="late", errors="ignore") if isinstance(X, pd.DataFrame) else X
            predictions.append(np.asarray(clf.predict(X)).tolist())
        assert clf.score(with_weights, "late") == clf.score(without, "late") == clf.score(frame[["x"]], frame.late)
    assert losses[0] == losses[1] and len(losses[0]) == 1
    assert all(predicted == predictions[0] for predicted in predictions)
    assert set(predictions[0]) == {False, True}


@pytest.mark.cluster
def test_balanced_training_finds_the_rare_class(client: Client) -> None:
    frame = rare()
    found = {}
    for sampling in (None, "balanced"):
        clf = daskdl.TorchClassifier(epochs=6, batch_size=128, sampling=sampling, verbose=0)
        found[sampling] = clf.fit(frame[["x"]], frame.late).predict(frame[["x"]]).mean()
    assert found[None] < 0.01 and 0.2 < found["balanced"] < 0.8


@pytest.mark.parametrize(
    "sampling, change, message",
    [
        ("often", {"often": -1}, "sampling weights.*must be 0 or more and finite; found -1"),
        ("often", {"often": float("nan")}, "sampling weights.*must be 0 or more and finite; found nan"),
        ("often", {"often": 0.0}, "weights must be 0 or more and not all 0"),
        ("oftn", {}, r"sampling='oftn' is no column of X beside the label.*\['x', 'often'\]"),
        ("late", {}, r"sampling='late' is no column of X beside the label.*\['x', 'often'\]"),
    ],
)
def test_a_column_that_cannot_weigh_is_refused(sampling: str, change: dict, message: str) -> None:
    frame = rare(100).assign(**change)
    for X in (frame, daskdl.MemorySource(frame)):
        with pytest.raises((DataError, ValueError), match=message):
            daskdl.TorchClassifier(sampling=sampling, verbose=0).fit(X, "late")


def test_a_regression_has_no_classes_to_balance() -> None:
    with pytest.raises(ValueError, match="sampling='balanced' needs classes"):
        daskdl.TorchRegressor(sampling="balanced", verbose=0).fit(rare(100), "x")
