"""What one rank of a gang does to boost trees: XGBoost's own collective, inside ours."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
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
from daskdl.training.bins import Cuts, rows_with_cuts, same_cuts
from daskdl.training.boost_group import communicator
from daskdl.training.checkpoint_writer import CheckpointWriter
from daskdl.training.checkpoints import CheckpointFolder, Checkpoints
from daskdl.training.clock import Clock
from daskdl.training.commit import Commit, deposited, put_commit
from daskdl.training.gangs import Answer

SEND_SECONDS = RATE_SECONDS = 0.2
COMMIT_SECONDS = 0.5  # between two commits, or
COMMIT_SHARE = 0.05  # of the time for commits, if one takes longer
WATCHED_ROWS = 100_000
ABORT = "abort"
WORDS = (None, REGROUP, STOP, ABORT)  # of what ranks were told, the last one counts

Send = Callable[[dict[str, Any]], None]

logger = logging.getLogger("daskdl.xgboost")


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)
def _log_line(line: bytes) -> None:
    """Take a line that XGBoost would print; its evaluation log comes through the callback instead."""
    text = line.decode(errors="replace")
    said = "WARNING" in text and "mpty" not in text  # a rank without validation rows would say so every round
    logger.log(logging.WARNING if said else logging.INFO, text)


@dataclass(frozen=True)
class BoostConfig:
    """What the ranks are asked to do.

    Attributes
    ----------
    params : dict
        XGBoost's own parameters.
    rounds : int
    early_stopping_rounds : int or None
    feature_names, feature_types : list of str
    sketch_rows : int
        Rows, over all ranks, from which histogram bins are learned when there are many more.
    n_rows : int
        Rows over all ranks.
    validated : bool
        Whether there are validation rows.
    """

    params: dict[str, Any]
    rounds: int
    early_stopping_rounds: int | None
    feature_names: list[str]
    feature_types: list[str]
    sketch_rows: int
    n_rows: int
    validated: bool


def boost_rank(
    config: BoostConfig,
    run: str,
    rules: Checkpoints | None,
    send: Send | None,
    generation: int,
    commit: Commit | None,
    blocks: Iterable[Any],
    validation: Iterable[Any] = (),
) -> Answer:
    """Boost on this rank's blocks, from a commit if there is one.

    Returns
    -------
    Answer
        The value of rank 0 is the booster as UBJSON, and its best round.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if send is None else (0, 1)
    commit = commit or Commit()
    log = _Log(run, generation, rank, send or partial(get_worker().log_event, TOPIC), config.n_rows, commit)
    writer = None
    if rules is not None and rules.path and rank == 0:
        writer = CheckpointWriter(CheckpointFolder(rules.path, rules.storage_options), rules, log.event, commit.step)
    xgboost.core._LIB.XGBRegisterLogCallback(_log_line)  # of this thread; without one it writes to stderr
    rounds = _Rounds(config, run, log, rules, writer, commit)
    recorded = recording(get_worker(), run, rank) if send is None else nullcontext()
    alone = deposited(run, get_worker()) if send is None and world_size == 1 else nullcontext()
    try:
        with recorded, alone, communicator(rank, world_size):
            if commit.step:
                put_commit(run, commit)
            rounds.bin(blocks, validation)
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
        log: _Log,
        rules: Checkpoints | None,
        writer: CheckpointWriter | None,
        commit: Commit,
    ) -> None:
        self.config, self.run, self.log, self.writer, self.commit = config, run, log, writer, commit
        self.params = {**config.params, "nthread": torch.get_num_threads()}
        self.params.setdefault(
            "seed_per_iteration", True
        )  # or rows sampled after a commit are those of the first rounds
        if torch.cuda.is_available():
            self.params.setdefault("device", "cuda")
        self.every_steps = (rules and rules.every_steps) or config.rounds
        self.patience = _Patience(rounds=config.early_stopping_rounds) if config.early_stopping_rounds else None
        if self.patience is not None and "patience" in commit.state:
            self.patience.load_state_dict(commit.state["patience"])
        self._committed_at, self._commit_seconds = time.monotonic(), 0.0
        self._clock, self._n_unsaid = Clock(), 0  # rounds since the ranks told where their time goes
        self._bin_seconds = 0.0

    def bin(self, blocks: Iterable[Any], validation: Iterable[Any]) -> None:
        """Bin the rows, into the bins of the commit if there is one."""
        config, params, began = self.config, self.params, time.perf_counter()
        kept = self.commit.state.get("bins")
        train = _train_matrix(config, params, blocks, tuple(t.numpy() for t in kept) if kept else None)
        self.cuts = cuts_of(train)
        if kept and not same_cuts(self.cuts, tuple(t.numpy() for t in kept)):
            self.log.event("warning", "rows were put into other bins than before: trees fit less well from here on", 0)
        watched = -(-config.n_rows // WATCHED_ROWS)  # the training curve is that of a regular sample
        self.evals: list[tuple[xgboost.DMatrix, str]] = [
            (_matrix(config, params, blocks, watched, ref=train) if watched > 1 else train, "train")
        ]
        if config.validated:
            self.evals.append((_matrix(config, params, validation, ref=train, like=blocks), "val"))
        self._bin_seconds = time.perf_counter() - began
        self.log.event("note", f"binned the rows in {self._bin_seconds:.1f} s", self.commit.step)
        self.train = train

    def boost(self) -> str | None:
        """Boost from the commit to the end, or to a word of the client, which is returned."""
        state, rounds = self.commit.state, self.config.rounds
        raw = bytearray(memoryview(state["booster"].numpy())) if state else None
        self.booster = xgboost.Booster(self.params, [self.train, *(matrix for matrix, _ in self.evals)], raw)
        after = [self.log] if self.patience is None else [self.log, self.patience]
        callbacks = xgboost.callback.CallbackContainer(after)
        over, lap = self.patience is not None and self.patience.ran_out, self._clock.lap
        lap("other")
        self._clock.take()  # binning is no part of a round
        # nor is the first round, which makes what the others find made, one to judge them by
        first = self.commit.step
        progress = begin_progress(self.run, first, max(FIRST_SECONDS, STEPS * self._bin_seconds))
        for i in range(rounds if over else first, rounds):
            if i > first:
                progress.next(i)
            self.booster.update(self.train, iteration=i)
            lap("boost")
            over = callbacks.after_iteration(self.booster, i, self.train, self.evals) or i + 1 == rounds
            lap("validation")
            word, due = self._agree(i + 1)
            lap("all-reduce")
            self._n_unsaid += 1
            if due or over or word is not None:
                self._say_where_time_goes()
                self._make_commit(i + 1)
                lap("commit")
            if word == STOP or (word == REGROUP and not over):
                return word
            if over:
                break
        return None

    def result(self) -> tuple[bytes, int]:
        """Return the booster as of the last commit, and its best round."""
        raw = self.commit.state["booster"].numpy().tobytes()
        return raw, self.patience.best if self.patience is not None else self.commit.step - 1

    def close(self) -> None:
        """Send what has not been sent, write the last commit to the checkpoints, and wait until it is there."""
        end_progress(self.run)
        self.log.send_points()
        if self.writer is not None:
            self.writer.finish(self.commit if self.commit.step else None, self.log.latest)

    def _agree(self, step: int) -> tuple[str | None, bool]:
        """What all ranks are to do after this round: obey a word, and commit."""
        word = ABORT if spmd.stopping() else word_for(self.run)
        seconds = time.monotonic() - self._committed_at
        due = seconds > max(COMMIT_SECONDS, self._commit_seconds / COMMIT_SHARE)
        mine = np.array([WORDS.index(word), due or step - self.commit.step >= self.every_steps], dtype=np.int32)
        number, due_for_all = xgboost.collective.allreduce(mine, xgboost.collective.Op.MAX).tolist()
        if WORDS[number] == ABORT:
            raise RuntimeError(f"stopped at round {step}: another rank of the gang failed, or the client did")
        if number:
            take_word(self.run)
        return WORDS[number], bool(due_for_all)

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
            "bins": [torch.from_numpy(array) for array in self.cuts],
            "points": self.log.points_since_commit(),
        }
        if self.patience is not None:
            state["patience"] = self.patience.state_dict()
        self.commit = Commit(step, state)
        put_commit(self.run, self.commit)
        if self.writer is not None:
            self.writer.offer(self.commit, self.log.latest)
        self._committed_at = time.monotonic()
        self._commit_seconds = self._committed_at - began


class _Blocks(xgboost.DataIter):
    """Gives XGBoost one block after the other, every ``stride``-th row of each."""

    def __init__(self, config: BoostConfig, blocks: Iterable[Any], stride: int = 1, like: Iterable[Any] = ()) -> None:
        super().__init__()
        self.config, self.blocks, self.stride, self.like = config, blocks, stride, like
        self.reset()

    def next(self, input_data: Callable[..., Any]) -> bool:
        block = next(self.left, None)
        stop = None
        if block is None and self.n_given == 0:  # XGBoost takes no rows, but not no block
            block, stop = next(iter(self.like), None), 0
        if block is None:
            return False
        self.n_given += 1
        input_data(
            data=block["x"].iloc[: stop : self.stride],
            label=block["y"][: stop : self.stride],
            feature_names=self.config.feature_names,
            feature_types=self.config.feature_types,
        )
        return True

    def reset(self) -> None:
        self.left, self.n_given = iter(self.blocks), 0


def _matrix(
    config: BoostConfig,
    params: dict[str, Any],
    blocks: Iterable[Any],
    stride: int = 1,
    ref: Any = None,
    like: Iterable[Any] = (),
) -> xgboost.QuantileDMatrix:
    return xgboost.QuantileDMatrix(
        _Blocks(config, blocks, stride, like),
        max_bin=params.get("max_bin"),
        ref=ref,
        nthread=params["nthread"],
        enable_categorical=True,
    )


def _train_matrix(
    config: BoostConfig, params: dict[str, Any], blocks: Iterable[Any], cuts: Cuts | None
) -> xgboost.QuantileDMatrix:
    """Bin this rank's rows; with many rows the bins are learned from a regular sample of them."""
    stride = config.n_rows // config.sketch_rows if config.sketch_rows else 1
    ref = None
    if cuts is not None:
        ref = xgboost.QuantileDMatrix(
            rows_with_cuts(cuts, config.feature_types),
            max_bin=params.get("max_bin"),
            nthread=params["nthread"],
            feature_names=config.feature_names,
            feature_types=config.feature_types,
            enable_categorical=True,
        )
    elif stride > 1:
        ref = _matrix(config, params, blocks, stride)
    return _matrix(config, params, blocks, ref=ref)


def cuts_of(matrix: xgboost.QuantileDMatrix) -> Cuts:
    """Borders of the bins of a matrix."""
    indptr, values = matrix.get_quantile_cut()
    return indptr.astype(np.int64), values.astype(np.float32)


class _Patience(xgboost.callback.EarlyStopping):
    """Early stopping that goes on counting after a commit; rounds are numbered from the start of the run."""

    best = 0

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        over = bool(super().after_iteration(model, epoch, evals_log))
        self.best = epoch if self.current_rounds == 0 else self.best
        return over

    @property
    def ran_out(self) -> bool:
        return self.current_rounds >= self.rounds

    def state_dict(self) -> dict[str, Any]:
        scores = {data: {name: float(all_[-1]) for name, all_ in of.items()} for data, of in self.best_scores.items()}
        return {"rounds": self.current_rounds, "best": self.best, "best_scores": scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.current_rounds, self.best = state["rounds"], state["best"]
        for history in (self.best_scores, self.stopping_history):
            for data, of in state["best_scores"].items():
                history[data] = {name: [score] for name, score in of.items()}


class _Log(xgboost.callback.TrainingCallback):
    """Sends XGBoost's evaluation log, and what else rank 0 has to say, as messages of the run.

    Attributes
    ----------
    latest : dict of str to float
        Of the last round.
    sent : int
        Messages of this rank.
    """

    def __init__(self, run: str, generation: int, rank: int, send: Send, n_rows: int, commit: Commit) -> None:
        super().__init__()
        self.run, self.generation, self.rank, self.send, self.n_rows = run, generation, rank, send, n_rows
        self.points: list[list[Any]] = list(commit.state.get("points", ()))
        self._n_committed, self._n_sent = len(self.points), 0
        self.latest: dict[str, float] = {}
        self.ranks: dict[str, Any] | None = None  # to be sent
        self.sent = 0
        self.sent_at = self._rated_at = time.monotonic()
        self._n_rounds = 0  # since the speed was last told

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        self.latest = {
            f"{data}_{'loss' if metric.endswith('logloss') else metric}": float(scores[-1])
            for data, metrics in evals_log.items()
            for metric, scores in metrics.items()
        }
        now = time.monotonic()
        self._n_rounds += 1
        if epoch == 0 or now - self._rated_at > RATE_SECONDS:
            self.latest["rows_per_s"] = self._n_rounds * self.n_rows / max(now - self._rated_at, 1e-9)
            self._n_rounds, self._rated_at = 0, now
        self.points.append([epoch + 1, self.latest])
        if now - self.sent_at > SEND_SECONDS:
            self.send_points()
        return False

    def points_since_commit(self) -> list[list[Any]]:
        """Return the points since this was last asked; those of before are forgotten once sent."""
        self.send_points()
        points, self.points = self.points[self._n_committed :], []
        self._n_committed = self._n_sent = 0
        return points

    def send_points(self) -> None:
        """Send what has not been sent yet."""
        points, self._n_sent = self.points[self._n_sent :], len(self.points)
        self.sent_at = time.monotonic()
        if points:
            ranks, self.ranks = self.ranks, None
            self._message("metrics", points=points, epoch=None, ranks=ranks)

    def event(self, kind: str, text: str, step: int) -> None:
        """Say that something happened."""
        self._message("event", event=kind, text=text, step=step)

    def _message(self, kind: str, **keys: Any) -> None:
        if self.rank == 0:
            about = {"run": self.run, "kind": kind, "time": time.time(), "generation": self.generation}
            self.send({**about, **keys})
            self.sent += 1
