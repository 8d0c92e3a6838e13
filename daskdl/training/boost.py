"""What one rank of a gang does to boost trees: XGBoost's own collective, inside ours."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import xgboost

from daskdl.execution import spmd

SEND_SECONDS = 0.2
WATCHED_ROWS = 100_000


logger = logging.getLogger("daskdl.xgboost")


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)
def _log_line(line: bytes) -> None:
    """Take a line that XGBoost would print; its evaluation log comes through the callback instead."""
    text = line.decode(errors="replace")
    logger.log(logging.WARNING if "WARNING" in text else logging.INFO, text)


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
    """

    params: dict[str, Any]
    rounds: int
    early_stopping_rounds: int | None
    feature_names: list[str]
    feature_types: list[str]
    sketch_rows: int
    n_rows: int


def boost_rank(
    config: BoostConfig,
    run: str,
    send: Callable[[dict[str, Any]], None],
    in_gang: bool,
    blocks: list[Any],
    validation: list[Any],
) -> tuple[bytearray, int, int] | None:
    """Train on this rank's blocks; rank 0 returns the booster as UBJSON, its best round and its count of messages."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if in_gang else (0, 1)
    params = {**config.params, "nthread": torch.get_num_threads()}
    if torch.cuda.is_available():
        params.setdefault("device", "cuda")
    xgboost.core._LIB.XGBRegisterLogCallback(_log_line)  # of this thread; without one it writes to stderr
    with _communicator(rank, world_size):
        began = time.perf_counter()
        train = _train_matrix(config, params, blocks)
        log = _Log(run, send, rank, config.n_rows, time.perf_counter() - began)
        watched = -(-config.n_rows // WATCHED_ROWS)  # the training curve is that of a regular sample
        evals = [(_matrix(config, params, blocks, watched, ref=train) if watched > 1 else train, "train")]
        if validation:
            evals.append((_matrix(config, params, validation, ref=train), "val"))
        booster = xgboost.train(
            params,
            train,
            config.rounds,
            evals=evals,
            early_stopping_rounds=config.early_stopping_rounds,
            callbacks=[log],
            verbose_eval=False,
        )
    if rank != 0:
        return None
    best = booster.best_iteration if config.early_stopping_rounds else booster.num_boosted_rounds() - 1
    log.send_points()
    return booster.save_raw("ubj"), best, log.sent


@contextmanager
def _communicator(rank: int, world_size: int) -> Iterator[None]:
    """XGBoost's collective over the gang's ranks; rank 0 serves its tracker."""
    if world_size == 1:
        yield
        return
    tracker = None
    args: list[Any] = [None]
    if rank == 0:
        tracker = xgboost.tracker.RabitTracker(world_size, spmd.host_of_rank(), sortby="task")
        tracker.start()
        args = [tracker.worker_args()]
    dist.broadcast_object_list(args)  # pickled by our own rank 0
    try:
        # one try: the tracker is up, and when its rank has failed it does not come back
        with xgboost.collective.CommunicatorContext(**args[0], dmlc_task_id=f"{rank:06d}", dmlc_retry=1):
            yield
        if tracker is not None:
            tracker.wait_for()
    finally:
        if tracker is not None:
            tracker.free()


class _Blocks(xgboost.DataIter):
    """Gives XGBoost one block after the other, every ``stride``-th row of each."""

    def __init__(self, config: BoostConfig, blocks: list[Any], stride: int = 1) -> None:
        super().__init__()
        self.config, self.blocks, self.stride, self.at = config, blocks, stride, 0

    def next(self, input_data: Callable[..., Any]) -> bool:
        if self.at == len(self.blocks):
            return False
        block = self.blocks[self.at]
        self.at += 1
        input_data(
            data=block["x"].iloc[:: self.stride],
            label=block["y"][:: self.stride],
            feature_names=self.config.feature_names,
            feature_types=self.config.feature_types,
        )
        return True

    def reset(self) -> None:
        self.at = 0


def _matrix(
    config: BoostConfig, params: dict[str, Any], blocks: list[Any], stride: int = 1, ref: Any = None
) -> xgboost.QuantileDMatrix:
    return xgboost.QuantileDMatrix(
        _Blocks(config, blocks, stride),
        max_bin=params.get("max_bin"),
        ref=ref,
        nthread=params["nthread"],
        enable_categorical=True,
    )


def _train_matrix(config: BoostConfig, params: dict[str, Any], blocks: list[Any]) -> xgboost.QuantileDMatrix:
    """Bin this rank's rows; with many rows the bins are learned from a regular sample of them."""
    stride = config.n_rows // config.sketch_rows if config.sketch_rows else 1
    ref = _matrix(config, params, blocks, stride) if stride > 1 else None
    return _matrix(config, params, blocks, ref=ref)


class _Log(xgboost.callback.TrainingCallback):
    """Sends XGBoost's evaluation log as messages of the run."""

    def __init__(self, run: str, send: Callable[[dict[str, Any]], None], rank: int, n_rows: int, setup: float) -> None:
        super().__init__()
        self.run, self.send, self.rank, self.n_rows = run, send, rank, n_rows
        self.points: list[list[Any]] = []
        self.sent = 0
        self.sent_at = self.round_at = time.monotonic()
        if rank == 0:
            self._message("event", event="note", text=f"binned the rows in {setup:.1f} s", step=0)

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        stopping = np.array([spmd.stopping()], dtype=np.int32)
        if xgboost.collective.allreduce(stopping, xgboost.collective.Op.MAX)[0]:  # all ranks, at the same round
            raise RuntimeError(f"stopped at round {epoch}: another rank of the gang failed, or the client did")
        if self.rank == 0:
            values = {
                f"{data}_{'loss' if metric.endswith('logloss') else metric}": float(scores[-1])
                for data, metrics in evals_log.items()
                for metric, scores in metrics.items()
            }
            now = time.monotonic()
            values["rows_per_s"] = self.n_rows / max(now - self.round_at, 1e-9)
            self.round_at = now
            self.points.append([epoch + 1, values])
            if now - self.sent_at > SEND_SECONDS:
                self.send_points()
        return False

    def send_points(self) -> None:
        """Send what has not been sent yet."""
        points, self.points = self.points, []
        self.sent_at = time.monotonic()
        self._message("metrics", points=points, epoch=None)

    def _message(self, kind: str, **keys: Any) -> None:
        self.send({"run": self.run, "kind": kind, "time": time.time(), **keys})
        self.sent += 1
