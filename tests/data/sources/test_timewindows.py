from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from data.conformance import check_source, rows_of
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdl.data.sources.memory import MemorySource
from daskdl.data.sources.timewindows import TimeWindows
from daskdl.errors import DataError


def sensors(n: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "time": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.permutation(n) // 2, "h"),
            "sensor": np.array(["a", "b"])[np.arange(n) % 2],
            "load": rng.random(n).astype("float32"),
            "count": rng.integers(0, 9, n),
            "alarm": rng.random(n) > 0.5,
        }
    )
    return frame


def slow(frame: pd.DataFrame, length: int, step: int, max_gap: Any, groupby: list[str], ahead: int) -> list[Any]:
    """The windows of one group, row by row: pairs of the rows' numbers within and of the label's."""
    keys = [*groupby, "time"]
    rows = frame.sort_values(keys, kind="stable", na_position="last") if len(frame) else frame
    stretches: list[list[int]] = []
    before = None
    for at, row in rows.iterrows():
        new = before is None or any(row[name] != before[name] for name in groupby)
        if new or (max_gap is not None and row["time"] - before["time"] > max_gap):
            stretches.append([])
        stretches[-1].append(at)
        before = row
    windows = []
    for stretch in stretches:
        first = 0
        while first + length + ahead <= len(stretch):
            windows.append((stretch[first : first + length], stretch[first + length + ahead - 1]))
            first += step
    return windows


ROWS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), max_size=24)


@settings(max_examples=200, deadline=None)
@given(
    ROWS,
    st.integers(1, 5),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(0, 3)),
    st.booleans(),
    st.integers(0, 2),
    st.integers(3, 30),
)
def test_windows_are_what_a_loop_gives(
    rows: list[tuple[int, str]], length: int, step: int, gap: int | None, grouped: bool, ahead: int, group_rows: int
) -> None:
    frame = pd.DataFrame(rows, columns=["time", "key"]).assign(row=range(len(rows)))
    groupby = ["key"] if grouped else []
    source = MemorySource(frame.assign(label=frame.row), group_rows=group_rows)
    windows = TimeWindows(source, length, "time", step, gap, groupby, ["label"], ahead)
    for group, first in enumerate(range(0, len(rows), group_rows)):
        expected = slow(frame.iloc[first : first + group_rows], length, step, gap, groupby, ahead)
        assert windows.counts[group] == len(expected)
        got = [chunk.select(["row", "label"]).to_pylist() for chunk in windows.read(group, 0, len(expected))]
        assert [(row["row"], row["label"]) for rows in got for row in rows] == expected


def test_windows_are_a_source() -> None:
    source = MemorySource(sensors(), group_rows=11)
    windows = TimeWindows(source, 3, "time", groupby="sensor", last=["alarm"], max_gap="2h")
    check_source(windows)
    check_source(TimeWindows(source, 2, "time", step=2), processes=False)
    check_source(TimeWindows(source, 12, "time"), processes=False)  # none at all
    check_source(TimeWindows(MemorySource(sensors(0)), 2, "time"), processes=False)
    assert windows.where(1).startswith("windows of rows 11 to 21")


def test_what_columns_become() -> None:
    frame = sensors().sort_values(["sensor", "time"])
    windows = TimeWindows(MemorySource(frame), 4, "time", groupby=["sensor"], last={"next": "load"}, ahead=2)
    (chunk,) = windows.read(0, 0, 2)
    lists = {name: pa.list_(kind, 4) for name, kind in [("load", pa.float32()), ("count", pa.int64())]}
    assert {name: chunk.schema.field(name).type for name in lists} == lists
    assert chunk.column_names == ["time", "sensor", "load", "count", "alarm", "next"]
    assert chunk["next"].to_pylist() == frame.load.iloc[5:7].tolist()
    assert chunk["time"].to_pylist() == frame.time.iloc[3:5].tolist()
    assert chunk["alarm"].to_pylist() == [frame.alarm.iloc[i : i + 4].tolist() for i in (0, 1)]


def test_arrays_and_missing_values() -> None:
    images = np.arange(5 * 6).reshape(5, 2, 3)
    table = MemorySource({"t": np.arange(5.0)[::-1], "image": images}).rows
    table = table.append_column("n", pa.array([1, None, 3, 4, 5]))
    (chunk,) = TimeWindows(MemorySource(table), 2, "t").read(0, 0, 4)
    got = chunk["image"].combine_chunks().to_numpy_ndarray()
    assert got.shape == (4, 2, 2, 3) and (got[0] == images[[4, 3]]).all()
    assert chunk["n"].to_pylist() == [[5, 4], [4, 3], [3, None], [None, 1]]


def test_many_windows_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskdl.data.sources.timewindows.CHUNK_VALUES", 20)
    windows = TimeWindows(MemorySource({"t": np.arange(30), "x": np.arange(30)}), 3, "t")
    assert [len(chunk) for chunk in windows.read(0, 1, 27)] == [6, 6, 6, 6, 2]
    assert [row[1][0] for row in rows_of(windows, 0, 1, 27)] == list(range(1, 27))


def test_counting_reads_nothing_it_can_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    source = MemorySource({"t": np.arange(30)}, group_rows=10)
    assert source.names == ["t"]
    monkeypatch.setattr(type(source), "names", ["t"])
    monkeypatch.setattr(source, "read", None)
    assert TimeWindows(source, 3, "t", step=2).counts.tolist() == [4, 4, 4]


def test_counting_through_any_map() -> None:
    source = MemorySource(sensors(), group_rows=10)
    with ThreadPoolExecutor(2) as pool:
        pooled = TimeWindows(source, 2, "time", groupby="sensor", map=pool.map)
    assert pooled.counts.tolist() == TimeWindows(source, 2, "time", groupby="sensor").counts.tolist()


@pytest.mark.cluster
def test_counting_on_a_cluster(client: Client) -> None:
    source = MemorySource(sensors(), group_rows=10)
    there = TimeWindows(source, 2, "time", max_gap=pd.Timedelta("1h"), map=client.map)
    assert there.counts.tolist() == TimeWindows(source, 2, "time", max_gap=pd.Timedelta("1h")).counts.tolist()


def test_the_fingerprint_is_of_the_rows_and_the_cut() -> None:
    def of(n: int = 30, length: int = 2, **how: Any) -> str:
        return TimeWindows(MemorySource(sensors(n)), length, "time", **how).fingerprint

    hows: list[Any] = [{"step": 2}, {"ahead": 1}, {"groupby": "sensor"}, {"last": ["load"]}, {"max_gap": "1h"}]
    names = [of(), of(n=20), of(length=3), *(of(**how) for how in hows)]
    assert len(set(names)) == len(names) and of() == of()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"length": 0}, "length must be 1 or more, got 0"),
        ({"step": 0}, "step must be 1 or more"),
        ({"ahead": -1}, "ahead must be 0 or more"),
        ({"by": "when"}, r"'when' is not among the columns \['time', 'sensor'"),
        ({"groupby": "pump"}, "'pump' is not among"),
        ({"last": ["label"]}, "'label' is not among"),
        ({"last": {"load": "count"}}, r"name of another one: \['load'\]"),
        ({"max_gap": 5}, "max_gap=5 does not measure column 'time' of type timestamp"),
        ({"by": "count", "max_gap": "1h"}, "'1h' does not measure column 'count' of type int64"),
        ({"by": "sensor", "max_gap": 1}, "does not measure column 'sensor'"),
    ],
)
def test_windows_that_cannot_be(how: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TimeWindows(MemorySource(sensors()), **({"length": 2, "by": "time"} | how))


def test_rows_without_a_time_are_refused() -> None:
    frame = sensors().assign(time=lambda f: f.time.where(f.load > 0.5))
    with pytest.raises(DataError, match=r"rows 0 to 29 in memory.*'time' has \d+ missing"):
        list(TimeWindows(MemorySource(frame), 2, "time").read(0, 0, 1))


def test_rows_that_have_changed_are_noticed() -> None:
    windows = TimeWindows(MemorySource(sensors()), 2, "time", groupby="sensor")
    windows.source = MemorySource(sensors().assign(sensor="a"))
    with pytest.raises(DataError, match="29 where 28 were counted"):
        list(windows.read(0, 0, 1))
