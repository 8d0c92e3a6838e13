"""What is measured on the validation rows, after every epoch."""

from __future__ import annotations

import torch
from torch import nn

from daskdl.training.context import Context
from daskdl.training.losses import Objective
from daskdl.training.outputs import by_rows, class_scores, first_output, margin

AUC_BINS = 4096


@torch.no_grad()
def evaluate(context: Context, module: nn.Module, objective: Objective) -> dict[str, float]:
    """Loss and accuracy (and, for two classes, AUC) over the validation rows of all ranks."""
    target = context.target
    module.eval()
    # rows, loss and what it is divided by, hits, histograms
    sums = torch.zeros(4 + 2 * AUC_BINS, dtype=torch.float64, device=context.device)
    for batch in context.validation_batches:
        if batch.n_rows:
            y, output = batch.y, module(*batch.inputs)
            total, count = objective(output, y)
            sums[:3] += torch.stack([torch.as_tensor(v, device=y.device).double() for v in (len(y), total, count)])
            if target.n_classes:
                first = first_output(by_rows(output, len(y)))
                sums[3] += (class_scores(first, objective.reads).argmax(1) == y).sum()
                if target.n_classes == 2:
                    sums[4:] += score_histogram(margin(first, objective.reads), y)
    module.train()
    rows, loss, count, hits, *histogram = context.sum(sums).tolist()
    values = {"val_loss": loss / count if count else float("nan")}
    if target.n_classes:
        values["val_accuracy"] = hits / max(1, rows)
    if target.n_classes == 2:
        values["val_auc"] = auc_of_histogram(torch.tensor(histogram))
    return values


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
