from __future__ import annotations

import time
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from data.conformance import check_source, fingerprint_elsewhere
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdl.data.sources.fingerprint import fingerprint_of_columns
from daskdl.data.sources.memory import MemorySource
from daskdl.errors import DataError


def frame(n: int = 10) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "a": np.arange(n) / 3,
            "name": [None if i % 4 == 3 else f"ü{i}" for i in range(n)],
            "kind": pd.Categorical(["x", "y"] * (n // 2) + ["z"] * (n % 2)),
            "when": pd.date_range("2026-01-01", periods=n, freq="h", tz="UTC"),
            "maybe": pd.array([None if i == 1 else i for i in range(n)], dtype="Int64"),
            "words": [[0] * (i % 3) for i in range(n)],
        }
    )


MATRIX = np.arange(24.0).reshape(8, 3)
GIVEN: dict[str, Any] = {
    "pandas": frame(),
    "arrow": pa.Table.from_pandas(frame()),
    "dict": {"image": np.arange(96, dtype="uint8").reshape(8, 3, 4), "flag": np.arange(8) % 2 == 0, "mask": MATRIX > 5},
    "matrix": MATRIX,
    "vector": np.arange(5),
    "cube": np.ones((4, 2, 2), "float16"),
    "pair": (MATRIX, np.arange(8)),
    "frame pair": (frame(8), pd.Series(range(8), index=range(5, 13), name="ignored")),
    "cube pair": (np.ones((4, 2, 2)), [1, 2, 3, 4]),
    "labels of two numbers": (MATRIX, MATRIX[:, :2]),
    "no rows": frame(0),
}


@pytest.mark.parametrize("name", GIVEN)
def test_it_is_a_source(name: str) -> None:
    source = MemorySource(GIVEN[name], group_rows=3)
    rows = check_source(source, processes=name in ("pandas", "dict"))
    whole = MemorySource(GIVEN[name])
    assert len(rows) == whole.n_rows and (whole.fingerprint != source.fingerprint or not rows)


def test_columns_and_their_values() -> None:
    source = MemorySource((MATRIX, np.arange(8)))
    assert source.names == ["x0", "x1", "x2", "y"]
    (chunk,) = source.read(0, 2, 4)
    assert chunk.to_numpy().tolist() == [[6, 7, 8, 2], [9, 10, 11, 3]]
    image = np.arange(96).reshape(8, 3, 4)
    (chunk,) = MemorySource({"image": np.asfortranarray(image)}).read(0, 5, 7)
    assert (chunk["image"].combine_chunks().to_numpy_ndarray() == image[5:7]).all()


def test_labels_follow_their_place_not_their_index() -> None:
    (chunk,) = MemorySource(GIVEN["frame pair"]).read(0, 0, 8)
    assert chunk["y"].tolist() == list(range(8))


def test_arrays_are_not_copied() -> None:
    image = np.zeros((100, 8, 8), np.float32)
    (chunk,) = MemorySource({"image": image}).read(0, 50, 60)
    image[50] = 7
    assert chunk["image"].combine_chunks().to_numpy_ndarray()[0, 0, 0] == 7


@pytest.mark.parametrize("name", GIVEN)
def test_equal_content_has_an_equal_fingerprint_sliced_or_not(name: str) -> None:
    data = GIVEN[name]
    if isinstance(data, (tuple, dict)):
        return
    twice = pd.concat([data, data]) if isinstance(data, pd.DataFrame) else None
    twice = pa.concat_tables([data, data]) if isinstance(data, pa.Table) else twice
    twice = np.concatenate([data, data]) if isinstance(data, np.ndarray) else twice
    n = len(data)
    part = twice.iloc[n:] if hasattr(twice, "iloc") else twice[n:] if isinstance(twice, np.ndarray) else twice.slice(n)
    assert MemorySource(part).fingerprint == MemorySource(data).fingerprint
    if n:
        other = twice.iloc[1 : n + 1] if hasattr(twice, "iloc") else twice[1 : n + 1]
        other = twice.slice(1, n) if isinstance(twice, pa.Table) else other
        assert MemorySource(other).fingerprint != MemorySource(data).fingerprint or name == "cube"


COLUMN = st.one_of(
    st.lists(st.one_of(st.none(), st.text(max_size=3))),
    st.lists(st.one_of(st.none(), st.integers(-3, 3))),
    st.lists(st.one_of(st.none(), st.booleans())),
    st.lists(st.one_of(st.none(), st.binary(max_size=2))),
    st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(0, 2)), max_size=3))),
    st.lists(st.one_of(st.none(), st.fixed_dictionaries({"a": st.one_of(st.none(), st.integers(0, 2))}))),
)


@settings(max_examples=200, deadline=None)
@given(COLUMN, COLUMN, st.data())
def test_a_fingerprint_is_of_the_content_and_only_of_it(left: list[Any], right: list[Any], data: st.DataObject) -> None:
    def name(values: list[Any]) -> str:
        return fingerprint_of_columns([("x", pa.array(values, kind))])

    kind = pa.array(left).type
    cut = data.draw(st.integers(0, len(left)))
    whole = pa.array([*left, *left], kind)
    for view in (whole.slice(len(left)), pa.chunked_array([whole[:cut], whole[cut : len(left)]], kind)):
        assert fingerprint_of_columns([("x", view)]) == name(left)
    if pa.array(right).type == kind:
        assert (name(left) == name(right)) == (left == right)


def test_a_fingerprint_knows_names_order_shapes_and_the_next_process() -> None:
    def of(**arrays: np.ndarray) -> str:
        return MemorySource(arrays).fingerprint

    a, b = np.arange(4), np.arange(4) * 2
    names = [of(a=a, b=b), of(b=b, a=a), of(a=b, b=a), of(a=a, c=b), of(a=a[::-1], b=b), of(a=a.astype("int32"), b=b)]
    assert len(set(names)) == len(names)
    assert of(a=np.zeros((2, 2, 3))) != of(a=np.zeros((2, 3, 2)))
    assert fingerprint_elsewhere(lambda: MemorySource({"a": np.arange(4), "b": np.arange(4) * 2})) == names[0]


def test_a_fingerprint_is_fast() -> None:
    values, words = np.random.default_rng(0).random(8_000_000), pd.Series(["a", "bc"] * 1_000_000)
    start = time.perf_counter()
    MemorySource({"x": values})
    MemorySource(pd.DataFrame({"words": words}))
    assert time.perf_counter() - start < 5  # row by row would take longer


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": [1, 2], "b": [1]}, "all as long, got lengths {'a': 2, 'b': 1}"),
        ({"a": np.float64(3)}, "first axis is the rows"),
        ({"a": np.ones(3, "complex64")}, "'a'.*complex64.*two columns"),
        ({"a": np.ones((3, 0))}, "no axis has length 0"),
        ({"a": np.array([1, "x", b"y"], object)}, "'a'.*cannot be read"),
        (({"y": [1]}, [1]), "column 'y' already"),
        (([[1], [2]], [1]), "X has 2 rows and y 1"),
        (pd.DataFrame(index=[1, 2]), "expected columns"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), r"\['a', 'a'\]"),
        (dd.from_pandas(frame(4), npartitions=1), "lazy DataFrame"),
    ],
)
def test_what_is_no_table_is_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        MemorySource(data)


def test_groups_have_rows() -> None:
    with pytest.raises(DataError, match="group_rows must be 1 or more, got 0"):
        MemorySource(MATRIX, group_rows=0)
