"""The training loop behind the Torch estimators. It uses nothing but a ``Context``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from daskdl.training.callbacks import Callbacks
from daskdl.training.context import Context
from daskdl.training.evaluation import EvaluationConfig, evaluate
from daskdl.training.losses import Objective
from daskdl.training.optimizing import StepConfig, Steps
from daskdl.training.tensors import to_cpu


@dataclass(frozen=True)
class FitConfig:
    """What the loop is asked to do.

    Attributes
    ----------
    steps : StepConfig
    patience : int or None
    evaluation : EvaluationConfig
    callbacks : tuple
    begin_with : dict
        State of the optimizer of an earlier fit that this one goes on from.
    """

    steps: StepConfig = field(default_factory=StepConfig)
    patience: int | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    callbacks: tuple[Any, ...] = ()
    begin_with: Mapping[str, Any] = field(default_factory=dict)


def fit_loop(context: Context, module: nn.Module, objective: Objective, config: FitConfig) -> nn.Module:
    """Train a module for all its batches; with validation rows, evaluate after every epoch and keep the best."""
    model = context.prepare(module)
    objective = objective.to(context.device)
    steps = Steps(config.steps, model, context)
    if config.begin_with:
        steps.begin_with(config.begin_with)
    best, callbacks = _Best(config.patience), Callbacks(config.callbacks, context)
    context.keep(**steps.stateful, best=best, **callbacks.stateful)
    model.train()
    for batch in context.batches:
        loss = steps.do(batch, objective)
        context.report(loss=loss)
        callbacks.step_ended(batch, loss)
        if batch.last_of_epoch:
            values = evaluate(context, module, objective, config.evaluation) if context.has_validation else {}
            context.log(**values)
            steps.end_epoch(values)
            callbacks.epoch_ended(batch, loss, values)
            if values and best.is_over(values["val_loss"], module, batch.epoch):
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
