"""What the ranks report: added up over ranks now and then, and sent as messages of rank 0."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

import psutil
import torch
import torch.distributed as dist

from daskdl.data.audit import MASK
from daskdl.data.batches import Batch
from daskdl.execution.ranks import told_to_stop
from daskdl.execution.rendezvous import control_group
from daskdl.training.clock import Clock
from daskdl.training.commit import Use

EXPLODED = 1_000  # times the first loss
RATE_SECONDS = 0.2  # at least, over which rows a second are counted

Send = Callable[[dict[str, Any]], None]


class Step(NamedTuple):
    """What a rank said of one step."""

    step: int
    n_rows: int
    n_global: int
    values: dict[str, torch.Tensor]
    digest: int
    epoch: int


class Report:
    """Collects what a rank reports of its steps until it is added up.

    Attributes
    ----------
    uses : dict of int to Use
        What all ranks used, by the first step of each stretch.
    latest : dict of str to float
        Newest value of each metric.
    sent : int
        Messages this rank has sent.
    """

    def __init__(
        self,
        run: str,
        generation: int,
        send: Send,
        rank: int,
        world_size: int,
        device: torch.device,
        steps_per_epoch: int,
        uses: dict[int, Use],
        clock: Clock,
    ) -> None:
        self.run, self.generation, self.send = run, generation, send
        self.rank, self.world_size, self.device = rank, world_size, device
        self.steps_per_epoch, self.uses, self.clock = steps_per_epoch, dict(uses), clock
        self.latest: dict[str, float] = {}
        self.sent = 0
        self._first_loss: float | None = None  # 0 once it was warned of
        self._now: dict[str, torch.Tensor] = {}
        self._steps: list[Step] = []
        self._points: list[list[Any]] = []
        self._n_unsent = 0  # steps
        self._step, self._n_rows = 0, 0  # of the rate
        self._rated_at, self._rated = time.monotonic(), False

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, values: dict[str, float | torch.Tensor]) -> None:
        """Note values of the step that is being done."""
        for name, value in values.items():
            tensor = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(float(value))
            if tensor.numel() != 1:
                raise ValueError(
                    f"report({name}=...) takes one number per step, got a tensor of shape {tuple(tensor.shape)}. "
                    "Reduce it first, for example with .mean()."
                )
            self._now["train_loss" if name == "loss" else name] = tensor.reshape(()).double()

    def close_step(self, batch: Batch) -> None:
        """Note that a step is done."""
        self._steps.append(Step(batch.step, batch.n_rows, batch.n_global, self._now, batch.digest, batch.epoch))
        self._now = {}

    def point(self, step: int, values: dict[str, float]) -> None:
        """Note values that are the same on all ranks."""
        self.latest |= {name: float(value) for name, value in values.items()}
        self._points += [[step, {name: float(value)}] for name, value in values.items()]

    def add_up(self) -> tuple[int, float] | None:
        """Add up over ranks what was noted; every rank gets here at the same step.

        Returns
        -------
        (step, loss) or None
            Of the first loss that is not finite.

        Raises
        ------
        RuntimeError
            Collectives of the steps were aborted on the GPU, so their results are not to be committed.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return None
        self._audit(steps)
        bad = self._means(steps, sorted(steps[-1].values))
        if self.device.type == "cuda" and self.world_size > 1:
            torch.cuda.synchronize(self.device)  # a commit, which follows, would wait as long
            if told_to_stop():
                raise RuntimeError(f"stopped at step {steps[-1].step}: another rank of the gang failed or was lost")
        self._step, self._n_rows = steps[-1].step + 1, self._n_rows + sum(one.n_global for one in steps)
        if time.monotonic() - self._rated_at > RATE_SECONDS:
            self._add_rate()
        self._n_unsent += len(steps)
        return bad

    def _add_rate(self) -> None:
        """Note how many rows a second there were since the last time."""
        now = time.monotonic()
        self._points.append([self._step, {"rows_per_s": self._n_rows / max(now - self._rated_at, 1e-9)}])
        self._n_rows, self._rated_at, self._rated = 0, now, True

    def send_all(self, epoch: float | None) -> None:
        """Send what was added up, and where the time of each rank went; every rank gets here at the same step."""
        steps, self._n_unsent = self._n_unsent, 0
        if steps and epoch is None and not self._rated:  # a short run has a speed, too
            self._add_rate()
        if steps or epoch is None:  # a run that was resumed at its end has used what it used before
            ranks = {"steps": steps, **self._ranks()} if steps else None
            points, self._points = self._points, []
            self.message("metrics", points=points, epoch=epoch, uses=list(self.uses.values()), ranks=ranks)

    def _ranks(self) -> dict[str, list[Any]]:
        """What each rank spent its time on, and the memory it has."""
        gpu = torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0
        mine = torch.tensor([*self.clock.take(), psutil.Process().memory_info().rss, gpu], dtype=torch.float64)
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        if self.world_size > 1:
            dist.all_gather(everyone, mine, group=control_group())
        rows = [one.tolist() for one in (everyone if self.world_size > 1 else [mine])]
        return {
            "seconds": [row[:-2] for row in rows],
            "host": [int(row[-2]) for row in rows],
            "gpu": [int(row[-1]) for row in rows],
        }

    def message(self, kind: str, **keys: Any) -> None:
        """Send a message of the run; rank 0's word counts."""
        if self.rank == 0:
            about = {"run": self.run, "kind": kind, "time": time.time(), "generation": self.generation}
            self.send({**about, **keys})
            self.sent += 1

    def _audit(self, steps: list[Step]) -> None:
        """Add up what all ranks used in these steps, epoch by epoch; integers wrap around, as the digest does."""
        parts = [list(part) for _, part in groupby(steps, key=lambda one: one.epoch)]
        mine = [(sum(one.digest for one in part) & MASK, sum(one.n_rows for one in part)) for part in parts]
        sums = torch.tensor([[digest - (digest >> 63 << 64), n] for digest, n in mine])
        if self.world_size > 1:
            dist.all_reduce(sums, group=control_group())
        for part, (digest, n) in zip(parts, sums.tolist(), strict=True):
            self._use(part[0].step, part[-1].step + 1, n, digest & MASK)

    def _use(self, first: int, stop: int, rows: int, digest: int) -> None:
        """Add steps to the stretch of their epoch that they follow on."""
        begin = first // self.steps_per_epoch * self.steps_per_epoch
        if begin in self.uses and self.uses[begin][1] == first:
            _, _, before, sum_before = self.uses[begin]
            first, rows, digest = begin, before + rows, (sum_before + digest) & MASK
        self.uses[first] = (first, stop, rows, digest)

    def _warn_of_explosion(self, step: int, losses: list[float]) -> None:
        """Say once that the loss is far above what it began with. It may be a batch of outliers, so it is no error."""
        mean = sum(losses) / len(losses) if losses else math.nan
        if self._first_loss is None and losses:
            self._first_loss = abs(mean)
        elif self._first_loss and EXPLODED * self._first_loss < mean < math.inf:
            text = f"train_loss is {mean:.3g}, {mean / self._first_loss:,.0f} times what it began with: it may be "
            text += "diverging. Try a lower learning rate or clipped gradients."
            self.message("event", event="warning", text=text, step=step)
            self._first_loss = 0.0

    def _means(self, steps: list[Step], names: list[str]) -> tuple[int, float] | None:
        """Note the mean of each value over the rows of all ranks, step by step: one all-reduce for all steps."""
        if not names:
            return None
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        sums = [[one.values.get(k, zero) * one.n_rows if one.n_rows else zero for k in names] for one in steps]
        table = torch.stack([torch.stack([v.to(self.device) for v in line]) for line in sums]).cpu()
        if self.world_size > 1:
            dist.all_reduce(table, group=control_group())
        means = (table / torch.tensor([[one.n_global] for one in steps], dtype=torch.float64)).tolist()
        lines = [dict(zip(names, line, strict=True)) for line in means]
        self._points += [[one.step + 1, line] for one, line in zip(steps, lines, strict=True)]
        self.latest |= lines[-1]
        self._warn_of_explosion(steps[-1].step, [line["train_loss"] for line in lines if "train_loss" in line])
        losses = ((one.step, line.get("train_loss", 0.0)) for one, line in zip(steps, lines, strict=True))
        return next(((step, loss) for step, loss in losses if not math.isfinite(loss)), None)
