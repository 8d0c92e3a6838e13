"""Modules, losses and optimizers of a loop, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from torch import nn
from torch.nn import functional as F

import daskdl
from daskdl.errors import RankFailed

from .case import Case

GROUP = "Modules and losses in a loop of one's own"

Step = Callable[[Any], tuple[Any, Callable[[Any], Any]]]


def _data() -> tuple[pd.DataFrame, pd.Series]:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc"))
    return frame, (frame.a > 0).astype(int)


def _loop(context: Any, make: Step) -> list[torch.Tensor]:
    torch.manual_seed(0)
    modules, loss_of = make(context)
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    context.keep(optimizer=optimizer)
    for batch in context.batches:
        loss = context.backward(batch, loss_of)
        optimizer.step()
        optimizer.zero_grad()
        context.report(loss=loss)
    return [p.detach() for p in parameters]


def _weights(make: Step, num_workers: int) -> list[torch.Tensor]:
    options: dict[str, Any] = {"num_workers": num_workers, "batch_size": 16, "verbose": 0}
    found: list[torch.Tensor] = daskdl.train(_loop, _data(), make, **options).value
    return found


def _same(make: Step, client: Client) -> None:
    one, two = _weights(make, 1), _weights(make, 2)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, two, strict=True))


def _refused(make: Step, told: str, client: Client) -> None:
    for num_workers in (1, 2):
        with pytest.raises(RankFailed, match=told):
            _weights(make, num_workers)


def _several(context: Any) -> Any:
    encoder, head = context.prepare(nn.Linear(3, 4)), context.prepare(nn.Linear(4, 2))
    return [encoder, head], lambda part: F.cross_entropy(head(encoder(part.x)), part.y)


class _Coder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.spare, self.width = nn.Linear(3, 2), nn.Linear(2, 2), 2

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def _method(context: Any) -> Any:
    coder = context.prepare(_Coder())
    return [coder], lambda part: F.cross_entropy(coder.encode(part.x), part.y)


def _wrapped(context: Any) -> Any:
    coder = context.prepare(_Coder())
    return [coder], lambda part: F.cross_entropy(coder.module.encode(part.x), part.y)


def _sparse(context: Any) -> Any:
    codes, head = context.prepare(nn.Embedding(50, 4, sparse=True)), context.prepare(nn.Linear(4, 2))
    return [codes, head], lambda part: F.cross_entropy(head(codes((part.x[:, 0] * 5).long() + 25)), part.y)


def _batch_norm(context: Any) -> Any:
    net = context.prepare(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
    return [net], lambda part: F.cross_entropy(net(part.x), part.y)


def _weighted(context: Any) -> Any:
    net, weights = context.prepare(nn.Linear(3, 2)), torch.tensor([1.0, 6.0])

    def loss_of(part: Any) -> Any:
        losses = F.cross_entropy(net(part.x), part.y, reduction="none") * weights[part.y]
        return losses.sum(), weights[part.y].sum()

    return [net], loss_of


def _lazy(context: Any) -> Any:
    net = context.prepare(nn.LazyLinear(2))
    return [net], lambda part: F.cross_entropy(net(part.x), part.y)


def _forgotten(context: Any) -> Any:
    encoder, head = context.prepare(nn.Linear(3, 4)), nn.Linear(4, 2)
    return [encoder, head], lambda part: F.cross_entropy(head(encoder(part.x)), part.y)


SAME = "the same weights on one, two and three ranks"
CASES = [
    Case(GROUP, "several modules, each given to `context.prepare`", SAME, partial(_same, _several)),
    Case(GROUP, "a method or attribute of a module, layers that the loss does not use", SAME, partial(_same, _method)),
    Case(
        GROUP, "`model.module` and `model.no_sync()`, as of DDP", "work, and change nothing", partial(_same, _wrapped)
    ),
    Case(GROUP, "`nn.Embedding(..., sparse=True)`", SAME, partial(_same, _sparse)),
    Case(GROUP, "batch norm", f"statistics of the global batch: {SAME}", partial(_same, _batch_norm)),
    Case(
        GROUP,
        "class weights, means over tokens: the pair `(total, count)`, or `context.mean(total, count)`",
        f"sum of totals over sum of counts: {SAME}",
        partial(_same, _weighted),
    ),
    Case(
        GROUP,
        "`nn.LazyLinear` and its like, not called yet",
        "an error before the first step: call it once, before `context.prepare`",
        partial(_refused, _lazy, "get their shape only when the module is called"),
    ),
    Case(
        GROUP,
        "an optimizer of a module that was not prepared",
        "an error before the first step: prepare every module that is trained",
        partial(_refused, _forgotten, "are of no module that was given to context.prepare"),
    ),
]
