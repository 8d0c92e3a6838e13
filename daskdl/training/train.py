"""Run a training loop on a gang of workers, fed from a frame in the sample order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from distributed import Client, get_worker

from daskdl.data.batches import RankBatches, Transform
from daskdl.data.encoders import TensorEncoder
from daskdl.data.order import SampleOrder
from daskdl.data.reading import Reader, open_reader
from daskdl.data.rows import Rows, learn, read_rows
from daskdl.data.schema import Kinds, Missing, Schema
from daskdl.data.schema.target import Target
from daskdl.data.shards import Sampling, Shards
from daskdl.errors import DataError, NotEnoughWorkers, RankFailed, WorkerLost
from daskdl.execution import spmd
from daskdl.execution.calls import call_workers
from daskdl.preflight.facts import facts_of_rows
from daskdl.preflight.findings import worth_saying
from daskdl.tracking.record import TOPIC
from daskdl.tracking.run import Run
from daskdl.training.commit import Commit, commit_step, forget_commit, take_commit

VALIDATION_ROWS = 8192  # per rank and forward pass


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
    sampling: str | None = None,
    kinds: Kinds | None = None,
    batch_transform: Transform | None = None,
    name: str | None = None,
    verbose: int = 1,
    client: Client | None = None,
) -> Result:
    """Run your own PyTorch training loop data-parallel on Dask workers.

    Rows of a frame are read into worker memory, those of a source are read from its files while training. They are
    encoded by a ``Schema`` and given out in the sample order: every global batch is the same set of rows for any number
    of workers.

    Parameters
    ----------
    loop : callable
        Called as ``loop(context, *args)`` in every rank. See ``Context``.
    data : tuple
        ``(X, y)``: a frame and a Series, or a frame or a source such as ``daskdl.ParquetSource`` and the name of its
        label column.
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
    sampling : str, optional
        ``"balanced"``: rows are used so that all classes come up alike. The name of a column: in proportion to its
        values; it is no feature. By default every row is used once per epoch.
    kinds : dict, optional
        How columns are read where it is not to be found out; see ``Schema.learn``.
    batch_transform : callable, optional
        ``batch_transform(arrays, keys)`` on every training batch, in the background of the ranks; see ``RankBatches``.
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
    rows = read_rows(*data, classes=classes, client=client, weight=weight_column(sampling), kinds=kinds)
    schema, target = learn(rows, getattr(data[1], "name", data[1]), classes=classes, missing=missing, kinds=kinds)
    job = Job(
        rows,
        schema,
        target,
        batch_size,
        epochs,
        seed,
        num_workers,
        client,
        sampling=sampling,
        transform=batch_transform,
    )
    params = {"batch_size": batch_size, "epochs": epochs, "missing": missing}
    with started(name or str(getattr(loop, "__name__", "loop")), "train", params, job, verbose) as run:
        value, state = job.run(loop, args, run)
    return Result(value, state, schema, target, run)


@dataclass(frozen=True)
class Feed:
    """What every rank is told of its data; each gets a reader besides.

    Attributes
    ----------
    order, validation_order : SampleOrder
    epochs : int
    generation : int
        Gangs of the run before this one.
    """

    order: SampleOrder
    epochs: int
    schema: Schema
    target: Target
    run: str
    validation_order: SampleOrder | None = None
    transform: Transform | None = None
    generation: int = 0


def weight_column(sampling: str | None) -> str | None:
    """Name of the column of weights that ``sampling`` asks for, if it does."""
    return None if sampling in (None, "balanced") else sampling


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
        validation: Rows | None = None,
        sampling: str | None = None,
        transform: Transform | None = None,
    ) -> None:
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        if client is None and num_workers not in (None, 1):
            raise ValueError(
                f"num_workers={num_workers} needs a cluster, and there is no Dask client. Start one: daskdl.connect()."
            )
        self.client, self.schema, self.target, self.seed = client, schema, target, seed
        self.n_rows, self.notes, self.transform = rows.n_rows, rows.notes, transform
        self.workers = self._choose(num_workers, min(batch_size, rows.n_rows))
        self.facts = facts_of_rows(rows, self.workers, batch_size)
        picks = Sampling.of(rows, target, seed) if sampling else None
        counts = picks.picks if picks else rows.counts
        self.order = SampleOrder(counts, batch_size, seed, **rows.layout(batch_size))
        self.epochs = epochs
        encoder = TensorEncoder(schema, target, rows.label_name, rows.weight_name)
        self._shards = [Shards(rows, encoder, self.order, epochs, self.workers, picks)]
        self._validation_order = None
        if validation is not None:
            size = min(validation.n_rows, VALIDATION_ROWS * self.world_size)
            self._validation_order = SampleOrder(validation.counts, size, seed, **validation.layout(size))
            encoder = TensorEncoder(schema, target, validation.label_name)
            self._shards.append(Shards(validation, encoder, self._validation_order, 0, self.workers))

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

    def run(self, loop: Callable[..., Any], args: tuple[Any, ...], run: Run) -> tuple[Any, dict[str, Any]]:
        """Launch the loop on all ranks; return what it returned on rank 0, and the state it kept.

        When a worker dies, the others go on from the last commit that one of them has.
        """
        run.remember_order(self.order)
        feed = Feed(self.order, self.epochs, self.schema, self.target, run.id, self._validation_order, self.transform)
        with ExitStack() as stack:
            for shards in self._shards:
                stack.enter_context(shards)
            if self.client is None:
                answers = [rank_main(loop, feed, args, run.receive, None, *(s.readers([])[0] for s in self._shards))]
            else:
                stack.callback(self._forget_commits, run.id)
                feed, answers = self._run_gangs(loop, feed, args, run)
        value, state, n_messages = answers[0]
        run.wait_for_messages(n_messages, feed.generation)
        return value, state

    def _run_gangs(self, loop: Callable[..., Any], feed: Feed, args: tuple[Any, ...], run: Run) -> tuple[Feed, Any]:
        """Run gang after gang until one comes to the end."""
        commit: Any = None
        while True:
            try:
                readers = [shards.readers(self.workers) for shards in self._shards]
                return feed, unwrapped(
                    spmd.run,
                    rank_main,
                    loop,
                    feed,
                    args,
                    None,
                    commit,
                    rank_args=list(zip(*readers, strict=True)),
                    workers=self.workers,
                    client=self.client,
                )
            except (WorkerLost, NotEnoughWorkers) as lost:
                commit = self._recover(lost, run)
                feed = replace(feed, generation=feed.generation + 1)

    def _recover(self, lost: Exception, run: Run) -> Any:
        """Settle with which workers to go on, and from which commit: that of a survivor, as all have the same."""
        assert self.client is not None
        alive = self.client.scheduler_info(n_workers=-1)["workers"]
        gone = [worker for worker in self.workers if worker not in alive]
        self.workers = [worker for worker in self.workers if worker in alive]
        if not gone or not self.workers:
            raise lost
        steps = call_workers(self.client, commit_step, run.id, workers=self.workers)
        holder = max(steps, key=lambda worker: steps[worker], default=self.workers[0])
        step = steps.get(holder, 0)
        run.event(
            "worker_lost",
            f"{', '.join(gone)} left the cluster. Training goes on with {len(self.workers)} of "
            f"{len(self.workers) + len(gone)} ranks, from step {step}: steps after it are done again.",
            step,
        )
        return self.client.submit(take_commit, run.id, workers=[holder], allow_other_workers=False, pure=False)

    def _forget_commits(self, run: str) -> None:
        assert self.client is not None
        call_workers(self.client, forget_commit, run, workers=self.workers)


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
    feed: Feed,
    args: tuple[Any, ...],
    send: Callable[[dict[str, Any]], None] | None,
    commit: Commit | None,
    *readers: Reader,
) -> tuple[Any, dict[str, Any], int]:
    """What a rank does: make its context, run the loop (from a commit if there is one), hand back rank 0's answer."""
    import torch
    import torch.distributed as dist

    from daskdl.training.context import Context

    rank, world_size = (dist.get_rank(), dist.get_world_size()) if send is None else (0, 1)
    orders = (feed.order, feed.validation_order)
    batches = [
        RankBatches(
            order, open_reader(reader), rank, world_size, epochs, finish=feed.schema.finish, transform=transform
        )
        for order, reader, epochs, transform in zip(
            orders, readers, (feed.epochs, 1), (feed.transform, None), strict=False
        )
        if order is not None
    ]
    with torch.random.fork_rng():
        torch.manual_seed(feed.order.seed * 1_000_003 + rank)
        about = (feed.schema, feed.target, feed.run, feed.generation)
        context = Context(rank, world_size, batches, *about, send or log_event, commit)
        value = loop(context, *args)
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
        for note in job.notes:
            run.event("note", note)
        _say_findings(run, job, verbose)
        yield run
        run.event("note", f"{job.n_rows:,} rows, {time.perf_counter() - began:.1f} s")


def _say_findings(run: Run, job: Any, verbose: int) -> None:
    """Record what is worth saying of the data and the workers; it is known already, so nothing is computed."""
    for finding in worth_saying(job.facts):
        run.event("check", finding.line)
        if verbose > 0:
            print(finding.line)
