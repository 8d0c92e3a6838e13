"""Losses that are a sum divided by a count: what of them is a rank's own, and what is of all ranks."""

from __future__ import annotations

from typing import Any

import torch

# the mean over rows, or a sum and what it is to be divided by once both are added up over all ranks
Loss = torch.Tensor | tuple[torch.Tensor, float | torch.Tensor]


def count_of(count: Any, device: torch.device) -> torch.Tensor:
    """Return the count as a number on a device, shape (), without gradient.

    Raises
    ------
    ValueError
        It is not one number, or a negative one.
    """
    tensor = torch.as_tensor(count, dtype=torch.float64).detach().to(device)
    if tensor.numel() != 1:
        raise ValueError(
            "the count of a loss is one number, what its sum is divided by, such as the number of tokens; got a tensor "
            f"of shape {tuple(tensor.shape)}. Add it up: (total, count.sum())."
        )
    return tensor.reshape(())


def parts_of(loss: Loss, n_rows: int) -> tuple[torch.Tensor, float, torch.Tensor]:
    """Return what is to be differentiated, the weight of its gradients, and its count: a mean counts its rows."""
    total = loss[0] if isinstance(loss, tuple) else loss
    if isinstance(loss, tuple):
        return total, 1.0, count_of(loss[1], total.device)
    return total, float(n_rows), count_of(n_rows, total.device)


def scaled(total: torch.Tensor, count: torch.Tensor, share: float) -> torch.Tensor:
    """A rank's part of a loss: the sum of it over ranks, weighted by their shares of the rows, is the loss.

    Parameters
    ----------
    total : tensor of shape ()
        Of this rank.
    count : tensor of shape ()
        Of all ranks. Where it is 0 so is the loss.
    share : float
        This rank's share of the rows.
    """
    divisor = count * share
    some = divisor > 0
    factor = torch.where(some, 1 / torch.where(some, divisor, 1.0), 0.0)
    return total * factor.to(total.dtype)
