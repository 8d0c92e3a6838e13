"""Where the time of a rank goes: a lap for everything it does in a step, added up until it is reported."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from daskdl.tracking.breakdown import PHASES

# a step on a GPU is measured by events on its stream, which are read when the ranks add up what they report
Mark = Any  # float, or torch.cuda.Event


class Clock:
    """Adds up the seconds of a rank by what it does; ``lap(phase)`` gives a phase the time since the lap before.

    The forward and backward pass and the optimizer are found by hooks, so a loop of the user's own is measured as it
    is. A module is watched with its children, because another method of it than ``forward`` calls those. The end of a
    backward pass is a callback of autograd's; ``Gradients`` then says when the sums have come.

    Attributes
    ----------
    seconds : Counter of str to float
        By phase, since they were last taken.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.on_gpu = device is not None and device.type == "cuda"
        self.seconds: Counter[str] = Counter()
        self._laps: list[tuple[str, Mark, Mark]] = []
        self._hooks: list[Any] = []
        self._aside: str | None = None
        self._depth, self._graphs = 0, set[int]()  # of modules that are in each other; backward passes
        self._last = self._mark()

    def __reduce__(self) -> tuple[type[Clock], tuple[()]]:
        """Become a clock that nobody reads: a module may be copied or saved with its hooks."""
        return Clock, ()

    def lap(self, phase: str) -> None:
        """Give ``phase`` the time since the last lap."""
        if self._aside is not None:
            return
        mark = self._mark()
        if self.on_gpu:
            self._laps.append((phase, self._last, mark))
        else:
            self.seconds[phase] += mark - self._last
        self._last = mark

    def begin(self, phase: str) -> None:
        """Give all the time until :meth:`end` to ``phase``, whatever is done in it."""
        self.lap("other")
        self._aside = phase

    def end(self) -> None:
        """End what :meth:`begin` began."""
        if self._aside is not None:
            phase, self._aside = self._aside, None
            self.lap(phase)

    def take(self) -> list[float]:
        """Return the seconds of each of ``PHASES`` and begin anew."""
        if self._laps:
            self._last.synchronize()
            for phase, begin, stop in self._laps:
                self.seconds[phase] += begin.elapsed_time(stop) / 1_000
            self._laps.clear()
        seconds, self.seconds = self.seconds, Counter()
        return [seconds[phase] for phase in PHASES]

    def watch_module(self, module: nn.Module) -> None:
        """Measure the passes of a module, called as a whole or by a method that calls its children."""
        for part in (module, *module.children()):
            if isinstance(part, torch.jit.ScriptModule):  # takes no hooks
                continue
            self._hooks.append(part.register_forward_pre_hook(self._forward_begins))
            self._hooks.append(part.register_forward_hook(self._forward_ends, always_call=True))

    def watch_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure the steps of an optimizer."""
        self._hooks.append(optimizer.register_step_pre_hook(self._optimizer_begins))
        self._hooks.append(optimizer.register_step_post_hook(self._optimizer_ends))

    def close(self) -> None:
        """Watch nothing any more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _mark(self) -> Mark:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _forward_begins(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():  # nothing of this is to be traced
            return
        if self._depth == 0:
            self.lap("other")
        self._depth += 1

    def _forward_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self._depth -= 1
        if self._depth == 0:
            self.lap("forward")
            tensor = _first_with_gradient(output)
            if tensor is not None:
                tensor.register_hook(self._backward_begins)

    def _backward_begins(self, gradient: torch.Tensor) -> None:
        graph = torch._C._current_graph_task_id()
        if graph not in self._graphs:  # or it was the gradient of a module that was called before
            self._graphs.add(graph)
            self.lap("forward")  # the loss belongs to it
            at_end_of_backward(self._backward_ends)

    def _backward_ends(self) -> None:
        self.lap("backward")
        self._graphs.clear()

    def _optimizer_begins(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.lap("other")

    def _optimizer_ends(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.lap("optimizer")


def at_end_of_backward(callback: Callable[[], None]) -> None:
    """Have the backward pass that is running call something at its end, after what was asked for before."""
    engine: Any = torch.autograd.Variable._execution_engine  # as torch's own FSDP does; there is no public way
    engine.queue_callback(callback)


def _first_with_gradient(output: Any) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output if output.requires_grad else None
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return next((found for part in parts if (found := _first_with_gradient(part)) is not None), None)
