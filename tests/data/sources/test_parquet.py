"""Parquet files as a source: against plain pandas, and against everything that happens to files."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.conformance import check_source

import daskdl
from daskdl.data.batches import RankBatches
from daskdl.data.order import SampleOrder
from daskdl.data.reading import Encoded
from daskdl.data.sources.parquet import ParquetSource
from daskdl.data.sources.parquet_columns import FileSchema, common_types
from daskdl.errors import DataError


def write(path: Path, rows: int = 100, group: int = 30, start: int = 0, **columns: object) -> Path:
    at = np.arange(start, start + rows)
    table = pa.table({"row": at, "x": at.astype("f4") / 3, "name": [f"n{i % 7}" for i in at], **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, rows in enumerate((100, 0, 77, 1)):
        write(tmp_path / "data" / f"part-{i}.parquet", rows, start=1000 * i)
    (tmp_path / "data" / "_SUCCESS").touch()
    (tmp_path / "data" / ".part-9.parquet.crc").touch()
    return tmp_path / "data"


def rows_of(source: ParquetSource) -> list[int]:
    return [r for g in range(len(source.counts)) for c in source.read(g, 0, 10**9) for r in c["row"].to_pylist()]


def test_it_is_a_source(folder: Path) -> None:
    source = ParquetSource(str(folder))
    check_source(source)
    assert source.counts.tolist() == [30, 30, 30, 10, 0, 30, 30, 17, 1]
    assert source.names == ["row", "x", "name"]
    assert "part-2.parquet, row group 1" in source.where(6)


@pytest.mark.parametrize("pattern", ["{}", "{}/*.parquet", "file://{}"])
def test_paths_patterns_and_lists_name_the_same_rows(folder: Path, pattern: str) -> None:
    whole = ParquetSource(sorted(str(p) for p in folder.glob("*.parquet")))
    assert ParquetSource(pattern.format(folder)).fingerprint == whole.fingerprint


def test_columns_are_pushed_down(folder: Path) -> None:
    source = ParquetSource(str(folder), columns=["x"])
    assert source.head().columns.tolist() == ["x"]
    assert source.row_bytes == 4


FILTERS = [
    [("row", ">", 2010)],
    [("row", "<=", 35), ("name", "==", "n3")],
    [[("row", "<", 5)], [("row", ">=", 2070), ("x", "<", 691.5)]],
    [("name", "in", ["n1", "n2"])],
    [("name", "not in", ["n1"]), ("row", "!=", 0)],
    [("row", "=", 10**9)],
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_leave_the_rows_that_pandas_leaves(folder: Path, filters: list) -> None:
    source = ParquetSource(str(folder), columns=["row"], filters=filters)
    expected = pd.read_parquet(folder, columns=["row"], filters=filters).row.sort_values().tolist()
    assert sorted(rows_of(source)) == expected
    assert source.n_rows == len(expected)
    if expected:
        check_source(source)


def test_row_groups_that_cannot_match_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    original = ParquetSource._open
    monkeypatch.setattr(ParquetSource, "_open", lambda self, g, c: (opened.append(g), original(self, g, c))[1])
    ParquetSource(str(folder), filters=[("row", ">=", 2060)])
    assert opened == [7, 8]


@pytest.mark.parametrize("condition", [("row", "~", 3), ("row", ">")])
def test_a_filter_that_is_none_is_refused(folder: Path, condition: tuple) -> None:
    with pytest.raises(ValueError, match=r"a filter is \(column, operator, value\)"):
        ParquetSource(str(folder), filters=[condition])


def test_columns_in_the_path_are_columns(tmp_path: Path) -> None:
    for year in (2012, 2013):
        write(tmp_path / f"year={year}" / "where=north" / "p.parquet", 10, start=year)
    source = ParquetSource(str(tmp_path), columns=["row", "year", "where"], filters=[("year", "==", 2013)])
    assert source.counts.tolist() == [0, 10]
    assert source.head(1).to_dict("records") == [{"row": 2013, "year": 2013, "where": "north"}]


def keyed(root: Path, *folders: str) -> Path:
    for i, folder in enumerate(folders):
        write(root / folder / "p.parquet", 1, start=i)
    return root


def test_keys_in_paths_are_read_as_arrow_writes_them(tmp_path: Path) -> None:
    rows = {"row": [0, 1, 2], "city": ["São Paulo/1", None, "Bonn"], "n": [7, -1, None]}
    pq.write_to_dataset(pa.table(rows), tmp_path / "run=3" / "t", partition_cols=["city", "n"])
    root = str(tmp_path / "run=3" / "t")
    source = ParquetSource(root)
    assert source.names == ["row", "city", "n"], "run= stands above what was asked for"
    frame = source.to_dask().compute().sort_values("row")
    assert frame.city.astype(object).where(frame.city.notna(), None).tolist() == rows["city"]
    assert frame.n.astype(object).where(frame.n.notna(), None).tolist() == rows["n"]
    assert ParquetSource(root, columns=["city"], filters=[("n", "in", [7])]).head().city.tolist() == ["São Paulo/1"]


def test_keys_with_leading_zeros_are_text(tmp_path: Path) -> None:
    source = ParquetSource(str(keyed(tmp_path, "zip=01067", "zip=53111")), columns=["zip"])
    assert [source.head().zip.tolist(), source.n_rows] == [["01067"], 2]


def test_only_keys_below_what_was_given_are_columns(tmp_path: Path) -> None:
    keyed(tmp_path, "a=1/b=2", "a=1/b=3")
    file = str(tmp_path / "a=1" / "b=2" / "p.parquet")
    for path, keys in {
        str(tmp_path): ["a", "b"],
        f"{tmp_path}/a=1/": ["b"],
        f"{tmp_path}/a=1/*/*.parquet": ["b"],
        file: [],
        (file, file.replace("b=2", "b=3")): ["b"],
        (f"{tmp_path}/a=1/b=2", f"{tmp_path}/a=1/b=3"): ["b"],
    }.items():
        assert ParquetSource(path if isinstance(path, str) else list(path)).names == ["row", "x", "name", *keys]


def test_the_fingerprint_is_that_of_the_content_not_of_the_place(folder: Path, tmp_path: Path) -> None:
    before = ParquetSource(str(folder)).fingerprint
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.glob("*.parquet"):
        (copy / path.name).write_bytes(path.read_bytes())
    assert ParquetSource(str(copy)).fingerprint == before
    write(copy / "part-2.parquet", 77, start=2001)
    assert ParquetSource(str(copy)).fingerprint != before
    assert ParquetSource(str(folder), columns=["x"]).fingerprint != before


CITIES = np.array(["Oslo", "Rome", "Lima", "Reykjavik"])


def lists_of(values: np.ndarray, most: int = 30) -> pa.Array:
    lengths = np.random.default_rng(1).integers(0, most, len(values) // most)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("i4")
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[: offsets[-1]]))


def decoded(n: int = 10_000) -> dict[str, pa.Array]:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(CITIES, k)) for k in rng.integers(1, 60, n)]
    return {
        "numbers": pa.array(rng.random(n)),
        "few words": pa.array(rng.choice(CITIES, n)),
        "many words": pa.array([f"w{i:05d}" for i in rng.integers(0, 999, n)]),
        "words, mostly missing": pa.array([f"w{i % 9}" if i % 10 == 0 else None for i in range(n)]),
        "category": pa.array(rng.choice(CITIES, n)).dictionary_encode(),
        "texts": pa.array(texts),
        "words.of a list": pa.array([text.split() for text in texts]),
        "list<int64>": lists_of(rng.integers(0, 1000, 30 * n)),
        "list<float32>": lists_of(rng.random(30 * n).astype("f4")),
        "list<float64>[8]": pa.FixedSizeListArray.from_arrays(pa.array(rng.random(8 * n)), 8),
    }


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_the_bytes_of_a_decoded_row_are_known_from_the_footers(tmp_path: Path, use_dictionary: bool) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table(decoded())
    pq.write_table(table, path, row_group_size=3_000, use_dictionary=use_dictionary, compression="zstd")
    for columns in [*([name] for name in table.column_names), table.column_names]:
        source = ParquetSource(str(path), columns=columns)
        chunks = [chunk for group in range(len(source.counts)) for chunk in source.read(group, 0, 10**9)]
        real = sum(chunk.nbytes for chunk in chunks) / source.n_rows
        assert 1 / 1.3 < source.row_bytes / real < 1.3, f"{columns}: {source.row_bytes:.1f} said, {real:.1f} taken"


# -- what happens to files ----------------------------------------------------------------------------------------


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files found at"):
        ParquetSource(str(tmp_path))
    with pytest.raises(DataError, match=r"nothing\.parquet does not exist"):
        ParquetSource(str(tmp_path / "nothing.parquet"))


@pytest.mark.parametrize("keep", [0, 3, 11, 500])
def test_a_truncated_file_is_named(folder: Path, keep: int) -> None:
    path = folder / "part-2.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"part-2\.parquet cannot be read as Parquet.*cut short"):
        ParquetSource(str(folder))


def test_a_corrupted_row_group_is_named_and_nothing_is_skipped(folder: Path) -> None:
    path = folder / "part-2.parquet"
    source = ParquetSource(str(folder))
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[begin : begin + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    info = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))  # as a disk would do it: nobody wrote the file
    order = SampleOrder(source.counts, 16, **source.layout(16))
    with pytest.raises(DataError, match=r"part-2\.parquet, row group 1 cannot be read.*No row was left out"):
        list(RankBatches(order, Encoded(source, lambda c: {"row": c["row"].to_numpy()}), 0, 1, 1))


def test_a_file_replaced_under_a_run_is_seen(folder: Path) -> None:
    source = ParquetSource(str(folder))
    order = SampleOrder(source.counts, 8, **source.layout(8))
    batches = RankBatches(order, Encoded(source, lambda c: {"row": c["row"].to_numpy()}), 0, 1, 3)
    iterator = iter(batches)
    for _ in range(3):
        next(iterator)
    write(folder / "part-0.parquet", 100, start=5)
    with pytest.raises(DataError, match=r"part-0\.parquet was replaced after training began"):
        list(iterator)


def test_a_file_removed_under_a_run_is_named(folder: Path) -> None:
    source = ParquetSource(str(folder))
    (folder / "part-2.parquet").unlink()
    with pytest.raises(DataError, match=r"part-2\.parquet, row group 0 cannot be read"):
        list(source.read(5, 0, 30))


def test_types_that_do_not_go_together_are_refused_in_any_order(folder: Path) -> None:
    odd = write(folder / "part-5.parquet", 10, x=[f"{i}" for i in range(10)])
    with pytest.raises(DataError, match=r"column 'x' is float in .*part-0.* and string in .*part-5"):
        ParquetSource(str(folder))
    with pytest.raises(DataError, match=r"column 'x' is string in .*part-5.* and float in .*part-0"):
        ParquetSource([str(odd), str(folder / "part-0.parquet")])
    assert ParquetSource(str(folder), columns=["row"]).n_rows == 188, "a column nobody asked for may differ"


@pytest.mark.parametrize("turned", [False, True])
def test_a_column_that_a_file_lacks_is_missing_there(tmp_path: Path, turned: bool) -> None:
    tables = [pa.table({"a": [1, 2], "b": [True, None]}), pa.table({"c": ["x"], "a": [0.5]}), pa.table({"a": [None]})]
    paths = [tmp_path / f"{i}.parquet" for i in range(3)]
    for table, path in zip(tables, paths, strict=True):
        pq.write_table(table, path)
    source = ParquetSource([str(path) for path in (reversed(paths) if turned else paths)])
    assert sorted(source.names) == ["a", "b", "c"]
    found = pa.Table.from_batches([b.select(["a", "b", "c"]) for g in range(3) for b in source.read(g, 0, 9)])
    assert found.schema.types == [pa.float64(), pa.bool_(), pa.string()]
    wanted = pa.concat_tables(tables, promote_options="permissive").to_pylist()
    assert found.to_pylist() == ([wanted[3], wanted[2], *wanted[:2]] if turned else wanted)


def test_integers_of_any_width_become_one_that_holds_both() -> None:
    kinds = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]
    for a, b, c in itertools.combinations([*kinds, pa.float16(), pa.float32(), pa.float64(), pa.decimal128(5, 2)], 3):
        schemas = [FileSchema(str(k), {"x": k}, frozenset()) for k in (a, b, c)]
        found = {common_types(order)["x"] for order in itertools.permutations(schemas)}
        assert len(found) == 1, (a, b, c, found)


@pytest.mark.parametrize(
    "index",
    [
        None,
        pd.RangeIndex(5, 10),
        pd.Index([5, 3, 4, 2, 1], name="key"),
        pd.Index(list("abcde")),
        pd.date_range("2020", periods=5),
        pd.MultiIndex.from_product([["u"], range(5)], names=["u", None]),
        pd.MultiIndex.from_product([["u"], range(5)]),
    ],
    ids=str,
)
def test_the_index_is_no_column_as_pandas_reads_it(tmp_path: Path, index: Any) -> None:
    frame = pd.DataFrame({"x": np.arange(5.0), "y": [0, 1, 0, 1, 0]}, index=index)
    frame.to_parquet(tmp_path / "pandas.parquet")
    assert ParquetSource(str(tmp_path)).names == list(pd.read_parquet(tmp_path).columns)
    if not isinstance(index, pd.MultiIndex):
        dd.from_pandas(frame, npartitions=2, sort=False).to_parquet(tmp_path / "dask")
        assert ParquetSource(str(tmp_path / "dask")).names == list(dd.read_parquet(tmp_path / "dask").columns)


def test_a_named_index_is_a_column_if_it_is_asked_for(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0]}, index=pd.Index([7, 8], name="key"))
    frame.to_parquet(tmp_path / "a.parquet")
    assert ParquetSource(str(tmp_path), columns=["key", "x"]).head().to_dict("list") == {"key": [7, 8], "x": [1.0, 2.0]}
    frame[[]].to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no columns but its index, \['key'\]"):
        ParquetSource(str(tmp_path))


def test_an_index_in_one_file_is_a_column_if_it_is_one_in_another(tmp_path: Path) -> None:
    frame = pd.DataFrame({"key": [7, 8], "x": [1.0, 2.0]})
    frame.to_parquet(tmp_path / "a.parquet")
    frame.set_index("key").to_parquet(tmp_path / "b.parquet")
    assert sorted(ParquetSource(str(tmp_path)).names) == ["key", "x"]


def test_a_column_that_is_not_there_lists_those_that_are(folder: Path) -> None:
    with pytest.raises(DataError, match=r"columns \['z'\] are not in .*they have \['row', 'x', 'name'\]"):
        ParquetSource(str(folder), columns=["z"])


def test_a_column_without_a_value_in_one_file_has_the_type_of_the_others(folder: Path) -> None:
    write(folder / "part-5.parquet", 10, x=pa.nulls(10))
    source = ParquetSource(str(folder))
    check_source(source)
    assert all(chunk["x"].type == pa.float32() for g in range(len(source.counts)) for chunk in source.read(g, 0, 99))


def test_no_rows_at_all(tmp_path: Path) -> None:
    source = ParquetSource(str(write(tmp_path / "empty.parquet", 0)))
    with pytest.raises(DataError, match="no rows"):
        daskdl.TorchClassifier(verbose=0).fit(source, "name")


def test_ten_thousand_tiny_files(tmp_path: Path) -> None:
    table = pa.table({"row": np.arange(3), "late": [0, 1, 0]})
    (tmp_path / "many").mkdir()
    for i in range(10_000):
        pq.write_table(table, tmp_path / "many" / f"{i:05d}.parquet")
    source = ParquetSource(str(tmp_path / "many"))
    order = SampleOrder(source.counts, 512, seed=1, **source.layout(512))
    reader = Encoded(source, lambda chunk: {"row": chunk["row"].to_numpy()})
    seen = np.concatenate([batch.arrays["row"] for batch in RankBatches(order, reader, 0, 1, 1)])
    assert np.bincount(seen).tolist() == [10_000] * 3


def test_a_row_group_larger_than_what_is_held_is_read_in_windows(tmp_path: Path) -> None:
    """200 MB in one row group: read in several places at once, and never held as a whole."""
    n = 5_000_000
    columns = {f"c{i}": np.arange(n) // 1000 for i in range(4)} | {"row": np.arange(n)}
    pq.write_table(pa.table(columns), tmp_path / "big.parquet", row_group_size=n)
    del columns
    source = ParquetSource(str(tmp_path / "big.parquet"), columns=["row", "c0", "c1", "c2", "c3"])
    order = SampleOrder(source.counts, 65_536, seed=1, **source.layout(65_536))
    assert 1 < order.n_lanes <= 16 and order.n_lanes * order.window_rows < n / 2
    reader = Encoded(source, lambda chunk: {"row": chunk["row"].to_numpy()})
    used = np.zeros(n, dtype=np.uint8)
    for batch in RankBatches(order, reader, 0, 1, 1):
        used[batch.arrays["row"]] += 1
    assert (used == 1).all()
