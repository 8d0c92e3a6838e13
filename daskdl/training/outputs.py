"""What the outputs of a network are, and what is predicted from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from daskdl.training.copies import copied

Reads = Literal["logits", "log_probabilities", "probabilities", "scores", "values", "log_values"]
WILD = 10.0  # standard deviation of weights that drive an output out of [0, 1], if anything can


def first_output(output: Any) -> Any:
    """What is predicted from: the first of several outputs."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def by_rows(output: Any, n_rows: int) -> Any:
    """Outputs with a row per row, also where ``squeeze`` has taken the one row there was."""
    if isinstance(output, (tuple, list)):
        return tuple(by_rows(one, n_rows) for one in output)
    if n_rows == 1 and isinstance(output, torch.Tensor) and (output.ndim == 0 or output.shape[0] != 1):
        return output[None]
    return output


def two_scores(output: torch.Tensor) -> torch.Tensor:
    """One score per class, shape (n_rows, n_classes): of one logit, those whose softmax is its sigmoid."""
    if output.ndim == 1 or output.shape[1] == 1:
        logit = output.reshape(-1)
        return torch.stack([torch.zeros_like(logit), logit], dim=1)
    return output


def class_scores(output: torch.Tensor, reads: Reads) -> torch.Tensor:
    """A number per class that is largest for the class predicted: probabilities, but for ``scores``."""
    output = output.float()
    if reads == "logits":
        return two_scores(output).softmax(1)
    if reads == "log_probabilities":
        return output.exp()
    if output.ndim == 1 or output.shape[1] == 1:
        p = output.reshape(-1)
        return torch.stack([1 - p, p], dim=1)
    return output


def margin(output: torch.Tensor, reads: Reads) -> torch.Tensor:
    """By how much the second of two classes is preferred: above 0 where it is predicted; shape (n_rows,)."""
    if reads == "probabilities":
        return class_scores(output, reads)[:, 1].logit(eps=1e-6)
    scores = two_scores(output.float())
    return scores[:, 1] - scores[:, 0]


def values(output: torch.Tensor, reads: Reads) -> torch.Tensor:
    """Numbers in the unit in which the loss saw the label: shape (n_rows,), or (n_rows, n_outputs) of several."""
    output = output.double()
    if output.ndim > 1:
        output = output[:, 0] if output[0].numel() == 1 and output.ndim == 2 else output.flatten(1)
    if reads == "log_values":
        return output.exp()
    return output.sigmoid() if reads == "logits" else output


def what_comes_out(module: nn.Module, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> Reads:
    """Find out what a classifier gives: ``probabilities``, ``log_probabilities``, or else ``logits``.

    Several outputs of a row show it by their sum. One output is a probability if no weights whatever drive it out of
    [0, 1].
    """
    output = output.detach().float()
    if output.ndim == 2 and output.shape[1] > 1:
        if bool((output >= 0).all()) and torch.allclose(output.sum(1), torch.ones(len(output)).to(output), atol=1e-3):
            return "probabilities"
        zero = torch.zeros(len(output)).to(output)
        return "log_probabilities" if torch.allclose(output.logsumexp(1), zero, atol=1e-3) else "logits"
    return "probabilities" if _stays_inside(module, inputs) else "logits"


@torch.no_grad()
def _stays_inside(module: nn.Module, inputs: Sequence[torch.Tensor]) -> bool:
    wild = copied(module).eval()
    for _ in range(2):
        for parameter in wild.parameters():
            if parameter.is_floating_point():
                parameter.normal_(std=WILD)
        found = first_output(wild(*inputs))
        if not bool(((found >= 0) & (found <= 1)).all()):
            return False
    return True
