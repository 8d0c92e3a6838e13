"""What a training loop gets in its rank: its batches, its wrapped model, a place to report to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from daskdl.data.audit import MASK
from daskdl.data.batches import Batch, RankBatches
from daskdl.data.schema import Schema
from daskdl.data.schema.target import Target
from daskdl.errors import LossDiverged
from daskdl.execution import spmd
from daskdl.training.commit import Commit, Use, put_commit
from daskdl.training.gradients import Share, weighted_sum

SEND_SECONDS = 0.2  # between two messages of rank 0
NO_LABELS = np.empty(0, dtype=np.float32)
COMMIT_STEPS = 100  # at most between two commits
POINTS_PER_RUN = 200  # at about so many steps of a run, ranks add up what they reported

Send = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TensorBatch:
    """One rank's part of a global batch, on its device.

    Attributes
    ----------
    inputs : tuple of tensor
        What a module takes: ``numbers`` of shape (n_rows, n_numbers), then, if the frame has categories, ``codes`` of
        shape (n_rows, n_categories), int64; then the other columns in their order: arrays of shape (n_rows, *shape),
        images as uint8 of shape (n_rows, channels, height, width), lists and tokens of shape (n_rows, longest of the
        batch), each of these followed by the lengths of its rows, int64 of shape (n_rows,). A frame without numbers,
        dates and categories has no ``numbers``.
    y : tensor of shape (n_rows,)
        Class numbers (int64), or standardised labels (float32).
    epoch, step : int
        Epoch, and step from the start of training.
    last_of_epoch : bool
    n_rows, n_global : int
        Rows of this rank and of all ranks. A rank that has none in a short last batch gets rows it had before, whose
        gradient counts zero.
    """

    inputs: tuple[torch.Tensor, ...]
    y: torch.Tensor
    epoch: int
    step: int
    last_of_epoch: bool
    n_rows: int
    n_global: int

    @property
    def x(self) -> torch.Tensor:
        """The first input: the numbers, if there are any."""
        return self.inputs[0]


def to_tensors(block: Any, device: torch.device) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Inputs and labels of a finished block on a device, the inputs in the order of a ``TensorBatch``.

    Signed integers, such as codes and tokens, become int64, as embeddings want them; uint8 stays, so that images take
    a quarter of the way. The labels of a block without ``y`` are empty.
    """

    def tensor(array: Any) -> torch.Tensor:
        # a view of a file's or a frame's memory is read-only, and a tensor of it could be written to
        array = np.require(array, requirements=["C", "W"])
        held = torch.from_numpy(array)
        if device.type == "cuda":
            held = held.pin_memory()  # or the copy would not be asynchronous
        moved = held.to(device, non_blocking=True)
        return moved.long() if array.dtype.kind == "i" else moved

    first = [name for name in ("numbers", "codes") if name in block]
    others = [name for name in block if name not in ("numbers", "codes", "y")]
    return tuple(tensor(block[name]) for name in first + others), tensor(block.get("y", NO_LABELS))


class Context:
    """A training loop's view of its rank. ``daskdl.train`` makes it.

    Attributes
    ----------
    rank, world_size : int
    device : torch.device
        The rank's GPU if it has one.
    schema : Schema
        How the columns became numbers; ``schema.n_numbers`` and ``schema.cardinalities`` size a network.
    target : Target
        Its ``n_classes`` is 0 for a regression.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        batches: Sequence[RankBatches],
        schema: Schema,
        target: Target,
        run: str,
        generation: int,
        send: Send,
        commit: Commit | None = None,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.schema, self.target = schema, target
        self._batches = batches[0]
        self._validation = batches[1] if len(batches) > 1 else None
        self._kept: dict[str, Any] = {}
        self._share = Share()
        self._stopped = False
        self.run = run
        self._commit = commit or Commit()
        self._resume = dict(self._commit.state)
        self._report = _Report(self, run, generation, send)
        self.step = self._batches.next_step = self._commit.step

    # -- model ------------------------------------------------------------------------------------------------

    def prepare(self, module: nn.Module) -> nn.Module:
        """Move a module to this rank's device and make its gradients those of the whole global batch.

        Rank 0's weights are sent to all. Write the loss as the mean over the batch you got: daskdl weights the
        gradients by rows, so ranks with one row more or less count right.
        """
        module = module.to(self.device)
        self.keep(model=module)
        if self.world_size == 1:
            return module
        wrapped = nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
        wrapped.register_comm_hook(self._share, weighted_sum)
        return wrapped

    def keep(self, **stateful: Any) -> None:
        """Name objects with a ``state_dict``, such as ``optimizer=optimizer``, that belong to the state of the run.

        They are committed now and then. When a worker has died, the loop is called again on the others, and what it
        keeps is given the committed state at once.
        """
        for name, thing in stateful.items():
            if name in self._resume:
                thing.load_state_dict(self._resume.pop(name))
        self._kept.update(stateful)

    # -- data -------------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Global batches of the whole training."""
        return self._batches.total_steps

    @property
    def batches(self) -> Iterator[TensorBatch]:
        """This rank's batches, epoch after epoch; every rank gets the same number of them."""
        for batch, tensors in self._copied(self._batches):
            if spmd.stopping():
                raise RuntimeError(f"stopped at step {batch.step}: another rank of the gang failed, or the client did")
            self._share.value = batch.n_rows / batch.n_global
            self.step = batch.step + 1
            yield tensors
            self._report.close_step(batch)
            if self._stopped:
                break
        self._report.flush()

    @property
    def has_validation(self) -> bool:
        """Whether there are validation rows."""
        return self._validation is not None

    @property
    def validation_batches(self) -> Iterator[TensorBatch]:
        """This rank's part of the validation rows, once; ranks may get different numbers of rows, not of batches."""
        if self._validation is None:
            raise ValueError("there are no validation rows: fit was called without validation_data")
        self._validation.next_step = 0
        for _, tensors in self._copied(self._validation):
            yield tensors

    def _copied(self, batches: RankBatches) -> Iterator[tuple[Batch, TensorBatch]]:
        """Batches on the device. A GPU gets the next one, on a stream of its own, while the loop works on this one."""
        stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        waiting: tuple[Batch, TensorBatch] | None = None
        tensors: TensorBatch | None = None
        for batch in batches:
            with torch.cuda.stream(stream):
                last = (batch.step + 1) % batches.order.steps_per_epoch == 0
                tensors = self._tensors(batch, tensors, last)
            if stream is None:
                yield batch, tensors
                continue
            if waiting is not None:
                yield waiting
            torch.cuda.current_stream().wait_stream(stream)
            for tensor in (*tensors.inputs, tensors.y):
                tensor.record_stream(torch.cuda.current_stream())
            waiting = batch, tensors
        if waiting is not None:
            yield waiting

    def _tensors(self, batch: Batch, previous: TensorBatch | None, last_of_epoch: bool) -> TensorBatch:
        if batch.n_rows == 0 and previous is not None:
            inputs, y = previous.inputs, previous.y
        else:
            inputs, y = to_tensors(batch.arrays, self.device)
        return TensorBatch(inputs, y, batch.epoch, batch.step, last_of_epoch, batch.n_rows, batch.n_global)

    def stop(self) -> None:
        """End the batches after this step. Every rank must call it at the same step."""
        self._stopped = True

    # -- talk -------------------------------------------------------------------------------------------------

    def report(self, **values: float | torch.Tensor) -> None:
        """Report values of this step, means over this rank's rows; what is recorded is the mean over all ranks.

        ``loss`` is recorded as ``train_loss``, and a loss that is not finite ends the run with ``LossDiverged``. Every
        rank must report the same names.
        """
        self._report.add(values)

    def log(self, **values: float) -> None:
        """Record values that are the same on every rank, such as a validation loss."""
        self._report.point(self.step, values)

    def event(self, kind: str, text: str) -> None:
        """Record that something happened, such as an early stop; rank 0's word counts."""
        self._report.message("event", event=kind, text=text, step=self.step)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all ranks, in place. Every rank must call it."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    # -- state ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """``state_dict`` of everything kept, copied to the CPU."""
        return {name: to_cpu(thing.state_dict()) for name, thing in self._kept.items()}

    def commit(self, uses: dict[int, Use]) -> None:
        """Keep a copy of the state of this step, if the model is finite."""
        model = self._kept.get("model")
        if model is None or all(bool(p.isfinite().all()) for p in model.parameters()):
            self._commit = Commit(self.step, self.state(), dict(uses))
            put_commit(self.run, self._commit)

    def diverged(self, step: int, loss: float) -> LossDiverged:
        """Make the error of a loss that is not finite. All ranks know; rank 0 tells."""
        if self.rank != 0:
            dist.barrier()  # fails when rank 0 has told
        good_step, state = self._commit.step, self._commit.state.get("model", {})
        return LossDiverged(
            f"the training loss became {loss} at step {step}. The last good weights are those after step {good_step}; "
            "they are kept in this error as .state and by an estimator as model_. A lower learning rate, clipped "
            "gradients or a look at the largest feature values usually help.",
            step,
            good_step,
            state,
        )

    @property
    def n_messages(self) -> int:
        """Messages this rank has sent."""
        return self._report.sent


def to_cpu(state: Any) -> Any:
    """Copy a state to the CPU: tensors cloned, containers rebuilt."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {k: to_cpu(v) for k, v in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(to_cpu(v) for v in state)
    return state


class _Step(NamedTuple):
    """What a rank said of one step."""

    step: int
    n_rows: int
    n_global: int
    values: dict[str, torch.Tensor]
    digest: int
    epoch: int


class _Report:
    """Collects what a rank reports, adds it up over ranks now and then, and sends it as messages of rank 0."""

    def __init__(self, context: Context, run: str, generation: int, send: Send) -> None:
        self.context, self.run, self.generation, self.send = context, run, generation, send
        self.every = max(1, min(context.total_steps // POINTS_PER_RUN, COMMIT_STEPS))
        self.uses: dict[int, Use] = dict(context._commit.uses)
        self.steps_per_epoch = context._batches.order.steps_per_epoch
        self.now: dict[str, torch.Tensor] = {}
        self.rows: list[_Step] = []
        self.points: list[list[Any]] = []
        self.sent = 0
        self.sent_at = self.added_at = time.monotonic()

    def add(self, values: dict[str, float | torch.Tensor]) -> None:
        for name, value in values.items():
            tensor = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(float(value))
            if tensor.numel() != 1:
                raise ValueError(
                    f"report({name}=...) takes one number per step, got a tensor of shape {tuple(tensor.shape)}. "
                    "Reduce it first, for example with .mean()."
                )
            self.now["train_loss" if name == "loss" else name] = tensor.reshape(()).double()

    def close_step(self, batch: Batch) -> None:
        self.rows.append(_Step(batch.step, batch.n_rows, batch.n_global, self.now, batch.digest, batch.epoch))
        self.now = {}
        if len(self.rows) >= self.every:
            self.flush(batch.epoch + 1)

    def flush(self, epoch: float | None = None) -> None:
        """Add up over ranks the steps since the last time; every rank gets here at the same step."""
        rows, self.rows = self.rows, []
        names = sorted(rows[-1].values) if rows else []
        if rows:
            self._audit(rows)
        if names:
            means = self._means(rows, names)
            for one, values in zip(rows, means, strict=True):
                self.points.append([one.step + 1, dict(zip(names, values, strict=True))])
            losses = [(one.step, v[names.index("train_loss")]) for one, v in zip(rows, means, strict=True)
                      if "train_loss" in names]  # fmt: skip
            bad = next(((step, loss) for step, loss in losses if not math.isfinite(loss)), None)
            if bad is not None:
                self._send_points(epoch)
                raise self.context.diverged(*bad)
        if rows:
            self.context.commit(self.uses)
            now = time.monotonic()
            rate = sum(one.n_global for one in rows) / max(now - self.added_at, 1e-9)
            self._add_point(rows[-1].step + 1, "rows_per_s", rate)
            self.added_at = now
        if self.points and (time.monotonic() - self.sent_at > SEND_SECONDS or epoch is None):
            self._send_points(epoch)

    def _audit(self, rows: list[_Step]) -> None:
        """Add up what all ranks used in these steps, epoch by epoch; integers wrap around, as the digest does."""
        parts = [list(steps) for _, steps in groupby(rows, key=lambda one: one.epoch)]
        mine = [(sum(one.digest for one in part) & MASK, sum(one.n_rows for one in part)) for part in parts]
        sums = torch.tensor([[digest - (digest >> 63 << 64), n] for digest, n in mine], device=self.context.device)
        if self.context.world_size > 1:
            dist.all_reduce(sums)
        for part, (digest, n) in zip(parts, sums.tolist(), strict=True):
            self._use(part[0].step, part[-1].step + 1, n, digest & MASK)
        self.message("audit", uses=list(self.uses.values()))

    def _use(self, first: int, stop: int, rows: int, digest: int) -> None:
        """Add steps to the stretch of their epoch that they follow on."""
        begin = first // self.steps_per_epoch * self.steps_per_epoch
        if begin in self.uses and self.uses[begin][1] == first:
            _, _, before, sum_before = self.uses[begin]
            first, rows, digest = begin, before + rows, (sum_before + digest) & MASK
        self.uses[first] = (first, stop, rows, digest)

    def _means(self, rows: list[_Step], names: list[str]) -> list[list[float]]:
        """Mean of each value over the rows of all ranks, step by step: one all-reduce for all steps."""
        zero = torch.zeros((), dtype=torch.float64, device=self.context.device)
        sums = [[one.values.get(k, zero) * one.n_rows if one.n_rows else zero for k in names] for one in rows]
        table = torch.stack([torch.stack([v.to(self.context.device) for v in line]) for line in sums])
        if self.context.world_size > 1:
            dist.all_reduce(table)
        totals = torch.tensor([[one.n_global] for one in rows], dtype=torch.float64)
        return [[float(v) for v in line] for line in table.cpu() / totals]

    def _add_point(self, step: int, name: str, value: float) -> None:
        self.points.append([step, {name: value}])

    def point(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._add_point(step, name, float(value))

    def _send_points(self, epoch: float | None) -> None:
        points, self.points = self.points, []
        self.sent_at = time.monotonic()
        self.message("metrics", points=points, epoch=epoch)

    def message(self, kind: str, **keys: Any) -> None:
        if self.context.rank == 0:
            about = {"run": self.run, "kind": kind, "time": time.time(), "generation": self.generation}
            self.send({**about, **keys})
            self.sent += 1
