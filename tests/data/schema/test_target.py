"""Labels: what they become, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from daskdl.data.schema.target import Target, describe_target
from daskdl.errors import DataError


def learn(values: list, classes: bool = True) -> Target:
    y = pd.Series(values, name="late")
    return Target.from_stats("late", describe_target(y, classes), classes)


@pytest.mark.parametrize("values", [["no", "yes", "no"], [3, 7, 3], [False, True, False], [0.0, 1.0, 0.0]])
def test_classes_are_sorted_and_come_back_as_they_were(values: list) -> None:
    target = learn(values)
    codes = target.encode(pd.Series(values))
    assert codes.tolist() == [0, 1, 0]
    assert target.classes[codes].tolist() == values
    assert Target.from_dict(json.loads(json.dumps(target.to_dict()))).classes.tolist() == target.classes.tolist()


def test_a_regression_is_standardised() -> None:
    target = learn([1.0, 2.0, 3.0], classes=False)
    assert target.encode(pd.Series([1.0, 2.0, 3.0])).mean() == pytest.approx(0, abs=1e-6)
    assert target.n_classes == 0


@pytest.mark.parametrize(
    "values, classes, message",
    [
        ([1, 1, 1], True, r"label 'late' has one class only: \[1\], in 3 rows"),
        ([0.0, np.nan, 1.0], True, r"label 'late' has 1 missing \(NaN\) and 0 infinite \(inf\) values in 3 rows"),
        ([0.0, np.inf, 1.0], True, r"0 missing \(NaN\) and 1 infinite"),
        ([0.0, np.inf], False, r"0 missing \(NaN\) and 1 infinite"),
        ([0.0, np.nan], False, r"1 missing \(NaN\)"),
        ([0.5, 1.5, 0.7], True, "Unknown label type: continuous"),
        ([], True, "the data has no rows"),
        (["a", 1], True, "label 'late' mixes types"),
        (["a", "b"], False, "label 'late' has dtype .* a regression needs numbers"),
    ],
)
def test_labels_nothing_can_be_learned_from_are_named(values: list, classes: bool, message: str) -> None:
    with pytest.raises(DataError, match=message):
        learn(values, classes)


def test_a_class_that_training_did_not_have_is_named() -> None:
    with pytest.raises(DataError, match="label 'y' holds 'maybe', which is none of the 2 classes"):
        learn(["no", "yes"]).encode(pd.Series(["no", "maybe"], name="y"))


@pytest.mark.parametrize(
    "values", [["no", "yes", "no"], [3, 7, 3], [False, True, False], [0.0, 1.0, 0.0], [0.1, 2.5, 1.0]]
)
def test_arrow_labels_become_what_pandas_labels_do(values: list) -> None:
    classes = 0.1 not in values
    target = learn(values, classes)
    wanted = target.encode(pd.Series(values))
    for column in (pa.array(values), pa.chunked_array([values[:1], values[1:]])):
        assert describe_target(column, classes) == describe_target(pd.Series(values), classes)
        found = target.encode(column)
        assert found.dtype == wanted.dtype and found.tolist() == wanted.tolist()
    assert target.encode(pa.array(values)[:0]).dtype == wanted.dtype


def test_classes_are_the_same_in_another_type_of_numbers() -> None:
    target = learn([0, 1, 2])
    for y in (
        pd.Series([2.0, 0.0]),
        pa.array([2, 0], pa.int8()),
        pd.Series([2, 0], dtype="category"),
        pa.array([2.0, 0]),
    ):
        assert target.encode(y).tolist() == [2, 0]


def test_wrong_arrow_labels_are_named() -> None:
    with pytest.raises(DataError, match="label 'y' holds 'maybe', which is none of the 2 classes"):
        learn(["no", "yes"]).encode(pa.array(["no", "maybe"]))
    with pytest.raises(DataError, match="label 'y' holds None, which is none of the 2 classes"):
        learn(["no", "yes"]).encode(pa.array(["no", None]))
    with pytest.raises(DataError, match="label 'y' was a number in fit and is none now"):
        learn([1.0, 2.0], classes=False).encode(pa.array(["a"]))
