from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import cloudpickle
import dask
import dask.dataframe as dd
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.conformance import check_source
from distributed import Client
from processes import wait_until

from daskdl.data.sources.parquet import ParquetSource
from daskdl.data.staging import stage as staging
from daskdl.data.staging.stage import stage
from daskdl.errors import DataError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import tests


def frame(n: int = 100, seed: int = 0, npartitions: int = 4) -> dd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame({"a": rng.random(n), "name": [f"r{i % 7}" for i in range(n)], "k": range(n)})
    return dd.from_pandas(rows.assign(kind=rows.name.astype("category")), npartitions=npartitions)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def rows(staged: staging.Staged) -> pd.DataFrame:
    files = sorted(Path(staged.path).iterdir())
    return pa.concat_tables([pq.read_table(file) for file in files], promote_options="none").to_pandas()


def builds(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("v*/*") if len(path.name) == 32)


def files_of(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


# -- what is written ----------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_a_frame_is_written_once(client: Client, cache: Path) -> None:
    lazy = frame()
    with stage(lazy, str(cache), client, row_group_rows=10) as staged:
        pd.testing.assert_frame_equal(rows(staged), lazy.compute().reset_index(drop=True), check_dtype=False)
        assert (staged.n_rows, staged.columns, staged.reused) == (100, ("a", "name", "k", "kind"), False)
        sizes = [path.stat().st_size for path in Path(staged.path).iterdir()]
        assert len(sizes) == 4 and sum(sizes) == staged.n_bytes
        groups = pq.ParquetFile(f"{staged.path}/part-00000.parquet").metadata
        assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [10, 10, 5]
    with stage(frame(), str(cache), client, row_group_rows=10) as again:
        assert (again.path, again.fingerprint, again.reused) == (staged.path, staged.fingerprint, True)
    with stage(frame(seed=1), str(cache), client, row_group_rows=10) as other:
        assert other.fingerprint != staged.fingerprint and not other.reused
    with stage(frame(), str(cache), client, row_group_rows=20) as other:
        assert other.fingerprint != staged.fingerprint and not other.reused
    assert [path for path in files_of(cache) if "leases" in path or "probes" in path] == []


@pytest.mark.cluster
def test_partitions_of_odd_types_and_none_at_all(client: Client, cache: Path, ragged: dd.DataFrame) -> None:
    before = set(client.futures)
    with stage(ragged, str(cache), client) as staged:
        pd.testing.assert_frame_equal(rows(staged), ragged.compute().reset_index(drop=True), check_dtype=False)
        assert len(list(Path(staged.path).iterdir())) == ragged.npartitions == 7
        assert len(check_source(ParquetSource(staged.path), processes=False)) == 4_000

    def part(i: int) -> pd.DataFrame:
        kinds = [f"k{j}" for j in range(300 if i == 2 else 2)]
        words = [None, None] if i == 0 else [[1], None]
        values = [1, 2] if i == 0 else [1.5, None]
        return pd.DataFrame({"w": pd.Series(words, dtype=object), "v": values, "k": pd.Categorical(kinds[:2], kinds)})

    meta = {"w": object, "v": float, "k": "category"}
    with dask.config.set({"dataframe.convert-string": False}):
        odd = dd.from_map(part, range(3), meta=meta, enforce_metadata=False)
        with stage(odd, str(cache), client) as staged:
            got = rows(staged)
    assert got.v.tolist()[:3] == [1, 2, 1.5] and got.k.tolist() == ["k0", "k1"] * 3
    assert [None if word is None else list(word) for word in got.w] == [None, None, [1], None, [1], None]
    assert wait_until(lambda: set(client.futures) <= before)


@pytest.mark.cluster
def test_partitions_that_do_not_fit_together(client: Client, cache: Path) -> None:
    def part(i: int) -> pd.DataFrame:
        return pd.DataFrame({"a": [1 if i else "x"]}) if i < 2 else pd.DataFrame({"b": [1]})

    for numbers, message in (([0, 1], "different types.*astype"), ([1, 2], r"different columns: \['a'\] and \['b'\]")):
        lazy = dd.from_map(part, numbers, meta={"a": "int64"}, enforce_metadata=False)
        with pytest.raises(DataError, match=message):
            stage(lazy, str(cache), client)
    with dask.config.set({"dataframe.convert-string": False}):
        mixed = dd.from_map(lambda i: pd.DataFrame({"a": [1, "x", b"y"]}, dtype=object), [0], meta={"a": object})
    with pytest.raises(DataError, match="one kind"):
        stage(mixed, str(cache), client)
    assert builds(cache) == [] and not [p for p in files_of(cache) if p.endswith(".json")]


@pytest.mark.cluster
def test_the_fingerprint_is_of_the_rows(client: Client, tmp_path: Path) -> None:
    with stage(frame(), str(tmp_path / "1"), client) as one, stage(frame(), str(tmp_path / "2"), client) as two:
        assert one.fingerprint == two.fingerprint and one.path != two.path
    with stage(frame(npartitions=3), str(tmp_path / "1"), client) as other:
        assert other.fingerprint != one.fingerprint


@pytest.mark.cluster
def test_other_file_systems(client: Client, tmp_path: Path) -> None:
    url = f"dir::file://{tmp_path}"  # every path goes through fsspec, and none is local to `is_local`
    with stage(frame(), url, client, storage_options={"dir": {"path": str(tmp_path / "in")}}) as staged:
        assert not staged.reused
    with stage(frame(), url, client, storage_options={"dir": {"path": str(tmp_path / "in")}}) as staged:
        assert staged.reused


@pytest.mark.cluster
def test_a_cache_in_memory(tmp_path: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as own:
        with stage(frame(), "memory://staged", own) as staged, stage(frame(), "memory://staged", own) as again:
            assert staged.path.startswith("memory://") and again.reused
            rows = check_source(ParquetSource(staged.path), processes=False)
            assert [row[2] for row in rows] == list(range(100))
        with stage(frame(seed=1), "memory://staged", own, max_bytes=staged.n_bytes * 1.5) as other:
            assert not fsspec.filesystem("memory").exists(staged.path)
            assert fsspec.filesystem("memory").exists(other.path)


def test_what_cannot_be_staged() -> None:
    with pytest.raises(DataError, match="expected a Dask DataFrame to stage, got DataFrame"):
        stage(pd.DataFrame({"a": [1]}))  # type: ignore[arg-type]


def test_without_a_client(no_client: None) -> None:
    with pytest.raises(ValueError, match="staging computes a Dask DataFrame.*daskdl.connect"):
        stage(frame())


# -- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_a_partition_that_raises_leaves_nothing(client: Client, cache: Path) -> None:
    def part(i: int) -> pd.DataFrame:
        if i == 3:
            raise RuntimeError("sensor 3 is broken")
        return pd.DataFrame({"a": [i]})

    with pytest.raises(RuntimeError, match="sensor 3 is broken"):
        stage(dd.from_map(part, range(5), meta={"a": "int64"}), str(cache), client)
    assert files_of(cache) == [] or wait_until(lambda: files_of(cache) == [])


@pytest.mark.cluster
def test_a_full_disk_leaves_nothing(client: Client, cache: Path) -> None:
    def limit(n_bytes: int) -> None:  # a write beyond this fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    client.run(limit, 2_000)
    try:
        with pytest.raises(DataError, match="rows cannot be written to .*part-.*make room"):
            stage(frame(20_000), str(cache), client)
    finally:
        client.run(limit, resource.RLIM_INFINITY)
    assert files_of(cache) == []
    with stage(frame(20_000), str(cache), client) as staged:
        assert staged.n_rows == 20_000


@pytest.mark.cluster
def test_a_cache_that_workers_do_not_share(client: Client, tmp_path: Path) -> None:
    seen = tmp_path / "computed"
    lazy = dd.from_map(lambda i: (seen.touch(), pd.DataFrame({"a": [i]}))[1], [1], meta={"a": "int64"})
    with pytest.raises(DataError, match="2 of 2 workers do not share the cache memory://here: .*does not see.*shared"):
        stage(lazy, "memory://here", client)  # each process has its own
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/cache cannot be written to"):
        stage(lazy, str(tmp_path / "file" / "cache"), client)
    with pytest.raises(DataError, match="cannot be written to.*nosuch"):
        stage(lazy, "nosuch://bucket", client)
    assert not seen.exists()


@pytest.mark.cluster
def test_a_frame_larger_than_the_cache_is_refused(client: Client, cache: Path) -> None:
    with pytest.raises(DataError, match=r"more than 10,000 bytes.*max_bytes"):
        stage(frame(20_000), str(cache), client, max_bytes=10_000)
    assert files_of(cache) == [] or wait_until(lambda: files_of(cache) == [])


@pytest.mark.cluster
def test_a_killed_worker_is_made_up_for(client: Client, cache: Path, tmp_path: Path) -> None:
    died = str(tmp_path / "died")

    def part(i: int) -> pd.DataFrame:
        if i == 2 and not os.path.exists(died):
            open(died, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return pd.DataFrame({"a": [i] * 3})

    with stage(dd.from_map(part, range(6), meta={"a": "int64"}), str(cache), client) as staged:
        assert os.path.exists(died) and rows(staged).a.tolist() == [i for i in range(6) for _ in range(3)]
    client.wait_for_workers(2)


KILLED = """
    import sys, time
    import dask.dataframe as dd, pandas as pd
    from distributed import Client
    from daskdl.data.staging.stage import stage

    def part(i):
        import pandas as pd, time
        time.sleep(0.3 * (i > 1))
        return pd.DataFrame({"a": [i]})

    with Client(sys.argv[1]) as client:
        stage(dd.from_map(part, range(40), meta={"a": "int64"}), sys.argv[2], client)
"""


@pytest.mark.cluster
def test_a_killed_run_leaves_only_rubbish(client: Client, cache: Path) -> None:
    with stage(frame(), str(cache), client) as kept:
        pass
    code = [sys.executable, "-c", textwrap.dedent(KILLED), client.scheduler.address, str(cache)]
    run = subprocess.Popen(code, start_new_session=True)
    try:
        assert wait_until(lambda: len(list(cache.glob("v*/*/part-*"))) > 4, 60)
    finally:
        run.kill()
        run.wait()
    assert len(builds(cache)) == 2
    with stage(frame(seed=1), str(cache), client) as other:
        assert set(builds(cache)) == {Path(kept.path).name, Path(other.path).name}
    with stage(frame(), str(cache), client) as again:
        assert again.reused and len(rows(again)) == 100
    assert wait_until(lambda: not client.processing() or not any(client.processing().values()))


# -- two at once -----------------------------------------------------------------------------------


@pytest.mark.cluster
def test_two_runs_build_the_same_frame_at_once(client: Client, cache: Path, tmp_path: Path) -> None:
    def part(i: int) -> pd.DataFrame:
        time.sleep(0.1)
        return pd.DataFrame({"a": [i]})

    got: list[staging.Staged] = []

    def run() -> None:
        got.append(stage(dd.from_map(part, range(4), meta={"a": "int64"}), str(cache), client))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got[0].fingerprint == got[1].fingerprint
    assert [rows(staged).a.tolist() for staged in got] == [[0, 1, 2, 3]] * 2
    for staged in got:
        staged.release()
    with stage(frame(), str(cache), client):
        assert len(builds(cache)) == 2  # this one, and one of the two


def test_limits(tmp_path: Path) -> None:
    fs = fsspec.filesystem("file")
    assert staging.limits(fs, str(tmp_path), 5) == (5, 5)
    keep, most = staging.limits(fs, str(tmp_path), None)
    assert 0 < keep <= 50e9 and most > keep
    assert staging.limits(fsspec.filesystem("memory"), "/x", None) == (50e9, float("inf"))
    assert staging.default_cache().endswith("daskdl/staged")
