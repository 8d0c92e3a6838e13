"""A training of a network that is ready to launch, and what each of its ranks does."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from distributed import Client, get_worker

from daskdl.data.audit import order_to_bytes
from daskdl.data.batches import RankBatches, Transform
from daskdl.data.encoders import TensorEncoder
from daskdl.data.order import SampleOrder
from daskdl.data.reading import Reader, open_reader
from daskdl.data.rows import Rows
from daskdl.data.schema import Schema
from daskdl.data.schema.target import Target
from daskdl.data.shards import Sampling, Shards
from daskdl.data.virtual import VIRTUAL_RANKS, VirtualOrder
from daskdl.errors import CannotTravel
from daskdl.execution import spmd
from daskdl.execution.progress import end_progress
from daskdl.preflight.facts import facts_of_rows
from daskdl.preflight.findings import worth_saying
from daskdl.run import Run
from daskdl.tracking.logs import recording
from daskdl.tracking.record import TOPIC
from daskdl.training.checkpoints import Checkpoints
from daskdl.training.commit import Commit, deposited, forget_commit, put_commit
from daskdl.training.gangs import Answer, Gangs
from daskdl.training.ordering import make_order, most_ranks
from daskdl.training.randomness import random_state
from daskdl.training.resuming import Resumed, checkpoints_of
from daskdl.travel import Packed, pack

VALIDATION_ROWS = 8192  # per rank and forward pass

NumWorkers = int | tuple[int, int] | None


@dataclass(frozen=True)
class Feed:
    """What every rank is told of its data; each gets a reader besides.

    Attributes
    ----------
    order, validation_order : SampleOrder
    epochs : int
    """

    order: SampleOrder
    epochs: int
    schema: Schema
    target: Target
    run: str
    validation_order: SampleOrder | None = None
    transform: Transform | None = None
    checkpoints: Checkpoints | None = None


def weight_column(sampling: str | None) -> str | None:
    """Name of the column of weights that ``sampling`` asks for, if it does."""
    return None if sampling in (None, "balanced") else sampling


def check_sizes(epochs: int, batch_size: int) -> None:
    """Refuse a training of no epochs, or of batches without rows."""
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 row, got {batch_size}")


def rules_of(checkpoints: Checkpoints | str | None) -> Checkpoints:
    """Rules for checkpoints from what the user gave: a path stands for the default rules there."""
    if isinstance(checkpoints, Checkpoints):
        return checkpoints
    return Checkpoints(path=checkpoints)


def ranks_for(client: Client | None, num_workers: NumWorkers) -> list[str]:
    """Workers to begin with; none without a cluster, where there can be one rank only."""
    if client is not None:
        return spmd.choose_workers(client, num_workers)
    if spmd.span_of(num_workers)[0] > 1:
        raise ValueError(
            f"num_workers={num_workers} needs a cluster, and there is no Dask client. Start one: daskdl.connect()."
        )
    return []


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
        num_workers: NumWorkers,
        client: Client | None,
        validation: Rows | None = None,
        sampling: str | None = None,
        transform: Transform | None = None,
        checkpoints: Checkpoints | None = None,
        reproducible: bool | int = False,
        takes_one_row: bool = True,
    ) -> None:
        check_sizes(epochs, batch_size)
        self.client, self.schema, self.target, self.seed = client, schema, target, seed
        self.n_rows, self.notes, self.transform = rows.n_rows, rows.notes, transform
        self.num_workers, self.checkpoints = num_workers, checkpoints or Checkpoints()
        virtual = VIRTUAL_RANKS if reproducible is True else int(reproducible)
        picks = Sampling.of(rows, target, seed) if sampling else None
        counts, layout = picks.picks if picks else rows.counts, rows.layout(batch_size)
        self.order = make_order(counts, batch_size, seed, layout, virtual, takes_one_row)
        workers = ranks_for(client, num_workers)
        self.most = most_ranks(self.order, virtual, takes_one_row, num_workers)
        self.workers = workers[: self.most]
        self.facts = facts_of_rows(rows, self.workers, batch_size)
        self._digests = rows.source.fingerprint if rows.source is not None else [look.digest for look in rows.looks]
        self.epochs = epochs
        labels = None if rows.label_name is None else target
        encoder = TensorEncoder(schema, labels, rows.label_name, rows.weight_name, rows.extras)
        self._shards = [Shards(rows, encoder, self.order, epochs, self.workers, picks)]
        self._validation_order = None
        if validation is not None:
            size = min(validation.n_rows, VALIDATION_ROWS * self.world_size)
            self._validation_order = SampleOrder(validation.counts, size, seed, **validation.layout(size))
            encoder = TensorEncoder(schema, labels, validation.label_name, extras=validation.extras)
            self._shards.append(Shards(validation, encoder, self._validation_order, 0, self.workers))

    @property
    def world_size(self) -> int:
        """Number of ranks at the beginning."""
        return max(1, len(self.workers))

    @property
    def total_steps(self) -> int:
        """Global batches of the whole training."""
        return self.epochs * self.order.steps_per_epoch

    @property
    def fingerprint(self) -> str:
        """Of the rows, and of the order in which they are used."""
        return hashlib.sha256(order_to_bytes(self.order) + repr(self._digests).encode()).hexdigest()

    def run(self, loop: Callable[..., Any], args: tuple[Any, ...], run: Run, commit: Commit | None = None) -> Answer:
        """Run the loop in all ranks to its end; return what it returned on rank 0, and the state it kept.

        Parameters
        ----------
        commit : Commit, optional
            Where to begin.
        """
        run.remember_order(self.order)
        folder, rules = checkpoints_of(run, self.checkpoints, self.workers)
        about = (self.schema, self.target, run.id, self._validation_order, self.transform, rules)
        feed = Feed(self.order, self.epochs, *about)
        generation = 0
        with ExitStack() as stack:
            for shards in self._shards:
                shards.say = partial(run.event, "waiting")
                stack.enter_context(shards)
            if self.client is None:
                readers = (shards.readers([])[0] for shards in self._shards)
                stack.callback(forget_commit, run.id)
                answer = rank_main(loop, feed, args, run.receive, 0, commit, *readers)
            else:
                gangs = Gangs(self.client, run, self.workers, self.num_workers, self.most, folder)
                answer = gangs(rank_main, (loop, feed, args, None), self._readers, commit)
                generation = gangs.generation
        run.wait_for_messages(answer.n_messages, generation)
        answer = brought_home(answer)
        if answer.problem is not None:
            run.event("warning", f"{answer.problem} The state it kept is here.")
        return answer

    def _readers(self, workers: list[str]) -> list[tuple[Any, ...]]:
        return list(zip(*(shards.readers(workers) for shards in self._shards), strict=True))


def rank_main(
    loop: Callable[..., Any],
    feed: Feed,
    args: tuple[Any, ...],
    send: Callable[[dict[str, Any]], None] | None,
    generation: int,
    commit: Commit | None,
    *readers: Reader,
) -> Answer:
    """What a rank does: make its context, run the loop (from a commit if there is one), hand back rank 0's answer."""
    import torch
    import torch.distributed as dist

    from daskdl.training.context import Context, Regrouping

    in_worker = send is None
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if in_worker else (0, 1)
    recorded = recording(get_worker(), feed.run, rank) if send is None else nullcontext()
    alone = deposited(feed.run, get_worker()) if send is None and world_size == 1 else nullcontext()
    send = send or partial(get_worker().log_event, TOPIC)  # here, as threads of a task do not know their worker
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
    seed = feed.order.seed * 1_000_003 + rank
    with recorded, alone, random_state(seed):
        if commit is not None and commit.step:
            put_commit(feed.run, commit)
        if isinstance(feed.order, VirtualOrder):
            torch.set_num_threads(1)  # sums depend on how many threads share them; the gang puts back what was
        about = (feed.schema, feed.target, feed.run, generation, send, commit, feed.checkpoints)
        context = Context(rank, world_size, batches, *about)
        try:
            value, word = loop(context, *args), context.stopped_by
        except Regrouping:
            value, word = None, "regroup"
        except BaseException as error:
            error.add_note(f"in rank {rank}, in step {max(0, context.step - 1):,} of {context.total_steps:,}")
            context.close(failed=True)
            raise
        finally:
            end_progress(feed.run)
        context.close()
    if rank != 0:
        return Answer(word=word)
    answer = Answer(plain_value(value), context.state(), context.report_to.sent, word)
    return packed_up(answer) if in_worker else answer


def packed_up(answer: Answer) -> Answer:
    """Pack the value by itself: whatever it is, what was learned must get home."""
    try:
        return replace(answer, value=pack(answer.value, "what the loop returned", "back"))
    except CannotTravel as error:
        return replace(answer, value=None, problem=str(error))


def brought_home(answer: Answer) -> Answer:
    """Open the value of an answer."""
    try:
        return replace(answer, value=answer.value.open(home=True)) if isinstance(answer.value, Packed) else answer
    except Exception as error:  # of any class: it is the user's own objects
        why = f"what the loop returned cannot be made again in this process: {type(error).__name__}: {error}."
        return replace(answer, value=None, problem=why)


def plain_value(value: Any) -> Any:
    """What a loop returned with its modules on the CPU."""
    from torch import nn

    if isinstance(value, nn.Module):
        return value.cpu()
    if type(value) in (list, tuple):
        return type(value)(plain_value(one) for one in value)
    if type(value) is dict:
        return {key: plain_value(one) for key, one in value.items()}
    return value


@contextmanager
def started(
    name: str, algorithm: str, params: dict[str, Any], job: Any, verbose: int, resumed: Resumed | None = None
) -> Iterator[Run]:
    """Start a run, on the dashboard and in a live display; it ends with the block, however that ends.

    A run that was asked to stop ends as stopped; if an interrupt of the cell asked, that is raised at the end.
    """
    from daskdl.display import live

    if resumed is not None:
        resumed.check(job.fingerprint)
        params = {**params, "resumed": resumed.run.id}
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
        if resumed is not None:
            resumed.tell(run)
        for note in job.notes:
            run.event("note", note)
        _say_findings(run, job, verbose)
        yield run
        run.event("note", f"{job.n_rows:,} rows, {time.perf_counter() - began:.1f} s")
        if run.asked_to_stop:
            run.finish("stopped", f"stopped at step {run.record.step:,}: {run.asked_to_stop}")
    if run.asked_to_stop == INTERRUPTED:
        raise KeyboardInterrupt


INTERRUPTED = "interrupted"


def _say_findings(run: Run, job: Any, verbose: int) -> None:
    """Record what is worth saying of the data and the workers; it is known already, so nothing is computed."""
    for finding in worth_saying(job.facts):
        run.event("check", finding.line)
        if verbose > 0:
            print(finding.line)
