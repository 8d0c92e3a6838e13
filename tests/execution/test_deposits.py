"""Who holds what a rank that is alone would lose, and how it comes there in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from daskdl.execution import deposits
from daskdl.execution.deposits import Place, choose, deposited, drop_deposit, end_deposits, give, hold

GIB = 1 << 30
SAME = [Place("tcp://a:2", "a", GIB, 4 * GIB), Place("tcp://a:3", "a", 2 * GIB, 4 * GIB)]
FAR, FULL, FREE = Place("tcp://b:1", "b", GIB, 2 * GIB), Place("tcp://b:2", "b", GIB, GIB), Place("tcp://a:4", "a")
NANNY = "tcp://a:9"


@pytest.mark.parametrize(
    "places, nanny, n_bytes, room, chosen",
    [
        ([*SAME, FAR], NANNY, 1 << 20, GIB, "tcp://b:1"),  # its host may go
        (SAME, NANNY, 1 << 20, GIB, "tcp://a:2"),  # it has more room
        ([*SAME, FREE], NANNY, 1 << 20, GIB, "tcp://a:4"),
        ([FULL], NANNY, 1 << 20, GIB, NANNY),
        ([FAR, *SAME], NANNY, GIB // 2, 2 * GIB, "tcp://a:2"),  # the far one would be full with it
        (SAME, NANNY, GIB, GIB, None),  # the host would be
        ([], NANNY, 1, GIB, NANNY),
        ([], None, 1, GIB, None),
    ],
)
def test_who_is_chosen(places: list[Place], nanny: str | None, n_bytes: int, room: int, chosen: str | None) -> None:
    assert choose(places, nanny, "a", n_bytes, room) == chosen


@pytest.fixture
def run() -> Iterator[str]:
    yield "brave-finch"
    drop_deposit("brave-finch")
    deposits._over.clear()


def test_a_deposit_counts_when_it_is_complete(run: str) -> None:
    assert deposited(run) == (0, 0) and give(run, 0, 0) is None
    assert hold(run, 5, 0, 2, b"a") and deposited(run) == (0, 0)
    assert hold(run, 5, 1, 2, b"b") and deposited(run) == (5, 2)
    assert hold(run, 7, 0, 2, b"c") and deposited(run) == (5, 2), "the one before stays until the next is there"
    assert not hold(run, 6, 1, 2, b"d") and not hold(run, 7, 0 + 2, 3, b"d"), "a piece of another one, or out of turn"
    assert give(run, 5, 1).data == b"b" and give(run, 7, 0) is None
    assert hold(run, 7, 1, 2, b"e") and deposited(run) == (7, 2)


def test_what_comes_after_the_end_is_refused(run: str) -> None:
    hold(run, 5, 0, 1, b"a")
    drop_deposit(run)
    assert deposited(run) == (0, 0) and hold(run, 6, 0, 1, b"a")
    end_deposits(run)
    assert deposited(run) == (0, 0) and not hold(run, 8, 0, 1, b"a")
    for n in range(deposits.MOST_OVER):
        end_deposits(f"other {n}")
    assert len(deposits._over) == deposits.MOST_OVER
