"""Columns to numbers: what is learned, merged, refused, and that it travels unchanged."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from daskdl.data.schema import Schema, Text, describe
from daskdl.errors import DataError
from daskdl.estimators.tabular import TabularNet
from daskdl.training.tensors import to_tensors

FRAME = pd.DataFrame(
    {
        "x": [1.0, 2.0, None, 4.0],
        "on": [True, False, True, True],
        "n": pd.array([1, None, 3, 4], dtype="Int64"),
        "city": ["Oslo", "Rome", None, "Rome"],
        "size": pd.Categorical(["S", "L", "S", "S"], categories=["S", "M", "L"]),
    }
)


@given(st.lists(st.floats(-1e3, 1e3, width=32) | st.none(), min_size=2, max_size=50), st.integers(0, 50))
def test_statistics_of_parts_merge_into_those_of_the_whole(values: list[float | None], cut: int) -> None:
    column = pd.Series(values, name="x", dtype="float32")
    merged = describe(column[:cut]).merge(describe(column[cut:]))
    whole = describe(column)
    assert (merged.n, merged.n_missing, merged.low, merged.high) == (whole.n, whole.n_missing, whole.low, whole.high)
    assert merged.mean == pytest.approx(whole.mean, abs=1e-6)
    assert merged.m2 == pytest.approx(whole.m2, rel=1e-6, abs=1e-5)


def test_numbers_are_standardised_and_missing_ones_are_the_mean() -> None:
    schema = Schema.learn(FRAME)
    numbers = schema.numbers(FRAME)
    assert numbers.dtype == np.float32
    assert numbers.shape == (4, 3)
    assert numbers.mean(axis=0) == pytest.approx([0, 0, 0], abs=1e-6)
    assert numbers[2, 0] == 0
    x = FRAME.x.to_numpy()
    assert numbers[0, 0] == pytest.approx((1 - np.nanmean(x)) / np.nanstd(x))


def test_indicators_say_what_was_missing() -> None:
    schema = Schema.learn(FRAME, missing="indicator")
    assert schema.n_numbers == 5
    assert schema.numbers(FRAME)[:, 3:].tolist() == [[0, 0], [0, 1], [1, 0], [0, 0]]


def test_categories_are_codes_and_unseen_or_missing_ones_are_zero() -> None:
    schema = Schema.learn(FRAME)
    assert schema.cardinalities == [3, 3]
    assert schema.codes(FRAME).tolist() == [[2, 1], [1, 2], [0, 1], [1, 1]]
    new = FRAME.assign(city="Mars", size="M")
    assert (schema.codes(new) == 0).all()


def test_trees_get_values_as_they_are() -> None:
    matrix = Schema.learn(FRAME).table(FRAME).to_numpy()
    assert matrix[:, 0].tolist()[:2] == [1.0, 2.0]
    assert np.isnan(matrix[2, [0, 3]]).all()
    assert matrix[:, 3].tolist()[:2] == [1.0, 0.0]
    assert Schema.learn(FRAME).feature_types == ["q", "q", "q", "c", "c"]


def test_a_schema_survives_json_and_encodes_the_same() -> None:
    schema = Schema.learn(FRAME, missing="indicator")
    again = Schema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert again == schema
    assert np.array_equal(again.numbers(FRAME), schema.numbers(FRAME))
    assert np.array_equal(again.codes(FRAME), schema.codes(FRAME))


OLD = {  # as the first version wrote it
    "missing": "indicator",
    "columns": [
        {"name": "x", "kind": "number", "mean": 2.0, "scale": 0.5, "n_missing": 1, "categories": []},
        {"name": "city", "kind": "category", "mean": 0.0, "scale": 1.0, "n_missing": 0, "categories": ["Rome", "Oslo"]},
    ],
}


def test_a_schema_of_the_first_version_still_loads() -> None:
    schema = Schema.from_dict(OLD)
    frame = pd.DataFrame({"x": [3.0, None], "city": ["Oslo", "Rome"]})
    assert schema.numbers(frame).tolist() == [[2, 0], [0, 1]]
    assert schema.codes(frame).tolist() == [[2], [1]]
    with pytest.raises(ValueError, match="saved in format 3, this daskdl reads up to 2"):
        Schema.from_dict({**OLD, "format": 3})


def test_trees_get_dates_and_arrays_as_plain_columns() -> None:
    frame = pd.DataFrame(
        {
            "x": [1.0, None],
            "when": pd.to_datetime(["2024-03-01 06:00", None]),
            "city": ["Oslo", "Rome"],
            "v": [np.array([1, 2], dtype=np.int8), None],
        },
        index=[7, 8],
    )
    schema = Schema.learn(frame)
    when = ["when_days", "when_hour", "when_weekday", "when_day_of_year"]
    assert schema.feature_names == ["x", *when, "city", "v_0", "v_1"]
    assert schema.feature_types == ["q"] * 5 + ["c"] + ["q"] * 2
    for chunk in (frame, pa.Table.from_pandas(frame)):
        table = schema.table(chunk)
        assert list(table) == schema.feature_names
        assert (table.dtypes == np.float32).all()
        assert table.iloc[0].tolist() == [1, 19_783, 6, 4, 60, 0, 1, 2]
        assert table.iloc[1].isna().tolist() == [True] * 5 + [False] + [True] * 2
    assert schema.table(frame).index.tolist() == [7, 8]


@pytest.mark.parametrize(
    "column, kind, message",
    [
        ([[1], [2, 3]], None, "column 'c' is a list of any length, which trees cannot read: .* TorchClassifier"),
        (["a", "b"], Text(), "column 'c' is a text, which trees cannot read"),
        ([np.zeros(5_000)] * 2, None, "column 'c' holds arrays of 5,000 numbers, .* at most 4,096"),
    ],
)
def test_what_trees_cannot_read_is_named(column: list, kind: Any, message: str) -> None:
    frame = pd.DataFrame({"c": column})
    schema = Schema.learn(frame, kinds={"c": kind} if kind else None)
    for ask in (lambda: schema.feature_types, lambda: schema.feature_names, lambda: schema.table(frame)):
        with pytest.raises(DataError, match=message):
            ask()


def test_features_of_trees_have_names_of_their_own() -> None:
    schema = Schema.learn(pd.DataFrame({"v": [[1, 2], [3, 4]], "v_1": [0, 1], "x[0]<1": [0, 1], 7: [1, 2]}))
    assert schema.feature_labels == ["v_0", "v_1", "v_1_2", "x[0]<1", "7"]
    assert schema.feature_names == ["v_0", "v_1", "v_1_2", "x(0)\u20391", "7"]
    assert schema.feature_columns == [0, 0, 1, 2, 3]


def test_a_schema_knows_its_columns_by_name() -> None:
    schema = Schema.learn(FRAME)
    assert schema["city"].categories == ("Rome", "Oslo")
    with pytest.raises(KeyError, match="no column 'town'"):
        schema["town"]


def test_tensors_come_in_order_and_in_types_a_module_takes() -> None:
    table = pa.table({"l": [[1, 2], [3]], "c": ["a", "b"], "v": pa.array([[1, 2], [3, 4]], pa.list_(pa.uint8(), 2))})
    schema = Schema.learn(table)
    block = schema.finish(schema.encode(table))
    inputs, y = to_tensors(block, torch.device("cpu"))
    shapes = [(2, 0), (2, 1), (2, 2), (2,), (2, 2)]
    assert [tuple(x.shape) for x in inputs] == shapes  # numbers, codes, l, its length, v
    assert [x.dtype for x in inputs] == [torch.float32, torch.int64, torch.int64, torch.int64, torch.uint8]
    assert len(y) == 0
    inputs[-1].zero_()  # what is read from a file may be written to, and the file's memory is not
    assert table["v"].to_pylist() == [[1, 2], [3, 4]]
    example, _ = to_tensors(schema.example(2), torch.device("cpu"))
    assert [x.dtype for x in example] == [x.dtype for x in inputs]
    _, labels = to_tensors({**block, "y": np.array([1, 2])}, torch.device("cpu"))
    assert labels.tolist() == [1, 2]


def test_the_default_network_takes_arrays_and_refuses_what_needs_a_module_of_its_own() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0], "c": ["a", "b"], "v": [np.ones((2, 3)), np.zeros((2, 3))]})
    for columns in (["x", "c", "v"], ["v"], ["c", "v"]):
        schema = Schema.learn(frame[columns])
        inputs, _ = to_tensors(schema.finish(schema.encode(frame)), torch.device("cpu"))
        assert TabularNet(schema, 3)(*inputs).shape == (2, 3)
    lists = Schema.learn(pd.DataFrame({"x": [1.0, 2.0], "l": [[1], [2, 3]]}))
    with pytest.raises(DataError, match=r"column 'l' is a list of any length. Pass a module .* l int64 \(2, 16\)"):
        TabularNet(lists, 1)


def test_a_constant_column_does_not_divide_by_zero() -> None:
    frame = pd.DataFrame({"x": [5.0, 5.0]})
    assert Schema.learn(frame).numbers(frame).tolist() == [[0.0], [0.0]]


def test_it_shows_itself_as_text_and_escaped_html() -> None:
    schema = Schema.learn(pd.DataFrame({"<b>": [1.0, None]}))
    assert "mean 1, std 1" in repr(schema)
    assert "&lt;b&gt;" in schema._repr_html_()


@pytest.mark.parametrize(
    "frame, missing, message",
    [
        ({"when": pd.period_range("2026", periods=2)}, "impute", r"column 'when' has dtype period.*must be a number"),
        ({"z": [1 + 2j]}, "impute", "Complex data not supported: column 'z'"),
        (
            {"tags": [["a", "b"], ["c"]]},
            "impute",
            r"column 'tags' is an object column that is no category: it holds list",
        ),
        ({"x": [1.0, np.inf]}, "impute", r"column 'x' holds 1 infinite values \(inf\) in 2 rows"),
        ({"x": [1.0, None]}, "refuse", r"column 'x' has 1 missing values \(NaN\) in 2 rows and missing='refuse'"),
    ],
)
def test_columns_nothing_can_be_learned_from_are_named(frame: dict, missing: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Schema.learn(pd.DataFrame(frame), missing)


def test_an_unknown_way_with_missing_values_is_refused() -> None:
    with pytest.raises(ValueError, match="missing must be one of 'impute', 'indicator', 'refuse', got 'drop'"):
        Schema.learn(FRAME, "drop")


@pytest.mark.parametrize(
    "names, message",
    [
        (["x", "on", "n", "city"], r"missing: \['size'\]"),
        (["x", "on", "n", "city", "size", "late"], r"not seen in fit: \['late'\]"),
        (["on", "x", "n", "city", "size"], "the same names in another order"),
    ],
)
def test_other_columns_than_in_fit_are_named(names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Schema.learn(FRAME).check(names)


def test_a_number_that_became_text_is_named() -> None:
    schema = Schema.learn(pd.DataFrame({"x": [1.0, 2.0]}))
    with pytest.raises(DataError, match="column 'x' was a number in fit"):
        schema.numbers(pd.DataFrame({"x": ["low", "high"]}))


def test_missing_values_in_prediction_are_refused_when_asked() -> None:
    schema = Schema.learn(pd.DataFrame({"x": [1.0, 2.0]}), "refuse")
    with pytest.raises(DataError, match="Input contains NaN: 1 missing"):
        schema.numbers(pd.DataFrame({"x": [1.0, None]}))
