"""Steps with the same bits at any number of ranks: each virtual rank by itself, added up in a fixed order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from daskdl.data.order import share
from daskdl.data.virtual import VirtualOrder
from daskdl.training.clock import Clock
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
    clock : Clock
    """

    def __init__(
        self, order: VirtualOrder, rank: int, world_size: int, seed: Callable[[int, int], int], clock: Clock
    ) -> None:
        self.order, self.rank, self.world_size, self.seed, self.clock = order, rank, world_size, seed, clock
        self.module: nn.Module | None = None
        self.stepped = -1  # the last step that was added up

    def prepare(self, module: nn.Module) -> nn.Module:
        """Give all ranks the weights of rank 0."""
        self.module = module
        if self.world_size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)
        return module

    def backward(self, batch: TensorBatch, loss_of: Callable[[TensorBatch], torch.Tensor]) -> torch.Tensor:
        """Leave the gradients of the global batch in the module; return the mean loss over this rank's rows."""
        assert self.module is not None
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        buffers = [b for b in self.module.buffers() if b.is_floating_point()]
        others = [b for b in self.module.buffers() if not b.is_floating_point()]  # counters: they step once
        before = [p.grad for p in parameters], [b.clone() for b in (*buffers, *others)]
        mine, first, loss = [], 0, torch.zeros((), device=batch.y.device, dtype=torch.float64)
        for v, n_rows in self.order.pieces(batch.step, self.rank, self.world_size):
            weight = n_rows / batch.n_global
            self.module.zero_grad()
            with torch.no_grad():
                for buffer, old in zip((*buffers, *others), before[1], strict=True):
                    buffer.copy_(old)
            if n_rows:
                seed_torch(self.seed(batch.step, v), batch.y.device)
                part = loss_of(_part(batch, first, first + n_rows))
                part.backward()
                loss += part.detach().double() * n_rows
            first += n_rows
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            mine.append(torch.cat([g.reshape(-1) for g in (*grads, *buffers)]).mul_(weight))
        self.clock.lap("backward")
        total = self._sum(torch.stack(mine))
        self.clock.lap("all-reduce")
        at = 0
        for parameter, earlier in zip(parameters, before[0], strict=True):
            found = total[at : at + parameter.numel()].view_as(parameter)
            parameter.grad = found.clone() if earlier is None else earlier + found
            at += parameter.numel()
        with torch.no_grad():
            for buffer in buffers:
                buffer.copy_(total[at : at + buffer.numel()].view_as(buffer))
                at += buffer.numel()
        self.stepped = batch.step
        return loss / max(1, batch.n_rows)

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


def _part(batch: TensorBatch, first: int, stop: int) -> TensorBatch:
    """Some rows of a batch, copied: where an array begins in memory may decide how it is added up."""

    def rows(tensor: Any) -> Any:
        return tensor[first:stop].clone()

    inputs, weight = tuple(rows(x) for x in batch.inputs), None if batch.weight is None else rows(batch.weight)
    return replace(batch, inputs=inputs, y=rows(batch.y), weight=weight, n_rows=stop - first)
