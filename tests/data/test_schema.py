"""Columns to numbers: what is learned, merged, refused, and that it travels unchanged."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskdl.data.schema import MAX_CATEGORIES, Schema, describe
from daskdl.errors import DataError

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
        ({"when": pd.to_datetime(["2026-01-01"])}, "impute", r"column 'when' has dtype datetime64.*df.date.dt.month"),
        ({"z": [1 + 2j]}, "impute", "Complex data not supported: column 'z'"),
        (
            {"tags": [["a", "b"], ["c"]]},
            "impute",
            r"column 'tags' is an object column that is no category: it holds list",
        ),
        ({"x": [1.0, np.inf]}, "impute", r"column 'x' holds 1 infinite values \(inf\) in 2 rows"),
        ({"x": [1.0, None]}, "refuse", r"column 'x' has 1 missing values \(NaN\) in 2 rows and missing='refuse'"),
        ({"id": [str(i) for i in range(MAX_CATEGORIES + 1)]}, "impute", "column 'id' has 10,001 different values"),
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
