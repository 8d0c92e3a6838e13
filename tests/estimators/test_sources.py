"""Estimators on a Source: the same predictions and scores as on the frame, and refusals before anything is launched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client

import daskdl
from daskdl.errors import DataError

FEATURES = ["a", "b", "flag", "city"]
PARAMS: dict[str, dict[str, Any]] = {"TorchClassifier": {"epochs": 1}, "XGBClassifier": {"n_estimators": 5}}
BOTH = pytest.mark.parametrize("kind", PARAMS)


def make(kind: str, **params: Any) -> Any:
    return getattr(daskdl, kind)(**{**PARAMS[kind], "verbose": 0, **params})


@pytest.fixture
def path(planted: pd.DataFrame, tmp_path: Path) -> str:
    frame = planted.drop(columns="delay").assign(id=range(len(planted)))
    frame[["late", "city", "id", *FEATURES[:3]]].to_parquet(tmp_path / "rows.parquet", row_group_size=900)
    return str(tmp_path / "rows.parquet")


def source_of(path: str, **options: Any) -> daskdl.ParquetSource:
    return daskdl.ParquetSource(path, **{"columns": [*FEATURES, "late"], **options})


@BOTH
@pytest.mark.cluster
def test_a_source_is_predicted_and_scored_as_its_frame_is(
    client: Client, planted: pd.DataFrame, path: str, kind: str
) -> None:
    source = source_of(path)
    model = make(kind).fit(source, "late")
    X, y = planted[FEATURES], planted["late"]
    predicted = model.predict(source)
    assert predicted.npartitions == len(source.counts) == 5
    assert np.array_equal(predicted.compute(), model.predict(X))
    assert np.allclose(model.predict_proba(source).compute(), model.predict_proba(X), atol=1e-6)
    assert model.score(source, "late") == model.score(X, y) > 0.6
    more = source_of(path, columns=["late", "city", "id", *FEATURES[:3]])
    assert np.array_equal(model.predict(more).compute(), predicted.compute()), "other columns, in another order"
    assert model.score(more, "late") == model.score(X, y)


def nothing(path: str) -> daskdl.ParquetSource:
    return source_of(path, filters=[("a", ">", 1e9)])


NO_ROWS = r"the data has no rows.*Look at its filters"
PATH = r"X is the text '.*rows\.parquet', not rows.*daskdl\.ParquetSource\("

FITS: dict[str, tuple[Callable[[str], Any], str | None, type[Exception], str]] = {
    "no label": (source_of, None, ValueError, r"requires y to be passed.*the name of a column"),
    "a label that is not there": (source_of, "latte", DataError, r"'latte' is not in X. Did you mean \['late'\]"),
    "a path": (str, "late", DataError, PATH),
    "a path object": (Path, "late", DataError, PATH),
    "a list of paths": (lambda path: [path], "late", DataError, PATH),
    "a filter that leaves nothing": (nothing, "late", DataError, NO_ROWS),
    "a predicate that leaves nothing": (lambda p: source_of(p).filter(lambda f: f.a > 1e9), "late", DataError, NO_ROWS),
}


@BOTH
@pytest.mark.parametrize("X, y, error, message", FITS.values(), ids=FITS)
def test_fit_refuses_before_a_run_begins(
    path: str, kind: str, X: Callable[[str], Any], y: str | None, error: type[Exception], message: str
) -> None:
    model = make(kind)
    with pytest.raises(error, match=message):
        model.fit(X(path), y)
    assert not hasattr(model, "run_")


@BOTH
def test_validation_predict_and_score_refuse_too(path: str, kind: str) -> None:
    model = make(kind)
    with pytest.raises(DataError, match="validation_data has no rows; .* Look at its filters"):
        model.fit(source_of(path), "late", validation_data=(nothing(path), "late"))
    with pytest.raises(ValueError, match="validation_data requires y to be passed"):
        model.fit(source_of(path), "late", validation_data=(source_of(path), None))
    assert not hasattr(model, "run_")
    model.fit(source_of(path), "late")
    with pytest.raises(DataError, match=PATH):
        model.predict(path)
    with pytest.raises(DataError, match=PATH):
        model.score(path, "late")
    with pytest.raises(DataError, match=r"0 rows.* has no rows; there is nothing to predict. Look at its path"):
        model.predict(nothing(path))
    with pytest.raises(DataError, match=r"missing: \['b', 'flag'\]"):
        model.predict(source_of(path, columns=["a", "city"]))
    with pytest.raises(
        DataError, match="X is a ParquetSource, so y must be the name of one of its columns, got Series"
    ):
        model.score(source_of(path), pd.Series([0, 1]))
    with pytest.raises(ValueError, match="score requires y to be passed"):
        model.score(source_of(path), None)


@pytest.mark.parametrize(
    "returned, said",
    [({}, r"\{\}"), (None, "NoneType"), ([1], "list"), ({"numbers": np.zeros(3), "y": np.zeros(2)}, r"\{'numbers': 3")],
)
def test_a_batch_transform_that_gives_no_batch_is_refused_before_a_run_begins(
    path: str, returned: Any, said: str
) -> None:
    model = make("TorchClassifier", batch_transform=lambda arrays, keys: returned)
    with pytest.raises(
        ValueError, match=rf"must keep the fields and rows .* returned {said}.*Return what it was given"
    ):
        model.fit(source_of(path), "late")
    with pytest.raises(TypeError, match=r"batch_transform must be a function of \(arrays, keys\), got int"):
        make("TorchClassifier", batch_transform=3).fit(source_of(path), "late")
    assert not hasattr(model, "run_")


def of_real_rows(arrays: Any, keys: Any) -> Any:
    """Works on rows that are not all alike, as zeros are."""
    if not arrays["numbers"].any():
        raise ZeroDivisionError
    return arrays


def test_a_batch_transform_that_cannot_take_made_up_rows_is_left_to_the_real_ones(path: str) -> None:
    assert make("TorchClassifier", batch_transform=of_real_rows).fit(source_of(path), "late").run_.state == "finished"


@pytest.mark.cluster
def test_a_row_group_sorted_by_its_label_is_learned(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One group that no window holds, its second class at the end: check and fit take it, and fit learns it."""
    monkeypatch.setattr("daskdl.data.lanes.HELD_BYTES", 1 << 18)
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(12_000, 3)).astype("float32"), columns=list("abc"))
    frame.assign(y=(frame.a > 0).astype(int)).sort_values("y").to_parquet(tmp_path / "rows.parquet", index=False)
    source = daskdl.ParquetSource(str(tmp_path / "rows.parquet"))
    assert len(source.counts) == 1 and source.layout(64)["window_rows"] < 1_000
    assert daskdl.check(source, "y", client=client).ok
    model = daskdl.TorchClassifier(epochs=1, batch_size=64, verbose=0).fit(source, "y")
    assert model.score(source, "y") > 0.95
