"""What a user has called after steps and epochs of a fit, in every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cloudpickle
import torch

from daskdl.training.context import Context

EVENTS = ("on_step_end", "on_epoch_end")


def check_callbacks(callbacks: Any) -> tuple[Any, ...]:
    """Take callbacks as given, one or a sequence; what is none, or cannot be sent to the ranks, is refused.

    Raises
    ------
    TypeError
        With what it was.
    """
    found = () if callbacks is None else tuple(callbacks) if isinstance(callbacks, (list, tuple)) else (callbacks,)
    for one in found:
        if isinstance(one, type) or not (callable(one) or any(hasattr(one, event) for event in EVENTS)):
            raise TypeError(
                "a callback is a function f(context, values), called after every epoch, or an object with "
                f"on_step_end(context, values) or on_epoch_end(context, values); got {one!r}"
            )
        try:
            cloudpickle.dumps(one)
        except Exception as error:  # of any class: it is the user's own object
            raise TypeError(
                f"callback {one!r} cannot be sent to the workers: {error}. Make files, locks and connections inside "
                "its methods."
            ) from error
    return found


class Callbacks:
    """Calls them. One that returns True, in any rank, ends the training after the step, in all."""

    def __init__(self, callbacks: Sequence[Any], context: Context) -> None:
        self.context = context
        self.by_step = [c.on_step_end for c in callbacks if hasattr(c, "on_step_end")]
        self.by_epoch = [getattr(c, "on_epoch_end", None) or c for c in callbacks if _has_epochs(c)]
        self.stateful = {
            f"callback_{i}": c
            for i, c in enumerate(callbacks)
            if hasattr(c, "state_dict") and hasattr(c, "load_state_dict")
        }

    def step_ended(self, batch: Any, loss: torch.Tensor) -> None:
        """Call what is to be called after every step."""
        if self.by_step:
            self._call(self.by_step, self._values(batch, loss))

    def epoch_ended(self, batch: Any, loss: torch.Tensor, measured: Mapping[str, float]) -> None:
        """Call what is to be called after every epoch."""
        if self.by_epoch:
            self._call(self.by_epoch, {**self._values(batch, loss), **measured})

    def _values(self, batch: Any, loss: torch.Tensor) -> dict[str, float]:
        """What is the same in all ranks: they may decide by it."""
        shared = loss.detach().double().reshape(1) * (batch.n_rows / batch.n_global)
        rate = self.context.kept["optimizer"].param_groups[0]["lr"]
        mean = float(self.context.sum(torch.nan_to_num(shared) if not batch.n_rows else shared))
        return {"epoch": batch.epoch, "step": batch.step, "train_loss": mean, "learning_rate": float(rate)}

    def _call(self, functions: Sequence[Any], values: dict[str, float]) -> None:
        asked = [function(self.context, dict(values)) is True for function in functions]
        stops = torch.tensor([float(any(asked))], device=self.context.device)
        if float(self.context.sum(stops)):  # a clock or a file may have told one rank and not another
            self.context.stop()


def _has_epochs(callback: Any) -> bool:
    return hasattr(callback, "on_epoch_end") or not hasattr(callback, "on_step_end")
