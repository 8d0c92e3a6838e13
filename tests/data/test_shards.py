"""Rows in the memory of workers: used from wherever they lie, released when they have been, the same in every form."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client, futures_of, get_worker
from processes import wait_until

import daskdl
from daskdl.data.encoders import TensorEncoder
from daskdl.data.order import SampleOrder
from daskdl.data.reading import Blocks
from daskdl.data.rows import learn, read_rows
from daskdl.data.shards import Shards, owner_of_pieces

pytestmark = pytest.mark.cluster


def table(rows: int, columns: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"x{i}": rng.normal(size=rows).astype("f4") for i in range(columns)})
    return frame.assign(late=rng.integers(0, 2, rows))


def blocks_of(dask_worker: Any) -> int:
    return sum(str(key).startswith(("encode_piece", "_same")) for key in list(dask_worker.data))


def blocks_left(client: Client) -> int:
    return sum(client.run(blocks_of).values())


def count_blocks(context: daskdl.Context) -> list[int]:
    counts = []
    for batch in context.batches:
        if batch.step == context.total_steps - 1:  # what is copied out now is released by the client, in its time
            wait_until(lambda: blocks_of(get_worker()) == 0, 60)
        counts.append(blocks_of(get_worker()))
    return counts


@pytest.mark.parametrize("sampling", [None, "balanced"])
def test_blocks_are_released_in_the_last_epoch_and_not_before(client: Client, sampling: str | None) -> None:
    frame = dd.from_pandas(table(4_000), npartitions=8)
    options = {"batch_size": 64, "epochs": 3, "sampling": sampling, "num_workers": 1, "verbose": 0}
    counts = daskdl.train(count_blocks, (frame, "late"), **options).value
    assert set(counts[: len(counts) // 2]) == {8}, "all blocks stay for the next epoch"
    assert counts[-1] == 0, "each is released when its last row has been used"
    assert wait_until(lambda: blocks_left(client) == 0, 60)


def fail_late(context: daskdl.Context) -> None:
    for batch in context.batches:
        if batch.step == 5:
            raise ZeroDivisionError("on purpose")


def test_blocks_are_released_when_a_rank_fails(client: Client) -> None:
    frame = dd.from_pandas(table(4_000), npartitions=8)
    with pytest.raises(daskdl.errors.RankFailed, match="ZeroDivisionError: on purpose"):
        daskdl.train(fail_late, (frame, "late"), batch_size=64, verbose=0)
    assert wait_until(lambda: blocks_left(client) == 0, 60)


def use(context: daskdl.Context) -> int:
    """Sum over all labels of their step: another order of the rows gives another number."""
    total = torch.zeros(1, dtype=torch.int64)
    for batch in context.batches:
        total += batch.y[: batch.n_rows].sum() * (batch.step + 1)
    return int(context.sum(total))


CUTS = {
    "ragged": [0, 700, 701, 1500, 3990, 4000],
    "empty": [0, 0, 0, 1500, 1500, 4000, 4000],
    "one partition, two ranks": [0, 4000],
    "fewer rows than a batch": [0, 3, 5],
}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_partitions_of_any_size_are_used_once(client: Client, cuts: list[int]) -> None:
    whole = table(4_000)
    frame = dd.from_map(lambda part: part, [whole.iloc[a:b] for a, b in pairwise(cuts)], meta=whole.iloc[:0])
    results = [
        daskdl.train(use, (frame, "late"), num_workers=n, batch_size=96, epochs=2, seed=1, verbose=0) for n in (1, 2)
    ]
    audit = results[0].run.audit()
    assert audit["rows"].tolist() == [cuts[-1]] * 2
    assert audit["min"].eq(1).all() and audit["max"].eq(1).all() and audit.as_planned.all()
    assert results[1].run.audit().equals(audit) and results[1].value == results[0].value


# -- the same rows in every form ----------------------------------------------------------------------------------


def parsed(lines: pd.DataFrame) -> pd.DataFrame:
    cells = lines.text.str.split(",")
    return pd.DataFrame({"x0": cells.str[0].astype("f4"), "late": cells.str[1].astype("i8")})


def text(frame: pd.DataFrame, folder: Path) -> Any:
    lines = [f"{x:+012.6f},{late}\n" for x, late in zip(frame.x0, frame.late, strict=True)]
    path = folder / "rows.txt"
    path.write_text("".join(lines))
    return daskdl.TextSource(str(path), block_bytes=1_000 * len(lines[0])).map(parsed)


def parquet(frame: pd.DataFrame, folder: Path) -> Any:
    frame.to_parquet(folder / "rows.parquet", row_group_size=1_000)
    return daskdl.ParquetSource(str(folder / "rows.parquet"))


FORMS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "pandas": lambda frame, folder: frame,
    "dask": lambda frame, folder: dd.from_pandas(frame, npartitions=8),
    "memory": lambda frame, folder: daskdl.MemorySource(frame, group_rows=1_000),
    "parquet": parquet,
    "text": text,
}


def test_the_same_rows_in_the_same_groups_are_used_in_the_same_order_in_every_form(
    client: Client, tmp_path: Path
) -> None:
    frame = table(8_000)
    found = {}
    for name, form in FORMS.items():
        result = daskdl.train(use, (form(frame, tmp_path), "late"), batch_size=8, seed=2, verbose=0)
        audit = result.run.audit()
        assert audit.as_planned.all()
        found[name] = (result.value, audit.digest.tolist())
    assert len(set(map(str, found.values()))) == 1, found


# -- memory that does not suffice ---------------------------------------------------------------------------------


@pytest.fixture
def spilling() -> Iterator[Client]:
    """A cluster whose workers keep next to nothing in memory."""
    low = {f"distributed.worker.memory.{what}": 0.001 for what in ("target", "spill")}
    with dask.config.set({**low, "distributed.worker.memory.pause": False}):
        client = daskdl.connect("cpu", n_workers=2, memory_limit="1.5GiB", dashboard_address="127.0.0.1:0")
    with client.as_current():
        yield client
    client.shutdown()


def use_spilled(context: daskdl.Context) -> tuple[int, int]:
    on_disk = torch.tensor([sum(str(key).startswith("encode_piece") for key in get_worker().data.slow)])
    return use(context), int(context.sum(on_disk))


def held_keys(client: Client, keys: set[Any]) -> int:
    return sum(map(bool, client.sync(client.scheduler.who_has, keys=list(keys)).values()))


def test_a_persisted_frame_is_let_go_with_its_last_name(client: Client) -> None:
    frame = client.persist(dd.from_pandas(table(4_000), npartitions=4))
    keys = {future.key for future in futures_of(frame)}
    model = daskdl.TorchClassifier(epochs=1, verbose=0).fit(frame, "late")
    assert held_keys(client, keys) == 4
    del frame
    assert wait_until(lambda: held_keys(client, keys) == 0, 60), f"held after {model.run_.name}"


def test_blocks_that_dask_has_spilled_to_disk_are_used_like_others(client: Client, spilling: Client) -> None:
    frame = dd.from_pandas(table(40_000, columns=40), npartitions=8)
    options = {"batch_size": 1_000, "epochs": 2, "seed": 3, "verbose": 0}
    data = (frame, "late")
    value, on_disk = daskdl.train(use_spilled, data, client=spilling, **options).value
    assert on_disk > 0, "nothing was on disk"
    assert value == daskdl.train(use, data, client=client, **options).value


# -- other workers ------------------------------------------------------------------------------------------------


@pytest.fixture
def three() -> Iterator[Client]:
    client = daskdl.connect("cpu", n_workers=3, memory_limit="1GiB", dashboard_address="127.0.0.1:0")
    with client.as_current():
        yield client
    client.shutdown()


@dataclass(frozen=True)
class Noted:
    """An encoder that leaves a file for every block it makes."""

    encoder: TensorEncoder
    folder: Path

    def __call__(self, chunk: Any) -> Any:
        (self.folder / uuid.uuid4().hex).touch()
        return self.encoder(chunk)

    def count(self) -> int:
        """Blocks made since it was asked before."""
        notes = list(self.folder.iterdir())
        for note in notes:
            note.unlink()
        return len(notes)


def first_rows(reader: Any) -> dict[int, float]:
    """Read the first row of each group, as a rank does."""
    reader.open()
    return {group: float(next(reader.read(group, 0, 1, 0))["numbers"][0, 0]) for group in reader.keys}


def check_readers(client: Client, readers: list[Any], order: SampleOrder, workers: list[str], first: Any) -> set[str]:
    """Each block lies where it is read, and nowhere else: Dask could drop it there for the sake of another."""
    keys = [key for reader in readers for key in reader.keys.values()]
    assert len(set(keys)) == len(keys)
    held = client.sync(client.scheduler.who_has, keys=keys)
    for rank, (reader, worker) in enumerate(zip(readers, workers, strict=True)):
        assert sorted(reader.keys) == order.groups_of(rank, len(workers))
        assert all(tuple(held[key]) == (worker,) for key in reader.keys.values())
        found = client.submit(first_rows, reader, workers=[worker], pure=False).result()
        assert found == {group: first[group] for group in reader.keys}
    return set(keys)


def test_blocks_follow_when_workers_leave_and_come(three: Client, tmp_path: Path) -> None:
    whole = table(6_000)
    cuts = list(range(0, 6_001, 500))
    frame = dd.from_map(lambda part: part, [whole.iloc[a:b] for a, b in pairwise(cuts)], meta=whole.iloc[:0])
    rows = read_rows(frame, "late", classes=True, client=three)
    encoder = Noted(TensorEncoder(*learn(rows, "late", classes=True, missing="impute")), tmp_path)
    first = Blocks({i: encoder.encoder(rows.frame.partitions[i].compute()) for i in range(12)})
    values = {i: float(block["numbers"][0, 0]) for i, block in first.blocks.items()}
    order = SampleOrder(rows.counts, 96, seed=3)
    a, b, c = sorted(three.scheduler_info(n_workers=-1)["workers"])
    with Shards(rows, encoder, order, 2, [a, b, c]) as shards:
        made = []
        for workers in ([a, b, c], [a, b], [a, b, c], [c], [c, a, b]):
            keys = check_readers(three, shards.readers(workers), order, workers, values)
            assert wait_until(lambda keys=keys: blocks_left(three) == len(keys), 60), "nothing else is held"
            made.append(encoder.count())
        assert made[:3] == [12, 0, 0] and made[3] < 6 and made[4] == 0, "a block that is left somewhere serves"

        three.run(lambda: os.kill(os.getpid(), signal.SIGKILL), workers=[c], on_error="return")
        assert wait_until(lambda: c not in three.scheduler_info(n_workers=-1)["workers"], 60)
        check_readers(three, shards.readers([a, b]), order, [a, b], values)
        assert 0 < encoder.count() < 12, "only what lay on the worker that was lost is made again"
        three.wait_for_workers(3)
        new = next(worker for worker in three.scheduler_info(n_workers=-1)["workers"] if worker not in (a, b))
        check_readers(three, shards.readers([a, b, new]), order, [a, b, new], values)
        assert encoder.count() == 0
    assert wait_until(lambda: blocks_left(three) == 0, 60)


def test_what_a_reader_of_before_still_says_is_not_heard(three: Client, tmp_path: Path) -> None:
    rows = read_rows(dd.from_pandas(table(600), npartitions=6), "late", classes=True, client=three)
    encoder = TensorEncoder(*learn(rows, "late", classes=True, missing="impute"))
    order = SampleOrder(rows.counts, 96, seed=3)
    workers = sorted(three.scheduler_info(n_workers=-1)["workers"])
    with Shards(rows, encoder, order, 1, workers) as shards:
        before = shards.readers(workers)
        now = shards.readers(workers)
        for reader, worker in zip(before, workers, strict=True):
            three.submit(give_all_back, reader, workers=[worker], pure=False).result()
        time.sleep(0.5)  # for what must not happen
        assert blocks_left(three) == sum(len(reader.keys) for reader in now)
        for reader, worker in zip(now, workers, strict=True):
            three.submit(give_all_back, reader, workers=[worker], pure=False).result()
        assert wait_until(lambda: blocks_left(three) == 0, 60)


def give_all_back(reader: Any) -> None:
    reader.open()
    for group, n in dict(reader.uses).items():
        reader.used(group, n, reader.last_epoch)


def test_owners_share_the_rows() -> None:
    assert owner_of_pieces([10, 10, 10, 0], [[0, 1], [1, 2]]) == [0, 0, 1, 0]
