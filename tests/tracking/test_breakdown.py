"""What is said of where the time of the ranks goes."""

from __future__ import annotations

import pytest

from daskdl.tracking.breakdown import PHASES, RECENT_SECONDS, Ranks, verdict
from daskdl.tracking.record import RunRecord


def said(*ranks: dict[str, float], steps: int = 1) -> dict:
    seconds = [[rank.get(phase, 0.0) for phase in PHASES] for rank in ranks]
    return {
        "steps": steps,
        "seconds": seconds,
        "host": [100 * (i + 1) for i in range(len(ranks))],
        "gpu": [0] * len(ranks),
    }


EVEN = "The ranks are even: "
CASES = [
    (
        [{"data": 6, "backward": 3, "all-reduce": 0.5}, {"data": 1, "backward": 3, "all-reduce": 5.5}],
        "Rank 0 is the straggler: 63 % of its step is waiting for data. The others wait 53 % of a step for it.",
    ),
    (
        [{"backward": 3, "all-reduce": 6}, {"backward": 3, "all-reduce": 6}, {"backward": 3, "other": 6}],
        "Rank 2 is the straggler: 67 % of its step is in the loop's own code. The others wait 67 % of a step for it.",
    ),
    (
        [{"data": 6, "backward": 2, "all-reduce": 2}] * 2,
        EVEN + "20 % of a step is computing, 60 % waiting for data.",
    ),
    (
        [{"backward": 2, "all-reduce": 8}] * 3,
        EVEN + "20 % of a step is computing, 80 % in the all-reduce of the gradients.",
    ),
    ([{"data": 1, "forward": 3, "backward": 6}], "90 % of a step is computing, 10 % waiting for data."),
    ([{"boost": 9, "validation": 1}], "90 % of a step is computing, 10 % validating."),
    ([{}], ""),
    ([], ""),
]


@pytest.mark.parametrize("ranks, words", CASES)
def test_the_verdict_names_who_is_waited_for_and_why(ranks: list[dict[str, float]], words: str) -> None:
    assert verdict(ranks) == words


def test_ranks_add_up_and_remember_what_was_lately() -> None:
    ranks = Ranks()
    for _ in range(10):
        ranks.add(said({"data": RECENT_SECONDS}, {"forward": RECENT_SECONDS}, steps=4))
    ranks.add(said({"forward": RECENT_SECONDS}, {"forward": RECENT_SECONDS}, steps=4))
    assert ranks.per_step()[0]["data"] == pytest.approx(10 * RECENT_SECONDS / 44)
    assert ranks.per_step(recent=True) == [{"forward": RECENT_SECONDS / 4}] * 2
    assert ranks.host == [100, 200] and ranks.host_peak == [100, 200]


def test_a_gang_that_others_have_followed_is_not_listened_to() -> None:
    record = RunRecord("id")
    about = {"kind": "metrics", "time": 0.0, "points": []}
    record.apply({**about, "generation": 1, "ranks": said({"data": 1.0})})
    record.apply({**about, "generation": 0, "ranks": said({"data": 5.0}, {"data": 5.0})})
    assert record.ranks is not None and record.ranks.per_step() == [{"data": 1.0}]
    record.apply({**about, "generation": 2, "ranks": said({"data": 2.0}, {"data": 2.0})})
    assert record.ranks.per_step() == [{"data": 2.0}] * 2
