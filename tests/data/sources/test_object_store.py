"""Rows in an object store: a real S3 server behind a proxy that fails, waits and cuts bodies short."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

import dask.dataframe as dd
import fsspec
import numpy as np
import pandas as pd
import pytest
from data.conformance import check_source
from distributed import Client
from faulty_store import FINE, SECRET, Fault, FaultyStore, Plan, faulty_store, sometimes

import daskdl
from daskdl.data.batches import RankBatches
from daskdl.data.order import SampleOrder
from daskdl.data.reading import Encoded
from daskdl.data.sources import remote
from daskdl.data.sources.base import Source
from daskdl.errors import DataError

ROWS = 1_500


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyStore]:
    with faulty_store() as store:
        yield store


@pytest.fixture
def store(server: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaultyStore:
    """A store that works, with three files of two row groups, which also lie in ``tmp_path / "data"``."""
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.01)
    server.reset()
    (tmp_path / "data").mkdir()
    for i in range(3):
        write(server, tmp_path / "data" / f"part-{i}.parquet", start=500 * i)
    server.reset()
    return server


def write(store: FaultyStore, path: Path, start: int) -> None:
    row = np.arange(start, start + 500)
    pd.DataFrame({"row": row, "x": row / 3, "late": row % 2}).to_parquet(path, row_group_size=250)
    fsspec.filesystem("s3", **store.options).put_file(str(path), f"bucket/data/{path.name}")


def on_s3(store: FaultyStore) -> daskdl.ParquetSource:
    return daskdl.ParquetSource("s3://bucket/data", storage_options=store.options)


def batches_of(source: Source, rank: int = 0, world_size: int = 1) -> RankBatches:
    order = SampleOrder(source.counts, 64, seed=1, **source.layout(64))
    return RankBatches(order, Encoded(source, lambda c: {"row": c["row"].to_numpy()}), rank, world_size, epochs=1)


def test_files_in_a_store_are_read_as_local_ones_are(store: FaultyStore, tmp_path: Path) -> None:
    source, local = on_s3(store), daskdl.ParquetSource(str(tmp_path / "data"))
    assert check_source(source) == check_source(local, processes=False)
    assert source.fingerprint == local.fingerprint and source.layout(64) == local.layout(64)


def test_every_row_comes_once_from_a_store_that_fails_now_and_then(store: FaultyStore) -> None:
    store.reset(sometimes(4, s500=0.1, s503=0.1, cut=0.15))
    source = on_s3(store)
    rows = [batch.arrays["row"] for rank in (0, 1) for batch in batches_of(source, rank, 2)]
    assert store.faults >= 5
    assert np.bincount(np.concatenate(rows)).tolist() == [1] * ROWS


FAULTS = {
    "500": lambda method, path: Fault(status=500),
    "503 for rows only": lambda method, path: Fault(status=503) if method == "GET" else FINE,
    "cut short": lambda method, path: Fault(cut=True),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("plan", FAULTS.values(), ids=FAULTS)
def test_a_store_that_always_fails_is_given_up_with_the_place_named(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch, plan: Plan
) -> None:
    batches = batches_of(on_s3(store))
    if plan is FAULTS["cut short"]:  # what takes longest, with the real waits
        monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.25)
    store.reset(plan)
    with pytest.raises(
        DataError, match=r"bucket/data/part-\d\.parquet, row group \d cannot be read, after 4 tries"
    ) as e:
        list(batches)
    assert len(store.asked) <= 24 * 2, "two threads were reading"
    assert SECRET not in "".join(traceback.format_exception(e.value))


@pytest.mark.timeout(60)
def test_a_store_that_does_not_answer_from_the_beginning(store: FaultyStore) -> None:
    store.reset(lambda method, path: Fault(status=500))
    with pytest.raises(DataError, match=r"s3://bucket/data cannot be listed: .*Look at the address.*storage_options"):
        on_s3(store)
    assert 4 <= len(store.asked) <= 24
    store.reset(lambda method, path: Fault(status=500) if path.endswith("part-1.parquet") else FINE)
    with pytest.raises(DataError, match=r"bucket/data/part-1\.parquet cannot be read as Parquet"):
        on_s3(store)


def test_a_user_who_says_how_often_to_try_is_heard(store: FaultyStore) -> None:
    options = {**store.options, "config_kwargs": {"retries": {"total_max_attempts": 1}}}
    source = daskdl.ParquetSource("s3://bucket/data", storage_options=options)
    store.reset(lambda method, path: Fault(status=500))
    with pytest.raises(DataError, match="after 4 tries"):
        list(source.read(0, 0, 100))
    assert len(store.asked) == 4


def test_a_slow_store_is_asked_for_several_things_at_once(store: FaultyStore) -> None:
    batches = batches_of(on_s3(store))
    store.reset(lambda method, path: Fault(seconds=0.3))
    assert sum(batch.n_rows for batch in batches) == ROWS
    assert store.most_at_once >= 2


def test_an_object_replaced_under_a_run_is_seen_and_can_be_read_anew(store: FaultyStore, tmp_path: Path) -> None:
    source = on_s3(store)
    write(store, tmp_path / "data" / "part-1.parquet", start=500_000)
    with pytest.raises(DataError, match=r"part-1\.parquet was replaced after training began.*ETag"):
        list(batches_of(source))
    assert source.fingerprint != on_s3(store).fingerprint
    assert sum(batch.n_rows for batch in batches_of(on_s3(store))) == ROWS


@pytest.mark.cluster
def test_keys_are_told_to_nobody(client: Client, store: FaultyStore, runs_root: Path) -> None:
    source = on_s3(store)
    assert SECRET not in repr(source)
    clf = daskdl.TorchClassifier(epochs=1, batch_size=256, verbose=0).fit(source, "late")
    assert clf.run_.audit()["rows"].tolist() == [ROWS] and clf.run_.audit().as_planned.all()
    assert SECRET not in str(vars(clf.run_.record)) and SECRET not in repr(clf)
    store.reset(lambda method, path: Fault(status=500) if path.endswith("part-2.parquet") else FINE)
    with pytest.raises(DataError, match=r"part-2\.parquet, row group \d cannot be read") as e:
        daskdl.TorchClassifier(epochs=1, batch_size=256, verbose=0).fit(source, "late")
    assert SECRET not in "".join(traceback.format_exception(e.value))
    kept = [path for path in runs_root.rglob("*") if path.is_file()]
    assert kept
    assert not [path.name for path in kept if SECRET.encode() in path.read_bytes()]


# -- other sources ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lines.txt", "lines.txt.gz"])
def test_text_in_a_store(store: FaultyStore, name: str) -> None:
    fs = fsspec.filesystem("s3", **store.options)
    lines = [f"line {i} of a text in a store" for i in range(2_000)]
    with fs.open(f"bucket/text/{name}", "wb", compression="infer") as file:
        file.write("\n".join(lines).encode())
    store.reset(sometimes(1, s500=0.1, cut=0.1))
    source = daskdl.TextSource(f"s3://bucket/text/{name}", storage_options=store.options, block_bytes=5_000)
    found = [
        row for g, n in enumerate(source.counts) for c in source.read(g, 0, int(n)) for row in c["text"].to_pylist()
    ]
    assert found == lines
    store.reset()
    fs.pipe_file(f"bucket/text/{name}", b"another text")
    with pytest.raises(DataError, match=r"lines\.txt.*written again since"):
        list(source.read(0, 0, 1))


def test_images_in_a_store(store: FaultyStore) -> None:
    fs = fsspec.filesystem("s3", **store.options)
    images = {f"{name}/{i}.png": bytes([i]) * 100 for name in ("cat", "dog") for i in range(8)}
    fs.pipe({f"bucket/pets/{name}": data for name, data in images.items()})
    store.reset(sometimes(2, s503=0.1, cut=0.1))
    source = daskdl.ImageFolderSource("s3://bucket/pets", storage_options=store.options, group_rows=8)
    chunks = [chunk for group in (0, 1) for chunk in source.read(group, 0, 8)]
    assert store.faults
    assert {
        f: i for chunk in chunks for f, i in zip(*(chunk[c].to_pylist() for c in ("file", "image")), strict=True)
    } == images


@pytest.mark.cluster
def test_a_frame_is_staged_in_a_store(client: Client, store: FaultyStore) -> None:
    frame = dd.from_pandas(pd.DataFrame({"row": np.arange(ROWS), "late": np.arange(ROWS) % 2}), npartitions=4)
    options = {"cache": "s3://bucket/cache", "storage_options": store.options, "client": client}
    with daskdl.stage(frame, **options) as staged, daskdl.stage(frame, **options) as again:
        assert (staged.n_rows, staged.reused, again.reused) == (ROWS, False, True)
        source = daskdl.ParquetSource(staged.path, storage_options=store.options)
        rows = np.concatenate([batch.arrays["row"] for batch in batches_of(source)])
    assert np.bincount(rows).tolist() == [1] * ROWS
