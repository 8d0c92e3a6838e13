"""A short slice of `make chaos`, and the seeds that have found something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chaos.arena import Arena
from chaos.plan import KINDS, draw
from chaos.run import told

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

SLICE = [
    "kill several at once",
    "kill a rank that is alone",
    "kill during a commit",
    "kill during recovery",
    "kill in the last step",
    "kill, and it stays down",
    "kill a nanny",
    "cut the link to a worker",
    "damage the newest checkpoint, and kill all",
    "interrupt, and resume",
]

FOUND: list[tuple[str, int]] = [
    ("a second run beside it, and kill", 34),  # one that waited held the worker that the other wanted back
    ("kill several at once", 19),  # with all workers of a gang, its tasks stayed with the scheduler
    ("kill the same rank again", 6),  # two losses after one commit: the optimizer had gone on with the commit's tensors
    ("a second run beside it, and kill", 142),  # rows were looked at when the worker with the only copy was killed
    ("kill while XGBoost trains", 17),  # with rank 0, which serves XGBoost's tracker, another: a port was left
    ("kill during recovery", 59),  # a gang that fell apart while it was made left its process group
    ("kill during recovery", 285),  # a worker died while it was given rows again
    ("kill in a step", 0),  # a rank that had ended before it was woken left its gang's name in its worker
]


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena() as arena:
        yield arena


@pytest.mark.parametrize("kind, seed", [*((kind, 1) for kind in SLICE), *FOUND], ids=str)
def test_it_goes_on_as_if_nothing_had_happened(arena: Arena, kind: str, seed: int) -> None:
    outcome = arena.play(draw(seed, kind))
    told(outcome, print)
    assert not outcome.problems


def test_a_plan_is_a_function_of_its_seed() -> None:
    assert all(draw(seed) == draw(seed) for seed in range(100))
    assert {draw(seed).kind for seed in range(len(KINDS))} == set(KINDS)
