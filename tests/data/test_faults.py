"""What goes wrong while rows are read and used: graphs that change their mind, killed workers, readers that raise."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from itertools import islice
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client
from processes import wait_until

import daskdl
from daskdl.data.arrays import Block
from daskdl.data.batches import RankBatches
from daskdl.data.encoders import TensorEncoder
from daskdl.data.order import SampleOrder
from daskdl.data.reading import Blocks, Encoded
from daskdl.data.rows import learn, read_rows
from daskdl.data.shards import Shards
from daskdl.data.sources.parquet import ParquetSource
from daskdl.errors import DataError, WorkerLost


def kill(client: Client, address: str) -> None:
    """Kill a worker and wait for the one its nanny starts instead."""
    pid = client.run(os.getpid, workers=[address])[address]
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: address not in client.scheduler_info(n_workers=-1)["workers"], 60)
    client.wait_for_workers(2, timeout=60)


def part(i: int, seed: int | None) -> pd.DataFrame:
    rng = np.random.default_rng(seed if seed is None else seed + i)
    return pd.DataFrame({"x": rng.normal(size=500), "late": np.arange(500) % 2})


def shards_of(client: Client, seed: int | None) -> tuple[Shards, list[str]]:
    """Look at a frame, lose the worker that holds its first partition, and begin to encode."""
    frame = dd.from_map(part, range(6), seed=seed, meta=part(0, 0))
    rows = read_rows(frame, "late", classes=True, client=client)
    schema, target = learn(rows, "late", classes=True, missing="impute")
    kill(client, client.who_has([rows.pieces[0]])[rows.pieces[0].key][0])
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    return Shards(rows, TensorEncoder(schema, target), SampleOrder(rows.counts, 64), 1, workers), workers


@pytest.mark.cluster
def test_a_graph_that_gives_other_rows_the_second_time_is_refused(client: Client) -> None:
    shards, workers = shards_of(client, seed=None)
    with shards, pytest.raises(DataError, match="its graph is not deterministic"):
        shards.readers(workers)


@pytest.mark.cluster
def test_a_graph_that_gives_the_same_rows_again_is_read_again(client: Client) -> None:
    shards, workers = shards_of(client, seed=3)
    with shards:
        assert sorted({g for reader in shards.readers(workers) for g in reader.keys}) == list(range(6))


def read_and_die(context: daskdl.Context, ranks: tuple[int, ...], mark: str) -> None:
    for batch in context.batches:
        if batch.step == 70 and context.rank in ranks:
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.cluster
def test_workers_killed_while_ranks_read_files_change_no_order(client: Client, tmp_path: Path) -> None:
    """One of two: the other goes on. Both: that is said, and the next run on the same source reads the same."""
    for i in range(8):
        part(i, 1).to_parquet(tmp_path / f"{i}.parquet", row_group_size=100)
    source, mark = ParquetSource(str(tmp_path / "*.parquet")), tmp_path / "killed"
    options = {"batch_size": 64, "epochs": 2, "seed": 5, "num_workers": 2, "verbose": 0}
    before = daskdl.train(read_and_die, (source, "late"), (), str(mark), **options).run.audit()
    one = daskdl.train(read_and_die, (source, "late"), (1,), str(mark), **options).run
    assert mark.exists() and "worker_lost" in one.events.event.tolist()
    client.wait_for_workers(2, timeout=60)
    with pytest.raises(WorkerLost, match="rank [01] of [12] is lost"):
        daskdl.train(read_and_die, (source, "late"), (0, 1), str(mark), **options)
    client.wait_for_workers(2, timeout=60)
    after = daskdl.train(read_and_die, (source, "late"), (), str(mark), **options).run.audit()
    assert before.as_planned.all() and one.audit().equals(before) and after.equals(before)


class KillsOnce(daskdl.MemorySource):
    """Kills the first worker that reads it, which has the only copy that was given out."""

    mark, client = "", 0

    def read(self, group: int, first: int, stop: int) -> Iterator[Any]:
        if os.getpid() != self.client and not Path(self.mark).exists():
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(group, first, stop)


@pytest.mark.cluster
def test_a_worker_killed_while_rows_are_looked_at_is_no_error(client: Client, tmp_path: Path) -> None:
    frame = pd.concat([part(i, 1) for i in range(4)], ignore_index=True)
    source = KillsOnce(frame, group_rows=100)
    source.mark, source.client = str(tmp_path / "killed"), os.getpid()
    rows = read_rows(source, "late", classes=True, client=client)
    assert Path(source.mark).exists() and rows.n_rows == len(frame)
    assert rows.stats["x"].mean == pytest.approx(frame.x.mean())
    client.wait_for_workers(2, timeout=60)


# -- in one process -----------------------------------------------------------------------------------------------


class Failing(Blocks):
    """Blocks one of which cannot be read."""

    def read(self, group: int, first: int, stop: int, epoch: int) -> Iterator[Block]:
        if (group, epoch) == (5, 1):
            raise OSError("on purpose, in group 5")
        yield from super().read(group, first, stop, epoch)


def our_threads() -> list[str]:
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("daskdl-batches", "daskdl-read"))
    ]


def test_a_reader_that_raises_ends_the_iteration_with_its_error_and_leaves_no_thread() -> None:
    order = SampleOrder([40] * 12, 48, seed=0)
    blocks = {g: {"row": np.arange(40) + 40 * g} for g in range(12)}
    batches = RankBatches(order, Failing(blocks), 0, 1, epochs=3)
    with pytest.raises(OSError, match="on purpose, in group 5"):
        list(batches)
    assert order.steps_per_epoch <= batches.next_step < 2 * order.steps_per_epoch, "the batches before it were used"
    assert not our_threads()


def raising(arrays: Block, pool: Executor) -> Block:
    raise ZeroDivisionError("on purpose, in finish")


def test_what_is_done_to_a_batch_in_the_background_may_raise_too() -> None:
    order = SampleOrder([40] * 4, 16, seed=0)
    blocks = Blocks({g: {"row": np.arange(40)} for g in range(4)})
    with pytest.raises(ZeroDivisionError, match="on purpose, in finish"):
        list(RankBatches(order, blocks, 0, 1, epochs=1, finish=raising))
    assert not our_threads()


@pytest.fixture
def large(tmp_path: Path) -> ParquetSource:
    """Row groups of 20 MB, which are read piece by piece while their file is open."""
    row = pa.array([b"x" * 1_000] * 40_000, pa.binary(1_000))
    pq.write_table(
        pa.table({"row": np.arange(40_000), "bytes": row}), tmp_path / "large.parquet", row_group_size=20_000
    )
    return ParquetSource(str(tmp_path))


def open_files() -> list[str]:
    return [file.path for file in psutil.Process().open_files() if file.path.endswith("large.parquet")]


def first_column(chunk: pa.RecordBatch) -> Block:
    return {"row": chunk["row"].to_numpy()}


def failing_later(chunk: pa.RecordBatch) -> Block:
    if chunk["row"][0].as_py() % 20_000 > 10_000:
        raise ZeroDivisionError("on purpose, in the middle of a group")
    return first_column(chunk)


def leave(batches: RankBatches) -> None:
    iterator = iter(batches)
    assert len(list(islice(iterator, 3))) == 3
    assert open_files() and our_threads(), "there is something to leave behind"
    iterator.close()


def fail(batches: RankBatches) -> BaseException:
    with pytest.raises(ZeroDivisionError, match="in the middle of a group") as found:
        list(batches)
    return found.value  # kept by the caller, as a debugger or a notebook does


@pytest.mark.parametrize("encode, end", [(first_column, leave), (failing_later, fail)], ids=["left", "failed"])
def test_an_iteration_that_ends_early_leaves_no_thread_and_no_open_file(
    large: ParquetSource, encode: Callable[[pa.RecordBatch], Block], end: Callable[[RankBatches], Any]
) -> None:
    order = SampleOrder(large.counts, 500, lanes=2, window_rows=1_000)
    gc.disable()  # nothing is to depend on when Python collects its garbage
    try:
        kept = end(RankBatches(order, Encoded(large, encode), 0, 1, epochs=2))
        assert not our_threads()
        assert not open_files(), kept
    finally:
        gc.enable()
