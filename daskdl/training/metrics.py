"""Metrics of the user's choice over the predictions and labels of the validation rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch

from daskdl.data.order import share
from daskdl.data.schema.target import Target
from daskdl.training.context import Context
from daskdl.training.losses import takes
from daskdl.training.outputs import Reads, class_scores, values
from daskdl.training.tensors import TensorBatch

MOST_VALUES = 2**22  # of predictions and labels that are held, 32 MiB: of more rows a random part


def check_metrics(metrics: Any) -> dict[str, Any]:
    """Take metrics as given, by the name under which they are logged.

    Raises
    ------
    ValueError, TypeError
        A name that scikit-learn does not know, or what is no function.

    Examples
    --------
    >>> from sklearn.metrics import f1_score
    >>> list(check_metrics(["roc_auc", f1_score]))
    ['val_roc_auc', 'val_f1_score']
    """
    if metrics is None:
        return {}
    from sklearn.metrics import get_scorer

    if isinstance(metrics, str) or callable(metrics):
        metrics = [metrics]
    named = metrics if isinstance(metrics, Mapping) else {_name(metric): metric for metric in metrics}
    found = {}
    for name, metric in named.items():
        if isinstance(metric, str):
            try:
                metric = get_scorer(metric)
            except ValueError as error:
                raise ValueError(
                    f"metrics: {metric!r} is none of scikit-learn's names, such as 'f1' or 'neg_mean_absolute_error' "
                    "(sklearn.metrics.get_scorer_names() lists them). Or give a function f(y_true, y_pred)."
                ) from error
        if not callable(metric):
            raise TypeError(f"metrics are names or functions f(y_true, y_pred), got {metric!r}")
        found[f"val_{name}"] = metric
    return found


def _name(metric: Any) -> str:
    if isinstance(metric, str):
        return metric
    inner = getattr(metric, "_score_func", metric)  # of a scorer that make_scorer made
    return str(getattr(inner, "__name__", type(inner).__name__))


class Gathered:
    """Predictions and labels of the validation rows in their order, the same in all ranks, however many.

    Parameters
    ----------
    context : Context
    reads : Reads
    n_outputs, n_labels : int
        Numbers of a row that are predicted, and labels of a row.
    """

    def __init__(self, context: Context, reads: Reads, n_outputs: int, n_labels: int) -> None:
        self.context, self.reads, self.target, self.width = context, reads, context.target, n_outputs
        columns = n_outputs + n_labels + 1
        n = min(context.validation_order.n_rows, MOST_VALUES // columns)
        self.table = torch.zeros(n, columns, dtype=torch.float64, device=context.device)

    def add(self, batch: TensorBatch, output: torch.Tensor, y: torch.Tensor) -> None:
        """Take this rank's part of a batch."""
        found = class_scores(output, self.reads) if self.target.n_classes else values(output, self.reads)
        weight = torch.ones(len(y), device=output.device) if batch.weight is None else batch.weight
        rows = torch.cat([x.double().reshape(len(y), -1) for x in (found, y, weight)], dim=1)
        order = self.context.validation_order
        first = batch.step * order.batch_size + share(batch.n_global, self.context.rank, self.context.world_size)[0]
        room = max(0, min(len(rows), len(self.table) - first))
        self.table[first : first + room] = rows[:room]

    def measure(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Compute the metrics; every rank must call it."""
        from daskdl.training.predicted import Predicted  # scikit-learn takes a second, and few fits have metrics

        table = self.context.sum(self.table).cpu().numpy()
        predicted = Predicted.of(self.target, table[:, : self.width])
        y, weight = _true(self.target, table[:, self.width : -1]), table[:, -1]
        return {name: _computed(metric, predicted, y, weight) for name, metric in metrics.items()}


def _true(target: Target, y: npt.NDArray[Any]) -> npt.NDArray[Any]:
    y = y[:, 0] if y.shape[1] == 1 else y
    return target.classes[y.astype(int)] if target.classes is not None else y * target.scale + target.mean


def _computed(metric: Any, predicted: Any, y: npt.NDArray[Any], weight: npt.NDArray[Any]) -> float:
    if hasattr(metric, "_score_func"):
        return float(metric(predicted, None, y, sample_weight=weight))
    more = {"sample_weight": weight} if "sample_weight" in takes(metric) else {}
    return float(metric(y, predicted.predict(None), **more))
