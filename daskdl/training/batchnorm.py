"""Batch norm over the global batch: the same statistics, and so the same weights, at any number of ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

Share = Callable[[], float]  # this rank's of the rows of the global batch it is at


class GlobalForward:
    """Stands in for ``forward`` of a batch norm layer: in training its statistics are those of the rows of all ranks.

    The layer's own code runs, also that of a class derived from torch's; only what it asks ``F.batch_norm`` for is
    another thing. Class, parameters and ``state_dict`` of the layer stay as they are. A copy of the layer has one of
    its own, a saved layer has its class's ``forward``.
    """

    def __init__(self, layer: _BatchNorm, share: Share) -> None:
        self.layer, self.share = layer, share

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer does to its input."""
        forward = _plain_forward(self.layer)
        if not (self.layer.training and dist.is_initialized()):
            return forward(self.layer, *args, **kwargs)
        with _GlobalStatistics(self.share()):
            return forward(self.layer, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> GlobalForward:
        return GlobalForward(copy.deepcopy(self.layer, memo), self.share)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (_plain_forward(self.layer), self.layer)


def _plain_forward(layer: _BatchNorm) -> Any:
    """The layer's own ``forward``; that of ``SyncBatchNorm`` does by itself, for GPUs only, what is done here."""
    return _BatchNorm.forward if isinstance(layer, nn.SyncBatchNorm) else type(layer).forward


class _GlobalStatistics(TorchFunctionMode):
    """Has ``F.batch_norm`` use the statistics of all ranks."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return global_batch_norm(self.share, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def global_batch_norm(
    share: float,
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """What ``F.batch_norm`` does to the rows of all ranks together, to those of this rank.

    Parameters
    ----------
    share : float
        This rank's share of the rows. What it has in place of rows, if that is 0, does not count.
    """
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    mean, var, n = _statistics(x, share)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * n / (n - 1)).to(running_var.dtype), momentum)
    each = (1, -1, *[1] * (x.dim() - 2))
    scale = torch.rsqrt(var + eps).to(x.dtype)
    scale = scale if weight is None else scale * weight.to(x.dtype)
    normal = (x - mean.to(x.dtype).view(each)) * scale.view(each)
    return (normal if bias is None else normal + bias.to(x.dtype).view(each)).to(input.dtype)


def _statistics(x: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance of each channel over all ranks, float64, and how many numbers they are of."""
    axes, channels = [0, *range(2, x.dim())], x.shape[1]
    count = x.numel() // max(1, channels)
    if count:
        var, mean = torch.var_mean(x, axes, correction=0)
        mean, var = mean.double(), var.double()
    else:
        mean = var = x.sum(axes).double()
    mine = torch.cat([mean * count, (var + mean.square()) * count, mean.new_tensor([float(count)])])
    *sums, n = SumOfRanks.apply(mine, share).split([channels, channels, 1])
    if count <= 1 and int(n) <= 1:
        raise ValueError(
            f"batch norm got {int(n)} value per channel over all ranks, of shape {tuple(x.shape)} here, and needs more "
            "than 1 to train on. Give batches more rows."
        )
    mean = sums[0] / n
    return mean, (sums[1] / n - mean.square()).clamp(min=0), n


class SumOfRanks(torch.autograd.Function):
    """Sum over ranks of what those that have rows give, for a loss that is weighted by their shares of the rows."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, share: float) -> torch.Tensor:
        """Add up; what a rank without rows gives does not count."""
        ctx.share = share
        total = values.clone() if share else torch.zeros_like(values)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Gradients will be weighted by shares once more when those of parameters are added up, hence the division."""
        share = ctx.share
        total = SumOfRanks.apply(gradient * share, share)
        return (total / share if share else torch.zeros_like(total)), None
