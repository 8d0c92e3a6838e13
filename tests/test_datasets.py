"""The flights: counted, split, joined by a real shuffle, and free of what is known only later."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from distributed import Client

from daskdl import datasets
from daskdl.errors import MissingExtraError

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pyarrow")
    path = tmp_path_factory.mktemp("data") / "flights"
    datasets.flights(path)
    return path


@pytest.fixture(scope="module")
def table(folder: Path, cluster: Client) -> pd.DataFrame:
    return datasets.flights(folder).compute()


def test_every_flight_is_accounted_for(folder: Path, table: pd.DataFrame, client: Client) -> None:
    counts = datasets.flight_counts(folder)
    assert counts == (336_776, 327_346, 9_430)
    assert len(table) == counts.labelled
    kept = datasets.flights(folder, unlabelled="keep")["late"].compute()
    assert (len(kept), kept.isna().sum()) == (counts.flights, counts.unlabelled)
    assert kept.sum() == table["late"].sum()


def test_the_split_is_by_month(folder: Path, table: pd.DataFrame, client: Client) -> None:
    train, test = datasets.flights_split(datasets.flights(folder))
    late_in_train, late_in_test = train["late"].mean().compute(), test["late"].mean().compute()
    assert table["late"][table["month"] <= 10].mean() == pytest.approx(late_in_train)
    assert (round(late_in_train, 3), round(late_in_test, 3)) == (0.235, 0.25)


def test_columns_are_those_known_before_departure(table: pd.DataFrame) -> None:
    assert list(table) == [*datasets.FLIGHT_FEATURES, "late"]
    assert not {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "tailnum"} & set(table)
    assert set(table["late"].unique()) == {0, 1}
    assert table["sched_dep_minute"].between(0, 24 * 60).all()


def test_the_join_finds_the_same_rows_as_pandas(folder: Path, table: pd.DataFrame) -> None:
    flights, weather, planes = (pd.read_parquet(folder / name) for name in ("flights", "weather", "planes"))
    local = flights.dropna(subset=["arr_delay"]).merge(weather, on=["origin", "time_hour"], how="left")
    local = local.merge(planes, on="tailnum", how="left")
    for column in ("temp", "seats", "plane_year"):
        assert local[column].sum() == pytest.approx(table[column].sum())
        assert local[column].isna().sum() == table[column].isna().sum()


def test_lazy_written_by_month_and_only_once(folder: Path) -> None:
    assert len(list((folder / "flights").glob("month=*.parquet"))) == 12
    before = (folder / "flights" / "month=01.parquet").stat().st_mtime_ns
    df = datasets.flights(folder)
    assert df.npartitions > 1 and "tailnum" not in df.columns
    assert (folder / "flights" / "month=01.parquet").stat().st_mtime_ns == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no temporary folder is left


def test_refusals(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r'"drop" or "keep", got \'skip\''):
        datasets.flights(folder, unlabelled="skip")  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "daskdl\[demo\]"'):
        datasets.flights(tmp_path / "flights")
    assert list(tmp_path.iterdir()) == []
