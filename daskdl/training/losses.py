"""A loss as a sum and what it is divided by, over the rows of all ranks, with labels as it wants them."""

from __future__ import annotations

import copy
import functools
import inspect
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from daskdl.training.outputs import Reads, by_rows, first_output, two_scores

Form = Literal["rows", "output", "one-hot", "signs"]
Pair = tuple[torch.Tensor, torch.Tensor | float]


@dataclass(frozen=True)
class Known:
    """What one of torch's losses takes.

    Attributes
    ----------
    reads : Reads
        What it takes outputs for.
    label : {"classes", "output", "signs"}
        Class numbers, numbers in the shape of the output, or 1 and -1 in that shape.
    differences : bool
        Whether only the difference of output and label counts, so that labels may be standardised.
    """

    reads: Reads
    label: Literal["classes", "output", "signs"]
    differences: bool = False


KNOWN: dict[type, Known] = {
    nn.CrossEntropyLoss: Known("logits", "classes"),
    nn.NLLLoss: Known("log_probabilities", "classes"),
    nn.MultiMarginLoss: Known("scores", "classes"),
    nn.BCEWithLogitsLoss: Known("logits", "output"),
    nn.BCELoss: Known("probabilities", "output"),
    nn.SoftMarginLoss: Known("logits", "signs"),
    nn.MSELoss: Known("values", "output", differences=True),
    nn.L1Loss: Known("values", "output", differences=True),
    nn.SmoothL1Loss: Known("values", "output", differences=True),
    nn.HuberLoss: Known("values", "output", differences=True),
    nn.GaussianNLLLoss: Known("values", "output", differences=True),
    nn.PoissonNLLLoss: Known("log_values", "output"),
}
OF_PAIRS = "it compares outputs with one another, not with a label"
NOT_TAKEN: dict[type, str] = {
    nn.HingeEmbeddingLoss: "it takes outputs for distances, which say nothing of a class",
    nn.CosineEmbeddingLoss: OF_PAIRS,
    nn.MarginRankingLoss: OF_PAIRS,
    nn.TripletMarginLoss: OF_PAIRS,
    nn.TripletMarginWithDistanceLoss: OF_PAIRS,
    nn.KLDivLoss: "it wants a distribution as the label of every row",
    nn.CTCLoss: "it wants a sequence as the label of every row",
    nn.MultiLabelMarginLoss: "it wants several classes as the label of every row",
    nn.MultiLabelSoftMarginLoss: "it wants several classes as the label of every row",
    nn.AdaptiveLogSoftmaxWithLoss: "it is a layer with weights of its own",
}
FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.multi_margin_loss: nn.MultiMarginLoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.gaussian_nll_loss: nn.GaussianNLLLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.hinge_embedding_loss: nn.HingeEmbeddingLoss,
    F.kl_div: nn.KLDivLoss,
    F.ctc_loss: nn.CTCLoss,
    F.multilabel_margin_loss: nn.MultiLabelMarginLoss,
    F.multilabel_soft_margin_loss: nn.MultiLabelSoftMarginLoss,
}


def as_loss(loss: Any) -> Any:
    """Take a loss as given: one of torch's functions becomes its module, a class is called.

    Raises
    ------
    TypeError
        It is no function.
    ValueError
        One that cannot be used with a label per row.

    Examples
    --------
    >>> as_loss(functools.partial(F.cross_entropy, label_smoothing=0.1))
    CrossEntropyLoss()
    """
    inner, options = loss, {}
    if isinstance(loss, functools.partial) and not loss.args:
        inner, options = loss.func, loss.keywords
    if not isinstance(inner, type) and callable(inner) and getattr(inner, "__hash__", None) and inner in FUNCTIONS:
        inner = FUNCTIONS[inner]
    if isinstance(inner, type) and issubclass(inner, nn.Module):
        loss = inner(**options)
    if not callable(loss):
        raise TypeError(f"loss must be a function loss(output, y), such as torch.nn.L1Loss(), got {loss!r}")
    if type(loss) in NOT_TAKEN:
        raise ValueError(
            f"loss={name_of(loss)} cannot be used here: {NOT_TAKEN[type(loss)]}. Write what you mean as a function "
            "loss(output, y), or a loop of your own with daskdl.train."
        )
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise ValueError(
            f"loss={name_of(loss)} has parameters that learn, and the optimizer is given those of the module only. Put "
            "them into the module, and let it return what the loss needs: (output, ...)."
        )
    return loss


def name_of(loss: Any) -> str:
    """Name of a loss in a message."""
    return getattr(loss, "__name__", type(loss).__name__)


class TorchLoss:
    """One of torch's losses, row by row."""

    def __init__(self, loss: nn.Module) -> None:
        self.loss, self.sums = copy.deepcopy(loss), loss.reduction == "sum"
        self.loss.reduction = "none"  # type: ignore[assignment]

    def __call__(self, output: Any, y: torch.Tensor, weight: torch.Tensor | None, share: float) -> Pair:
        """Sum of the loss and what it is divided by; see ``Objective``."""
        if isinstance(self.loss, nn.GaussianNLLLoss):
            elements = self.loss(output[0], y, output[1].float().view_as(output[0]))
        else:
            elements = self.loss(output, y)
        total, count = weighted(elements, weight, self._counts(y))
        return (total, share) if self.sums else (total, count)

    def _counts(self, y: torch.Tensor) -> torch.Tensor | None:
        """What a row counts in the mean: the weight of its class; None if it is one for each."""
        if not isinstance(self.loss, (nn.CrossEntropyLoss, nn.NLLLoss)):
            return None
        of_class = self.loss.weight
        if of_class is None and self.loss.ignore_index < 0:
            return None
        known = y != self.loss.ignore_index
        return known.float() if of_class is None else of_class[y.clamp(min=0)] * known


class OwnLoss:
    """A loss of the user's: the mean, a loss per row, or ``(total, count)``."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        self.takes = takes(loss)

    def __call__(self, output: Any, y: torch.Tensor, weight: torch.Tensor | None, share: float) -> Pair:
        """Sum of the loss and what it is divided by; see ``Objective``."""
        if weight is None:
            found = self.loss(output, y)
        elif "sample_weight" in self.takes:
            found = self.loss(output, y, sample_weight=weight)
        else:
            found = self._rows()(output, y)
        if isinstance(found, tuple):
            if len(found) != 2:
                raise ValueError(f"a loss returns a tensor, or the two (total, count); this one returned {len(found)}")
            if weight is not None and "sample_weight" not in self.takes:
                raise ValueError("it returns (total, count) and does not take sample_weight")
            return found[0], torch.as_tensor(found[1])
        if not isinstance(found, torch.Tensor):
            raise TypeError(f"a loss returns a tensor, or (total, count); this one returned {type(found).__name__}")
        if found.ndim:
            if found.shape[0] != len(y):
                raise ValueError(f"a loss per row has one for each of the {len(y)} rows; got shape {_shape(found)}")
            return weighted(found, None if "sample_weight" in self.takes else weight)
        if weight is not None and "sample_weight" not in self.takes:
            raise ValueError("it returns one number for all rows, which cannot be weighted")
        count = float(len(y)) if weight is None else weight.sum()
        return found * count, count

    def _rows(self) -> Any:
        if "reduction" in self.takes:
            return functools.partial(self.loss, reduction="none")
        if isinstance(self.loss, nn.Module) and hasattr(self.loss, "reduction"):
            rows = copy.copy(self.loss)
            rows.reduction = "none"  # type: ignore[assignment]
            return rows
        return self.loss


def takes(function: Any) -> set[str]:
    """Names of the parameters of a function, as far as they can be known."""
    try:
        return set(inspect.signature(getattr(function, "forward", function)).parameters)
    except (TypeError, ValueError):
        return set()


def weighted(elements: torch.Tensor, weight: torch.Tensor | None, counts: torch.Tensor | None = None) -> Pair:
    """Sum of losses of shape (n_rows, ...), and what it is divided by, with rows weighted."""
    per_row = elements.numel() / max(1, len(elements))
    if counts is None and weight is None:
        return elements.sum(), float(elements.numel())
    ones = elements.new_ones(len(elements)) if weight is None else weight
    total = (elements * ones.view(-1, *[1] * (elements.ndim - 1))).sum()
    return total, (ones if counts is None else ones * counts).sum() * per_row


@dataclass(frozen=True)
class Objective:
    """What is made smaller: a loss, what it reads the outputs as, and how it is given the labels.

    Attributes
    ----------
    call : TorchLoss or OwnLoss
    reads : Reads
        What predictions are made of.
    label : {"rows", "output", "one-hot", "signs"}
        Shape (n_rows,); or that of the output, as numbers, as a column per class, or as 1 and -1.
    floats : bool
        Whether labels are numbers in the type of the output.
    prepare : {"", "two scores", "log"}
        What is done to outputs before the loss gets them.
    of_class : tensor of shape (n_classes,), optional
        Weight of a row by its class, beside its own.
    """

    call: TorchLoss | OwnLoss
    reads: Reads
    label: Form = "rows"
    floats: bool = False
    prepare: Literal["", "two scores", "log"] = ""
    of_class: torch.Tensor | None = None

    def __call__(self, output: Any, y: torch.Tensor, weight: torch.Tensor | None = None, share: float = 1.0) -> Pair:
        """Total of the loss over these rows, and what it is divided by: both are added up over all ranks.

        Parameters
        ----------
        output : tensor or tuple of tensor
            As the module gave it.
        y : tensor of shape (n_rows,) or (n_rows, n_targets)
        weight : tensor of shape (n_rows,), optional
        share : float
            Part of the global batch that these rows are; a loss that is a sum is divided by it, which is 1 in all.
        """
        output = _full(by_rows(output, len(y)))
        if self.of_class is not None:
            weight = self.of_class[y] if weight is None else self.of_class[y] * weight
        first = first_output(output)
        if isinstance(self.call, TorchLoss) and not isinstance(self.call.loss, nn.GaussianNLLLoss):
            output = first
        if self.prepare == "two scores":
            output = two_scores(output)
        elif self.prepare == "log":
            output = output.clamp_min(torch.finfo(output.dtype).tiny).log()
        return self.call(output, self.label_for(first, y), weight, share)

    def label_for(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Labels as the loss wants them, for outputs of this shape."""
        if self.label == "one-hot":
            y = F.one_hot(y, output.shape[1])
        elif self.label != "rows":
            y = y.reshape(output.shape)
        if self.floats and y.dtype != output.dtype:
            y = y.to(output.dtype)
        return 2 * y - 1 if self.label == "signs" else y

    def to(self, device: torch.device) -> Objective:
        """Move what the loss holds, such as weights of classes, to a device."""
        if isinstance(self.call.loss, nn.Module):
            self.call.loss.to(device)
        return self if self.of_class is None else replace(self, of_class=self.of_class.to(device))


def _full(output: Any) -> Any:
    """Outputs in full precision, for the loss."""
    if isinstance(output, tuple):
        return tuple(_full(one) for one in output)
    half = isinstance(output, torch.Tensor) and output.dtype in (torch.float16, torch.bfloat16)
    return output.float() if half else output


def _shape(x: Any) -> Any:
    return tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
