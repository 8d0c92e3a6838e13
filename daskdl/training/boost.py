"""What one rank of a gang does to boost trees: XGBoost's own collective, inside ours."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
import xgboost
from distributed import get_worker

from daskdl.execution import spmd
from daskdl.execution.progress import FIRST_SECONDS, STEPS, begin_progress, end_progress
from daskdl.execution.words import REGROUP, STOP, take_word, word_for
from daskdl.tracking.logs import recording
from daskdl.tracking.record import TOPIC
from daskdl.training.bins import same_cuts
from daskdl.training.boost_functions import Metrics, as_objective
from daskdl.training.boost_group import communicator
from daskdl.training.boost_log import Log, Send, lines_to, patience_of
from daskdl.training.boost_matrix import BoostConfig, cuts_of, matrix_of, train_matrix, watched_matrix
from daskdl.training.checkpoint_writer import CheckpointWriter
from daskdl.training.checkpoints import CheckpointFolder, Checkpoints
from daskdl.training.clock import Clock
from daskdl.training.commit import Commit, deposited, put_commit
from daskdl.training.gangs import Answer

COMMIT_SECONDS = 0.5  # between two commits, or
COMMIT_SHARE = 0.05  # of the time for commits, if one takes longer
ABORT = "abort"
WORDS = (None, REGROUP, STOP, ABORT)  # of what ranks were told, the last one counts


def boost_rank(
    config: BoostConfig,
    run: str,
    rules: Checkpoints | None,
    send: Send | None,
    generation: int,
    commit: Commit | None,
    blocks: Iterable[Any],
    *validation: Iterable[Any],
) -> Answer:
    """Boost on this rank's blocks, from a commit if there is one.

    Returns
    -------
    Answer
        The value of rank 0 is what ``_Rounds.result`` gives.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if send is None else (0, 1)
    commit = commit or Commit()
    log = Log(run, generation, rank, send or partial(get_worker().log_event, TOPIC), config.n_rows, commit)
    writer = None
    if rules is not None and rules.path and rank == 0:
        writer = CheckpointWriter(CheckpointFolder(rules.path, rules.storage_options), rules, log.event, commit.step)
    rounds = _Rounds(config, run, log, rules, writer, commit)
    recorded = recording(get_worker(), run, rank) if send is None else nullcontext()
    alone = deposited(run, get_worker()) if send is None and world_size == 1 else nullcontext()
    try:
        with lines_to(), recorded, alone, communicator(rank, world_size):
            if commit.step:
                put_commit(run, commit)
            rounds.bin(blocks, *validation)
            word = rounds.boost()
    finally:
        rounds.close()
    if rank != 0:
        return Answer(word=word)
    return Answer(rounds.result(), n_messages=log.sent, word=word)


class _Rounds:
    """The rounds of boosting on one rank.

    A commit is the booster, the bins, the state of early stopping, and the points of the curves since the commit
    before, as rank 0 may have died before it sent them. All ranks have the same.
    """

    def __init__(
        self,
        config: BoostConfig,
        run: str,
        log: Log,
        rules: Checkpoints | None,
        writer: CheckpointWriter | None,
        commit: Commit,
    ) -> None:
        self.config, self.run, self.log, self.writer, self.commit = config, run, log, writer, commit
        own = torch.get_num_threads()
        wanted = int(config.params.get("nthread") or 0)
        self.params = {**config.params, "nthread": min(own, wanted) if wanted > 0 else own}
        if commit.step:  # or rows that are drawn from here on would be those of the first rounds
            self.params.setdefault("seed_per_iteration", True)
        if torch.cuda.is_available():
            self.params.setdefault("device", "cuda")
        self.every_steps = (rules and rules.every_steps) or config.rounds
        self.patience, self.callbacks = patience_of(config.callbacks, config.early_stopping_rounds)
        if self.patience is not None and "patience" in commit.state:
            self.patience.load_state_dict(commit.state["patience"])
        self._committed_at, self._commit_seconds = time.monotonic(), 0.0
        self._clock, self._n_unsaid = Clock(), 0  # rounds since the ranks told where their time goes
        self._bin_seconds = 0.0

    def bin(self, blocks: Iterable[Any], *validation: Iterable[Any]) -> None:
        """Bin the rows, into the bins of the commit if there is one."""
        config, params, began = self.config, self.params, time.perf_counter()
        kept = self.commit.state.get("bins")
        train = train_matrix(config, params, blocks, tuple(t.numpy() for t in kept) if kept else None)
        self.cuts = cuts_of(train) if config.binned else None
        if kept and self.cuts and not same_cuts(self.cuts, tuple(t.numpy() for t in kept)):
            self.log.event("warning", "rows were put into other bins than before: trees fit less well from here on", 0)
        self.evals: list[tuple[xgboost.DMatrix, str]] = [(watched_matrix(config, params, blocks, train), "train")]
        for name, rows in zip(config.validated, validation, strict=True):
            self.evals.append((matrix_of(config, params, rows, ref=train, like=blocks), name))
        self._bin_seconds = time.perf_counter() - began
        self.log.event("note", f"binned the rows in {self._bin_seconds:.1f} s", self.commit.step)
        self.train = train

    def boost(self) -> str | None:
        """Boost from the commit to the end, or to a word of the client, which is returned."""
        state, rounds = self.commit.state, self.config.rounds
        raw = state["booster"].numpy().tobytes() if state else self.config.start
        matrices = [self.train, *(matrix for matrix, _ in self.evals)]
        self.booster = xgboost.Booster(self.params, matrices, None if raw is None else bytearray(raw))
        callbacks, objective = self._called(), self._objective()
        over, lap = self.patience is not None and self.patience.ran_out, self._clock.lap
        lap("other")
        self._clock.take()  # binning is no part of a round
        # nor is the first round, which makes what the others find made, one to judge them by
        first = self.commit.step
        progress = begin_progress(self.run, first, max(FIRST_SECONDS, STEPS * self._bin_seconds))
        for i in range(rounds if over else first, rounds):
            if i > first:
                progress.next(i)
            over = callbacks.before_iteration(self.booster, i, self.train, self.evals)
            self.booster.update(self.train, iteration=i, fobj=objective)
            lap("boost")
            over = callbacks.after_iteration(self.booster, i, self.train, self.evals) or over or i + 1 == rounds
            lap("validation")
            word, due, over = self._agree(i + 1, over)
            lap("all-reduce")
            self._n_unsaid += 1
            if over:
                self.booster = callbacks.after_training(self.booster)
            if due or over or word is not None:
                self._say_where_time_goes()
                self._make_commit(i + 1)
                lap("commit")
            if word == STOP or (word == REGROUP and not over):
                return word
            if over:
                break
        return None

    def _objective(self) -> Any:
        return None if self.config.objective is None else as_objective(self.config.objective)

    def _called(self) -> xgboost.callback.CallbackContainer:
        """Everything that is called around a round; what is scheduled by round goes on where it was."""
        config, step = self.config, self.commit.step
        after = [*self.callbacks, self.log, *([] if self.patience is None else [self.patience])]
        metric = Metrics(config.metrics, config.shift) if config.metrics else None
        callbacks = xgboost.callback.CallbackContainer(after, metric, output_margin=config.objective is not None)
        self.booster = callbacks.before_training(self.booster)
        if self.patience is not None:
            self.patience.starting_round = self.booster.num_boosted_rounds() - step
        for scheduled in self.callbacks:
            if step and isinstance(scheduled, xgboost.callback.LearningRateScheduler):
                scheduled.after_iteration(self.booster, step - 1, {})
        return callbacks

    def result(self) -> dict[str, Any]:
        """Return the booster as of the last commit, its best round and score, and what the curves are called."""
        state = self.commit.state
        found = {"booster": state["booster"].numpy().tobytes(), "names": state["names"], "best": None, "score": None}
        return found if self.patience is None else {**found, **self.patience.result()}

    def close(self) -> None:
        """Send what has not been sent, write the last commit to the checkpoints, and wait until it is there."""
        end_progress(self.run)
        self.log.send_points()
        if self.writer is not None:
            self.writer.finish(self.commit if self.commit.step else None, self.log.latest)

    def _agree(self, step: int, over: bool) -> tuple[str | None, bool, bool]:
        """What all ranks are to do after this round: obey a word, commit, end."""
        word = ABORT if spmd.stopping() else word_for(self.run)
        seconds = time.monotonic() - self._committed_at
        due = seconds > max(COMMIT_SECONDS, self._commit_seconds / COMMIT_SHARE)
        due = due or step - self.commit.step >= self.every_steps
        mine = np.array([WORDS.index(word), due, over], dtype=np.int32)
        number, due_for_all, over_for_all = xgboost.collective.allreduce(mine, xgboost.collective.Op.MAX).tolist()
        if WORDS[number] == ABORT:
            raise RuntimeError(f"stopped at round {step}: another rank of the gang failed, or the client did")
        if number:
            take_word(self.run)
        return WORDS[number], bool(due_for_all), bool(over_for_all)

    def _say_where_time_goes(self) -> None:
        """Gather what each rank spent its time on, and its memory; all ranks get here at the same round."""
        rank, world_size = xgboost.collective.get_rank(), xgboost.collective.get_world_size()
        mine = [*self._clock.take(), psutil.Process().memory_info().rss]
        table = np.zeros((world_size, len(mine)))
        table[rank] = mine
        table = xgboost.collective.allreduce(table.ravel(), xgboost.collective.Op.SUM).reshape(table.shape)
        said = {"seconds": table[:, :-1].tolist(), "host": table[:, -1].astype(int).tolist(), "gpu": [0] * world_size}
        self.log.ranks, self._n_unsaid = {"steps": self._n_unsaid, **said}, 0

    def _make_commit(self, step: int) -> None:
        began = time.monotonic()
        state = {
            "booster": torch.frombuffer(self.booster.save_raw("ubj"), dtype=torch.uint8),
            "bins": [torch.from_numpy(array) for array in self.cuts or ()],
            "points": self.log.points_since_commit(),
            "names": self.log.names,
        }
        if self.patience is not None:
            state["patience"] = self.patience.state_dict()
        self.commit = Commit(step, state)
        put_commit(self.run, self.commit)
        if self.writer is not None:
            self.writer.offer(self.commit, self.log.latest)
        self._committed_at = time.monotonic()
        self._commit_seconds = self._committed_at - began
