"""Why a worker is gone, in words that a person can act on, and with the code."""

from __future__ import annotations

import faulthandler
import tempfile
from dataclasses import replace

import pytest

from daskdl.execution.obituary import Death, cause_of, report, trace_of

GIB = 1 << 30
SMALL, LARGE = [(0.0, GIB // 4), (9.0, GIB // 4)], [(0.0, GIB // 4), (12.0, int(0.9 * GIB))]
DEATH = Death("tcp://10.0.0.7:4040", "3", "10.0.0.7", 77, GIB, memory=SMALL)


@pytest.mark.parametrize(
    "known, words",
    [
        ({"exitcode": -9}, ["killed by signal 9 (SIGKILL): by a person", "held 256.00 MiB of 1.00 GiB"]),
        ({"exitcode": -9, "memory": LARGE}, ["out of memory: killed by signal 9", "grown by 665.60 MiB in the 12 s"]),
        ({"exitcode": -9, "oom_kill": True}, ["out of memory", "the system ended a process for lack of memory then"]),
        ({"exitcode": -15, "over_budget": GIB}, ["out of memory: it held 1.00 GiB of 1.00 GiB", "(exit code -15)"]),
        ({"exitcode": -15}, ["ended by signal 15 (SIGTERM): by a person, a batch system"]),
        (
            {"exitcode": -11, "trace": ["f (a.py:1)", "g (b.py:2)"]},
            ["native code: signal 11 (SIGSEGV), in f (a.py:1) < g"],
        ),
        ({"exitcode": -6}, ["crash in native code: signal 6 (SIGABRT)"]),
        ({"exitcode": -63}, ["signal 63"]),
        ({"exitcode": 0}, ["closed in good order (exit code 0)"]),
        ({"exitcode": 3}, ["ended itself with exit code 3"]),
        ({"exitcode": 255}, ["an unknown way (exit code 255)"]),
        ({}, ["its machine, container or network went away: neither its process nor its nanny said why"]),
        ({"nanny": False}, ["went away: it has no nanny to say why"]),
        ({"retired": True}, ["it was retired"]),
        ({"silent": ("stopped", 1.26), "exitcode": -9}, ["was stopped (SIGSTOP", "silent for 1.3 s"]),
        ({"silent": ("unreachable", 2.5)}, ["its machine or network went away", "answered for 2.5 s"]),
        ({"silent": ("blocked", 15.2)}, ["hung", "15.2 s"]),
    ],
    ids=str,
)
def test_the_cause_is_said_in_words(known: dict, words: list[str]) -> None:
    text = cause_of(replace(DEATH, **known))
    assert all(word in text for word in words), text


def test_the_report_says_who_and_what_it_cost() -> None:
    text = report(replace(DEATH, exitcode=3), 2, 4, 117, 100)
    assert text.startswith(
        "rank 2 of 4, tcp://10.0.0.7:4040 (worker 3, process 77 on 10.0.0.7), at step 117: its process"
    )
    assert text.endswith("Lost: 17 steps since the commit of step 100 to do again.")
    assert "Lost: 1 step since" in report(DEATH, 0, 1, 1, 0)


def test_nothing_is_claimed_of_a_worker_nobody_knew() -> None:
    assert report(Death("tcp://a:1"), 0, 1, 0, 0).startswith(
        "rank 0 of 1, tcp://a:1, at step 0: its machine, container"
    )


def test_the_trace_is_that_of_the_thread_that_crashed() -> None:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=False)
        file.seek(0)
        written = file.read().replace("Stack", "Fatal Python error: Segmentation fault\n\nCurrent thread 0x1").strip()
    assert trace_of(f"Fatal Python error\n\n{written[written.index('Current') :]}")[0].startswith(
        "test_the_trace_is_that_of_the_thread_that_crashed (execution/test_obituary.py:"
    )
    assert trace_of("") == []
