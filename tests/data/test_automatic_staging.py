"""A lazy frame that does not fit into the memory of the workers: ``fit`` puts it on disk, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client
from torch import nn

import daskdl

pytestmark = pytest.mark.cluster

PARTS, ROWS, COLUMNS = 61, 6_000, 300  # 838 MiB of numbers, of which two workers of 800 MiB may hold 800


def part(number: int) -> pd.DataFrame:
    row = np.arange(number * ROWS, (number + 1) * ROWS)
    return pd.DataFrame({f"x{i}": (row % (i + 2)).astype("f8") for i in range(COLUMNS)} | {"late": row % 3 == 0})


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Two workers with little memory, and a home of their own, which the staging cache is in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    client = daskdl.connect("cpu", n_workers=2, memory_limit="800MiB", dashboard_address="127.0.0.1:0")
    with client.as_current():
        yield client
    client.shutdown()


def staging_notes(model: daskdl.TorchClassifier) -> list[str]:
    return [text for text in model.run_.events.text if "larger than half the memory" in text]


def test_a_frame_larger_than_the_memory_is_staged_once_and_used_once(small: Client, tmp_path: Path) -> None:
    frame = dd.from_map(part, range(PARTS), meta=part(0)[:0])
    found = []
    for _ in range(2):
        model = daskdl.TorchClassifier(nn.Linear(COLUMNS, 1), epochs=1, batch_size=4096, verbose=0).fit(frame, "late")
        audit = model.run_.audit()
        assert audit["rows"].tolist() == [PARTS * ROWS] and audit.as_planned.all()
        assert audit["min"].eq(1).all() and audit["max"].eq(1).all()
        found.append((staging_notes(model), audit.digest.tolist()))
    (((first,), one), ((second,), other)) = found
    cache = tmp_path / ".cache" / "daskdl" / "staged"
    assert f"it was written to {cache}" in first and f"it was found in {cache}" in second
    assert one == other
    assert len(list(cache.rglob("part-*.parquet"))) == PARTS
