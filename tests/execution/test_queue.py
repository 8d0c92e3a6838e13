"""Who gets which worker, decided: never two on one, nobody holds and waits, everyone's turn comes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from daskdl.execution.queue import Request, decide

WORKERS = "abcde"


def request(name: str, workers: Sequence[str]) -> Request:
    return Request(name, f"run {name}", "client", tuple(workers))


asked = st.lists(st.sets(st.sampled_from(WORKERS), min_size=1), max_size=8).map(
    lambda sets: [request(str(i), sorted(workers)) for i, workers in enumerate(sets)]
)
some = st.sets(st.sampled_from(WORKERS))


@given(asked, some, some)
@settings(max_examples=300, deadline=None)
def test_what_is_granted_is_free_and_all_of_it_and_in_turn(
    waiting: list[Request], held: set[str], present: set[str]
) -> None:
    granted = decide(waiting, held, present)
    assert granted == decide(waiting, held, present)
    given_out = [worker for one in granted for worker in one.workers if worker in present]
    assert len(given_out) == len(set(given_out)), "two on one worker"
    assert not set(given_out) & held
    for i, one in enumerate(waiting):  # the oracle: free, and wanted by nobody who asked before and still waits
        wanted = set(one.workers) & present
        before = {w for other in waiting[:i] for w in other.workers if w in present}
        assert (one in granted) == (not wanted & (held | before))


@given(asked, st.lists(st.tuples(st.sampled_from(["end", "lose", "join"]), st.integers(0, 7)), max_size=30))
@settings(max_examples=300, deadline=None)
def test_whoever_waits_is_served_once_those_before_have_ended(
    waiting: list[Request], events: list[tuple[str, int]]
) -> None:
    present, held, left = set(WORKERS), {}, list(waiting)
    served: list[Request] = []

    def serve() -> None:
        for one in decide(left, held, present):
            left.remove(one)
            served.append(one)
            held.update({worker: one for worker in one.workers if worker in present})

    serve()
    for what, number in events:
        worker = WORKERS[number % len(WORKERS)]
        if what == "end" and number < len(served):
            held = {w: one for w, one in held.items() if one is not served[number]}
        elif what == "lose":
            present.discard(worker)
            held.pop(worker, None)
        elif what == "join":
            present.add(worker)
        serve()
    for _ in waiting:  # each that holds something ends
        held.clear()
        serve()
    assert left == [] and len(served) == len(waiting)
