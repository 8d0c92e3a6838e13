from __future__ import annotations

import pytest

import daskdl
from daskdl import plotting
from daskdl.errors import DataError
from daskdl.tracking.breakdown import PHASES
from daskdl.tracking.record import RunRecord


def run_of(*ranks: dict[str, float], steps: int = 10) -> daskdl.Run:
    record = RunRecord("20261121-093012-brave-finch", name="flights")
    seconds = [[rank.get(phase, 0.0) for phase in PHASES] for rank in ranks]
    said = {"steps": steps, "seconds": seconds, "host": [1] * len(ranks), "gpu": [0] * len(ranks)}
    record.apply({"kind": "metrics", "time": 0.0, "points": [], "ranks": said})
    return daskdl.Run(record, "nowhere")


def test_a_bar_a_rank_and_the_verdict_above() -> None:
    run = run_of({"data": 0.6, "forward": 0.4}, {"data": 0.1, "forward": 0.4, "all-reduce": 0.5})
    data = plotting.breakdown_data(run)
    assert data[data["rank"] == 1].set_index("phase").milliseconds.to_dict() == {
        "data": pytest.approx(10),
        "forward": pytest.approx(40),
        "all-reduce": pytest.approx(50),
    }
    bars = plotting.plot_breakdown(run, width=500)
    assert sorted(set(bars.dimension_values(0))) == ["rank 0", "rank 1"] and len(bars) == 6


def test_of_many_ranks_those_that_wait_longest_and_least_are_drawn() -> None:
    ranks = [{"backward": 1.0 - i / 100, "all-reduce": i / 100} for i in range(100)]
    drawn = sorted(set(plotting.breakdown_data(run_of(*ranks))["rank"]))
    assert drawn == [*range(16), *range(84, 100)]


def test_a_run_that_told_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="has told nothing of its steps: it is waiting at step 0"):
        plotting.plot_breakdown(daskdl.Run(RunRecord("a"), "nowhere"))
