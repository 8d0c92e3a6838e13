"""The training loop behind the Torch estimators. It uses nothing but a ``Context``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from daskdl.training.context import Context
from daskdl.training.evaluation import evaluate
from daskdl.training.losses import Objective
from daskdl.training.tensors import TensorBatch, to_cpu


@dataclass(frozen=True)
class FitConfig:
    """What the loop is asked to do."""

    optimizer: str | Callable[..., torch.optim.Optimizer]
    learning_rate: float
    weight_decay: float
    patience: int | None


def make_optimizer(config: FitConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer: a name in ``torch.optim``, or a callable ``f(parameters, lr=...)``."""
    if callable(config.optimizer):
        return config.optimizer(module.parameters(), lr=config.learning_rate)
    classes = (getattr(torch.optim, name) for name in torch.optim.__all__)
    by_name: dict[str, Any] = {
        c.__name__.lower(): c for c in classes if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)
    }
    if config.optimizer.lower() not in by_name:
        raise ValueError(f"optimizer must be one of {sorted(by_name)} or a callable, got {config.optimizer!r}")
    made: torch.optim.Optimizer = by_name[config.optimizer.lower()](
        module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    return made


def fit_loop(context: Context, module: nn.Module, objective: Objective, config: FitConfig) -> nn.Module:
    """Train a module for all its batches; with validation rows, evaluate after every epoch and keep the best."""
    model = context.prepare(module)
    optimizer = make_optimizer(config, model)
    context.keep(optimizer=optimizer)
    objective.to(context.device)
    best = _Best(config.patience)
    context.keep(best=best)
    model.train()

    def loss_of(part: TensorBatch) -> torch.Tensor:
        total, count = objective(model(*part.inputs), part.y, share=part.n_rows / part.n_global)
        return total / count

    for batch in context.batches:
        optimizer.zero_grad()
        loss = context.backward(batch, loss_of)
        optimizer.step()
        context.report(loss=loss)
        if context.has_validation and batch.last_of_epoch:
            values = evaluate(context, module, objective)
            context.log(**values)
            if best.is_over(values["val_loss"], module, batch.epoch):
                context.event("early_stop", f"val_loss {best.loss:.5f} is the best of epoch {best.epoch + 1}")
                context.stop()
    if best.state:
        module.load_state_dict(best.state)
    return module


class _Best:
    """The best weights so far, and whether it is time to stop. With no patience, it keeps nothing."""

    def __init__(self, patience: int | None) -> None:
        self.patience, self.loss, self.epoch = patience, float("inf"), 0
        self.state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "epoch": self.epoch, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss, self.epoch, self.state = state["loss"], state["epoch"], state["state"]

    def is_over(self, loss: float, module: nn.Module, epoch: int) -> bool:
        if self.patience is None:
            return False
        if loss < self.loss:
            self.loss, self.epoch, self.state = loss, epoch, to_cpu(module.state_dict())
        return epoch - self.epoch >= self.patience
