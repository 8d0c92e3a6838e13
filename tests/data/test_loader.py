"""Batches in one call: under torchrun, in a DataLoader, in a Dask task, with random changes, from several sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from torch.utils.data import DataLoader

import daskdl
from daskdl.data.arrays import Block
from daskdl.data.loader import Batches
from daskdl.errors import DataError

N = 500


def table(rows: int = N, x: float = 0.0) -> pd.DataFrame:
    """Rows whose class is their number: class numbers are row numbers."""
    row = np.arange(rows)
    return pd.DataFrame({"x": row + x, "city": [f"c{i % 3}" for i in row], "y": row})


@pytest.fixture
def path(tmp_path: Path) -> str:
    table().to_parquet(tmp_path / "rows.parquet", row_group_size=60)
    return str(tmp_path / "rows.parquet")


def make(path: str, **options: Any) -> Batches:
    return daskdl.batches(daskdl.ParquetSource(path), "y", **{"batch_size": 32, **options})


def rows_of(batches: Any) -> list[list[int]]:
    return [batch["y"].tolist() for batch in batches]


def test_a_batch_is_a_dict_of_tensors(path: str) -> None:
    batches = make(path)
    batch = next(iter(batches))
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == {
        "numbers": ((32, 1), torch.float32),
        "codes": ((32, 1), torch.int32),
        "y": ((32,), torch.int64),
    }
    assert len(batches) == 15 and batches.steps_per_epoch == 16 and (batches.rank, batches.world_size) == (0, 1)


def test_without_a_label_there_is_no_y(path: str) -> None:
    batches = daskdl.batches(daskdl.ParquetSource(path, columns=["x", "city"]), batch_size=32)
    assert set(next(iter(batches))) == {"numbers", "codes"} and batches.target is None


TORCHRUN = """
import os, sys
import torch.distributed as dist
import daskdl
dist.init_process_group("gloo")
batches = daskdl.batches(daskdl.ParquetSource(sys.argv[1]), "y", batch_size=32, epochs=2)
assert (batches.rank, batches.world_size) == (dist.get_rank(), dist.get_world_size()) == (int(os.environ["RANK"]), 2)
rows = [(step, row) for step, batch in enumerate(batches) for row in batch["y"].tolist()]
parts = [None, None]
dist.all_gather_object(parts, rows)
if dist.get_rank() == 0:
    print("rows", sorted(parts[0] + parts[1]))
dist.destroy_process_group()
"""


def test_under_torchrun_the_ranks_share_the_rows(path: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, str(script), path], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("rows ")]
    alone = [(step, row) for step, rows in enumerate(rows_of(make(path, epochs=2))) for row in rows]
    assert ast.literal_eval(line.removeprefix("rows ")) == sorted(alone)
    assert sorted(row for _, row in alone) == sorted(2 * list(range(N)))


@pytest.mark.parametrize("stop", [0, 1, 15, 16, 17, 31, 32])
def test_it_goes_on_at_any_step_with_any_number_of_ranks(path: str, stop: int) -> None:
    whole = rows_of(make(path, epochs=2))
    first = make(path, epochs=2)
    assert rows_of(islice(first, stop)) == whole[:stop]
    parts = []
    for rank in range(3):
        second = make(path, epochs=2, rank=rank, world_size=3, schema=first.schema, target=first.target)
        second.load_state_dict(first.state_dict())
        assert len(second) == len(whole) - stop
        parts.append(rows_of(second))
    assert [[*a, *b, *c] for a, b, c in zip(*parts, strict=True)] == whole[stop:]


def test_a_place_of_another_seed_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="belongs to seed 7, the batches have seed 0"):
        make(path).load_state_dict(make(path, seed=7).state_dict())


def test_a_place_of_other_data_is_refused(path: str, tmp_path: Path) -> None:
    place = make(path).state_dict()
    table(N + 1).to_parquet(tmp_path / "other.parquet", row_group_size=60)
    with pytest.raises(ValueError, match=r"order of 500 rows in 9 groups.* that of 501 rows in 9 groups.*begin anew"):
        make(str(tmp_path / "other.parquet")).load_state_dict(place)
    sources = [daskdl.ParquetSource(path), daskdl.MemorySource(table(50), group_rows=20)]
    mixed = [daskdl.batches(sources, "y", batch_size=32, ratios=ratios) for ratios in ([3, 1], [2, 1], [6, 2])]
    with pytest.raises(ValueError, match="belongs to the order of 550 rows of 2 datasets"):
        mixed[1].load_state_dict(mixed[0].state_dict())
    mixed[2].load_state_dict(mixed[0].state_dict())


def test_a_data_loader_without_workers_gives_the_same_batches(path: str) -> None:
    assert rows_of(DataLoader(make(path), batch_size=None)) == rows_of(make(path))


def test_a_data_loader_with_workers_is_refused(path: str) -> None:
    with pytest.raises(RuntimeError, match=r"read ahead in threads of their own.*num_workers=0"):
        next(iter(DataLoader(make(path), batch_size=None, num_workers=1)))


def jitter(arrays: Block, keys: np.ndarray) -> Block:
    """Add noise that the keys decide."""
    noise = (keys >> np.uint64(40)).astype("f4") / 2**24
    return {**arrays, "numbers": arrays["numbers"] + noise[:, None], "noise": noise}


def test_random_changes_made_from_keys_are_the_same_for_any_number_of_ranks(path: str) -> None:
    def changed(world_size: int) -> list[dict[int, float]]:
        epochs: list[dict[int, float]] = [{}, {}]
        for rank in range(world_size):
            batches = make(path, epochs=2, batch_transform=jitter, rank=rank, world_size=world_size)
            for step, batch in enumerate(batches):
                epochs[step // 16].update(zip(batch["y"].tolist(), batch["noise"].tolist(), strict=True))
        return epochs

    alone = changed(1)
    assert [len(epoch) for epoch in alone] == [N, N]
    assert changed(2) == alone and changed(5) == alone
    assert len(set(alone[0].values())) > 0.99 * N, "each row has a noise of its own"
    assert sum(alone[0][row] == alone[1][row] for row in range(N)) < 5, "and another one in the next epoch"


def test_a_change_that_loses_rows_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"must keep the fields and rows of a batch.*it got 32 rows .*'y': 31"):
        list(make(path, batch_transform=lambda arrays, keys: {**arrays, "y": arrays["y"][1:]}))


def test_two_sources_are_mixed_in_every_batch(path: str) -> None:
    small = daskdl.MemorySource(table(50, x=1e6), group_rows=20)
    batches = daskdl.batches([daskdl.ParquetSource(path), small], "y", batch_size=32, ratios=[3, 1])
    seen: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for batch in batches:
        of_small = batch["numbers"][:, 0] > 100
        assert of_small.sum() == 8
        seen[0].update(batch["y"][~of_small].tolist())
        seen[1].update(batch["y"][of_small].tolist())
    assert len(batches) == 0 and set(seen[0].values()) == {1}
    assert set(seen[1]) == set(range(50)) and max(seen[1].values()) - min(seen[1].values()) <= 1
    by_size = daskdl.batches([daskdl.ParquetSource(path), small], "y", batch_size=55)
    assert [int((batch["numbers"][:, 0] > 100).sum()) for batch in by_size] == [5] * 10


@pytest.mark.cluster
def test_inside_a_dask_task(client: Client, path: str) -> None:
    whole = rows_of(make(path))
    futures = [
        client.submit(lambda rank: [b["y"].tolist() for b in make(path, rank=rank, world_size=2)], r, pure=False)
        for r in (0, 1)
    ]
    assert [a + b for a, b in zip(*client.gather(futures), strict=True)] == whole


SOURCE = daskdl.MemorySource(table(20))


@pytest.mark.parametrize(
    "data, options, error, message",
    [
        ("rows.parquet", {}, TypeError, r"data must be a Source, such as daskdl\.ParquetSource\(path\), got str"),
        (table(3), {}, TypeError, "data must be a Source.*got DataFrame"),
        (3, {}, TypeError, "data must be a Source.*got int"),
        ([], {}, TypeError, "data must be a Source.*got list"),
        (SOURCE, {"batch_size": 0}, ValueError, "batch_size must be at least 1 row, got 0"),
        (SOURCE, {"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        (SOURCE, {"rank": 2, "world_size": 2}, ValueError, r"rank must be in \[0, 2\), got 2"),
        (SOURCE, {"y": "late"}, DataError, "label column 'late' is not in X"),
        (SOURCE, {"ratios": [1, 2]}, ValueError, "ratios.*one source"),
        ([SOURCE, SOURCE], {"shuffle": False}, ValueError, "shuffle=False has no meaning"),
        ([SOURCE, SOURCE], {"ratios": [1]}, ValueError, "one ratio per dataset: 2 datasets, 1"),
        (
            [SOURCE, SOURCE],
            {"ratios": np.array([1.0, 0.0])},
            ValueError,
            r"ratios must be above 0 and finite, got \[1\.0, 0\.0\]",
        ),
    ],
)
def test_wrong_arguments_are_named(data: Any, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        daskdl.batches(data, **{"y": "y", "batch_size": 8, **options})


def test_a_source_without_the_columns_of_the_first_is_refused() -> None:
    other = daskdl.MemorySource(table(20).drop(columns="city"))
    with pytest.raises(DataError, match="city"):
        list(daskdl.batches([SOURCE, other], "y", batch_size=8))
