"""Optimizer, learning-rate schedule and precision of a fit, from names or functions; and how a step uses them."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import lr_scheduler

from daskdl.training.context import Context
from daskdl.training.losses import Objective
from daskdl.training.tensors import TensorBatch

PRECISIONS: dict[str, torch.dtype | None] = {
    "32": None,
    "32-true": None,
    "bf16": torch.bfloat16,
    "bf16-mixed": torch.bfloat16,
    "16": torch.float16,
    "16-mixed": torch.float16,
}
BY_STEP = (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)
CHECKED_STEPS = 1_000  # that a schedule is made for when it is only seen whether it can be made


@dataclass(frozen=True)
class StepConfig:
    """How the weights are changed; see the parameters of the estimators."""

    optimizer: str | Callable[..., torch.optim.Optimizer] = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    lr_scheduler: Any = None
    gradient_clip_val: float | None = None
    accumulate_grad_batches: int = 1
    precision: Any = "32"

    def check(self, module: nn.Module, epochs: int, has_validation: bool) -> None:
        """Refuse what cannot be used with this module, before anything is launched.

        Raises
        ------
        TypeError, ValueError
            A name that is not known, a schedule that needs more, or a number out of range.
        """
        if self.accumulate_grad_batches < 1:
            raise ValueError(f"accumulate_grad_batches must be at least 1 batch, got {self.accumulate_grad_batches}")
        if self.gradient_clip_val is not None and not self.gradient_clip_val > 0:
            raise ValueError(
                f"gradient_clip_val must be above 0, the largest norm of all gradients; got {self.gradient_clip_val}"
            )
        precision_of(self.precision)
        schedule = make_schedule(self, make_optimizer(self, module), epochs, CHECKED_STEPS)
        if schedule is not None and schedule.plateau and not has_validation:
            raise ValueError("ReduceLROnPlateau waits for val_loss, which needs validation_data=(X, y).")


def precision_of(name: Any) -> torch.dtype | None:
    """The type in which a module computes; None is float32 for all.

    Raises
    ------
    ValueError
        It is not known.
    """
    if str(name) not in PRECISIONS:
        raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {name!r}")
    return PRECISIONS[str(name)]


def make_optimizer(config: StepConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer: a name in ``torch.optim``, or a callable ``f(parameters, lr=...)``."""
    if callable(config.optimizer):
        return config.optimizer(module.parameters(), lr=config.learning_rate)
    classes = (getattr(torch.optim, name) for name in torch.optim.__all__)
    by_name: dict[str, Any] = {
        c.__name__.lower(): c for c in classes if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)
    }
    if str(config.optimizer).lower() not in by_name:
        raise ValueError(f"optimizer must be one of {sorted(by_name)} or a callable, got {config.optimizer!r}")
    made: torch.optim.Optimizer = by_name[config.optimizer.lower()](
        module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    return made


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule, and when it goes on."""

    scheduler: Any
    interval: Literal["step", "epoch"]

    @property
    def plateau(self) -> bool:
        """Whether it looks at the validation loss."""
        return isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau)


def make_schedule(
    config: StepConfig, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
) -> Schedule | None:
    """Make the schedule: a name in ``torch.optim.lr_scheduler``, a class, or a callable ``f(optimizer)``.

    What it asks for by a name that is known here, such as ``total_steps`` or ``T_max``, it is given.
    """
    given = config.lr_scheduler
    if given is None:
        return None
    if isinstance(given, str):
        given = _schedule_class(given)
    if not callable(given):
        raise TypeError(f"lr_scheduler must be a name in torch.optim.lr_scheduler or f(optimizer), got {given!r}")
    known = {
        "total_steps": epochs * steps_per_epoch,
        "steps_per_epoch": steps_per_epoch,
        "epochs": epochs,
        "T_max": epochs,
        "total_iters": epochs,
        "max_lr": config.learning_rate,
    }
    made = _asked(given, known)(optimizer)
    options = dict(made) if isinstance(made, Mapping) else {"scheduler": made}
    scheduler, kind = options.get("scheduler"), options.get("interval")
    if not hasattr(scheduler, "step") or not hasattr(scheduler, "state_dict") or kind not in (None, "step", "epoch"):
        raise TypeError(
            "lr_scheduler must make a scheduler of torch.optim.lr_scheduler, or a dict "
            f"{{'scheduler': ..., 'interval': 'step' or 'epoch'}}; it made {made!r}"
        )
    return Schedule(scheduler, kind or ("step" if isinstance(scheduler, BY_STEP) else "epoch"))


def _schedule_class(name: str) -> Any:
    names = [n for n in vars(lr_scheduler) if n.endswith(("LR", "Restarts", "Plateau")) and not n.startswith("_")]
    by_name = {n.lower(): getattr(lr_scheduler, n) for n in names}
    if name.lower() not in by_name:
        raise ValueError(f"lr_scheduler must be one of {sorted(names)} or a callable f(optimizer), got {name!r}")
    return by_name[name.lower()]


def _asked(make: Any, known: Mapping[str, Any]) -> Callable[[torch.optim.Optimizer], Any]:
    """The function with all that it asks for beside the optimizer; what is not known is refused."""
    try:
        parameters = list(inspect.signature(make).parameters.values())[1:]
    except (TypeError, ValueError):
        return make
    open_ = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.default in (p.empty, None)]
    missing = [p.name for p in open_ if p.default is p.empty and p.name not in known]
    if missing:
        name = getattr(make, "__name__", "Name")
        raise ValueError(
            f"lr_scheduler={name} needs {', '.join(missing)}. Give a function: "
            f"lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.{name}(optimizer, {missing[0]}=...)."
        )
    return partial(make, **{p.name: known[p.name] for p in open_ if p.name in known})


class Steps:
    """Makes the steps of a fit: gradients of one batch or several, in the precision asked for, clipped, scheduled."""

    def __init__(self, config: StepConfig, module: nn.Module, context: Context) -> None:
        self.config, self.module, self.context = config, module, context
        self.optimizer = make_optimizer(config, module)
        per_epoch = -(-context.order.steps_per_epoch // config.accumulate_grad_batches)
        epochs = context.total_steps // context.order.steps_per_epoch
        self.schedule = make_schedule(config, self.optimizer, epochs, per_epoch)
        self.dtype = precision_of(config.precision)
        scaled = self.dtype is torch.float16
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=scaled)

    @property
    def stateful(self) -> dict[str, Any]:
        """What belongs to the state of the run."""
        more: dict[str, Any] = {"scaler": self.scaler} if self.scaler.is_enabled() else {}
        if self.schedule is not None:
            more["lr_scheduler"] = self.schedule.scheduler
        return {"optimizer": self.optimizer, **more}

    def begin_with(self, state: Mapping[str, Any]) -> None:
        """Go on with the state of an optimizer of an earlier fit, at this fit's learning rate."""
        self.optimizer.load_state_dict(dict(state))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate

    def casting(self) -> AbstractContextManager[Any]:
        """In which the module computes."""
        return nullcontext() if self.dtype is None else torch.autocast(self.context.device.type, self.dtype)

    def do(self, batch: TensorBatch, objective: Objective) -> torch.Tensor:
        """Add the gradients of a batch; step with the last of those that belong together. Return this rank's loss."""
        first, part, last = self._group(batch)
        if first:
            self.optimizer.zero_grad()

        def loss_of(rows: TensorBatch) -> Any:
            with self.casting():
                output = self.module(*rows.inputs)
            y = labels_of(rows)
            total, count = objective(output, y, rows.weight, rows.n_rows / rows.n_global)
            total = self.scaler.scale(total * part)
            return total / count if isinstance(count, float) else (total, count)

        loss = self.context.backward(batch, loss_of)
        if last:
            self._step()
        return loss / (part * self.scaler.get_scale())

    def _group(self, batch: TensorBatch) -> tuple[bool, float, bool]:
        """Whether a batch is the first of its group, its part of the group's rows, and whether it is the last."""
        order, n = self.context.order, self.config.accumulate_grad_batches
        at = batch.step % order.steps_per_epoch
        group = range(at - at % n, min(at - at % n + n, order.steps_per_epoch))
        part = batch.n_global / sum(order.batch_rows(step) for step in group) if n > 1 else 1.0
        return at == group.start, part, at == group.stop - 1

    def _step(self) -> None:
        if self.config.gradient_clip_val is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.gradient_clip_val)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.schedule is not None and self.schedule.interval == "step":
            self.schedule.scheduler.step()

    def end_epoch(self, values: Mapping[str, float]) -> None:
        """Go on with a schedule of epochs."""
        if self.schedule is not None and self.schedule.plateau:
            self.schedule.scheduler.step(values["val_loss"])
        elif self.schedule is not None and self.schedule.interval == "epoch":
            self.schedule.scheduler.step()


def labels_of(batch: TensorBatch) -> torch.Tensor:
    """Labels of a batch; without any, what the module is to give back: its first input."""
    return batch.y if len(batch.y) else batch.inputs[0]


def freeze(module: nn.Module, frozen: str | Sequence[str] | None) -> None:
    """Take parameters out of the training: by their name, that of the layer they are in, or a pattern.

    Raises
    ------
    ValueError
        There is no such parameter.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> freeze(net, "0")
    >>> [name for name, p in net.named_parameters() if p.requires_grad]
    ['1.weight', '1.bias']
    """
    for pattern in [frozen] if isinstance(frozen, str) else frozen or ():
        found = list(_named(module, pattern))
        if not found:
            names = [name for name, _ in module.named_parameters()]
            raise ValueError(
                f"frozen={pattern!r} is no parameter of the module, no layer and no pattern of them. Its parameters "
                f"are {names[:20]}{' and more' if len(names) > 20 else ''}."
            )
        for parameter in found:
            parameter.requires_grad_(False)


def _named(module: nn.Module, pattern: str) -> Iterator[nn.Parameter]:
    for name, parameter in module.named_parameters():
        if name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern):
            yield parameter
