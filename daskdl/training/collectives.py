"""Tensors of all ranks: gradients added up, weights sent from rank 0. Every rank calls these at the same places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from daskdl.execution.rendezvous import control_group

BUCKET_BYTES = 32 << 20  # of gradients that are sent as one tensor, while the next one is being filled
WIDE = (torch.float64, torch.complex128)


def sum_dense(parameters: Sequence[nn.Parameter], share: float) -> None:
    """Put the sum over ranks, each weighted by its share, in place of the gradients of parameters.

    A parameter without a gradient counts zero; one that has none on any rank with a share keeps None, so that an
    optimizer leaves it alone. What is added up already stays as it is, because shares add up to 1. Gradients are laid
    out in one order: their places decide in which order ranks are added up, and so the bits. Sixteen-bit gradients are
    added up in 32 bits.
    """
    buckets = [(bucket, *_begin_sum(bucket, share)) for bucket in _buckets(parameters)]
    for bucket, flat, work in buckets:
        work.wait()
        _take_sum(bucket, flat, share)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters that are sent together: of one kind of numbers, and not too many; the same in all ranks."""
    for wide in (False, True):
        bucket: list[nn.Parameter] = []
        n_bytes = 0
        for parameter in parameters:
            if (parameter.dtype in WIDE) == wide:
                bucket.append(parameter)
                n_bytes += parameter.nbytes
                if n_bytes > BUCKET_BYTES:
                    yield bucket
                    bucket, n_bytes = [], 0
        if bucket:
            yield bucket


def _begin_sum(bucket: list[nn.Parameter], share: float) -> tuple[torch.Tensor, Any]:
    dtype = torch.float64 if bucket[0].dtype in WIDE else torch.float32
    device = bucket[0].device
    parts = [numbers(torch.zeros_like(p) if p.grad is None else p.grad).to(dtype) for p in bucket]
    had = torch.tensor([float(p.grad is not None) for p in bucket], dtype=dtype)
    with torch.no_grad():
        flat = torch.cat([*parts, had.to(device, non_blocking=True)])
        if share > 0:
            flat.mul_(share)
        else:
            flat.zero_()  # what a rank without rows has may be NaN
    return flat, dist.all_reduce(flat, async_op=True)


def _take_sum(bucket: list[nn.Parameter], flat: torch.Tensor, share: float) -> None:
    *sums, had = flat.split([*(n_values(parameter) for parameter in bucket), len(bucket)])
    asked = share == 0 or any(p.grad is None for p in bucket)  # of a GPU, which others need not
    flags = had.tolist() if asked else [1.0] * len(bucket)
    for parameter, total, any_had in zip(bucket, sums, flags, strict=True):
        if not any_had:
            parameter.grad = None
        elif parameter.grad is not None and parameter.grad.requires_grad:  # it has a graph, which goes on
            with torch.no_grad():
                parameter.grad.copy_(shaped(total, parameter))
        else:  # not in place: the gradients of two parameters may share memory
            found = shaped(total, parameter).to(parameter.dtype)
            parameter.grad = found if parameter.is_contiguous() else torch.empty_like(parameter.detach()).copy_(found)


def numbers(tensor: torch.Tensor) -> torch.Tensor:
    """The real numbers of a tensor in one row."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).reshape(-1)


def n_values(tensor: torch.Tensor) -> int:
    """How many :func:`numbers` a tensor has."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def shaped(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Undo :func:`numbers` of a tensor like another one."""
    if like.is_complex():
        return torch.view_as_complex(values.view(*like.shape, 2))
    return values.view(like.shape)


def sum_sparse(parameters: Sequence[nn.Parameter], share: float) -> None:
    """The same as :func:`sum_dense` for gradients that hold some rows only: rows and their numbers are gathered.

    If one is dense on any rank, as that of an embedding whose weight is used in another way, too, it is dense on all.
    """
    mine = [_rows(p, share) for p in parameters]
    said = torch.tensor([[-1 if rows is None else len(rows[0]), dense] for rows, dense in mine])
    everyone = [torch.empty_like(said) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, said, group=control_group())
    counts = torch.stack(everyone).tolist()  # by rank, then by parameter
    dense = [any(line[i][1] for line in counts) for i in range(len(parameters))]
    for i, (parameter, (rows, _)) in enumerate(zip(parameters, mine, strict=True)):
        lengths = [max(0, line[i][0]) for line in counts]
        if dense[i]:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
        elif all(line[i][0] < 0 for line in counts):
            parameter.grad = None
        else:
            parameter.grad = _summed_rows(parameter, rows, lengths)
    if any(dense):
        sum_dense([p for p, one in zip(parameters, dense, strict=True) if one], share)


def _rows(parameter: nn.Parameter, share: float) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, bool]:
    """Numbers of the rows that a gradient has, and the weighted rows, or None; and whether it has all of them."""
    grad = parameter.grad
    if grad is None or share == 0:
        return None, False
    if not grad.is_sparse:
        return None, True
    grad = grad.detach().coalesce()
    return (grad.indices()[0], grad.values() * share), False


def _summed_rows(
    parameter: nn.Parameter, rows: tuple[torch.Tensor, torch.Tensor] | None, lengths: list[int]
) -> torch.Tensor:
    """Gather the rows of all ranks; duplicates are added up in the order of ranks, so bits are the same on all."""
    most = max(lengths)
    index = torch.zeros(most, dtype=torch.int64, device=parameter.device)
    values = torch.zeros((most, *parameter.shape[1:]), dtype=parameter.dtype, device=parameter.device)
    if rows is not None:
        index[: len(rows[0])], values[: len(rows[0])] = rows
    indices, parts = [torch.empty_like(index) for _ in lengths], [torch.empty_like(values) for _ in lengths]
    if most:
        dist.all_gather(indices, index)
        dist.all_gather(parts, values)
    index = torch.cat([found[:n] for found, n in zip(indices, lengths, strict=True)])
    values = torch.cat([found[:n] for found, n in zip(parts, lengths, strict=True)])
    return torch.sparse_coo_tensor(index[None], values, parameter.shape, check_invariants=False).coalesce()


def send_from_first(tensors: Iterable[torch.Tensor], group: Any = None) -> None:
    """Send the values of rank 0 to all, in place."""
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for same in by_dtype.values():
        with torch.no_grad():
            flat = torch.cat([numbers(tensor) for tensor in same])
            dist.broadcast(flat.view(torch.uint8), src=0, group=group)  # gloo does not know every type
            for tensor, values in zip(same, flat.split([n_values(t) for t in same]), strict=True):
                tensor.copy_(shaped(values, tensor))
