"""Buffers of modules that change while training, kept alike in all ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from daskdl.training.collectives import n_values, numbers, send_from_first, shaped


class Buffers:
    """Averages buffers over ranks, weighted by rows, if they are numbers; counters are those of rank 0.

    Most buffers never change. Which do is agreed on when ranks commit, first after their first step. Those of batch
    norm are of the global batch already.

    Parameters
    ----------
    averaged : bool
        Whether those that are numbers have to be averaged here.
    """

    def __init__(self, averaged: bool) -> None:
        self.averaged = averaged
        self._slots: list[_Slot] = []
        self._moving: list[_Slot] = []

    def watch(self, module: nn.Module) -> None:
        """Look after the buffers of a module."""
        layers = (layer for layer in module.modules() if not isinstance(layer, _BatchNorm))
        named = ((layer, name, b) for layer in layers for name, b in layer._buffers.items() if b is not None)
        self._slots += [_Slot(layer, name, buffer, buffer._version) for layer, name, buffer in named]

    def changed(self) -> list[bool]:
        """Whether each buffer is another one than when its module was prepared."""
        return [slot.changed for slot in self._slots]

    def follow(self, changed: list[bool], share: float) -> None:
        """Keep those alike that have changed on any rank."""
        self._moving = [slot for slot, one in zip(self._slots, changed, strict=True) if one]
        self.average(share)
        send_from_first(slot.now for slot in self._moving if not slot.is_number and slot.fits)

    def average(self, share: float) -> None:
        """Average those that change; ``share`` is this rank's share of the rows that they were changed by."""
        slots = [slot for slot in self._moving if slot.is_number] if self.averaged else []
        if not slots:
            return
        flat = torch.cat([slot.numbers().double() for slot in slots])
        flat = flat * share if share else torch.zeros_like(flat)
        dist.all_reduce(flat)
        with torch.no_grad():
            for slot, values in zip(slots, flat.split([n_values(slot.first) for slot in slots]), strict=True):
                if slot.fits:
                    slot.now.copy_(shaped(values, slot.first))


class _Slot(NamedTuple):
    """Where a buffer is, and what it was when its module was prepared."""

    layer: nn.Module
    name: str
    first: torch.Tensor
    version: int

    @property
    def now(self) -> torch.Tensor:
        """The buffer, which may have been replaced."""
        found: torch.Tensor = getattr(self.layer, self.name)
        return found

    @property
    def changed(self) -> bool:
        return self.now is not self.first or self.first._version != self.version

    @property
    def fits(self) -> bool:
        """Whether it has the shape it had, in which it is sent."""
        return self.now is not None and self.now.shape == self.first.shape

    @property
    def is_number(self) -> bool:
        return self.first.is_floating_point() or self.first.is_complex()

    def numbers(self) -> torch.Tensor:
        return numbers(self.now if self.fits else torch.zeros_like(self.first))
