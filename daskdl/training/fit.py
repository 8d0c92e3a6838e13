"""The training loop behind the Torch estimators. It uses nothing but a ``Context``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from daskdl.data.schema.target import Target
from daskdl.training.context import Context, to_cpu
from daskdl.training.tensors import TensorBatch

AUC_BINS = 4096

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FitConfig:
    """What the loop is asked to do."""

    optimizer: str | Callable[..., torch.optim.Optimizer]
    learning_rate: float
    weight_decay: float
    loss: Loss | None
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


def default_loss(output: torch.Tensor, y: torch.Tensor, target: Target) -> torch.Tensor:
    """Mean squared error, binary cross entropy for one logit, cross entropy for one logit per class."""
    if target.n_classes == 0:
        return F.mse_loss(output.reshape(-1), y)
    if output.ndim == 1 or output.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(output.reshape(-1), y.to(output.dtype))
    return F.cross_entropy(output, y)


def fit_loop(context: Context, module: nn.Module, config: FitConfig) -> nn.Module:
    """Train a module for all its batches; with validation rows, evaluate after every epoch and keep the best."""
    model = context.prepare(module)
    optimizer = make_optimizer(config, model)
    context.keep(optimizer=optimizer)
    target = context.target
    best = _Best(config.patience)
    context.keep(best=best)
    model.train()

    def loss_of(part: TensorBatch) -> torch.Tensor:
        output = model(*part.inputs)
        return config.loss(output, part.y) if config.loss else default_loss(output, part.y, target)

    for batch in context.batches:
        optimizer.zero_grad()
        loss = context.backward(batch, loss_of)
        optimizer.step()
        context.report(loss=loss)
        if context.has_validation and batch.last_of_epoch:
            values = evaluate(context, module, config)
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


@torch.no_grad()
def evaluate(context: Context, module: nn.Module, config: FitConfig) -> dict[str, float]:
    """Loss and accuracy (and, for two classes, AUC) over the validation rows of all ranks."""
    target = context.target
    module.eval()
    sums = torch.zeros(3 + 2 * AUC_BINS, dtype=torch.float64, device=context.device)  # rows, loss, hits, histograms
    for batch in context.validation_batches:
        if batch.n_rows:
            y, output = batch.y, module(*batch.inputs)
            loss = config.loss(output, y) if config.loss else default_loss(output, y, target)
            sums[0] += len(y)
            sums[1] += loss.double() * len(y)
            if target.n_classes:
                scores = class_scores(output)
                sums[2] += (scores.argmax(1) == y).sum()
                if target.n_classes == 2:
                    sums[3:] += score_histogram(scores[:, 1] - scores[:, 0], y)
    module.train()
    rows, loss, hits, *histogram = context.sum(sums).tolist()
    values = {"val_loss": loss / max(1, rows)}
    if target.n_classes:
        values["val_accuracy"] = hits / max(1, rows)
    if target.n_classes == 2:
        values["val_auc"] = auc_of_histogram(torch.tensor(histogram))
    return values


def class_scores(output: torch.Tensor) -> torch.Tensor:
    """One score per class, shape (n_rows, n_classes), whose softmax is the probability."""
    if output.ndim == 1 or output.shape[1] == 1:
        logit = output.reshape(-1)
        return torch.stack([torch.zeros_like(logit), logit], dim=1)
    return output


def score_histogram(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Rows per bin of the logit, for class 0 and then for class 1: shape (2 * AUC_BINS,)."""
    bins = ((logits.double().clamp(-12, 12) + 12) / 24 * (AUC_BINS - 1)).long()
    return torch.bincount(bins + y * AUC_BINS, minlength=2 * AUC_BINS).double()


def auc_of_histogram(histogram: torch.Tensor) -> float:
    """Area under the ROC curve from binned scores; ties inside a bin count half. NaN if a class is absent."""
    negative, positive = histogram.double().reshape(2, AUC_BINS)
    below = negative.cumsum(0) - negative
    pairs = float(negative.sum() * positive.sum())
    return float((positive * (below + negative / 2)).sum()) / pairs if pairs else float("nan")
