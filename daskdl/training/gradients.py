"""How the gradients of the ranks become those of the global batch: by hooks on parameters, without a wrapper."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from daskdl.execution.rendezvous import control_group
from daskdl.training.batchnorm import GlobalForward
from daskdl.training.buffers import Buffers
from daskdl.training.clock import Clock, at_end_of_backward
from daskdl.training.collectives import send_from_first, sum_dense, sum_sparse


class Gradients:
    """Puts the gradients of the global batch in place of a rank's own, at the end of every backward pass.

    All parameters of all modules that require a gradient then are sent, in one order, whether this rank's rows used
    them or not; so ranks always agree on what is sent, and any method of a module may be called, or none. As what is
    added up already stays as it is, passes and steps may be accumulated. A rank whose step had no backward pass takes
    part before its optimizer steps, or at the end of the step.

    Attributes
    ----------
    modules : dict of str to Module
        What was prepared, by the name under which it is kept.
    parameters : dict of str to Parameter
        Theirs, each once, by name.
    buffers : Buffers
        Theirs, too.
    share : float
        This rank's share of the rows of the global batch it is at, 0 to 1.
    pending : set of int
        Ids of parameters whose gradients no optimizer has used since they were computed.
    """

    def __init__(self, world_size: int, clock: Clock, by_hooks: bool = True) -> None:
        self.world_size, self.clock, self.by_hooks = world_size, clock, by_hooks
        self.modules: dict[str, nn.Module] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self.buffers = Buffers(averaged=world_size > 1 and by_hooks)
        self.share, self.pending = 1.0, set[int]()
        self._sparse: set[int] = set()
        self._ids: set[int] = set()
        self._passes, self._graphs, self._step = 0, set[int](), 0
        self._strangers: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # and the step they were met at
        self._thread = threading.get_ident()
        self._aliases: list[tuple[nn.Module, str]] = []
        self._hooks: list[Any] = [
            register_optimizer_step_pre_hook(self._before_optimizer),
            register_optimizer_step_post_hook(self._after_optimizer),
        ]

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """Become nothing: a module may be copied or saved with hooks."""
        return _nothing, ()

    def add(self, name: str, module: nn.Module) -> None:
        """Take in a module, with the weights of rank 0."""
        self.modules[name] = module
        for key, value in (("module", module), ("no_sync", nullcontext)):  # for code written for DDP
            if getattr(module, key, value) is value:
                self._put(module, key, value)
        if self.by_hooks and self.world_size > 1:
            for layer in module.modules():
                self._make_global(layer)
        if self.world_size > 1:
            _check_alike(name, module)
            send_from_first(module.buffers())
        self._find_parameters()
        self.buffers.watch(module)

    def _make_global(self, layer: nn.Module) -> None:
        """Have a layer use the statistics of the global batch, if it uses any."""
        if isinstance(layer, torch.jit.ScriptModule) and "BatchNorm" in layer.original_name:
            raise ValueError(
                f"{layer.original_name} is scripted, so it would normalise by the rows of its own rank, and weights "
                "would depend on the number of ranks. Prepare the module as it was before torch.jit.script, or use "
                "one rank."
            )
        own = vars(layer).get("forward")
        if isinstance(layer, _BatchNorm) and (own is None or isinstance(own, GlobalForward)):  # in a copy it is there
            self._put(layer, "forward", GlobalForward(layer, lambda: self.share))

    def _put(self, module: nn.Module, name: str, value: Any) -> None:
        """Give a module, and not its class, an attribute until the training ends."""
        vars(module)[name] = value
        self._aliases.append((module, name))

    def _find_parameters(self) -> None:
        """Look for parameters in the modules; those that were not known get the numbers of rank 0."""
        named = [(f"{name}.{key}", p) for name, m in self.modules.items() for key, p in m.named_parameters()]
        first = {id(p): name for name, p in reversed(named)}  # one that is shared counts once
        self.parameters = {name: p for name, p in named if first[id(p)] == name}
        new = [p for p in self.parameters.values() if id(p) not in self._ids]
        self._ids = {id(p) for p in self.parameters.values()}
        layers = (layer for module in self.modules.values() for layer in module.modules())
        self._sparse = {id(e.weight) for e in layers if isinstance(e, (nn.Embedding, nn.EmbeddingBag)) and e.sparse}
        if self.world_size > 1 and new:
            send_from_first(new)
        if self.by_hooks:
            self._hooks += [_hook(p, self._accumulated) for p in new if p.is_floating_point() or p.is_complex()]

    # -- the passes of a step ---------------------------------------------------------------------------------

    def begin_step(self, step: int, share: float) -> None:
        """Begin a step in which this rank has ``share`` of the rows."""
        self._step, self.share, self._passes = step, share, 0
        self._graphs.clear()

    def end_step(self) -> None:
        """Take part in the sum, if this step did not."""
        if self.by_hooks and self.modules and not self._passes:
            self._sum("other")

    def _accumulated(self, parameter: torch.Tensor) -> None:
        graph = torch._C._current_graph_task_id()
        if graph not in self._graphs:
            self._graphs.add(graph)
            at_end_of_backward(self._sum)

    def _sum(self, phase: str = "backward") -> None:
        self._passes += 1
        self.clock.lap(phase)
        if self.world_size > 1:
            trained = {name: p for name, p in self.parameters.items() if p.requires_grad}
            self._check_sparse(trained)
            sum_dense([p for p in trained.values() if id(p) not in self._sparse], self.share)
            if sparse := [p for p in trained.values() if id(p) in self._sparse]:
                sum_sparse(sparse, self.share)
            self.buffers.average(self.share)
        self.found()
        self.clock.lap("all-reduce")

    def found(self) -> None:
        """Note that gradients were computed, of the global batch by now."""
        self.pending = {id(p) for p in self.parameters.values() if p.grad is not None}

    def _check_sparse(self, trained: dict[str, nn.Parameter]) -> None:
        for name, p in trained.items():
            if p.grad is not None and p.grad.is_sparse and id(p) not in self._sparse:
                raise TypeError(
                    f"the gradient of {name} is sparse, and it is not the weight of an nn.Embedding or "
                    "nn.EmbeddingBag with sparse=True, so other ranks cannot expect it. Use one of those, or "
                    "sparse=False."
                )

    # -- optimizers -------------------------------------------------------------------------------------------

    def check(self, optimizer: Optimizer, kept: bool = False) -> bool:
        """Refuse an optimizer that would train ranks apart; whether it trains prepared modules.

        Raises
        ------
        ValueError
            It has parameters that no prepared module has, and trains others with them, or is kept, or was met at an
            earlier step (what lasts for a step may be of this rank's rows only).
        """
        trained = list(_trained(optimizer))
        if any(id(p) not in self._ids for p in trained):
            self._find_parameters()
        strange = [p for p in trained if id(p) not in self._ids]
        if not strange:
            return bool(trained)
        if kept or len(strange) < len(trained) or self._strangers.setdefault(optimizer, self._step) != self._step:
            raise ValueError(_strange(optimizer, strange, bool(self.modules)))
        return False

    def _before_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:  # of another rank in this process, or none
            return None
        known = self._ids
        if not self.check(optimizer) or not self.by_hooks:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            if self._ids - known or not self._passes:
                self._sum("other")
            return None
        if self.world_size == 1:
            return None
        return (args[0],), {**kwargs, "closure": lambda: self._mean_of_ranks(closure())}

    def _mean_of_ranks(self, loss: Any) -> Any:
        """The mean over all rows of what a closure returned, by which its optimizer may decide."""
        if loss is None:
            return None
        mean = torch.as_tensor(loss).detach().clone()
        mean = mean * self.share if self.share else torch.zeros_like(mean)
        dist.all_reduce(mean)
        return mean

    def _after_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == self._thread:
            self.pending -= {id(p) for p in _trained(optimizer)}

    def norm(self) -> float | None:
        """Norm of all gradients together, if there are any."""
        found = [p.grad for p in self.parameters.values() if p.grad is not None]
        values = [grad.coalesce().values() if grad.is_sparse else grad for grad in found]
        return float(nn.utils.get_total_norm(values)) if values else None

    # -- what was accumulated ---------------------------------------------------------------------------------

    def state(self) -> dict[str, torch.Tensor]:
        """Gradients that no optimizer has used yet, by the name of their parameter."""
        named = self.parameters.items()
        return {name: p.grad for name, p in named if p.grad is not None and id(p) in self.pending}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Put gradients back that :meth:`state` gave."""
        for name, parameter in self.parameters.items():
            if name in state:
                parameter.grad = state[name].to(parameter.device, copy=True)
        self.found()

    def close(self) -> None:
        """Watch nothing any more."""
        for hook in self._hooks:
            hook.remove()
        for module, key in self._aliases:
            vars(module).pop(key, None)
        self._hooks.clear()
        self._aliases.clear()


def check_module(module: Any) -> None:
    """Refuse what cannot be prepared."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"context.prepare takes a torch.nn.Module, got {type(module).__name__}. Parameters by themselves can be in "
            "an nn.ParameterDict."
        )
    if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise TypeError(
            f"context.prepare takes the module itself, got it wrapped in {type(module).__name__}, which would add up "
            "gradients a second time. Leave the wrapper out: model = context.prepare(net)."
        )
    shapeless = [name for name, p in module.named_parameters() if nn.parameter.is_lazy(p)]
    if shapeless:
        raise ValueError(
            f"{', '.join(shapeless)} of {type(module).__name__} get their shape only when the module is called, and "
            "ranks must have the same weights before that. Call it once, before context.prepare: "
            "net(torch.zeros(2, context.schema.n_numbers))."
        )


def _check_alike(name: str, module: nn.Module) -> None:
    """Refuse modules of other parameters or buffers than those of the other ranks, before they are sent."""
    named = [*module.named_parameters(), *module.named_buffers()]
    about = zlib.crc32(repr([(key, tuple(t.shape), t.dtype) for key, t in named]).encode())
    mine = torch.tensor([about, -about])
    dist.all_reduce(mine, op=dist.ReduceOp.MAX, group=control_group())
    if int(mine.sum()) != 0:
        raise ValueError(
            f"ranks prepared different modules as {name!r}: here a {type(module).__name__} with "
            f"{len(named):,} parameters and buffers. Every rank must prepare the same modules, in the same order, "
            "whatever its rank and its rows."
        )


def _nothing() -> None:
    return None


def _hook(parameter: nn.Parameter, call: Callable[[torch.Tensor], None]) -> Any:
    """Have something called when a gradient of a parameter is there, also if it is to have one only later."""
    required = parameter.requires_grad
    parameter.requires_grad_(True)
    try:
        return parameter.register_post_accumulate_grad_hook(call)
    finally:
        parameter.requires_grad_(required)


def _trained(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"] if p.requires_grad)


def _strange(optimizer: Optimizer, strange: Iterable[torch.Tensor], prepared: bool) -> str:
    shapes = ", ".join(str(tuple(p.shape)) for p in strange)
    return (
        f"{type(optimizer).__name__} trains parameters of shape {shapes}, which are of no module that was given to "
        f"context.prepare{'' if prepared else ' (nothing was)'}. Each rank would train them on its own rows, and "
        "commits would not have them. Prepare every module that is trained, before its optimizer is made: "
        "model, head = context.prepare(model), context.prepare(head); a parameter by itself can be in an "
        "nn.ParameterDict."
    )
