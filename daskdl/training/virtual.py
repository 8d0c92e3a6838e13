"""Steps with the same bits at any number of ranks: each virtual rank by itself, added up in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from daskdl.data.order import share
from daskdl.data.virtual import VirtualOrder
from daskdl.training.collectives import WIDE, n_values, numbers, shaped
from daskdl.training.gradients import Gradients
from daskdl.training.mean import Loss, parts_of, scaled
from daskdl.training.tensors import TensorBatch, seed_torch


class VirtualRanks:
    """Does the virtual ranks of one rank, and sums what all of them give.

    Gradients, and the buffers that layers such as batch norm keep, are gathered from all ranks and added up virtual
    rank by virtual rank. So each step sends as many copies of the gradients as there are virtual ranks, and computes on
    smaller batches in one thread: that is what it costs.

    Parameters
    ----------
    order : VirtualOrder
    rank, world_size : int
    seed : callable
        ``seed(step, v)``: of torch's random state for a virtual rank.
    gradients : Gradients
        Knows the modules.
    """

    def __init__(
        self, order: VirtualOrder, rank: int, world_size: int, seed: Callable[[int, int], int], gradients: Gradients
    ) -> None:
        self.order, self.rank, self.world_size, self.seed = order, rank, world_size, seed
        self.gradients, self.clock = gradients, gradients.clock
        self.stepped = -1  # the last step that was added up

    def backward(self, batch: TensorBatch, loss_of: Callable[[TensorBatch], Loss]) -> torch.Tensor:
        """Leave the gradients of the global batch in the modules; return the loss of this rank's rows."""
        parameters = [p for p in self.gradients.parameters.values() if p.requires_grad]
        earlier = [p.grad for p in parameters]
        buffers = _Buffers(self.gradients.modules.values())
        mine, first, loss = [], 0, torch.zeros((), device=batch.y.device, dtype=torch.float64)
        for v, n_rows in self.order.pieces(batch.step, self.rank, self.world_size):
            for parameter in parameters:
                parameter.grad = None
            buffers.put_back()
            weight, count = 0.0, torch.zeros((), device=batch.y.device)
            if n_rows:
                seed_torch(self.seed(batch.step, v), batch.y.device)
                total, weight, count = parts_of(loss_of(part_of(batch, first, first + n_rows)), n_rows)
                self.clock.lap("forward")
                total.backward()
                loss += total.detach().double() * weight
            first += n_rows
            mine.append(_line(parameters, weight, count, buffers.steps(), n_rows / batch.n_global))
        buffers.put_back()
        self.clock.lap("backward")
        line = self._sum(torch.stack(mine))
        self.clock.lap("all-reduce")
        count = _take(line, parameters, earlier, buffers)
        self.gradients.found()
        self.stepped = batch.step
        return scaled(loss, count, batch.n_rows / batch.n_global)

    def check(self, step: int) -> None:
        """Refuse a step of which nothing was added up here."""
        if self.gradients.modules and self.stepped != step:
            raise RuntimeError(
                f"step {step} ended without context.backward(batch, loss_of): with reproducible=True gradients are "
                "added up there and nowhere else, so ranks would now have different weights. Write "
                "loss = context.backward(batch, lambda part: loss(model(*part.inputs), part.y))."
            )

    def _sum(self, mine: torch.Tensor) -> torch.Tensor:
        """Add up what all virtual ranks have, in their order; shape (n_values,)."""
        n = self.order.virtual_ranks
        lines = [mine]
        if self.world_size > 1:
            most = -(-n // self.world_size)
            padded = torch.cat([mine, mine.new_zeros(most - len(mine), mine.shape[1])])
            everyone = [torch.empty_like(padded) for _ in range(self.world_size)]
            dist.all_gather(everyone, padded)
            sizes = [stop - first for first, stop in (share(n, r, self.world_size) for r in range(self.world_size))]
            lines = [found[:size] for found, size in zip(everyone, sizes, strict=True)]
        total = torch.zeros_like(mine[0])
        for line in (line for found in lines for line in found):
            total += line
        return total


class _Buffers:
    """Buffers of modules before a step, from which every virtual rank begins; a layer may replace them."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        layers = {id(layer): layer for module in modules for layer in module.modules()}.values()
        self.places = [(layer, name) for layer in layers for name, b in layer._buffers.items() if b is not None]
        self.tensors = [cast(torch.Tensor, layer._buffers[name]) for layer, name in self.places]
        self.values = [tensor.clone() for tensor in self.tensors]

    def put_back(self) -> None:
        """Have all be as before the step."""
        with torch.no_grad():
            for (layer, name), tensor, value in zip(self.places, self.tensors, self.values, strict=True):
                tensor.copy_(value)
                layer._buffers[name] = tensor

    def steps(self) -> list[torch.Tensor]:
        """By how much each has changed."""
        return [_step(layer._buffers[name], old) for (layer, name), old in zip(self.places, self.values, strict=True)]

    def change(self, steps: Iterable[torch.Tensor]) -> None:
        """Change each by the mean of the steps of all virtual ranks; counters by whole numbers."""
        with torch.no_grad():
            for tensor, step in zip(self.tensors, steps, strict=True):
                exact = tensor.is_floating_point() or tensor.is_complex()
                tensor.copy_(_wide(tensor) + shaped(step if exact else step.round(), _wide(tensor)))


def _step(now: torch.Tensor | None, before: torch.Tensor) -> torch.Tensor:
    if now is None or now.shape != before.shape:  # no place for it in what is sent
        return torch.zeros_like(before, dtype=None if before.is_complex() else torch.float32)
    if before.is_floating_point() or before.is_complex():
        return now - before
    return (now.double() - before.double()).float()


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_floating_point() or tensor.is_complex() else tensor.double()


def _line(
    parameters: list[nn.Parameter], weight: float, count: torch.Tensor, steps: list[torch.Tensor], share: float
) -> torch.Tensor:
    """What a virtual rank has, in a row: gradients, steps of buffers, which gradients there are or are dense, count."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]
    had = [float(p.grad is not None) for p in parameters]
    dense = [float(p.grad is not None and not p.grad.is_sparse) for p in parameters]
    parts = [numbers(grad) * weight for grad in grads] + [numbers(step) * share for step in steps]
    wide = torch.float64 if any(p.dtype in WIDE for p in parameters) else torch.float32
    flags = torch.tensor([*had, *dense], device=count.device)
    return torch.cat([*parts, flags, count.reshape(1).to(wide)])


def _take(
    line: torch.Tensor, parameters: list[nn.Parameter], earlier: list[torch.Tensor | None], buffers: _Buffers
) -> torch.Tensor:
    """Put what was added up in its places, on top of gradients that were there before; return the count."""
    sizes = [n_values(tensor) for tensor in (*parameters, *buffers.tensors)]
    *found, had, dense, count = line.split([*sizes, len(parameters), len(parameters), 1])
    factor = torch.where(count > 0, 1 / torch.where(count > 0, count, 1), 0)
    flags = zip(had.tolist(), dense.tolist(), strict=True)
    for parameter, before, values, (any_had, any_dense) in zip(parameters, earlier, found, flags, strict=False):
        grad = shaped(values * factor, parameter).to(parameter.dtype)
        grad = grad if any_dense else grad.to_sparse(1)
        parameter.grad = before if not any_had else grad if before is None else before + grad
    buffers.change(found[len(parameters) :])
    return count.double().reshape(())


def part_of(batch: TensorBatch, first: int, stop: int) -> TensorBatch:
    """Some rows of a batch, copied: where an array begins in memory may decide how it is added up."""
    return replace(
        batch,
        **{f.name: _rows(getattr(batch, f.name), first, stop) for f in fields(batch) if f.name != "n_rows"},
        n_rows=stop - first,
    )


def _rows(value: Any, first: int, stop: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value[first:stop].clone()
    if isinstance(value, tuple):
        return tuple(_rows(one, first, stop) for one in value)
    if isinstance(value, dict):
        return {name: _rows(one, first, stop) for name, one in value.items()}
    return value
