"""The gang: one rank per worker, start together, fail together. Real processes, real kills."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from typing import Any

import pytest
from distributed import Client, LocalCluster

from daskdl.errors import NotEnoughWorkers, RankFailed, WorkerLost
from daskdl.execution import ranks, spmd
from daskdl.execution.interrupts import held_interrupts


def rank_and_sum() -> tuple[int, int, float]:
    import torch
    import torch.distributed as dist

    total = torch.tensor([float(dist.get_rank() + 1)])
    dist.all_reduce(total)
    return dist.get_rank(), dist.get_world_size(), total.item()


def all_reduce_for_ever() -> None:
    import torch
    import torch.distributed as dist

    while True:
        dist.all_reduce(torch.ones(1))


def fail_on(rank: int, wait: float = 0.0) -> None:
    import torch.distributed as dist

    dist.barrier()
    if dist.get_rank() == rank:
        time.sleep(wait)
        raise ZeroDivisionError(f"on purpose, in rank {rank}")
    all_reduce_for_ever()


def kill_on(rank: int) -> None:
    import torch.distributed as dist

    dist.barrier()
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    all_reduce_for_ever()


def test_all_ranks_run_at_once_and_answer_in_order(client: Client) -> None:
    assert spmd.run(rank_and_sum, client=client) == [(0, 2, 3.0), (1, 2, 3.0)]


def test_ranks_get_their_own_arguments_and_futures_as_results(client: Client) -> None:
    future = client.submit(lambda: 41)
    answers = spmd.run(lambda a, b, c: (a, b, c), future, rank_args=[("x", 1), ("y", 2)], client=client)
    assert answers == [(41, "x", 1), (41, "y", 2)]


def test_one_rank_is_a_gang(client: Client) -> None:
    assert spmd.run(rank_and_sum, num_workers=1, client=client) == [(0, 1, 1.0)]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_failing_rank_is_the_one_that_is_seen(client: Client, rank: int) -> None:
    with pytest.raises(RankFailed, match=rf"rank {rank} of 2 on tcp://.* failed: ZeroDivisionError: on purpose") as e:
        spmd.run(fail_on, rank, 0.2, client=client)
    assert e.value.rank == rank
    assert isinstance(e.value.__cause__, ZeroDivisionError)
    frames = []
    traceback = e.value.__cause__.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert "fail_on" in frames  # the user sees the line of his own function


def test_a_killed_worker_is_named_and_the_cluster_works_on(client: Client) -> None:
    with pytest.raises(WorkerLost, match="rank 1 of 2 is lost: its worker tcp://"):
        spmd.run(kill_on, 1, client=client)
    client.wait_for_workers(2)
    assert len(spmd.run(rank_and_sum, client=client)) == 2


def test_a_worker_that_died_before_is_not_waited_for(client: Client) -> None:
    workers = [*spmd.choose_workers(client, 1), "tcp://127.0.0.1:1"]
    with pytest.raises(
        NotEnoughWorkers, match="1 of the 2 workers asked for are not in the cluster: tcp://127.0.0.1:1"
    ):
        spmd.run(rank_and_sum, workers=workers, client=client)


def test_gangs_that_share_workers_do_not_interleave(client: Client) -> None:
    answers: list = []
    threads = [threading.Thread(target=lambda: answers.append(spmd.run(rank_and_sum, client=client))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert answers == [[(0, 2, 3.0), (1, 2, 3.0)]] * 4


def test_more_ranks_than_workers_is_refused_with_the_numbers(client: Client) -> None:
    with pytest.raises(NotEnoughWorkers, match=r"num_workers=5 asked for, but the cluster at tcp://.* has 2"):
        spmd.run(rank_and_sum, num_workers=5, client=client)
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        spmd.run(rank_and_sum, num_workers=0, client=client)


def test_workers_that_share_a_process_hold_one_rank() -> None:
    with (
        LocalCluster(n_workers=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as threads,
    ):
        assert spmd.run(rank_and_sum, client=threads) == [(0, 1, 1.0)]
        with pytest.raises(NotEnoughWorkers, match=r"has 1 process \(processes=False\), and a process holds one rank"):
            spmd.run(rank_and_sum, num_workers=2, client=threads)


def test_nothing_is_left_behind(client: Client) -> None:
    def inventory() -> dict:
        return client.run(_inventory)

    spmd.run(rank_and_sum, client=client)
    before = inventory()
    for _ in range(3):
        spmd.run(rank_and_sum, client=client)
    with pytest.raises(RankFailed):
        spmd.run(fail_on, 0, client=client)
    assert inventory() == before
    assert not any(client.processing().values())


def _inventory() -> tuple:
    """Environment, stores and process groups of a worker, and its sockets."""
    import torch
    import torch.distributed as dist

    from daskdl.execution import rendezvous

    return (
        sorted(os.environ),
        len(rendezvous._stores),
        len(rendezvous._sockets),
        dist.is_initialized(),
        torch.get_num_threads(),
        sorted(ranks._stopping),
    )


def data_parallel_step() -> float:
    import torch

    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    model(torch.ones(2, 4)).mean().backward()
    return float(model.module.weight.grad.sum())


def test_gangs_with_data_parallel_models_end_every_time(client: Client) -> None:
    """The model outlives the process group by a moment, in which torch's destructors can block each other."""
    for _ in range(30):
        assert spmd.run(data_parallel_step, client=client) == [pytest.approx(4.0)] * 2


def test_an_error_that_cannot_be_pickled_still_says_what_it_was(client: Client) -> None:
    def fail() -> None:
        class Odd(Exception):
            def __init__(self, a: int, b: int) -> None:
                super().__init__(f"{a} and {b}")

        raise Odd(1, 2)

    with pytest.raises(RankFailed, match="1 and 2"):
        spmd.run(fail, num_workers=1, client=client)


def test_the_gang_listens_on_the_address_of_its_workers_only(client: Client) -> None:
    def listening() -> list[str]:
        import psutil

        return [c.laddr.ip for c in psutil.Process().net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN]

    assert {ip for ips in spmd.run(listening, client=client) for ip in ips} == {"127.0.0.1"}


class Deadly:
    """Ends the process that wants to send it."""

    def __reduce__(self) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""


def last_words() -> Any:
    import torch.distributed as dist

    return Deadly() if dist.get_rank() == 1 else None


def test_a_worker_that_is_lost_before_its_answer_was_fetched(client: Client) -> None:
    with pytest.raises(WorkerLost, match="rank 1 of 2"):
        spmd.run(last_words, client=client)
    client.wait_for_workers(2)
    assert len(spmd.run(rank_and_sum, client=client)) == 2


@pytest.mark.filterwarnings("ignore:.*drop:pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_is_heeded(client: Client) -> None:
    dropped: list[str] = []

    def drop(phase: str, info: object) -> None:
        if not dropped:
            dropped.append(phase)
            signal.raise_signal(signal.SIGINT)

    def collect() -> None:
        gc.callbacks.append(drop)
        gc.collect()

    usual = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            spmd.run(all_reduce_for_ever, client=client, watch=collect)
    finally:
        gc.callbacks.remove(drop)
    assert dropped == ["start"] and signal.getsignal(signal.SIGINT) is usual
    assert len(spmd.run(rank_and_sum, client=client)) == 2


def test_an_interrupt_is_held_back_to_the_end_of_a_block() -> None:
    usual, reached = signal.getsignal(signal.SIGINT), []

    @held_interrupts()
    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached and signal.getsignal(signal.SIGINT) is usual
