import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from daskdl.tracking.record import MAX_EVENTS, MAX_POINTS, Curve, RunRecord


def curve_of(points):
    curve = Curve()
    for step, value in points:
        curve.add(step, value)
    return curve


def metrics(*points, time=0.0, **keys):
    return {"kind": "metrics", "time": time, "points": list(points), **keys}


@given(st.dictionaries(st.integers(0, 10**6), st.floats(allow_nan=False), max_size=50), st.randoms())
def test_curve_does_not_depend_on_the_order_of_arrival(values, random):
    shuffled = list(values.items())
    random.shuffle(shuffled)
    steps = sorted(values)
    assert curve_of(shuffled).xy() == (steps, [values[step] for step in steps])


def test_long_curve_stays_short_and_spans_all_steps():
    n = 50_001
    curve = curve_of((step, float(step)) for step in range(n))
    steps, values = curve.xy()
    assert len(steps) <= MAX_POINTS + 1
    assert steps == sorted(steps) == values
    assert steps[0] == 0
    assert steps[-1] == n - 1
    assert max(b - a for a, b in pairwise(steps)) <= curve.stride


def test_extremes_survive_thinning():
    curve = curve_of((step, {12_345: -9.0, 23_457: 9.0}.get(step, 0.0)) for step in range(30_000))
    assert curve.low == (12_345, -9.0)
    assert curve.high == (23_457, 9.0)


def test_step_sent_again_is_replaced():
    assert curve_of([(1, 0.5), (2, 0.4), (1, 0.7)]).xy() == ([1, 2], [0.7, 0.4])


def test_xy_can_be_limited():
    steps, _ = curve_of((step, 0.0) for step in range(1_000)).xy(limit=100)
    assert 90 <= len(steps) <= 101
    assert steps[-1] == 999


def test_nan_does_not_hide_the_extremes():
    curve = curve_of([(1, 0.5), (2, math.nan), (3, 0.4)])
    assert curve.low == (3, 0.4)
    assert curve_of([(1, math.nan), (2, 0.5)]).low == (2, 0.5)


def test_record_folds_messages_in_any_order():
    messages = [
        {
            "kind": "start",
            "time": 10.0,
            "name": "n",
            "algorithm": "a",
            "params": {"lr": 1},
            "total_steps": 8,
            "seed": 3,
        },
        metrics([4, {"train_loss": 0.5}], epoch=1.5),
        {"kind": "event", "time": 12.0, "event": "commit", "text": "epoch 1", "step": 4},
        {"kind": "end", "time": 20.0, "state": "finished", "error": None},
        {"kind": "from the future", "time": 21.0},
    ]
    forward, backward = RunRecord("r"), RunRecord("r")
    for there, back in zip(messages, reversed(messages), strict=True):
        forward.apply(there)
        backward.apply(back)
    assert forward == backward
    assert (forward.state, forward.name, forward.seed, forward.step, forward.epoch) == ("finished", "n", 3, 4, 1.5)
    assert forward.changes == 4


def test_progress_and_time_left():
    record = RunRecord("r")
    assert record.progress is None
    record.apply({"kind": "start", "time": 100.0, "total_steps": 200})
    record.apply(metrics([10, {"train_loss": 1.0}], time=130.0))
    assert record.seconds_left(now=131.0) is None
    record.apply(metrics([20, {"train_loss": 1.0}], [50, {"train_loss": 1.0}], time=134.0))
    assert record.progress == 0.25
    assert record.seconds_left(now=134.0) == 15.0  # 40 steps in 4 s; the 30 s before the first step do not count
    record.apply({"kind": "end", "time": 135.0, "state": "finished"})
    assert record.progress == 1.0
    assert record.seconds_left(now=136.0) is None


def test_events_are_bounded():
    record = RunRecord("r")
    for step in range(MAX_EVENTS + 10):
        record.apply({"kind": "event", "time": 0.0, "event": "note", "text": "", "step": step})
    assert len(record.events) == MAX_EVENTS
    assert record.events[-1]["step"] == MAX_EVENTS + 9
