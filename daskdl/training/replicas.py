"""Whether the ranks still have the same weights, and what is done if not; every rank calls this at the same step."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import nn

from daskdl.execution.rendezvous import control_group
from daskdl.training.collectives import numbers, send_from_first, shaped
from daskdl.training.gradients import Gradients

TOLERANCE = 1e-4  # relative, up to which a difference may be of processors that round in different ways
COLUMNS = 512
MASK = (1 << 62) - 1


class Replicas:
    """Compares the weights of the ranks when they commit, and keeps the buffers of their modules alike.

    Parameters
    ----------
    rank : int
    gradients : Gradients
        Knows the modules.
    say : callable
        ``say(text)`` records a warning.
    """

    def __init__(self, rank: int, gradients: Gradients, say: Callable[[str], None]) -> None:
        self.rank, self.gradients, self.say = rank, gradients, say
        self._said = False

    def agree(self, step: int) -> bool:
        """Compare all ranks after a step, and put right what may be put right; whether all weights are finite.

        Raises
        ------
        RuntimeError
            Ranks have different weights.
        """
        tensors, buffers = self.gradients.parameters, self.gradients.buffers
        finite = all(is_finite(p) for p in tensors.values())
        if self.gradients.world_size == 1:
            return finite
        digest = digest_of(tensors.values())
        mine = torch.tensor([digest, -digest, not finite, *buffers.changed()])
        dist.all_reduce(mine, op=dist.ReduceOp.MAX, group=control_group())
        most, least, bad, *changed = mine.tolist()
        if most != -least:
            self._look_closer(tensors, step)
        buffers.follow(changed, self.gradients.share)
        return not bad

    def _look_closer(self, parameters: dict[str, nn.Parameter], step: int) -> None:
        """Compare with rank 0 number by number: small differences are put right, others end the run."""
        differences = []
        for tensor in parameters.values():
            found, first = numbers(tensor).cpu(), numbers(tensor).cpu().clone()
            send_from_first([first], control_group())
            differences.append(difference(found, first))
            if differences[-1] <= TOLERANCE:
                with torch.no_grad():
                    tensor.copy_(shaped(first.to(tensor.device), tensor))
        table = torch.zeros(self.gradients.world_size, len(differences), dtype=torch.float64)
        table[self.rank] = torch.tensor(differences, dtype=torch.float64)
        dist.all_reduce(table, group=control_group())
        rank, place = divmod(int(table.argmax()), len(differences))
        name, worst = list(parameters)[place], float(table.max())
        if worst > TOLERANCE:
            if self.rank != 0:
                dist.barrier(control_group())  # fails when rank 0 has told
            raise RuntimeError(_apart(name, rank, worst, int((table > TOLERANCE).any(0).sum()), step))
        if not self._said:
            self._said = True
            self.say(
                f"after step {step} ranks had weights whose last bits differed ({name} of rank {rank}, by {worst:.1g} "
                "of its size), as processors of several generations have them. Those of rank 0 count; this is put "
                "right at every commit and said once."
            )


def difference(mine: torch.Tensor, first: torch.Tensor) -> float:
    """The largest difference of two tensors, as a part of the largest number of the second; infinite with a NaN."""
    if not mine.is_floating_point():
        return 0.0 if torch.equal(mine, first) else float("inf")
    if torch.equal(mine.nan_to_num(), first.nan_to_num()) and torch.equal(mine.isfinite(), first.isfinite()):
        return 0.0
    gap = float((mine.double() - first.double()).abs().max() / first.double().abs().max().clamp(min=1e-30))
    return gap if gap == gap else float("inf")


def _apart(name: str, rank: int, worst: float, n: int, step: int) -> str:
    others = f", and {n - 1} other parameters differ, too" if n > 1 else ""
    return (
        f"ranks have different weights after step {step}: {name} of rank {rank} is {worst:.1g} of its size away from "
        f"that of rank 0{others}. All ranks must change their weights alike, whatever their rows. Usual reasons: an "
        "optimizer that steps, or gradients that are clipped, on a condition that only this rank's rows decide (add "
        "what decides up with context.sum); weights set from this rank's rows or from random numbers, whose seeds "
        "differ; an optimizer that steps inside the backward pass."
    )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are finite; a sum that is says so at once."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def digest_of(tensors: Iterable[torch.Tensor]) -> int:
    """A number, of 62 bits, that is another one if any bit of tensors is, all but for sure."""
    digest = 0
    for tensor in tensors:
        octets = numbers(tensor).contiguous().view(torch.uint8)
        if octets.storage_offset() % 8:
            octets = octets.clone()
        n_octets = octets.numel() // 8 * 8
        words = octets[:n_octets].view(torch.int64)
        n_words = words.numel() // COLUMNS * COLUMNS
        sums = words[:n_words].view(-1, COLUMNS).sum(0)
        sums[: words.numel() - n_words] += words[n_words:]
        odd = torch.arange(1, 2 * COLUMNS, 2, device=tensor.device)  # what differs both ways does not cancel out
        last = octets[n_octets:].sum()
        digest = (digest * 1_000_003 + int((sums * odd).sum()) * 31 + int(last)) & MASK
    return digest
