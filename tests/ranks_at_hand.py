"""Processes that are ranks of small gangs without a cluster: a context in each, on rows of memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle
import numpy as np

HOST = "127.0.0.1"
SECONDS = 60.0


class RanksAtHand:
    """Runs ``loop(context, *args)`` on 1 to 3 ranks, each in a process that stays."""

    def __init__(self, most: int = 3) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for _ in range(most):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        self._runs = 0

    def __call__(
        self, world_size: int, loop: Callable[..., Any], arrays: dict[str, np.ndarray], *args: Any, **options: Any
    ) -> list[Any]:
        """What each rank returned. An error of a rank is raised here.

        ``options``: ``batch_size``, ``epochs``, ``virtual`` (ranks), ``commit``.
        """
        from daskdl.execution import rendezvous

        self._runs += 1
        gang = f"hand-{self._runs}"
        port = rendezvous.serve_store(gang, HOST)
        task = cloudpickle.dumps((loop, arrays, args, options))
        for rank in range(world_size):
            self._pipes[rank].send((gang, port, rank, world_size, task))
        found = [self._answer(rank) for rank in range(world_size)]
        rendezvous.close_store(gang)
        errors = [one for one in found if isinstance(one, Exception)]
        if errors:
            raise min(errors, key=lambda error: "closed" in str(error) or "reset" in str(error))
        return found

    def _answer(self, rank: int) -> Any:
        if not self._pipes[rank].poll(SECONDS):
            raise TimeoutError(f"rank {rank} has not answered for {SECONDS:.0f} s")
        return cloudpickle.loads(self._pipes[rank].recv())

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()


@contextmanager
def ranks_at_hand() -> Iterator[RanksAtHand]:
    """Three processes for a block."""
    ranks = RanksAtHand()
    try:
        yield ranks
    finally:
        ranks.close()


def _serve(pipe: Any) -> None:
    import torch

    torch.set_num_threads(1)
    while True:
        gang, port, rank, world_size, task = pipe.recv()  # fails, and ends the process, when the other side is gone
        try:
            found = _one(gang, port, rank, world_size, *cloudpickle.loads(task))
        except BaseException as error:
            error.__traceback__ = None
            found = error
        try:
            answer = cloudpickle.dumps(found)
        except Exception:
            answer = cloudpickle.dumps(RuntimeError(f"{type(found).__name__}: {found}"))
        pipe.send(answer)


def _one(gang: str, port: int, rank: int, world_size: int, loop: Any, arrays: Any, args: Any, options: Any) -> Any:
    from daskdl.execution import rendezvous
    from daskdl.training.commit import forget_commit, put_commit

    store = rendezvous.connect_store(HOST, port)
    with rendezvous.process_group(gang, store, "gloo", rank, world_size, HOST):
        if (commit := options.get("commit")) is not None:
            put_commit(gang, commit)
        context = context_of(gang, rank, world_size, arrays, **options)
        try:
            return loop(context, *args)
        except BaseException:
            rendezvous.abort(gang)
            raise
        finally:
            context.close(failed=True)
            forget_commit(gang)


def order_of(arrays: dict[str, np.ndarray], batch_size: int = 12, virtual: int = 0, seed: int = 0) -> Any:
    """The order of rows in memory."""
    from daskdl.data.order import SampleOrder
    from daskdl.data.virtual import VirtualOrder

    n = len(arrays["y"])
    counts = [n // 2, n - n // 2]
    if virtual:
        return VirtualOrder(counts, batch_size, seed, virtual_ranks=virtual)
    return SampleOrder(counts, batch_size, seed)


def context_of(
    run: str,
    rank: int,
    world_size: int,
    arrays: dict[str, np.ndarray],
    batch_size: int = 12,
    epochs: int = 2,
    virtual: int = 0,
    commit: Any = None,
) -> Any:
    """A context over rows in memory; what it would send is kept in ``context.said``."""
    from daskdl.data.batches import RankBatches
    from daskdl.data.reading import Blocks
    from daskdl.training.context import Context

    half = len(arrays["y"]) // 2
    blocks = {0: {k: v[:half] for k, v in arrays.items()}, 1: {k: v[half:] for k, v in arrays.items()}}
    batches = RankBatches(order_of(arrays, batch_size, virtual), Blocks(blocks), rank, world_size, epochs)
    said: list[dict[str, Any]] = []
    nothing: Any = None
    context = Context(rank, world_size, [batches], nothing, nothing, run, 0, said.append, commit)
    context.said = said  # type: ignore[attr-defined]
    return context
