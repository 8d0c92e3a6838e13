"""The check before a training: every problem that is planted is found, and only that; it ends in time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from distributed import Client, wait

import daskdl
from daskdl.data.rows import read_rows
from daskdl.data.schema.stats import ColumnStats
from daskdl.data.sources.memory import MemorySource
from daskdl.errors import DataError
from daskdl.preflight.facts import (
    Facts,
    Pieces,
    Speed,
    Worker,
    estimated_rows,
    facts_of_rows,
    is_identifier,
    sorted_by_label,
)
from daskdl.preflight.findings import findings, worth_saying
from daskdl.preflight.probe import asked, describe_process
from daskdl.preflight.report import VERDICTS, CheckReport, Finding

FEATURES = ["a", "b", "flag", "city"]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time for all of a check, on a machine that is busy."""
    monkeypatch.setattr("daskdl.checking.SECONDS", 60.0)
    monkeypatch.setattr("daskdl.preflight.gather.COUNT_SECONDS", 50.0)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, patient: None) -> None:
    """No client, whatever other tests have started."""
    monkeypatch.setattr("daskdl.checking.current_client", lambda client: client)


@pytest.fixture
def clean(planted: pd.DataFrame) -> pd.DataFrame:
    return planted[[*FEATURES, "late"]]


def said(found: CheckReport | Sequence[Finding], check: str, verdict: str) -> str:
    """What was found under a name with a verdict, each with reason and remedy unless it is ok."""
    every = list(found.findings if isinstance(found, CheckReport) else found)
    assert all(bool(f.why) == bool(f.do) == (f.verdict != "ok") for f in every), every
    return " | ".join(f.found for f in every if (f.check, f.verdict) == (check, verdict))


def problems(report: CheckReport) -> list[tuple[str, str]]:
    return [(f.check, f.verdict) for f in report.findings if f.verdict != "ok"]


# -- what is planted is found, and nothing else --------------------------------------------------------------------


def test_clean_data_has_no_problem(alone: None, clean: pd.DataFrame) -> None:
    report = daskdl.check(clean, "late")
    assert report.ok
    assert problems(report) == []
    report.raise_if_refused()
    assert "numbers: a, b, flag; categories: city" in said(report, "columns", "ok")
    assert re.search(r"in 1 column, at most [45]\.\d% \(b\)", said(report, "missing", "ok"))
    assert "2 classes: " in said(report, "label", "ok")
    assert "an epoch of the default network" in said(report, "time", "ok")
    assert "are free" in said(report, "memory", "ok")


@pytest.mark.parametrize(
    "change, check, verdict, text",
    [
        (lambda f: f.assign(z=f.a * 1j), "column", "refused", "'z' has dtype complex128"),
        (lambda f: f.assign(z=f.a.where(f.a < 1, np.inf)), "column", "refused", "'z' holds .* infinite"),
        (lambda f: f.assign(z=[["a"]] * len(f)), "column", "refused", "'z' is an object column"),
        (lambda f: f.assign(z=[[1.0] * (i % 3) for i in range(len(f))]), "columns", "note", "lists or texts: z"),
        (lambda f: f.assign(z=np.nan), "missing", "warning", "1 column without a single value: z"),
        (lambda f: f.assign(z=f.a.where(f.a > 1)), "missing", "note", r"more than half .* z \(8\d%\)"),
        (lambda f: f.assign(z=7), "constant", "note", "1 column has one value only: z"),
        (lambda f: f.assign(z="x", y=1.5), "constant", "note", "2 columns have one value only: z, y"),
        (lambda f: f.assign(z=np.arange(len(f))[::-1] * 3), "identifier", "warning", "values as rows: z"),
        (lambda f: f.assign(z=[f"row {i}" for i in range(len(f))]), "identifier", "warning", "values as rows: z"),
        (lambda f: f.assign(z=f.late), "leak", "warning", "z is identical to the label"),
        (lambda f: f.assign(z=f.late.map({0: "in time", 1: "late"})), "leak", "warning", "z maps one to one"),
        (lambda f: f.assign(z=f.late * 100 + f.a.clip(-9, 9)), "leak", "warning", "z separates the two classes"),
        (lambda f: f.assign(late=1), "label", "refused", r"one class only: \[1\]"),
        (lambda f: f.assign(late=f.late.where(f.a < 2)), "label", "refused", r"has \d+ missing"),
        (lambda f: f.assign(late=(np.arange(len(f)) % 200 == 0)), "label", "warning", "the rarest, True, is 0.50%"),
        (lambda f: f.assign(late=(np.arange(len(f)) % 40 == 0)), "label", "note", "the rarest, True, is 2.50%"),
        (lambda f: f.assign(late=0.5), "label", "warning", "the label is 0.5 in all 4,000 rows"),
    ],
)
def test_a_planted_problem(
    alone: None,
    clean: pd.DataFrame,
    change: Callable[[pd.DataFrame], pd.DataFrame],
    check: str,
    verdict: str,
    text: str,
) -> None:
    report = daskdl.check(change(clean), "late")
    assert re.search(text, said(report, check, verdict)), report
    assert problems(report) == [(check, verdict)]
    assert report.ok == (verdict != "refused")


def test_a_number_as_label(alone: None, planted: pd.DataFrame) -> None:
    report = daskdl.check(planted[[*FEATURES, "delay"]].assign(minutes=planted.delay * 60), "delay")
    assert "a classifier refuses fractions" in said(report, "label", "ok")
    assert "minutes is a linear function of the label" in said(report, "leak", "warning")


def test_columns_of_the_same_name_are_told_and_nothing_else_is_looked_at(alone: None, clean: pd.DataFrame) -> None:
    report = daskdl.check(pd.concat([clean, clean[["a"]]], axis=1), "late")
    assert "2 columns are named 'a'" in said(report, "column", "refused")
    assert daskdl.check(clean[["a"]] * 1j, clean.late).ok is False


def test_no_rows(alone: None, clean: pd.DataFrame) -> None:
    assert "there are no rows" in said(daskdl.check(clean.iloc[:0], "late"), "rows", "refused")


@pytest.mark.parametrize("kind", ["array", "arrow", "source", "parquet"])
def test_other_data(alone: None, clean: pd.DataFrame, kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / "rows.parquet")
    clean.to_parquet(path, row_group_size=500)
    given: dict[str, Callable[[], tuple[Any, Any]]] = {
        "array": lambda: (clean[["a", "b"]].to_numpy(), clean.late.to_numpy()),
        "arrow": lambda: (pa.Table.from_pandas(clean), "late"),
        "source": lambda: (MemorySource(clean), "late"),
        "parquet": lambda: (daskdl.ParquetSource(path), "late"),
    }
    report = daskdl.check(*given[kind]())
    assert problems(report) == []
    assert "2 classes" in said(report, "label", "ok")
    if kind == "parquet":
        assert "8 row groups in 1 file" in said(report, "partitions", "ok")
        assert "least 500, median 500, most 500" in said(report, "partitions", "ok")
        assert "read from files" in said(report, "memory", "ok")


def test_lazy_data_without_a_client_is_judged_by_its_types(alone: None, ragged: dd.DataFrame) -> None:
    report = daskdl.check(ragged[[*FEATURES, "late"]], "late")
    assert "lazy" in said(report, "workers", "refused")
    assert "numbers: a, b, flag" in said(report, "columns", "ok")
    with pytest.raises(DataError, match=r"1 finding\(s\) .*\n- workers: the frame is lazy"):
        report.raise_if_refused()


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"num_workers": 0}, ValueError, "num_workers must be a whole number of at least 1, got 0"),
        ({"batch_size": 0.5}, ValueError, "batch_size must be a whole number of at least 1, got 0.5"),
        ({"y": "latte"}, DataError, r"label column 'latte' is not in X. Did you mean \['late'\]"),
        ({"y": None}, ValueError, "requires y to be passed"),
        ({"y": [0, 1]}, DataError, "inconsistent numbers of samples"),
    ],
)
def test_wrong_arguments_are_raised(
    alone: None, clean: pd.DataFrame, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        daskdl.check(clean, **{"y": "late", **given})
    if "y" in given:
        with pytest.raises(DataError):
            daskdl.check(MemorySource(clean), given["y"])


# -- on a cluster --------------------------------------------------------------------------------------------------


def test_lazy_data_on_a_cluster(patient: None, client: Client, ragged: dd.DataFrame) -> None:
    report = daskdl.check(ragged[[*FEATURES, "late"]], "late")
    assert problems(report) == []
    assert "2 ranks on 2 workers, 1 host" in said(report, "workers", "ok")
    assert "of 4,000 rows and 4 features" in report.title, "seven partitions are few enough to count"
    assert "2 workers may take 4.29 GB" in said(report, "memory", "ok")
    assert "an epoch of the default network" in said(report, "time", "ok")


def filtered(planted: pd.DataFrame, sizes: Sequence[int]) -> dd.DataFrame:
    """A lazy frame of partitions of 50 rows, of which a filter leaves so many."""
    parts = [planted.iloc[50 * i : 50 * (i + 1)].assign(n=np.arange(50) < n) for i, n in enumerate(sizes)]
    lazy = dd.from_map(lambda part: part, parts, meta=parts[0].iloc[:0])
    return lazy[lazy.n][[*FEATURES, "late"]]


@pytest.mark.parametrize(
    "sizes, words",
    [
        # most rows are in the middle: of the first and the last alone it would be 400
        ([10, *range(12, 50, 2), *range(50, 12, -2), 10], "about 1,190 rows (estimated from 8 of 40 partitions; "),
        ([40] * 39 + [1], "about 1,560 rows (estimated from 8 of 40 partitions; as many if the others"),
    ],
)
def test_rows_of_a_filtered_frame_are_estimated_from_several_partitions(
    patient: None, client: Client, planted: pd.DataFrame, sizes: list[int], words: str
) -> None:
    report = daskdl.check(filtered(planted, sizes), "late")
    assert words in report.title, (report.title, sum(sizes))
    assert re.search(
        r"40 partitions, about \d+ rows each \(estimated from 8 of them\)", said(report, "partitions", "ok")
    )
    assert "of estimated rows" in said(report, "memory", "ok")
    if found := re.findall(r"; ([\d,]+) to ([\d,]+) if the others are like", report.title):
        low, high = (int(number.replace(",", "")) for number in found[0])
        assert low < sum(sizes) < high


def test_partitions_that_take_long_are_not_counted(
    patient: None, client: Client, planted: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daskdl.preflight.gather.COUNT_SECONDS", 0.0)
    title = daskdl.check(filtered(planted, [10, 50, 50, 30]), "late").title
    assert "about 80 rows (estimated from 2 of 4 partitions; 60 to 100 if the others are like" in title


@pytest.mark.parametrize(
    "counted, n, expected",
    [
        ({0: 10}, 1, (10, 10, 10)),
        ({2: 10}, 7, (70, 70, 70)),  # the first two have not been counted either
        ({0: 0, 1: 0, 2: 90}, 10, (720, 720, 720)),
        ({0: 100, 9: 200}, 10, (1_500, 1_100, 1_900)),
        ({0: 100, 8: 100, 9: 1}, 10, (901, 901, 901)),
    ],
)
def test_an_estimate_of_rows(counted: dict[int, int], n: int, expected: tuple[int, int, int]) -> None:
    assert estimated_rows(counted, n) == expected


def test_the_first_partition_that_has_rows_is_looked_at(patient: None, client: Client, planted: pd.DataFrame) -> None:
    parts = [planted.iloc[:0], planted.iloc[:0], planted.iloc[:900], planted.iloc[900:1000]]
    lazy = dd.from_map(lambda part: part, parts, meta=planted.iloc[:0])
    assert "900 rows looked at" in daskdl.check(lazy[FEATURES], lazy["late"]).title
    empty = lazy[lazy.a > 1000]
    assert "have no rows" in said(daskdl.check(empty[FEATURES], empty["late"]), "rows", "warning")


def test_partitions_that_differ(patient: None, client: Client, planted: pd.DataFrame) -> None:
    low, high = planted[planted.late == 0].assign(city="Oslo"), planted[planted.late == 1].assign(city="Rome")
    lazy = dd.from_map(lambda part: part, [low, high], meta=planted.iloc[:0])[[*FEATURES, "late"]]
    report = daskdl.check(lazy, "late")
    assert "sorted by the label" in said(report, "label", "note")
    assert "city (100% of its rows, such as Rome)" in said(report, "categories", "note")
    known = lazy.astype({"city": pd.CategoricalDtype(["Oslo", "Rome"])})
    assert said(daskdl.check(known, "late"), "categories", "note") == ""
    one = dd.from_map(lambda part: part, [low, low, low], meta=planted.iloc[:0])[[*FEATURES, "late"]]
    assert "one class only in the" in said(daskdl.check(one, "late"), "label", "warning")
    text = dd.from_map(lambda part: part, [low.astype({"city": object}), low.assign(city=3.5)], meta=low.iloc[:0])
    assert "different types in different partitions" in said(daskdl.check(text, "late"), "column", "refused")


def test_a_partition_that_cannot_be_computed(patient: None, client: Client, ragged: dd.DataFrame) -> None:
    broken = ragged.map_partitions(lambda part: part.loc["nowhere"], meta=ragged._meta)
    report = daskdl.check(broken, "late")
    assert "KeyError: 'nowhere'" in said(report, "rows", "refused")


def test_a_lazy_join_is_looked_at_one_partition_at_a_time(patient: None, client: Client, planted: pd.DataFrame) -> None:
    left = dd.from_pandas(planted[[*FEATURES, "late"]].assign(key=np.arange(4000) % 50), npartitions=6)
    right = dd.from_pandas(pd.DataFrame({"key": range(50), "more": np.arange(50) % 7}), npartitions=3)
    joined = left.merge(right, on="key", broadcast=False)
    report = daskdl.check(joined, "late")
    looked = int(report.title.split(" features, ")[1].split(" ")[0].replace(",", ""))
    assert looked < 3000
    assert problems(report) == []


def test_a_wide_frame(client: Client) -> None:
    rng = np.random.default_rng(0)
    wide = pd.DataFrame(rng.normal(size=(2_000, 1_500)).astype("float32")).add_prefix("x")
    wide["x77"], wide["late"] = 1.0, rng.integers(0, 2, 2_000)
    began = time.perf_counter()
    report = daskdl.check(dd.from_pandas(wide, npartitions=3), "late")
    assert time.perf_counter() - began < 8
    assert "x77" in said(report, "constant", "note")
    assert max(map(len, repr(report).splitlines())) <= 120


def test_it_ends_in_time_and_cancels_what_it_began(client: Client, ragged: dd.DataFrame, tmp_path: Path) -> None:
    going = tmp_path / "going"
    going.touch()

    def sleepy(part: pd.DataFrame) -> pd.DataFrame:
        until = time.time() + 30
        while time.time() < until and going.exists():  # a worker cannot stop a task, and other tests want it
            time.sleep(0.05)
        return part

    lazy = ragged[[*FEATURES, "late"]].map_partitions(sleepy, meta=ragged[[*FEATURES, "late"]]._meta)
    began = time.perf_counter()
    report = daskdl.check(lazy, "late")
    assert time.perf_counter() - began < 8
    assert "a partition was still being computed" in said(report, "time", "note")
    assert "numbers: a, b, flag" in said(report, "columns", "ok")
    assert "2 ranks on 2 workers" in said(report, "workers", "ok")
    going.unlink()
    while busy := [key for keys in client.processing().values() for key in keys]:
        assert time.perf_counter() - began < 20, f"still there: {busy}"
        time.sleep(0.1)


def test_what_is_persisted_stays(client: Client, ragged: dd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    held = client.persist(ragged[[*FEATURES, "late"]])
    wait(held)
    monkeypatch.setattr("daskdl.checking.SECONDS", 0.45)  # so that it is cut short
    daskdl.check(held, "late")
    time.sleep(0.5)
    assert len(held) == 4_000


def test_workers_are_asked_about_themselves(client: Client) -> None:
    workers = asked(client, [Worker(a) for a in client.scheduler_info(n_workers=-1)["workers"]])
    assert all(w.versions == describe_process()["versions"] and w.cores and not w.error for w in workers)


# -- pieces, memory and workers: pure ------------------------------------------------------------------------------

TWO = (Worker("tcp://one:1", memory_limit=1e9, cores=4), Worker("tcp://one:2", memory_limit=1e9, cores=4))
BASE = Facts(rows=100_000, exact=True, client=True, workers=TWO, ranks=2, row_bytes=100, encoded_row_bytes=40)
EVEN = Pieces("partitions", 8, (12_500,) * 8, divisions=False)


@pytest.mark.parametrize(
    "change, check, verdict, text",
    [
        (
            {"pieces": Pieces("partitions", 1, (100_000,))},
            "partitions",
            "warning",
            "1 partitions with rows for 2 ranks",
        ),
        ({"pieces": replace(EVEN, counts=(93_000,) + (1_000,) * 7)}, "partitions", "warning", "93,000 of 100,000 rows"),
        (
            {"pieces": Pieces("partitions", 2_000, (50,) * 2_000)},
            "partitions",
            "warning",
            "2,000 partitions of 50 rows",
        ),
        (
            {"pieces": Pieces("row groups", 4_000, (25,) * 4_000, n_files=4_000, file_bytes=40_000_000)},
            "partitions",
            "warning",
            "4,000 files of 10 kB each",
        ),
        (
            {"pieces": replace(EVEN, what="row groups", row_bytes=1e5, open_bytes=1e6), "held": False},
            "partitions",
            "note",
            "the largest row group is about 1.25 GB once read",
        ),
        (
            {"pieces": replace(EVEN, what="row groups", row_bytes=1e5, open_bytes=9e8), "held": False},
            "partitions",
            "warning",
            "the largest row group is about 1.25 GB once read",
        ),
        ({"row_bytes": 13_000}, "memory", "warning", "2 workers may take 2 GB: 65%"),
        ({"row_bytes": 30_000}, "memory", "refused", "2 workers may take 2 GB: 150%"),
        (
            {"client": False, "workers": (), "available_bytes": 1e7, "pieces": None},
            "memory",
            "refused",
            "10 MB are free: 140%",
        ),
        ({"workers": (replace(TWO[0], spilled=5e9), TWO[1])}, "memory", "warning", "spilled 5 GB to disk"),
        ({"workers": ()}, "workers", "refused", "the cluster has no workers"),
        ({"ranks": 3}, "workers", "refused", "3 ranks are asked for, the cluster has 2"),
        ({"workers": (replace(TWO[0], threads=4), TWO[1])}, "workers", "note", "1 of 2 workers run up to 4 tasks"),
        ({"workers": (replace(TWO[0], error="ImportError: no"), TWO[1])}, "workers", "refused", "cannot run daskdl"),
        (
            {"here": {"torch": "2.9"}, "workers": (replace(TWO[0], versions={"torch": "2.8"}), TWO[1])},
            "versions",
            "warning",
            "torch is 2.9 here and 2.8 on 1 of 2 workers",
        ),
    ],
)
def test_a_finding_about_the_cluster(change: dict[str, Any], check: str, verdict: str, text: str) -> None:
    fine = replace(BASE, pieces=EVEN)
    assert [f for f in findings(fine) if f.verdict != "ok"] == []
    found = findings(replace(fine, **change))
    assert text in said(found, check, verdict)
    assert {(f.check, f.verdict) for f in found if f.verdict != "ok"} == {(check, verdict)}


def test_what_small_data_is_cut_into_does_not_matter() -> None:
    small = replace(BASE, rows=1_000, pieces=Pieces("partitions", 3, (998, 1, 1)))
    assert worth_saying(small) == []


def test_the_estimate_of_time() -> None:
    speed = Speed(look=1e5, encode=1e5, step_seconds=0.01, step_rows=512)
    text = said(findings(replace(BASE, pieces=EVEN, speed=speed)), "time", "ok")
    assert "statistics pass 0.5 s; encoding 0.5 s (100 k rows/s)" in text
    assert "1.0 s (98 steps of 1,024 rows, 10.0 ms each" in text


def test_threads_and_allocator_are_told() -> None:
    workers = tuple(replace(w, trim="65536", gpus=1) for w in TWO)
    text = said(findings(replace(BASE, pieces=EVEN, workers=workers)), "workers", "ok")
    assert "compute threads of a rank: 2; 1 GPUs; MALLOC_TRIM_THRESHOLD_=65536 (Dask's nanny) is lifted" in text


def test_identifiers_by_their_statistics_alone() -> None:
    def stats(values: Any) -> ColumnStats:
        return read_rows(pd.DataFrame({"x": values, "y": 1.0}), "y", classes=False, client=None).stats["x"]

    rng = np.random.default_rng(0)
    assert is_identifier(stats(rng.permutation(1_000) + 7))
    assert is_identifier(stats([f"n{i}" for i in range(1_000)]))
    assert not is_identifier(stats(rng.integers(0, 1_000, 1_000)))
    assert not is_identifier(stats(np.arange(1_000) * 2))
    assert not is_identifier(stats(np.arange(10)))


def test_rows_sorted_by_the_label() -> None:
    def label(*classes: str) -> ColumnStats:
        return ColumnStats("label", 100, values=dict.fromkeys(classes, 100 // len(classes)))

    assert sorted_by_label([label("a"), label("b"), label("a")])
    assert not sorted_by_label([label("a"), label("a")])
    assert not sorted_by_label([label("a"), label("a", "b")])


# -- how it is shown -----------------------------------------------------------------------------------------------


def test_the_report_is_text_html_and_a_table(alone: None, clean: pd.DataFrame) -> None:
    report = daskdl.check(clean.assign(**{"<b>" * 30: 1, "z": clean.a * 1j}), "late")
    lines = repr(report).splitlines()
    assert max(map(len, lines)) <= 120
    assert "1 refused, 1 note" in repr(report)
    starts = [line for line in lines[2:] if line[:1] != " "]
    assert [line.split()[0] for line in starts] == [f.verdict for f in report.findings]
    assert {line[9:22].rstrip() for line in starts} == {f.check for f in report.findings}
    page = report._repr_html_()
    assert "&lt;b&gt;" in page and "<b><b>" not in page
    assert "background:transparent" in page and "color:inherit" in page
    assert list(report.table.columns) == ["check", "verdict", "found", "why", "do"]
    order = [VERDICTS.index(v) for v in report.table.verdict]
    assert order == sorted(order)


# -- in fit --------------------------------------------------------------------------------------------------------


def checks(run: Any) -> list[str]:
    events = run.events
    return list(events.text[events.event == "check"])


@pytest.mark.parametrize("kind", ["TorchClassifier", "XGBClassifier"])
def test_fit_says_what_it_found(
    client: Client, clean: pd.DataFrame, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"epochs": 1} if kind == "TorchClassifier" else {"n_estimators": 1}
    frame = clean.assign(one="x", token=np.arange(len(clean)) % 5)
    lazy = dd.from_pandas(frame, npartitions=8)
    model = getattr(daskdl, kind)(verbose=1, **short).fit(lazy, "late")
    (text,) = checks(model.run_)
    assert text.startswith("note, constant: 1 column has one value only: one.")
    assert text in capsys.readouterr().out
    quiet = getattr(daskdl, kind)(verbose=0, **short).fit(lazy.drop(columns=["one"]), "late")
    assert checks(quiet.run_) == []
    assert capsys.readouterr().out == ""


def test_train_says_no_more_than_five_and_the_worst_first(client: Client, clean: pd.DataFrame) -> None:
    odd = clean.assign(row=np.arange(len(clean)), empty=np.nan, few=clean.a.where(clean.a > 1), one=1)
    odd = odd.assign(shape=[[1.0] * (i % 3) for i in range(len(odd))], late=np.arange(len(odd)) % 40 == 0)
    result = daskdl.train(lambda context: None, (odd, "late"), verbose=0)
    said = checks(result.run)
    assert len(said) == 5
    assert [text.split(",")[0] for text in said] == ["warning", "warning", "note", "note", "note"]


def test_fit_sees_a_label_among_the_features_without_another_pass(client: Client, planted: pd.DataFrame) -> None:
    def leaks(frame: pd.DataFrame, y: str, classes: bool) -> list[Any]:
        rows = read_rows(dd.from_pandas(frame, npartitions=8), y, classes=classes, client=client)
        return list(facts_of_rows(rows, []).leaks)

    frame = planted.assign(word=planted.late.map({0: "no", 1: "yes"}), copy=planted.late, twin=planted.delay)
    assert leaks(frame, "late", True) == ["word", "copy"]
    assert leaks(frame, "delay", False) == ["twin"]
    assert leaks(planted, "late", True) == []


def test_a_fit_from_files(client: Client, clean: pd.DataFrame, tmp_path: Path) -> None:
    clean.sort_values("late").to_parquet(tmp_path / "rows.parquet", row_group_size=100)
    source = daskdl.ParquetSource(str(tmp_path / "rows.parquet"))
    rows = read_rows(source, "late", classes=True, client=client)
    facts = facts_of_rows(rows, sorted(client.scheduler_info(n_workers=-1)["workers"]))
    assert facts.pieces is not None and facts.pieces.what == "row groups"
    assert not facts.held and facts.ranks == 2 and len(facts.workers) == 2
    whole = clean.sort_values("late").iloc[: (clean.late == 0).sum() // 100 * 100]
    both = pd.concat([whole, clean[clean.late == 1].iloc[:200]])
    both.to_parquet(tmp_path / "sorted.parquet", row_group_size=100)
    rows = read_rows(daskdl.ParquetSource(str(tmp_path / "sorted.parquet")), "late", classes=True, client=client)
    assert "sorted by the label" in said(worth_saying(facts_of_rows(rows, [])), "label", "note")
