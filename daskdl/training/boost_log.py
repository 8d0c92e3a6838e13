"""What the ranks of a boosting say while they boost: XGBoost's evaluation log, and what it would print."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import xgboost

from daskdl.training.commit import Commit

SEND_SECONDS = RATE_SECONDS = 0.2

Send = Callable[[dict[str, Any]], None]

logger = logging.getLogger("daskdl.xgboost")


def _log_line(line: bytes) -> None:
    """Take a line that XGBoost would print; its evaluation log comes through the callback instead."""
    text = line.decode(errors="replace")
    said = "WARNING" in text and "mpty" not in text  # a rank without validation rows would say so every round
    logger.log(logging.WARNING if said else logging.INFO, text)


@contextmanager
def lines_to(take: Callable[[bytes], None] = _log_line) -> Iterator[None]:
    """Give what XGBoost would print in this thread to a function; afterwards it prints as it did before."""
    library = xgboost.core._LIB
    callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(take)
    library.XGBRegisterLogCallback(callback)
    try:
        yield
    finally:
        library.XGBRegisterLogCallback(library.callback)


class Patience(xgboost.callback.EarlyStopping):
    """Early stopping that goes on counting after a commit; rounds are numbered from the start of the run."""

    best = 0

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Say whether patience has run out after a round."""
        over = bool(super().after_iteration(model, epoch, evals_log))
        self.best = self.starting_round + epoch if self.current_rounds == 0 else self.best
        return over

    def result(self) -> dict[str, Any]:
        """Return the best round and its score."""
        score = next((float(all_[-1]) for of in self.best_scores.values() for all_ in of.values()), None)
        return {"best": self.best, "score": score}

    @property
    def ran_out(self) -> bool:
        """Whether it had run out before."""
        return self.current_rounds >= self.rounds

    def state_dict(self) -> dict[str, Any]:
        """What a commit keeps."""
        scores = {data: {name: float(all_[-1]) for name, all_ in of.items()} for data, of in self.best_scores.items()}
        return {"rounds": self.current_rounds, "best": self.best, "best_scores": scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.current_rounds, self.best = state["rounds"], state["best"]
        for history in (self.best_scores, self.stopping_history):
            for data, of in state["best_scores"].items():
                history[data] = {name: [score] for name, score in of.items()}


def patience_of(callbacks: Sequence[Any], rounds: int | None) -> tuple[Patience | None, list[Any]]:
    """Take early stopping out of the user's callbacks, or make it: one that commits keep. Returns the others, too."""
    others = [each for each in callbacks if not isinstance(each, xgboost.callback.EarlyStopping)]
    for given in callbacks:
        if isinstance(given, xgboost.callback.EarlyStopping):
            how = {"metric_name": given.metric_name, "data_name": given.data, "maximize": given.maximize}
            return Patience(rounds=given.rounds, min_delta=given._min_delta, **how), others
    return Patience(rounds=rounds) if rounds else None, others


class Log(xgboost.callback.TrainingCallback):
    """Sends XGBoost's evaluation log, and what else rank 0 has to say, as messages of the run.

    Attributes
    ----------
    latest : dict of str to float
        Of the last round.
    names : dict of str to [str, str]
        For the name of each curve what XGBoost calls its data and its metric.
    sent : int
        Messages of this rank.
    """

    def __init__(self, run: str, generation: int, rank: int, send: Send, n_rows: int, commit: Commit) -> None:
        super().__init__()
        self.run, self.generation, self.rank, self.send, self.n_rows = run, generation, rank, send, n_rows
        self.points: list[list[Any]] = list(commit.state.get("points", ()))
        self._n_committed, self._n_sent = len(self.points), 0
        self.latest: dict[str, float] = {}
        self.names: dict[str, list[str]] = dict(commit.state.get("names", {}))
        self.ranks: dict[str, Any] | None = None  # to be sent
        self.sent = 0
        self.sent_at = self._rated_at = time.monotonic()
        self._n_rounds = 0  # since the speed was last told

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Note the scores of a round, and send them now and then."""
        self.latest = {}
        for data, metrics in evals_log.items():
            for metric, scores in metrics.items():
                name = f"{data}_{'loss' if metric.endswith('logloss') else metric}"
                self.latest[name] = float(scores[-1])
                self.names[name] = [data, metric]
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
