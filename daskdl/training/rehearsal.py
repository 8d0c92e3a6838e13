"""Module, loss and labels on a few rows: what is tried before anything is launched."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from daskdl.data.schema import ColumnStats, Schema
from daskdl.data.schema.target import Target
from daskdl.training.losses import Objective, name_of
from daskdl.training.outputs import by_rows, first_output
from daskdl.training.tensors import to_tensors


class Rehearsal:
    """A copy of the module, a few random rows in the shapes and types of the data, and the loss."""

    def __init__(
        self,
        module: nn.Module,
        loss: Any,
        target: Target,
        schema: Schema,
        label: ColumnStats,
        weighted: bool,
        rebuilds: bool,
    ) -> None:
        self.module, self.loss, self.target, self.schema = module, loss, target, schema
        self.label, self.weighted, self.rebuilds = label, weighted, rebuilds
        self.device = next(p.device for p in module.parameters())
        self.n = next(n for n in (6, 7, 8) if n not in (target.n_classes, target.n_targets))
        self.output = self.forward(self.n)
        if self.n in self.first.shape[1:]:  # or one would not tell rows from outputs
            self.n += 3
            self.output = self.forward(self.n)
        self.y = self.labels(self.n)

    @property
    def first(self) -> torch.Tensor:
        """What is predicted from."""
        found = first_output(self.output)
        if not isinstance(found, torch.Tensor):
            raise self.wrong_output(type(found).__name__)
        return found

    # -- forward ----------------------------------------------------------------------------------------------

    def forward(self, n: int, train: bool = True) -> Any:
        """Outputs for ``n`` rows; that the module evaluates, too, is seen on the way."""
        example = self.example(n)
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

    def example(self, n: int) -> dict[str, Any]:
        """Random rows in the shapes and types of the data."""
        example = self.schema.example(n)
        for name, x in example.items():
            if x.dtype.kind == "f":
                example[name] = torch.randn(x.shape).numpy().astype(x.dtype)
        for i, size in enumerate(self.schema.cardinalities):
            example["codes"][:, i] = torch.randint(0, size, (n,)).numpy()
        return example

    def labels(self, n: int) -> torch.Tensor:
        """Labels as they come in a batch, the last class among them."""
        k = self.target.n_classes
        if self.rebuilds:
            return to_tensors(self.example(n), self.device)[0][0]
        if k:
            return (k - 1 - torch.arange(n, device=self.device)) % k
        shape = (n, self.target.n_targets) if self.target.n_targets > 1 else (n,)
        return torch.randn(shape, device=self.device)

    def raw(self, y: torch.Tensor) -> torch.Tensor:
        """Labels in their own unit, within the range of the real ones."""
        scaled = y.double().cpu() * torch.as_tensor(self.target.scale) + torch.as_tensor(self.target.mean)
        return scaled.clamp(min=self.label.low, max=self.label.high).to(y)

    def first_that_works(self, objectives: Iterator[Objective]) -> Objective:
        """Return the first way to give the labels in which the loss can be computed, and nothing is broadcast."""
        refused: Exception | None = None
        for objective in objectives:
            try:
                self.run(objective, self.output, self.y, weighted=False)
            except Exception as error:
                if refused is None or isinstance(refused.__cause__, BroadcastError):
                    refused = error
            else:
                return objective
        assert refused is not None
        raise refused

    def mean(self, objective: Objective, output: Any, y: torch.Tensor) -> torch.Tensor:
        """The loss of these rows."""
        total, count = objective(output, y, self.weights(len(y)))
        return total / count

    def weights(self, n: int) -> torch.Tensor | None:
        """Weights of rows, if they have any."""
        return torch.linspace(0.5, 1.5, n, device=self.device) if self.weighted else None

    def run(
        self, objective: Objective, output: Any, y: torch.Tensor, weighted: bool | None = None
    ) -> tuple[torch.Tensor, Any]:
        """Compute the loss, or say with all shapes why it cannot be."""
        first = first_output(output)
        try:
            with warnings.catch_warnings(), _NoBroadcast(len(y)):
                warnings.filterwarnings("error", message="Using a target size")
                given = None if weighted is False else self.weights(len(y))
                total, count = objective(output, y, given)
                if not isinstance(total, torch.Tensor) or total.ndim:
                    raise TypeError(f"its total is one number, as a tensor; got {total!r}")
        except Exception as error:
            label = objective.label_for(first.detach(), y)
            how = ", with sample_weight or class_weight" if self.weighted else ""
            raise ValueError(
                f"loss={self.name} cannot be computed{how}: the module gives {_about(first)}, the label is "
                f"{_about(label)} (of {len(y)} rows): {type(error).__name__}: {error}. {self._remedy()}"
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
    def name(self) -> str:
        """Of the loss."""
        return "None" if self.loss is None else name_of(self.loss)

    def mismatch(self, gives: str, remedy: str) -> ValueError:
        """Error of a loss and a module that do not go together."""
        return ValueError(
            f"loss={self.name} and module do not go together: the module gives {gives} (output of shape "
            f"{tuple(self.first.shape)} for {self.n} rows). {remedy}"
        )

    def wrong_output(self, shape: Any) -> ValueError:
        """Error of a module whose outputs do not fit the label."""
        n, k = self.target.n_classes, self.target.n_targets
        right = [(self.n,), (self.n, 1)] if n == 2 or (not n and k == 1) else []
        right += [(self.n, n or k)] if n or k > 1 else []
        if self.rebuilds:
            right = [tuple(self.labels(self.n).shape)]
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


def width(output: torch.Tensor) -> int:
    """Numbers of a row."""
    return math.prod(output.shape[1:])


def _shape(x: Any) -> Any:
    return tuple(x.shape) if isinstance(x, torch.Tensor) else None


def _about(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
