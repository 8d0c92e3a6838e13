"""Run a training loop on a gang of workers, fed from a frame in the sample order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from distributed import Client, get_worker

from daskdl.data.batches import RankBatches
from daskdl.data.frame import Rows, encode_tensors, learn, owner_of_pieces, read_rows
from daskdl.data.order import SampleOrder
from daskdl.data.schema import Missing, Schema
from daskdl.data.target import Target
from daskdl.errors import DataError, RankFailed
from daskdl.execution import spmd
from daskdl.tracking.record import TOPIC
from daskdl.tracking.run import Run


@dataclass(frozen=True)
class Result:
    """What ``train`` returns.

    Attributes
    ----------
    value : object
        What the loop returned on rank 0, modules unwrapped and on the CPU.
    state : dict
        ``state_dict`` of the model and of everything given to ``Context.keep``, on the CPU.
    schema : Schema
    target : Target
    run : Run
    """

    value: Any
    state: dict[str, Any]
    schema: Schema
    target: Target
    run: Run


def current_client(client: Client | None = None) -> Client | None:
    """The client given, or the current one, or None where there is none."""
    if client is not None:
        return client
    try:
        return Client.current()
    except ValueError:
        return None


def train(
    loop: Callable[..., Any],
    data: Any,
    *args: Any,
    num_workers: int | None = None,
    batch_size: int = 1024,
    epochs: int = 1,
    seed: int = 0,
    classes: bool = True,
    missing: Missing = "impute",
    name: str | None = None,
    verbose: int = 1,
    client: Client | None = None,
) -> Result:
    """Run your own PyTorch training loop data-parallel on Dask workers.

    Rows are read into worker memory, encoded by a ``Schema`` and given out in the sample order: every global batch is
    the same set of rows for any number of workers.

    Parameters
    ----------
    loop : callable
        Called as ``loop(context, *args)`` in every rank. See ``Context``.
    data : tuple
        ``(X, y)``: a frame and a Series, or a frame and the name of its label column.
    *args
        Passed on to the loop.
    num_workers : int, optional
        Ranks; all workers by default.
    batch_size : int
        Rows per global batch, over all ranks together.
    epochs : int
    seed : int
        Decides the order of the rows and the random state of every rank.
    classes : bool
        Whether the label is a class (or a number to regress on).
    missing : {"impute", "indicator", "refuse"}
    name : str, optional
        Of the run.
    verbose : int
        0 shows nothing.
    client : distributed.Client, optional
        The current one by default. Without any, frames in memory are trained on in this process.

    Returns
    -------
    Result

    Raises
    ------
    DataError, NotEnoughWorkers
        Before anything is launched.
    RankFailed, LossDiverged
        While training.

    Examples
    --------
    >>> def loop(context):
    ...     model = context.prepare(torch.nn.Linear(context.schema.n_numbers, 1))
    ...     optimizer = torch.optim.Adam(model.parameters())
    ...     for batch in context.batches:
    ...         loss = bce(model(batch.x).squeeze(1), batch.y.float())
    ...         optimizer.zero_grad()
    ...         loss.backward()
    ...         optimizer.step()
    ...         context.report(loss=loss)
    >>> result = daskdl.train(loop, (df[features], df["late"]), num_workers=2, epochs=3)  # doctest: +SKIP
    """
    if not callable(loop):
        raise TypeError(f"loop must be a function that takes a Context, got {type(loop).__name__}")
    if not isinstance(data, tuple) or len(data) != 2:
        raise TypeError(f"data must be (X, y), got {type(data).__name__}; for example (df[features], df['label'])")
    client = current_client(client)
    rows = read_rows(*data, classes=classes, client=client)
    schema, target = learn(rows, getattr(data[1], "name", data[1]), classes=classes, missing=missing)
    job = Job(rows, schema, target, batch_size, epochs, seed, num_workers, client)
    params = {"batch_size": batch_size, "epochs": epochs, "missing": missing}
    with started(name or str(getattr(loop, "__name__", "loop")), "train", params, job, verbose) as run:
        value, state = job.run(loop, args, run)
    return Result(value, state, schema, target, run)


class Job:
    """A training that is ready to launch: rows looked at, order and workers settled, nothing running yet."""

    def __init__(
        self,
        rows: Rows,
        schema: Schema,
        target: Target,
        batch_size: int,
        epochs: int,
        seed: int,
        num_workers: int | None,
        client: Client | None,
    ) -> None:
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        if client is None and num_workers not in (None, 1):
            raise ValueError(
                f"num_workers={num_workers} needs a cluster, and there is no Dask client. Start one: daskdl.connect()."
            )
        self.client, self.schema, self.target, self.seed = client, schema, target, seed
        self.n_rows = rows.n_rows
        self.workers = self._choose(num_workers, min(batch_size, rows.n_rows))
        self.order = SampleOrder(rows.counts, batch_size, seed)
        self.epochs = epochs
        self._groups = [self.order.groups_of(r, self.world_size) for r in range(self.world_size)]
        owners = owner_of_pieces(rows.counts, self._groups)
        self._blocks = rows.encode(
            encode_tensors, schema, target, lambda i: [self.workers[owners[i]]] if self.workers else None
        )

    def _choose(self, num_workers: int | None, most: int) -> list[str]:
        """Workers of the gang; without a word of the user no more than there are rows in a batch."""
        if self.client is None:
            return []
        workers = spmd.choose_workers(self.client, num_workers)
        if num_workers is not None and num_workers > most:
            raise DataError(
                f"num_workers={num_workers} ranks cannot share batches of {most} rows: a rank would have none. Use "
                "fewer workers or a larger batch_size."
            )
        return workers[:most]

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return max(1, len(self.workers))

    @property
    def total_steps(self) -> int:
        """Global batches of the whole training."""
        return self.epochs * self.order.steps_per_epoch

    def run(
        self, loop: Callable[..., Any], args: tuple[Any, ...], run: Run, extra: list[list[Any]] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Launch the loop on all ranks; return what it returned on rank 0, and the state it kept.

        ``extra`` gives each rank further blocks (validation data), passed to the loop as a list after ``args``.
        """
        order = (self.order, self.epochs, self.schema, self.target, run.id)
        blocks = [{g: self._blocks[g] for g in groups} for groups in self._groups]
        rest = [(mine,) for mine in extra] if extra is not None else [()] * self.world_size
        if self.client is None:
            answers = [rank_main(loop, order, args, run.receive, blocks[0], *rest[0])]
        else:
            answers = unwrapped(
                spmd.run,
                rank_main,
                loop,
                order,
                args,
                None,
                rank_args=[(b, *r) for b, r in zip(blocks, rest, strict=True)],
                workers=self.workers,
                client=self.client,
            )
        self._blocks = []
        value, state, n_messages = answers[0]
        run.wait_for_messages(n_messages)
        return value, state


def unwrapped(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call, and raise daskdl's own errors of a rank as themselves: they say more than that a rank failed."""
    from daskdl.errors import DaskdlError

    try:
        return function(*args, **kwargs)
    except RankFailed as error:
        if isinstance(error.__cause__, DaskdlError):
            raise error.__cause__ from None
        raise


def rank_main(
    loop: Callable[..., Any],
    order: tuple[SampleOrder, int, Schema, Target, str],
    args: tuple[Any, ...],
    send: Callable[[dict[str, Any]], None] | None,
    blocks: dict[int, Any],
    *rest: Any,
) -> tuple[Any, dict[str, Any], int]:
    """What a rank does: make its context, run the loop, hand back rank 0's answer."""
    import torch
    import torch.distributed as dist

    from daskdl.training.context import Context

    rank, world_size = (dist.get_rank(), dist.get_world_size()) if send is None else (0, 1)
    sample_order, epochs, schema, target, run = order
    batches = RankBatches(sample_order, blocks, rank, world_size, epochs)
    with torch.random.fork_rng():
        torch.manual_seed(sample_order.seed * 1_000_003 + rank)
        context = Context(rank, world_size, batches, schema, target, run, send or log_event)
        value = loop(context, *args, *rest)
    if rank != 0:
        return None, {}, 0
    return plain_value(value), context.state(), context.n_messages


def plain_value(value: Any) -> Any:
    """A module without its data-parallel wrapper, on the CPU; anything else as it is."""
    from torch import nn

    if isinstance(value, nn.parallel.DistributedDataParallel):
        value = value.module
    return value.cpu() if isinstance(value, nn.Module) else value


def log_event(message: dict[str, Any]) -> None:
    """Send a message of a run from a worker."""
    get_worker().log_event(TOPIC, message)


@contextmanager
def started(name: str, algorithm: str, params: dict[str, Any], job: Any, verbose: int) -> Iterator[Run]:
    """Start a run, on the dashboard and in a live display; it ends with the block, however that ends."""
    from daskdl.display import live

    if job.client is not None:
        from daskdl import dashboard

        dashboard.install(job.client)
    run = Run.start(
        name,
        algorithm,
        params,
        seed=job.seed,
        total_steps=job.total_steps,
        num_workers=job.world_size,
        client=job.client,
    )
    began = time.perf_counter()
    with live(run, verbose=verbose), run:
        yield run
        run.event("note", f"{job.n_rows:,} rows, {time.perf_counter() - began:.1f} s")
