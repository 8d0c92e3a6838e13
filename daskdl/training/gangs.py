"""Gang after gang of one run: the next one goes on from the last commit, with the workers there are."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import psutil
from distributed import Client

from daskdl.errors import DaskdlError, NotEnoughWorkers, RankFailed, WorkerLost
from daskdl.execution import spmd
from daskdl.execution.calls import call_workers
from daskdl.execution.depositor import Deposited
from daskdl.execution.holders import deposits_of, drop_deposits
from daskdl.execution.obituary import report
from daskdl.execution.overseer import deaths_of, explained, watched
from daskdl.execution.ranks import steps_begun
from daskdl.execution.seats import Seats
from daskdl.execution.words import REGROUP, STOP, put_word, take_word
from daskdl.run import Run
from daskdl.tracking.logs import take_lines
from daskdl.training.checkpoints import CheckpointFolder
from daskdl.training.commit import Commit, bring_commit, commit_step, forget_commit, take_commit
from daskdl.training.stuck import Stuck
from daskdl.workers import again_if_lost, workers_of

WAIT_SECONDS = 120.0  # for workers to come back when there are fewer than the user's fewest
LOSSES_IN_PLACE = 3  # without a new commit between them: it is the training that kills
LOOK_SECONDS = 0.5  # between two looks at who has joined
INTERRUPT_SECONDS = 10.0  # that ranks have to come to the end of their step


@dataclass
class Answer:
    """What a rank hands back when it leaves its gang.

    Attributes
    ----------
    value : object
        Of rank 0: ``Packed``, if it is in another process.
    problem : str or None
        Why the value could not be brought home; the state has what was learned.
    state : dict
        Of rank 0: what was kept, on the CPU.
    n_messages : int
        Sent by this rank.
    word : str or None
        Why it left before the end: ``REGROUP`` or ``STOP``.
    """

    value: Any = None
    state: dict[str, Any] = field(default_factory=dict)
    n_messages: int = 0
    word: str | None = None
    problem: str | None = None


class Gangs:
    """Runs a function on the workers of a run until it has come to its end, whatever happens to workers.

    A worker that is lost costs the steps since the last commit, which every rank has in its process: the others go on
    from it. That of a rank that was alone is brought from who holds it. One that joins is taken in at the end of a
    step, if the run wants more. When nobody is left, the newest checkpoint is where it goes on.

    Parameters
    ----------
    client : distributed.Client
    run : Run
    workers : sequence of str
        Of the first gang.
    num_workers : int, (int, int) or None
        What the user asked for: a number may shrink to one and grows back; a pair is the fewest and the most.
    most : int
        Ranks that the data can feed.
    checkpoints : CheckpointFolder, optional
        Where the ranks write their commits.
    """

    def __init__(
        self,
        client: Client,
        run: Run,
        workers: Sequence[str],
        num_workers: int | tuple[int, int] | None,
        most: int,
        checkpoints: CheckpointFolder | None = None,
    ) -> None:
        self.client, self.run, self.workers, self.checkpoints = client, run, list(workers), checkpoints
        fewest, wanted = spmd.span_of(num_workers)
        self.fewest = fewest if isinstance(num_workers, tuple) else 1
        self.most = min(most, wanted or len(workers))
        self.generation = 0
        self._stuck = Stuck(client, run)
        self._losses = (-1, 0)  # step of the commit, and losses since it was made
        self._newcomers: list[str] = []
        self._greeting: threading.Thread | None = None
        self._looked_at = self._interrupted_at = 0.0
        self._told_to_stop = False
        self._began = 0  # step at which this gang did
        self._deposited = False  # whether a rank was alone, so another process may hold a commit
        self._reports: list[threading.Thread] = []

    def __call__(
        self,
        function: Callable[..., Answer],
        args: tuple[Any, ...],
        rank_args: Callable[[list[str]], Sequence[tuple[Any, ...]]],
        commit: Commit | None = None,
    ) -> Answer:
        """Call ``function(*args, generation, commit, *rank_args)`` in every rank; return what rank 0 answered.

        Parameters
        ----------
        rank_args : callable
            Lays what the ranks need on their workers: called with the addresses of each new gang.
        commit : Commit, optional
            Where the first gang begins.
        """
        self._began = commit.step if commit is not None else 0
        now = self._given(commit)
        with (
            watched(self.client, self.run.id, partial(_forget, self.run.id)),
            Seats(self.client, self.run.id) as self._seats,
        ):
            self._seats.take(self.workers, lambda text: self.run.event("waiting", text))
            try:
                while True:
                    try:
                        answer = self._gang(function, (*args, self.generation, now), rank_args)
                        if answer.word != REGROUP:
                            return answer
                        now = self._regroup()
                    except (WorkerLost, NotEnoughWorkers) as lost:
                        now = self._recover(lost)
                    self.generation += 1
            finally:
                for thread in self._reports:
                    thread.join()
                if self._greeting is not None:
                    self._greeting.join()
                said = call_workers(self.client, take_lines, self.run.id, workers=self.workers)
                self.run.keep_lines([line for lines in said.values() if isinstance(lines, list) for line in lines])
                call_workers(self.client, _forget, self.run.id, workers=self.workers)

    def _gang(self, function: Callable[..., Answer], args: tuple[Any, ...], rank_args: Any) -> Answer:
        self._deposited |= len(self.workers) == 1
        answers: list[Answer] = unwrapped(
            spmd.run,
            function,
            *args,
            rank_args=rank_args(self.workers),
            workers=self.workers,
            client=self.client,
            held=True,
            watch=self._watch,
            interrupted=self._interrupt,
            say=partial(self.run.event, "waiting"),
        )
        return answers[0]

    # -- losing workers ---------------------------------------------------------------------------------------

    def _recover(self, lost: Exception) -> Any:
        """Settle with which workers to go on, and from which commit: that of a survivor, as all have the same."""
        alive = self._alive()
        gone = [worker for worker in self.workers if worker not in alive] or [getattr(lost, "worker", "")]
        ranks, before = list(self.workers), len(self.workers)
        survivors = [worker for worker in self.workers if worker in alive]  # all, if one is back already
        steps = _numbers(call_workers(self.client, commit_step, self.run.id, workers=survivors))
        holder = max(steps, key=lambda worker: steps[worker], default=None)
        deposit, commit = None, None
        if holder is not None and steps[holder]:
            step = steps[holder]
        else:
            holder, deposit = None, self._deposit()
            commit = self._written() if deposit is None else None
            step = deposit.step if deposit is not None else commit.step if commit is not None else 0
        self._count_loss(step, lost)
        self.workers = sorted([*survivors, *self._take_newcomers()])
        left, enough = len(self.workers), len(self.workers) >= self.fewest
        goes_on = f"with {left} of {before} ranks"
        if not enough:
            goes_on = f"when at least {self.fewest} of the workers are there again ({left} now)"
        self.run.event(
            "worker_lost",
            f"{', '.join(gone)} left the cluster. Training goes on {goes_on}, from step {step}: steps after it are "
            "done again.",
            step,
        )
        self._say_why(gone, ranks, step)
        self._wait_for_workers(lost)
        if deposit is not None:
            return self._brought(deposit)
        return self._commit_of(holder) if holder is not None else self._given(commit)

    def _written(self) -> Commit | None:
        """Read the newest checkpoint."""
        return self.checkpoints.newest() if self.checkpoints is not None else None

    def _deposit(self) -> Deposited | None:
        """Where the newest commit of a rank that was alone lies, if no checkpoint is newer."""
        found = deposits_of(self.client, self.run.id)
        newest = max((Deposited(holder, *what) for holder, what in found.items()), key=lambda d: d.step, default=None)
        if newest is None or not newest.step:
            return None
        written = 0
        with suppress(Exception):  # storages raise errors of any class, and need not be asked
            written = max(one.step for one in self.checkpoints.saved()) if self.checkpoints is not None else 0
        return newest if newest.step >= written else None

    def _brought(self, deposit: Deposited) -> Any:
        """Bring a commit to the first of the workers; if it is gone meanwhile, the newest checkpoint counts."""
        worker = self.workers[0]
        step = call_workers(self.client, bring_commit, self.run.id, deposit, workers=[worker]).get(worker)
        if isinstance(step, int) or worker not in self._alive():  # if it was lost, that is noticed, and all done again
            return self._commit_of(worker)
        commit = self._written()
        self._began = commit.step if commit is not None else 0
        text = f"the commit of step {deposit.step} cannot be had ({step}). Training goes on from step {self._began}."
        self.run.event("warning", text, self._began)
        return self._given(commit)

    def _say_why(self, gone: list[str], ranks: list[str], step: int) -> None:
        """Record the likely cause as soon as it is known, while the run goes on from ``step``."""
        began, self._began = self._began, step

        def say() -> None:
            with suppress(OSError, RuntimeError):  # the scheduler goes, or the run has ended
                survivors = [worker for worker in ranks if worker not in gone]
                begun = _numbers(call_workers(self.client, steps_begun, workers=survivors))
                reached = max(step, self.run.record.step if not begun else began + max(0, *begun.values()) - 1)
                for death in deaths_of(self.client, gone):
                    death.lines = [line for line in death.lines if line["run"] == self.run.id]
                    self.run.keep_lines(death.lines)
                    text = report(death, ranks.index(death.address), len(ranks), reached, step)
                    self.run.event("cause", text, step)

        self._reports.append(threading.Thread(target=say, name="daskdl-why", daemon=True))
        self._reports[-1].start()

    def _count_loss(self, step: int, lost: Exception) -> None:
        n = self._losses[1] + 1 if step == self._losses[0] else 1
        self._losses = step, n
        if n > LOSSES_IN_PLACE:
            lost.add_note(
                f"It was lost {n} times at step {step} or a little later, each time the run went on from there."
            )
            raise explained(self.client, lost)

    def _wait_for_workers(self, lost: Exception) -> None:
        """Wait until there are as many as the user's fewest, as workers that died are usually started again."""
        fewest, deadline = self.fewest, time.monotonic() + WAIT_SECONDS
        while len(self.workers) < fewest:
            if time.monotonic() > deadline:
                raise explained(self.client, lost)
            joined = self._take_seats(fewest - len(self.workers))
            call_workers(self.client, _warm, workers=joined)
            alive = self._alive()
            self.workers = sorted(worker for worker in [*self.workers, *joined] if worker in alive)
            if len(self.workers) < fewest:
                time.sleep(0.05)

    # -- taking workers in ------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look several times a second whether somebody has joined, or the user wants to stop."""
        if self._interrupted_at and time.monotonic() - self._interrupted_at > INTERRUPT_SECONDS:
            raise KeyboardInterrupt
        self._stuck.check(self.workers)
        if self.run.asked_to_stop and not self._told_to_stop:
            self._told_to_stop = True
            self._tell(STOP)
        if self._deposited and len(self.workers) > 1 and self.run.wait_for_messages(1, self.generation, 0.0):
            self._deposited = False  # each of them has the commit now
            drop_deposits(self.client, self.run.id)
        busy = self._greeting is not None and self._greeting.is_alive()
        if not busy and not self._newcomers and len(self.workers) < self.most and not self._told_to_stop:
            if time.monotonic() - self._looked_at > LOOK_SECONDS and self._strangers():
                self._greeting = threading.Thread(target=self._greet, name="daskdl-greet", daemon=True)
                self._greeting.start()
            self._looked_at = time.monotonic()

    def _greet(self) -> None:
        """Have workers that joined load what a rank needs, while the others train; then ask these to make room."""
        with suppress(OSError, RuntimeError):  # the scheduler goes: those who train will notice
            joined = self._take_seats(self.most - len(self.workers))
            warm = call_workers(self.client, _warm, workers=joined)
            self._newcomers = [worker for worker in joined if worker in warm]
            if self._newcomers:
                self._tell(REGROUP)

    def _regroup(self) -> Any:
        """Take in those who joined; the commit is that of the step at which all ranks stopped."""
        before, holder = len(self.workers), self.workers[0]
        step = _numbers(call_workers(self.client, commit_step, self.run.id, workers=[holder])).get(holder, 0)
        self._began = step
        self.workers = sorted([*self.workers, *self._take_newcomers()])
        if len(self.workers) > before:
            self.run.event("resize", f"{len(self.workers)} ranks instead of {before} from step {step} on", step)
        return self._commit_of(holder)

    def _take_newcomers(self) -> list[str]:
        if self._greeting is not None:
            self._greeting.join()
        newcomers, self._newcomers = self._newcomers, []
        alive = self._alive()
        return [worker for worker in newcomers if worker in alive]

    def _take_seats(self, most: int) -> list[str]:
        strangers = self._strangers()
        return self._seats.take_free(strangers, most) if strangers else []

    def _strangers(self) -> list[str]:
        alive = self._alive()
        one_process = any(worker.startswith("inproc://") for worker in self.workers)
        return [] if one_process else sorted(worker for worker in alive if worker not in self.workers)

    # -- talking to workers -----------------------------------------------------------------------------------

    def _alive(self) -> set[str]:
        return set(workers_of(self.client))

    def _tell(self, word: str) -> None:
        call_workers(self.client, put_word, self.run.id, word, workers=self.workers)

    def _commit_of(self, holder: str) -> Any:
        return self.client.submit(take_commit, self.run.id, workers=[holder], allow_other_workers=False, pure=False)

    def _given(self, commit: Commit | None) -> Any:
        """Lay a commit of this process on a worker."""
        return commit and again_if_lost(lambda: self.client.scatter(commit, hash=False))

    def _interrupt(self) -> bool:
        """Have the ranks stop at the end of their step; a second interrupt does not wait for it."""
        first, self._interrupted_at = not self._interrupted_at, time.monotonic()
        if first:
            self.run.stop("interrupted")
        return first


def _warm() -> None:
    """Load in a worker what ranks use; workers that were forked warm have it."""
    for name in ("torch.nn.parallel.distributed", "torch._dynamo", "daskdl.training.job", "daskdl.training.boost"):
        importlib.import_module(name)


def _numbers(answers: dict[str, Any]) -> dict[str, int]:
    """Leave out what is an error, as of a worker that died while it was asked."""
    return {worker: answer for worker, answer in answers.items() if isinstance(answer, int)}


def _forget(run: str) -> None:
    forget_commit(run)
    take_word(run)


def reachable(folder: str, workers: Sequence[str]) -> bool:
    """Whether a rank can write to a folder of the client: a URL, or a folder of the host it runs on."""
    if "://" in folder or not workers:
        return True
    here = {address.address for found in psutil.net_if_addrs().values() for address in found}
    return all(urlsplit(worker).hostname in here for worker in workers)


def unwrapped(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call, and raise daskdl's own errors of a rank as themselves: they say more than that a rank failed."""
    try:
        return function(*args, **kwargs)
    except RankFailed as error:
        if isinstance(error.__cause__, DaskdlError):
            raise error.__cause__ from None
        raise
