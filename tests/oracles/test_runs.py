"""What a run is told is what another process reads of it: compared with a model that only remembers."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daskdl.run import Run, load_run, runs
from daskdl.tracking import kept
from daskdl.tracking.record import RunRecord
from daskdl.tracking.store import store_of

TEXT = st.text(max_size=40)
STEPS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 50)
NUMBERS = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7e308])
PLAIN = st.none() | st.booleans() | st.integers(-(2**900), 2**900) | NUMBERS | TEXT
PARAMS = st.dictionaries(
    TEXT, st.recursive(PLAIN, lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXT, v, max_size=4))
)
SAID = st.lists(
    st.tuples(st.just("log"), STEPS, st.dictionaries(TEXT.filter(bool), NUMBERS, max_size=3))
    | st.tuples(st.just("event"), TEXT, TEXT, st.none() | STEPS),
    max_size=30,
)
ENDS = st.sampled_from([("finished", None), ("failed", "größer: \n[x]"), ("stopped", "")])


def bits(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack("d", value)


def clean(value: Any) -> Any:
    """What JSON makes of halves of characters is what the plain form makes of them."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [clean(v) for v in value]
    if isinstance(value, dict):
        return {clean(k): clean(v) for k, v in value.items()}
    return bits(value) if isinstance(value, float) else value


def curves(said: list[tuple[Any, ...]]) -> dict[str, dict[int, bytes]]:
    """Of two values of a step the newer one counts."""
    found: dict[str, dict[int, bytes]] = {}
    for kind, *what in said:
        if kind == "log":
            for name, value in what[1].items():
                found.setdefault(name, {})[what[0]] = bits(value)
    return found


def read_curves(run: Run) -> dict[str, dict[int, bytes]]:
    return {n: dict(zip(c.steps.tolist(), map(bits, c.values), strict=True)) for n, c in run.record.curves.items()}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=TEXT, params=PARAMS, said=SAID, end=ENDS)
def test_what_was_said_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, params: dict[str, Any], said: Any, end: Any
) -> None:
    root = tmp_path_factory.getbasetemp() / "größer #1 [runs]"
    run = Run.start(name, "oracle", params, root=root)
    run._store.mirror.broken = True  # type: ignore[union-attr]  # MLflow's copy has tests of its own
    for kind, *what in said:
        run.log(what[0], **what[1]) if kind == "log" else run.event(*what)
    run.finish(*end)
    back = load_run(run.id, root)
    assert (back.name, back.state, back.error) == (clean(name), end[0], end[1])
    assert clean(back.params) == clean(run.params) == clean(params)
    assert read_curves(back) == curves(said)
    events = [tuple(what) for kind, *what in said if kind == "event"]
    assert [(e["event"], e["text"], e["step"]) for e in back.record.events] == [
        (kind, clean(text), step) for kind, text, step in events
    ]
    assert back.record.curves == run.record.curves or any(
        b"nan" in curve.values() for curve in read_curves(back).values()
    )
    row = runs(root).set_index("id").loc[run.id]
    assert (row["name"], row["state"]) == (clean(name), end[0])


@settings(max_examples=100, deadline=None)
@given(cut=st.floats(0, 1), name=st.sampled_from([kept.FACTS, kept.CURVES, kept.EVENTS]))
def test_a_torn_file_takes_nothing_else_with_it(cut: float, name: str) -> None:
    record = RunRecord("a", name="n", state="finished", params={"a": [1, "ü"]})
    record.apply({"kind": "metrics", "time": 1.0, "points": [[1, {"x": 0.5}], [2, {"x": math.nan}]]})
    record.apply({"kind": "event", "time": 1.0, "event": "note", "text": "hello"})
    whole = {kept.FACTS: kept.facts_text(record), kept.CURVES: kept.curves_text(record)}
    whole[kept.EVENTS] = kept.events_text(record)
    torn = {**whole, name: whole[name][: int(cut * (len(whole[name]) - 1))]}
    back = kept.record_of("a", torn)
    assert name == kept.FACTS or (back.name, back.state, back.params) == ("n", "finished", record.params)
    assert name == kept.CURVES or list(back.curves) == ["x"]
    assert name == kept.EVENTS or back.events == record.events


def test_another_process_reads_what_this_one_said(tmp_path: Path) -> None:
    params = {"ü": [1, {"x": None}], "1": "1", "nan": math.inf, "deep": -0.0, "bool": True, "none": None}
    with Run.start("a/b\\c", "oracle", params, root=tmp_path) as run:
        run.log(2**62, **{"größer": -0.0, "x/y": 5e-324})
    assert store_of(str(tmp_path)).flush()
    script = (
        "import json, sys; import daskdl; r = daskdl.load_run(sys.argv[1], sys.argv[2])\n"
        "print(json.dumps([r.name, r.params, {n: [c.steps.tolist(), c.values.tolist()] "
        "for n, c in r.record.curves.items()}]))"
    )
    command = [sys.executable, "-c", script, run.id, str(tmp_path)]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert said == ["a/b\\c", params, {"größer": [[2**62], [-0.0]], "x/y": [[2**62], [5e-324]]}]
