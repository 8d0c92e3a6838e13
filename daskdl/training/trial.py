"""Module, loss and label tried together before anything is launched: forward and backward, on a copy, on a few rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from daskdl.data.schema import ColumnStats, Schema
from daskdl.data.schema.target import Target
from daskdl.errors import DataError
from daskdl.training.copies import copied
from daskdl.training.losses import KNOWN, Known, Objective, OwnLoss, TorchLoss, name_of
from daskdl.training.outputs import by_rows, first_output, what_comes_out
from daskdl.training.randomness import random_state
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


def try_out(module: nn.Module, loss: Any, target: Target, schema: Schema, label: ColumnStats, weighted: bool) -> Trial:
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

    Raises
    ------
    ValueError, DataError
        They do not fit one another: with the shapes, and what to do.
    """
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError(f"module has no parameters that learn: {module!r}. Add a layer, or set requires_grad.")
    with random_state(0):
        return _Trying(copied(module), loss, target, schema, label, weighted).trial()


class _Trying:
    def __init__(
        self, module: nn.Module, loss: Any, target: Target, schema: Schema, label: ColumnStats, weighted: bool
    ) -> None:
        self.module, self.loss, self.target, self.schema = module, loss, target, schema
        self.label, self.weighted = label, weighted
        self.device = next(p.device for p in module.parameters())
        self.n = next(n for n in (6, 7, 8) if n not in (target.n_classes, target.n_targets))
        self.output = self._forward(self.n)
        if self.n in self._first.shape[1:]:  # or one would not tell rows from outputs
            self.n += 3
            self.output = self._forward(self.n)
        self.y = self._labels(self.n)

    @property
    def _first(self) -> torch.Tensor:
        found = first_output(self.output)
        if not isinstance(found, torch.Tensor):
            raise self._wrong_output(type(found).__name__)
        return found

    def trial(self) -> Trial:
        objective, standardised = self._for_classes() if self.target.n_classes else self._for_numbers()
        total, count = self._run(objective, self.output, self.y if standardised else self._raw(self.y))
        if not total.requires_grad:
            raise ValueError(
                f"loss={self._name} does not depend on any parameter that learns: what it returned has no gradient. "
                "Compute it from the output with torch's functions, without .detach(), .item() or NumPy."
            )
        (total / count).backward()
        return Trial(objective, standardised, _width(self._first), self._takes_one_row(objective))

    # -- forward ----------------------------------------------------------------------------------------------

    def _forward(self, n: int, train: bool = True) -> Any:
        example = self._example(n)
        inputs, _ = to_tensors(example, self.device)
        try:
            with torch.no_grad():
                self.module.eval()(*inputs)
            return by_rows(self.module.train(train)(*inputs), n)
        except Exception as error:
            took = " and ".join(f"{name} {x.shape}" for name, x in example.items())
            raise ValueError(
                f"module cannot take the inputs this data makes, {took} for {n} rows: {type(error).__name__}: {error}. "
                "Take them in this order, and size the first layers by schema.n_numbers and schema.cardinalities, or "
                "give a function module(schema, n_outputs) that does."
            ) from error

    def _example(self, n: int) -> dict[str, Any]:
        """Random rows in the shapes and types of the data."""
        example = self.schema.example(n)
        for name, x in example.items():
            if x.dtype.kind == "f":
                example[name] = torch.randn(x.shape).numpy().astype(x.dtype)
        for i, size in enumerate(self.schema.cardinalities):
            example["codes"][:, i] = torch.randint(0, size, (n,)).numpy()
        return example

    def _labels(self, n: int) -> torch.Tensor:
        """Labels as they come in a batch, the last class among them."""
        k = self.target.n_classes
        if k:
            return (k - 1 - torch.arange(n, device=self.device)) % k
        shape = (n, self.target.n_targets) if self.target.n_targets > 1 else (n,)
        return torch.randn(shape, device=self.device)

    def _raw(self, y: torch.Tensor) -> torch.Tensor:
        """Labels in their own unit, within the range of the real ones."""
        scaled = y.double().cpu() * torch.as_tensor(self.target.scale) + torch.as_tensor(self.target.mean)
        return scaled.clamp(min=self.label.low, max=self.label.high).to(y)

    def _takes_one_row(self, objective: Objective) -> bool:
        try:
            total, _ = self._run(objective, self._forward(1), self._labels(1))
        except Exception:
            return False
        return total.requires_grad

    # -- what fits --------------------------------------------------------------------------------------------

    def _for_classes(self) -> tuple[Objective, bool]:
        n, first = self.target.n_classes, self._first
        single = tuple(first.shape) in ((self.n,), (self.n, 1))
        if not (single and n == 2) and tuple(first.shape) != (self.n, n):
            raise self._wrong_output(tuple(first.shape))
        known = KNOWN.get(type(self.loss))
        inputs, _ = to_tensors(self._example(self.n), self.device)
        comes = what_comes_out(self.module, inputs, first)
        if self.loss is None:
            return _default_for(comes, single), True
        if known is None:
            call = OwnLoss(self.loss)
            forms = [("rows", False), ("rows", True), ("output", True)]
            return self._first_that_works(Objective(call, comes, *form) for form in forms), True  # type: ignore[arg-type]
        return self._known_for_classes(known, comes, single), True

    def _known_for_classes(self, known: Known, comes: Any, single: bool) -> Objective:
        call = TorchLoss(self.loss)
        if known.label == "classes":
            if single and known.reads != "logits":
                raise self._mismatch("one output for two classes", f"Let it give {self.target.n_classes}.")
            if known.reads == "log_probabilities" and comes != known.reads:
                raise self._mismatch(
                    f"no log-probabilities, but {comes}",
                    "End it in nn.LogSoftmax(dim=1), or use CrossEntropyLoss with logits.",
                )
            if known.reads == "logits" and comes == "probabilities":
                raise self._mismatch("probabilities already", "Leave out its softmax or sigmoid, which the loss does.")
            return Objective(call, known.reads, prepare="two scores" if single else "")
        if known.reads in ("probabilities", "values", "log_values") and (
            comes != "probabilities" or known.reads == "log_values"
        ):
            raise self._mismatch(
                "no probabilities",
                "Use BCEWithLogitsLoss or CrossEntropyLoss, or end the module in a sigmoid; a label "
                "that is a number is for TorchRegressor.",
            )
        if known.reads == "logits" and comes == "probabilities":
            raise self._mismatch("probabilities already", "Leave out its sigmoid, which the loss does.")
        if isinstance(self.loss, nn.GaussianNLLLoss) or (known.reads == "logits" and not single):
            raise self._mismatch(f"{_width(self._first)} outputs of a row", "Let it give one, or use CrossEntropyLoss.")
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
            raise ValueError(f"loss={self._name} takes classes, and a regression has numbers. Use TorchClassifier.")
        self._check_range(loss)
        if isinstance(loss, nn.GaussianNLLLoss) and not (isinstance(self.output, tuple) and len(self.output) == 2):
            raise self._mismatch("one output", "Return two tensors, (mean, variance).")
        if self._first.numel() != self.y.numel() or self._first.shape[0] != self.n:
            raise self._wrong_output(tuple(self._first.shape))
        reads = known.reads
        if isinstance(loss, nn.PoissonNLLLoss) and not loss.log_input:
            reads = "values"
        return Objective(
            TorchLoss(loss), "values" if reads == "probabilities" else reads, "output", True
        ), known.differences

    def _own_for_numbers(self) -> tuple[Objective, bool]:
        """Labels are standardised if the loss looks at differences only: else their unit has a meaning for it."""
        first = self._first
        if first.shape[:1] != (self.n,) or first.ndim > 2:
            raise self._wrong_output(tuple(first.shape))
        shapes = ("rows", "output") if first.numel() == self.y.numel() else ("rows",)
        forms = [Objective(OwnLoss(self.loss), "values", shape) for shape in shapes]  # type: ignore[arg-type]
        objective = self._first_that_works(iter(forms))
        with torch.no_grad():
            moved = (
                (self.output[0] + SHIFT, *self.output[1:]) if isinstance(self.output, tuple) else self.output + SHIFT
            )
            torch.manual_seed(1)
            here = self._mean(objective, self.output, self.y)
            torch.manual_seed(1)
            there = self._mean(objective, moved, self.y + SHIFT)
        if bool(torch.isclose(here, there, rtol=1e-4, atol=1e-6)):
            return objective, True
        self._check_digits()
        return objective, False

    def _check_range(self, loss: Any) -> None:
        low, high = (0.0, 1.0) if isinstance(loss, (nn.BCELoss, nn.BCEWithLogitsLoss)) else (0.0, float("inf"))
        if KNOWN[type(loss)].differences or (self.label.low >= low and self.label.high <= high):
            return
        raise DataError(
            f"loss={self._name} takes labels of {low:g} to {high:g}; these are {self.label.low:g} to "
            f"{self.label.high:g}. Use another loss, or bring the label into that range."
        )

    def _check_digits(self) -> None:
        largest = max(abs(self.label.low), abs(self.label.high))
        step = torch.finfo(torch.float32).eps * largest
        spread = float(torch.as_tensor(self.target.scale).min())
        if largest < float("inf") and step * FEWEST_STEPS > spread:
            raise DataError(
                f"labels of about {largest:.3g} that differ by {spread:.3g} do not fit into float32, and "
                f"loss={self._name} needs them in their own unit: it is no function of output minus label. Subtract "
                "what all have in common from the label before."
            )

    def _first_that_works(self, objectives: Iterator[Objective]) -> Objective:
        """Return the first way to give the labels in which the loss can be computed, and nothing is broadcast."""
        refused: Exception | None = None
        for objective in objectives:
            try:
                self._run(objective, self.output, self.y)
            except Exception as error:
                if refused is None or isinstance(refused.__cause__, BroadcastError):
                    refused = error
            else:
                return objective
        assert refused is not None
        raise refused

    def _mean(self, objective: Objective, output: Any, y: torch.Tensor) -> torch.Tensor:
        total, count = objective(output, y, self._weights(len(y)))
        return total / count

    def _weights(self, n: int) -> torch.Tensor | None:
        return torch.linspace(0.5, 1.5, n, device=self.device) if self.weighted else None

    def _run(self, objective: Objective, output: Any, y: torch.Tensor) -> tuple[torch.Tensor, Any]:
        first = first_output(output)
        try:
            with warnings.catch_warnings(), _NoBroadcast(len(y)):
                warnings.filterwarnings("error", message="Using a target size")
                total, count = objective(output, y, self._weights(len(y)))
                if not isinstance(total, torch.Tensor) or total.ndim:
                    raise TypeError(f"its total is one number, as a tensor; got {total!r}")
        except Exception as error:
            given = objective.label_for(first.detach(), y)
            weights = ", with sample_weight or class_weight" if self.weighted else ""
            raise ValueError(
                f"loss={self._name} cannot be computed{weights}: the module gives {_about(first)}, the label is "
                f"{_about(given)} (of {len(y)} rows): {type(error).__name__}: {error}. {self._remedy()}"
            ) from error
        return total, count

    # -- words ------------------------------------------------------------------------------------------------

    def _remedy(self) -> str:
        if self.weighted:
            return (
                "A loss that weights rows is one of torch's, or a function with the parameter sample_weight or "
                "reduction, or one that returns a loss per row."
            )
        n = self.target.n_classes
        what = f"class numbers 0 to {n - 1}, int64" if n else "numbers, float32"
        return (
            f"loss(output, y) gets the module's output, and labels as {what}; see torch.nn's losses for what they take."
        )

    @property
    def _name(self) -> str:
        return "None" if self.loss is None else name_of(self.loss)

    def _mismatch(self, gives: str, remedy: str) -> ValueError:
        return ValueError(
            f"loss={self._name} and module do not go together: the module gives {gives} (output of shape "
            f"{tuple(self._first.shape)} for {self.n} rows). {remedy}"
        )

    def _wrong_output(self, shape: Any) -> ValueError:
        n, k = self.target.n_classes, self.target.n_targets
        right = [(self.n,), (self.n, 1)] if n == 2 or (not n and k == 1) else []
        right += [(self.n, n or k)] if n or k > 1 else []
        took = " and ".join(f"{name} {x.shape}" for name, x in self.schema.example(self.n).items())
        what = f"{n} classes" if n else "a regression" if k == 1 else f"{k} labels"
        return ValueError(
            f"module gave an output of shape {shape} for {self.n} rows ({took}); expected "
            f"{' or '.join(map(str, right))} for {what}. Change its last layer."
        )


class BroadcastError(ValueError):
    """Outputs and labels were compared each with all others."""


class _NoBroadcast(TorchDispatchMode):
    """Refuses to compare outputs of shape (n_rows, 1) with labels of shape (n_rows,): that is every row with every."""

    def __init__(self, n_rows: int) -> None:
        super().__init__()
        self.flat, self.column, self.wrong = (n_rows,), (n_rows, 1), ((n_rows, n_rows), ())

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        shapes = [tuple(x.shape) for x in args if isinstance(x, torch.Tensor)]
        if self.flat in shapes and self.column in shapes and self.flat != (1,) and _shape(found) in self.wrong:
            raise BroadcastError(f"{func} compares shapes {self.column} and {self.flat}, each row with all others")
        return found


def _default_for(comes: Any, single: bool) -> Objective:
    """The loss of a classifier that was given none, for what its module gives."""
    if single:
        loss = nn.BCELoss() if comes == "probabilities" else nn.BCEWithLogitsLoss()
        return Objective(TorchLoss(loss), comes, "output", True)
    if comes == "logits":
        return Objective(TorchLoss(nn.CrossEntropyLoss()), comes)
    return Objective(TorchLoss(nn.NLLLoss()), comes, prepare="log" if comes == "probabilities" else "")


def _width(output: torch.Tensor) -> int:
    return 1 if output.ndim == 1 else int(output.shape[1])


def _shape(x: Any) -> Any:
    return tuple(x.shape) if isinstance(x, torch.Tensor) else None


def _about(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"


def standardised(target: Target, trial: Trial) -> Target:
    """The target that the loss needs: with labels in their own unit, if that has a meaning for it."""
    return target if trial.standardised or target.n_classes else replace(target, mean=0.0, scale=1.0)
