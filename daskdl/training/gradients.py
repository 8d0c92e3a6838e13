"""How the gradients of the ranks become those of the global batch."""

# no `from __future__ import annotations` here: torch looks at the hook's annotations and wants the classes themselves
import torch
import torch.distributed as dist
from torch import nn

ONE_BUCKET_MB = 1 << 20


class Share:
    """A rank's share of the rows of the global batch it is at, 0 to 1."""

    value: float = 1.0

    def __init__(self) -> None:
        self.places: dict[int, int] = {}  # of each parameter, by its id, where the sum is to have the same bits always


def data_parallel(module: nn.Module, share: Share) -> nn.Module:
    """Wrap a module so that gradients are summed over ranks, each weighted by its share.

    On the CPU the bits of the sum depend on nothing but the number of ranks. Torch lays gradients out in the order in
    which they come, from the second step on, and the place decides in which order ranks are added up; a gang that goes
    on after a loss would get other bits than one that was not disturbed. So there all are laid out in one order.
    """
    on_gpu = next(module.parameters()).device.type == "cuda"
    bucket_mb = None if on_gpu else ONE_BUCKET_MB
    wrapped = nn.parallel.DistributedDataParallel(module, bucket_cap_mb=bucket_mb, gradient_as_bucket_view=True)
    if not on_gpu:
        share.places = {id(parameter): i for i, parameter in enumerate(module.parameters())}
    wrapped.register_comm_hook(share, weighted_sum)
    return wrapped


def weighted_sum(share: Share, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Sum gradients over ranks, each weighted by its share: a communication hook of DistributedDataParallel."""
    gradients = bucket.buffer()
    if share.value > 0:
        gradients.mul_(share.value)
    else:
        gradients.zero_()
    if not share.places:
        return dist.all_reduce(gradients, async_op=True).get_future().then(lambda done: done.value()[0])
    pairs = zip(bucket.parameters(), bucket.gradients(), strict=True)
    parts = [gradient for _, gradient in sorted(pairs, key=lambda pair: share.places[id(pair[0])])]
    flat = torch.cat([part.reshape(-1) for part in parts])

    def back(done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        for part, summed in zip(parts, done.value()[0].split([part.numel() for part in parts]), strict=True):
            part.copy_(summed.view_as(part))
        return gradients

    return dist.all_reduce(flat, async_op=True).get_future().then(back)
