"""How all ranks come to obey a word of the client at the same step, and see that they are in step."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from daskdl.execution.rendezvous import collectives_called, control_group
from daskdl.execution.words import REGROUP, STOP, take_word, word_for

ASK_SECONDS = 0.05  # about, between two questions
MOST_STEPS = 1_000
WORDS = (None, REGROUP, STOP)  # the later one counts


class Agreement:
    """Asks now and then whether any rank was told something, by an all-reduce of a few integers beside the step's work.

    How many steps lie between two questions follows from how long steps take, and is agreed on the same way.

    Attributes
    ----------
    seconds : float
        Since the beginning, about; the same in all ranks.
    spent : float
        Seconds that this rank took for its last commit.
    cost : float
        The most that any rank took, as of the last question; the same in all ranks.
    """

    def __init__(self, run: str, world_size: int, first_step: int) -> None:
        self.run, self.world_size = run, world_size
        self._next, self._steps = first_step, 1
        self._asked: tuple[torch.Tensor, Any] | None = None
        self._asked_at = time.monotonic()
        self.seconds = self.spent = self.cost = 0.0
        self._called = 0

    def ask(self, step: int) -> None:
        """Ask at the beginning of a step; returns at once."""
        if step < self._next:
            return
        now = time.monotonic()
        called = collectives_called() if self.world_size > 1 else 0
        passed, spent = int(1e6 * (now - self._asked_at)), int(1e6 * self.spent)
        mine = torch.tensor([WORDS.index(word_for(self.run)), passed, called, -called, spent])
        self._asked_at, self._called = now, called
        options: Any = {"op": dist.ReduceOp.MAX, "group": control_group(), "async_op": True}
        self._asked = mine, dist.all_reduce(mine, **options) if self.world_size > 1 else None

    def answer(self, step: int) -> str | None:
        """Return what all ranks are to do now, at the end of the step; None goes on.

        Raises
        ------
        RuntimeError
            Ranks have called different numbers of collectives.
        """
        if self._asked is None:
            return None
        (reduced, work), self._asked = self._asked, None
        if work is not None:
            work.wait()
        number, microseconds, most, least, spent = reduced.tolist()
        if most != -least:
            raise RuntimeError(
                f"ranks have called different numbers of collectives before step {step}: between {-least:,} and "
                f"{most:,}, this one {self._called:,}. Such calls meet the wrong partners, so sums are wrong or never "
                "come. Every rank must call context.sum, the backward pass of a prepared model and torch.distributed "
                "equally often and in the same order, whatever its data."
            )
        self.seconds, self.cost = self.seconds + microseconds / 1e6, spent / 1e6
        fitting = int(ASK_SECONDS * 1e6 * self._steps / max(1, microseconds))
        self._steps = min(max(1, fitting), MOST_STEPS, 2 * self._steps)
        self._next = step + self._steps
        if WORDS[number] is not None:
            take_word(self.run)
        return WORDS[number]
