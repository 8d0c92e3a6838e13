"""Module, loss and label tried together before anything is launched: forward and backward, on a copy, on a few rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from daskdl.data.schema import ColumnStats, Schema
from daskdl.data.schema.target import Target
from daskdl.errors import DataError
from daskdl.training.copies import copied
from daskdl.training.losses import KNOWN, Known, Objective, OwnLoss, TorchLoss
from daskdl.training.outputs import what_comes_out
from daskdl.training.randomness import random_state
from daskdl.training.rehearsal import Rehearsal, width
from daskdl.training.tensors import to_tensors

SHIFT = 16.0  # of outputs and labels, to see whether a loss looks at their difference only
FEWEST_STEPS = 100  # of float32 that a standard deviation of a label must have, where it is not standardised


@dataclass(frozen=True)
class Trial:
    """What was found out.

    Attributes
    ----------
    objective : Objective
    standardised : bool
        Whether a regression's labels may be standardised: the loss looks at differences only.
    n_outputs : int
        Numbers that are predicted from, per row.
    takes_one_row : bool
        Whether the module can be trained on one row; batch norm cannot.
    """

    objective: Objective
    standardised: bool
    n_outputs: int
    takes_one_row: bool


def n_outputs_for(loss: Any, target: Target) -> int:
    """Outputs of a module that is made for a loss: one for two classes, unless the loss takes one per class."""
    known = KNOWN.get(type(loss))
    if target.n_classes > 2 or (target.n_classes and known is not None and known.label == "classes"):
        return target.n_classes
    return 1 if target.n_classes else target.n_targets


def try_out(
    module: nn.Module,
    loss: Any,
    target: Target,
    schema: Schema,
    label: ColumnStats,
    weighted: bool = False,
    rebuilds: bool = False,
) -> Trial:
    """See whether a module can be trained with this loss on such labels, and how; runs in the client.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed.
    loss : callable or None
        As ``as_loss`` gave it.
    label : ColumnStats
        Of all labels.
    weighted : bool
        Whether rows are weighted.
    rebuilds : bool
        Whether there are no labels, and the module is to give back its first input.

    Raises
    ------
    ValueError, DataError
        They do not fit one another: with the shapes, and what to do.
    """
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError(f"module has no parameters that learn: {module!r}. Add a layer, or set requires_grad.")
    with random_state(0):
        tried = copied(loss) if isinstance(loss, nn.Module) else loss
        trial = _Trying(copied(module), tried, target, schema, label, weighted, rebuilds).trial()
    if tried is not loss and isinstance(trial.objective.call, OwnLoss):  # it may have a state
        return replace(trial, objective=replace(trial.objective, call=OwnLoss(loss)))
    return trial


class _Trying(Rehearsal):
    """What fits: decisions by what the module gives and what the loss takes."""

    def trial(self) -> Trial:
        objective, standardised = self._for_classes() if self.target.n_classes else self._for_numbers()
        total, count = self.run(objective, self.output, self.y if standardised else self.raw(self.y))
        if not total.requires_grad:
            raise ValueError(
                f"loss={self.name} does not depend on any parameter that learns: what it returned has no gradient. "
                "Compute it from the output with torch's functions, without .detach(), .item() or NumPy."
            )
        (total / count).backward()
        return Trial(objective, standardised, width(self.first), self._takes_one_row(objective))

    def _takes_one_row(self, objective: Objective) -> bool:
        try:
            total, _ = self.run(objective, self.forward(1), self.labels(1))
        except Exception:
            return False
        return total.requires_grad

    # -- what fits --------------------------------------------------------------------------------------------

    def _for_classes(self) -> tuple[Objective, bool]:
        n, first = self.target.n_classes, self.first
        single = tuple(first.shape) in ((self.n,), (self.n, 1))
        if not (single and n == 2) and tuple(first.shape) != (self.n, n):
            raise self.wrong_output(tuple(first.shape))
        known = KNOWN.get(type(self.loss))
        inputs, _ = to_tensors(self.example(self.n), self.device)
        comes = what_comes_out(self.module, inputs, first)
        if self.loss is None:
            return _default_for(comes, single), True
        if known is None:
            call = OwnLoss(self.loss)
            forms = [("rows", False), ("rows", True), ("output", True)]
            return self.first_that_works(Objective(call, comes, *form) for form in forms), True  # type: ignore[arg-type]
        return self._known_for_classes(known, comes, single), True

    def _known_for_classes(self, known: Known, comes: Any, single: bool) -> Objective:
        call = TorchLoss(self.loss)
        if known.label == "classes":
            if single and known.reads != "logits":
                raise self.mismatch("one output for two classes", f"Let it give {self.target.n_classes}.")
            if known.reads == "log_probabilities" and comes != known.reads:
                raise self.mismatch(
                    f"no log-probabilities, but {comes}",
                    "End it in nn.LogSoftmax(dim=1), or use CrossEntropyLoss with logits.",
                )
            if known.reads == "logits" and comes == "probabilities":
                raise self.mismatch("probabilities already", "Leave out its softmax or sigmoid, which the loss does.")
            return Objective(call, known.reads, prepare="two scores" if single else "")
        if known.reads in ("probabilities", "values", "log_values") and (
            comes != "probabilities" or known.reads == "log_values"
        ):
            raise self.mismatch(
                "no probabilities",
                "Use BCEWithLogitsLoss or CrossEntropyLoss, or end the module in a sigmoid; a label "
                "that is a number is for TorchRegressor.",
            )
        if known.reads == "logits" and comes == "probabilities":
            raise self.mismatch("probabilities already", "Leave out its sigmoid, which the loss does.")
        if isinstance(self.loss, nn.GaussianNLLLoss) or (known.reads == "logits" and not single):
            raise self.mismatch(f"{width(self.first)} outputs of a row", "Let it give one, or use CrossEntropyLoss.")
        if known.label == "signs":
            return Objective(call, known.reads, "signs", True)
        return Objective(
            call, "logits" if known.reads == "logits" else "probabilities", "output" if single else "one-hot", True
        )

    def _for_numbers(self) -> tuple[Objective, bool]:
        loss = nn.MSELoss() if self.loss is None else self.loss
        known = KNOWN.get(type(loss))
        if known is None:
            return self._own_for_numbers()
        if known.label != "output":
            raise ValueError(f"loss={self.name} takes classes, and a regression has numbers. Use TorchClassifier.")
        self._check_range(loss)
        if isinstance(loss, nn.GaussianNLLLoss) and not (isinstance(self.output, tuple) and len(self.output) == 2):
            raise self.mismatch("one output", "Return two tensors, (mean, variance).")
        if self.first.numel() != self.y.numel() or self.first.shape[0] != self.n:
            raise self.wrong_output(tuple(self.first.shape))
        reads = known.reads
        if self.rebuilds:
            return Objective(
                TorchLoss(loss), "values" if known.reads == "probabilities" else known.reads, "output", True
            ), True
        if isinstance(loss, nn.PoissonNLLLoss) and not loss.log_input:
            reads = "values"
        return Objective(
            TorchLoss(loss), "values" if reads == "probabilities" else reads, "output", True
        ), known.differences

    def _own_for_numbers(self) -> tuple[Objective, bool]:
        """Labels are standardised if the loss looks at differences only: else their unit has a meaning for it."""
        first = self.first
        if first.shape[:1] != (self.n,) or (first.ndim > 2 and not self.rebuilds):
            raise self.wrong_output(tuple(first.shape))
        shapes = ("rows", "output") if first.numel() == self.y.numel() else ("rows",)
        forms = [Objective(OwnLoss(self.loss), "values", shape) for shape in shapes]  # type: ignore[arg-type]
        objective = self.first_that_works(iter(forms))
        if self.rebuilds:
            return objective, True
        with torch.no_grad():
            moved = (
                (self.output[0] + SHIFT, *self.output[1:]) if isinstance(self.output, tuple) else self.output + SHIFT
            )
            torch.manual_seed(1)
            here = self.mean(objective, self.output, self.y)
            torch.manual_seed(1)
            there = self.mean(objective, moved, self.y + SHIFT)
        if bool(torch.isclose(here, there, rtol=1e-4, atol=1e-6)):
            return objective, True
        self._check_digits()
        return objective, False

    def _check_range(self, loss: Any) -> None:
        low, high = (0.0, 1.0) if isinstance(loss, (nn.BCELoss, nn.BCEWithLogitsLoss)) else (0.0, float("inf"))
        if self.rebuilds or KNOWN[type(loss)].differences or (self.label.low >= low and self.label.high <= high):
            return
        raise DataError(
            f"loss={self.name} takes labels of {low:g} to {high:g}; these are {self.label.low:g} to "
            f"{self.label.high:g}. Use another loss, or bring the label into that range."
        )

    def _check_digits(self) -> None:
        largest = max(abs(self.label.low), abs(self.label.high))
        step = torch.finfo(torch.float32).eps * largest
        spread = float(torch.as_tensor(self.target.scale).min())
        if largest < float("inf") and step * FEWEST_STEPS > spread:
            raise DataError(
                f"labels of about {largest:.3g} that differ by {spread:.3g} do not fit into float32, and "
                f"loss={self.name} needs them in their own unit: it is no function of output minus label. Subtract "
                "what all have in common from the label before."
            )


def _default_for(comes: Any, single: bool) -> Objective:
    """The loss of a classifier that was given none, for what its module gives."""
    if single:
        loss = nn.BCELoss() if comes == "probabilities" else nn.BCEWithLogitsLoss()
        return Objective(TorchLoss(loss), comes, "output", True)
    if comes == "logits":
        return Objective(TorchLoss(nn.CrossEntropyLoss()), comes)
    return Objective(TorchLoss(nn.NLLLoss()), comes, prepare="log" if comes == "probabilities" else "")


def standardised(target: Target, trial: Trial) -> Target:
    """The target that the loss needs: with labels in their own unit, if that has a meaning for it."""
    if trial.standardised or target.n_classes:
        return target
    k = len(target.names)
    return replace(target, mean=np.zeros(k) if k else 0.0, scale=np.ones(k) if k else 1.0)
