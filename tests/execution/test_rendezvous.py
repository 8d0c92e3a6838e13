"""Waking a rank that waits in a collective: which groups are aborted, and on GPUs that a new gang works after it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from distributed import Client, LocalCluster

from daskdl.errors import RankFailed
from daskdl.execution import rendezvous, spmd


def backends_for_gpus() -> tuple[list[str], int]:
    """What the groups of a gang have for GPUs, and how much of it would be aborted as NCCL's."""
    import torch
    import torch.distributed as dist

    dist.new_group(backend="cpu:gloo")  # the user's, with nothing for GPUs
    named = []
    for group in dist.distributed_c10d._world.pg_map:
        with suppress(RuntimeError):
            named.append(group._get_backend(torch.device("cuda")).name())
    return named, len(rendezvous.nccl_backends())


@pytest.mark.cluster
def test_groups_of_gloo_are_not_aborted_as_those_of_nccl_are(client: Client) -> None:
    assert spmd.run(backends_for_gpus, backend="gloo", client=client) == [(["gloo", "gloo"], 0)] * 2


def test_a_gang_that_is_not_of_this_process_is_not_aborted() -> None:
    assert rendezvous.abort("of another process") == 0
    assert rendezvous._aborting == {}


def settings_of_nccl() -> list[str | None]:
    return [os.environ.get(name) for name in rendezvous._NCCL_ERRORS_ARE_OURS]


@pytest.mark.cluster
def test_a_gang_of_gloo_leaves_the_settings_of_nccl_alone(client: Client) -> None:
    assert spmd.run(settings_of_nccl, backend="gloo", client=client) == [[None] * 3] * 2


# -- on GPUs: not run so far, see docs/gpu.md ----------------------------------------------------------------------


def gpus() -> int:
    import torch

    return torch.cuda.device_count()


def sum_on_gpu() -> float:
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(dist.get_rank())
    total = torch.ones(1, device="cuda")
    dist.all_reduce(total)
    return total.item()


def wait_for_a_rank(what: str) -> None:
    """Rank 0 waits in an all-reduce of NCCL, and in one of another group, for rank 1, which fails or hangs instead."""
    import torch
    import torch.distributed as dist

    sum_on_gpu()
    other = dist.new_group(backend="nccl")
    dist.all_reduce(torch.ones(1, device="cuda"), group=other)
    torch.cuda.synchronize()
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1, device="cuda"))
        dist.all_reduce(torch.ones(1, device="cuda"), group=other)
        torch.cuda.synchronize()
        dist.all_reduce(torch.ones(1, device="cuda"))  # or the rank would return what the aborted ones left
    elif what == "dies":
        os._exit(1)
    time.sleep(1)
    raise ZeroDivisionError("on purpose")


def abort_own_gang() -> str:
    import torch
    import torch.distributed as dist

    assert sum_on_gpu() == 1
    (gang,) = rendezvous._sockets
    rendezvous.abort(gang)
    for thread in rendezvous._aborting[gang]:
        thread.join()
    with pytest.raises(RuntimeError, match="abort"):
        dist.all_reduce(torch.ones(1, device="cuda"))
    return settings_of_nccl()[0] or ""


@pytest.fixture
def two_with_gpus() -> Iterator[Client]:
    """Two worker processes that see all GPUs."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        yield client


@pytest.mark.gpu
@pytest.mark.cluster
@pytest.mark.skipif("gpus() < 1")
def test_one_rank_aborts_nccl_and_makes_a_new_group_in_its_process(two_with_gpus: Client) -> None:
    workers = sorted(two_with_gpus.scheduler_info()["workers"])[:1]
    for _ in range(3):
        assert spmd.run(abort_own_gang, workers=workers, backend="nccl", client=two_with_gpus) == ["0"]
    assert spmd.run(sum_on_gpu, workers=workers, backend="nccl", client=two_with_gpus) == [1.0]


@pytest.mark.gpu
@pytest.mark.cluster
@pytest.mark.skipif("gpus() < 2")  # NCCL takes one rank a GPU
@pytest.mark.parametrize("what", ["fails", "dies"])
def test_a_rank_that_waits_in_nccl_is_woken_and_its_process_is_used_again(two_with_gpus: Client, what: str) -> None:
    before = two_with_gpus.run(os.getpid)
    with pytest.raises(RankFailed, match="on purpose" if what == "fails" else "is lost"):
        spmd.run(wait_for_a_rank, what, backend="nccl", client=two_with_gpus)
    first = min(before)
    assert two_with_gpus.run(os.getpid)[first] == before[first], "the survivor's process was ended"
    two_with_gpus.wait_for_workers(2)
    assert spmd.run(sum_on_gpu, backend="nccl", client=two_with_gpus) == [2.0, 2.0]
