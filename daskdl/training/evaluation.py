"""What is measured on the validation rows, after every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from daskdl.training.context import Context
from daskdl.training.losses import Objective
from daskdl.training.metrics import Gathered
from daskdl.training.optimizing import labels_of
from daskdl.training.outputs import by_rows, class_scores, first_output, margin

AUC_BINS = 4096


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured.

    Attributes
    ----------
    metrics : dict
        By the name under which they are logged.
    n_outputs, n_labels : int
        Numbers of a row that are predicted, and labels of a row.
    """

    metrics: Mapping[str, Any] = field(default_factory=dict)
    n_outputs: int = 1
    n_labels: int = 1


@torch.no_grad()
def evaluate(context: Context, module: nn.Module, objective: Objective, config: EvaluationConfig) -> dict[str, float]:
    """Loss and metrics (for classes accuracy, for two AUC, too) over the validation rows of all ranks."""
    target = context.target
    gathered = Gathered(context, objective.reads, config.n_outputs, config.n_labels) if config.metrics else None
    module.eval()
    # weights of rows, loss and what it is divided by, hits, histograms
    sums = torch.zeros(4 + 2 * AUC_BINS, dtype=torch.float64, device=context.device)
    for batch in context.validation_batches:
        if batch.n_rows:
            y, output = labels_of(batch), by_rows(module(*batch.inputs), batch.n_rows)
            total, count = objective(output, y, batch.weight, batch.n_rows / context.validation_order.n_rows)
            weight = torch.ones(len(y), device=y.device) if batch.weight is None else batch.weight
            sums[:3] += torch.stack(
                [torch.as_tensor(v, device=y.device).double() for v in (weight.sum(), total, count)]
            )
            if target.n_classes:
                scores = first_output(output)
                sums[3] += (weight * (class_scores(scores, objective.reads).argmax(1) == y)).sum()
                if target.n_classes == 2:
                    sums[4:] += score_histogram(margin(scores, objective.reads), y, weight)
            if gathered is not None:
                gathered.add(batch, first_output(output), y)
    module.train()
    rows, loss, count, hits, *histogram = context.sum(sums).tolist()
    found = {"val_loss": loss / count if count else float("nan")}
    if target.n_classes:
        found["val_accuracy"] = hits / rows if rows else float("nan")
    if target.n_classes == 2:
        found["val_auc"] = auc_of_histogram(torch.tensor(histogram))
    return found | (gathered.measure(config.metrics) if gathered is not None else {})


def score_histogram(logits: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Rows, or their weights, per bin of the logit, for class 0 and then for class 1: shape (2 * AUC_BINS,)."""
    bins = ((logits.double().clamp(-12, 12) + 12) / 24 * (AUC_BINS - 1)).long()
    return torch.bincount(bins + y * AUC_BINS, weight, minlength=2 * AUC_BINS).double()


def auc_of_histogram(histogram: torch.Tensor) -> float:
    """Area under the ROC curve from binned scores; ties inside a bin count half. NaN if a class is absent."""
    negative, positive = histogram.double().reshape(2, AUC_BINS)
    below = negative.cumsum(0) - negative
    pairs = float(negative.sum() * positive.sum())
    return float((positive * (below + negative / 2)).sum()) / pairs if pairs else float("nan")
