"""Workers that are lost, fall silent or lose their client: it is said in words, and the run goes on exactly."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from distributed import Client, LocalCluster
from processes import wait_until

import daskdl
from daskdl.errors import WorkerLost
from daskdl.execution import ranks, spmd
from daskdl.execution.calls import call_workers
from daskdl.execution.overseer import TICK_SECONDS, Overseer, Patience, Silence, _listening, judge
from daskdl.execution.seats import holders

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def three() -> Iterator[Client]:
    client = daskdl.connect("cpu", n_workers=3, memory_limit="1GiB", dashboard_address="127.0.0.1:0")
    with client.as_current():
        yield client
    client.shutdown()


def die(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(3)
    elif how == "crash":
        ctypes.string_at(0)
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "memory":
        held = []
        while True:
            held.append(os.urandom(1 << 25))
            time.sleep(0.02)


def linear(context: daskdl.Context, mark: str, how: str, ranks: tuple[int, ...], at: int, pause: float = 0.0) -> None:
    """A loop in which ranks die at a step, the first time they come to it."""
    model = context.prepare(torch.nn.Linear(context.schema.n_numbers, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    context.keep(optimizer=optimizer)
    for batch in context.batches:
        if batch.step == at and context.rank in ranks and not Path(mark).exists():
            time.sleep(0.2)  # the others wait in their collective
            Path(mark).touch()
            die(how)
        time.sleep(pause)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch.x).squeeze(1), batch.y.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        context.report(loss=loss)


WORDS = {
    "kill": r"its process was killed by signal 9 \(SIGKILL\): by a person, .*; it held .* of 1.00 GiB",
    "exit": r"its process ended itself with exit code 3",
    "crash": r"crash in native code: signal 11 \(SIGSEGV\), in string_at \(ctypes/__init__.py:\d+\) < die \(.*test_los",
    "stop": r"its process was stopped \(SIGSTOP, .* silent for \d\.\d s",
    "memory": r"out of memory: it held .* of 1.00 GiB, so its nanny ended it .*exit code -15\); it had grown by .*MiB",
}


@pytest.mark.parametrize(
    "how, ranks",
    [
        ("kill", (1,)),
        ("exit", (0,)),
        ("crash", (2,)),
        ("stop", (0,)),
        ("stop", (1,)),
        ("memory", (1,)),
        ("kill", (0, 2)),
    ],
    ids=str,
)
def test_a_loss_is_explained_and_the_run_goes_on(
    three: Client, planted: pd.DataFrame, tmp_path: Path, how: str, ranks: tuple[int, ...]
) -> None:
    three.wait_for_workers(3)
    data, mark = (planted[["a", "b"]], planted.late), str(tmp_path / "mark")
    options = {"num_workers": 3, "batch_size": 96, "epochs": 3, "seed": 1, "verbose": 0}
    run = daskdl.train(linear, data, mark, how, ranks, 70, **options).run
    assert Path(mark).exists(), "nobody died"
    [lost] = run.events.query("event == 'worker_lost'").itertuples()
    causes = run.events.query("event == 'cause'")
    assert len(causes) == len(ranks)
    for rank, text in zip(ranks, causes.text, strict=True):
        assert re.search(WORDS[how], text)
        assert re.match(
            rf"rank {rank} of 3, tcp://127.0.0.1:\d+ \(worker .+, process \d+ on 127.0.0.1\), at step 70: ", text
        )
        assert text.endswith(f"Lost: {70 - lost.step} steps since the commit of step {lost.step} to do again.")
    assert (causes.step == lost.step).all()
    late = (causes.time - lost.time).dt.total_seconds()
    assert late.max() < 2.0
    audit = run.audit()
    assert audit.as_planned.all() and audit["min"].eq(1).all() and audit["max"].eq(1).all() and len(audit) == 3


def die_in_gang(how: str) -> None:
    import torch.distributed as dist

    dist.barrier()
    if dist.get_rank() == 1:
        die(how)
    while True:
        dist.all_reduce(torch.ones(1))


def test_the_error_of_a_lost_worker_says_why(three: Client) -> None:
    three.wait_for_workers(3)
    with pytest.raises(WorkerLost, match=r"rank 1 of 3 is lost: .* Likely cause .*exit code 3"):
        spmd.run(die_in_gang, "exit", client=three)
    three.wait_for_workers(3)
    began = time.monotonic()
    with pytest.raises(WorkerLost, match=r"Likely cause .* was stopped \(SIGSTOP"):
        spmd.run(die_in_gang, "stop", client=three)
    assert time.monotonic() - began < 6.0  # 1.6 where nothing else runs
    three.wait_for_workers(3, timeout=20)


def test_when_the_run_cannot_go_on_its_error_says_why(three: Client, planted: pd.DataFrame) -> None:
    three.wait_for_workers(3)
    data = (planted[["a"]], planted.late)
    with pytest.raises(WorkerLost, match=r"Likely cause .* exit code 3"):
        daskdl.train(always, data, num_workers=3, verbose=0)


def always(context: daskdl.Context) -> None:
    for batch in context.batches:
        if batch.step == 2:
            os._exit(3)


def test_a_worker_that_is_told_to_leave_is_said_to_be_retired_and_its_rank_stops(tmp_path: Path) -> None:
    with LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as two:
        [address] = spmd.choose_workers(two, 1)
        began, stopped = tmp_path / "began", tmp_path / "stopped"

        def retire() -> None:
            assert wait_until(began.exists, 60)
            two.retire_workers([address])

        thread = threading.Thread(target=retire)
        thread.start()
        with pytest.raises(WorkerLost, match="Likely cause .* retired"):
            spmd.run(wait_for_ever, str(began), str(stopped), workers=[address], client=two)
        thread.join()
        assert wait_until(stopped.exists)


def wait_for_ever(began: str, stopped: str) -> None:
    Path(began).touch()
    while not spmd.stopping():
        time.sleep(0.01)
    Path(stopped).touch()


# silence


def hold_the_lock(seconds: float) -> int:
    """Compute for a while without letting another thread of the process run."""
    sys.setswitchinterval(1e6)
    try:
        until, n = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            n += 1
    finally:
        sys.setswitchinterval(0.005)
    return n


def test_a_worker_that_is_busy_is_not_taken_for_lost(three: Client) -> None:
    three.wait_for_workers(3)
    before = set(three.scheduler_info(n_workers=-1)["workers"])
    assert all(n > 0 for n in spmd.run(hold_the_lock, 4.0, client=three))
    assert set(three.scheduler_info(n_workers=-1)["workers"]) == before


def test_silence_counts_only_while_the_scheduler_listens() -> None:
    silence = Silence()
    silence.tick(100.0, {"a": 1.0, "b": 1.0})
    for n in range(1, 9):
        silence.tick(100.0 + n * TICK_SECONDS, {"a": 1.0, "b": 1.0 + n})
    assert silence.seconds == {"a": pytest.approx(8 * TICK_SECONDS), "b": 0.0}
    silence.tick(200.0, {"a": 1.0, "b": 9.0})  # the scheduler's process was stopped: nobody is to blame
    assert silence.seconds == {"a": pytest.approx(10 * TICK_SECONDS), "b": pytest.approx(2 * TICK_SECONDS)}
    silence.tick(200.1, {"b": 10.0})
    assert silence.seconds == {"b": 0.0}


def test_an_answer_is_waited_for_only_while_the_scheduler_listens() -> None:
    async def answer() -> str:
        for _ in range(3):
            await asyncio.sleep(0.1)
        return "here"

    async def ask(seconds: float) -> str:
        asyncio.get_running_loop().call_soon(time.sleep, 2.0)  # its process is kept from listening
        return await _listening(answer(), seconds)

    assert asyncio.run(ask(1.0)) == "here"
    with pytest.raises(TimeoutError, match="no answer in 0.5 s"):
        asyncio.run(_listening(asyncio.Event().wait(), 0.5))


@pytest.mark.parametrize(
    "answer, silent, verdict",
    [
        ("unreachable", 2.4, None),
        ("unreachable", 2.5, "unreachable"),
        ("mute", 14.9, None),  # its machine is there, and busy
        ("mute", 15.0, "unreachable"),
        ((psutil.STATUS_STOPPED, 0.0), 1.1, "stopped"),
        ((psutil.STATUS_TRACING_STOP, 0.0), 99.0, None),  # a debugger's user is thinking
        ((psutil.STATUS_SLEEPING, 0.25), 99.0, None),  # a thread computes and keeps Python's lock
        ((psutil.STATUS_SLEEPING, 0.0), 14.9, None),
        ((psutil.STATUS_DISK_SLEEP, 0.0), 15.0, "blocked"),
        (None, 99.0, None),  # there is no process: its nanny is about to say how it ended
    ],
    ids=str,
)
def test_who_is_lost(answer: object, silent: float, verdict: str | None) -> None:
    assert judge(answer, silent, 2.5, 15.0) == verdict


def test_patience_grows_with_the_interval_of_heartbeats() -> None:
    assert [Patience().give_up(interval) for interval in (0.5, 1.0, 2.0)] == [2.5, 4.0, 8.0]


# clients that leave

CLIENT = """
    import sys, time
    import pandas as pd, torch
    from distributed import Client
    import daskdl
    from daskdl.execution import ranks, spmd
    from daskdl.tracking.folder import set_root

    def loop(context):
        model = context.prepare(torch.nn.Linear(1, 1))
        for batch in context.batches:
            model(batch.x).mean().backward()
            time.sleep(0.01)
            if batch.step == 20 and context.rank == 0:
                print("training", flush=True)

    def endless():
        import torch.distributed as dist
        dist.barrier()
        print("training", flush=True)
        while True:
            dist.all_reduce(torch.ones(1))

    if __name__ == "__main__":
        set_root(sys.argv[2])
        client = Client(sys.argv[1])
        if sys.argv[3] == "train":
            frame = pd.DataFrame({"a": [float(i % 7) for i in range(90_000)], "y": [i % 2 for i in range(90_000)]})
            daskdl.train(loop, (frame[["a"]], frame.y), batch_size=3, epochs=9, verbose=0, num_workers=int(sys.argv[4]))
        else:
            spmd.run(endless, client=client)
"""


@pytest.mark.parametrize("what, ranks", [("train", 3), ("train", 1), ("spmd", 3)])
def test_a_client_that_is_killed_leaves_nothing_running(
    three: Client, tmp_path: Path, runs_root: Path, planted: pd.DataFrame, what: str, ranks: int
) -> None:
    three.wait_for_workers(3)
    script = tmp_path / "client.py"
    script.write_text(textwrap.dedent(CLIENT))
    given = [three.scheduler.address, str(runs_root), what, str(ranks)]
    process = subprocess.Popen([sys.executable, str(script), *given])
    try:
        assert wait_until(lambda: sum(answers(three, running)) == ranks, 60)
        time.sleep(1.0)
    finally:
        process.kill()
        process.wait()
    assert wait_until(lambda: not any(answers(three, running)) and not holders(three), 30)
    three.wait_for_workers(3, timeout=60)  # ranks that did not obey were ended with their processes
    assert not any(three.run(running).values())
    assert not any(three.run(held_by_process).values())
    if what == "train":
        [record] = three.run_on_scheduler(last_records)
        assert record["state"] == "failed" and "its client left the cluster" in record["error"]
    run = daskdl.train(linear, (planted[["a"]], planted.late), "", "", (), 0, num_workers=3, verbose=0).run
    assert run.state == "finished"


def answers(client: Client, function: Callable[[], int]) -> list[int]:
    """What the workers say that are there: a rank that does not obey is ended with its process meanwhile."""
    return [n for n in call_workers(client, function, workers=client.nthreads()).values() if isinstance(n, int)]


def running() -> int:
    return len(ranks._running)


def held_by_process() -> int:
    from daskdl.execution import rendezvous, words
    from daskdl.training import commit

    return len(rendezvous._stores) + len(words._words) + len(commit._commits)


def last_records(dask_scheduler: object) -> list[dict]:
    records = list(dask_scheduler.plugins["daskdl"].records.values())  # type: ignore[attr-defined]
    return [{"state": record.state, "error": record.error} for record in records[-1:]]


def test_a_client_that_comes_back_keeps_what_it_holds(three: Client) -> None:
    three.wait_for_workers(3)
    with Client(three.scheduler.address, set_as_default=False) as other:
        lock = spmd.Seats(other, "somebody")
        with lock:
            lock.take(spmd.choose_workers(other, 2))
            other.loop.add_callback(lambda: other.scheduler_comm.comm.abort())
            time.sleep(4.0)
            assert other.status == "running" and list(holders(three).values()) == ["somebody"] * 2
    assert wait_until(lambda: not holders(three), 5)


def test_what_is_remembered_is_bounded(three: Client) -> None:
    overseer = Overseer()
    for n in range(1000):
        overseer.log_event("all", {"action": "remove-worker", "worker": f"tcp://{n}", "expected": False})
    assert len(overseer.deaths) == 200 and not overseer._memory and not overseer._known
