"""Copies of modules, whatever they hold."""

from __future__ import annotations

import copy

import torch
from torch import nn

from daskdl.travel import pack


def copied(module: nn.Module) -> nn.Module:
    """Copy a module, also one that holds what was computed from its weights, as the old ``weight_norm`` does.

    Raises
    ------
    CannotTravel
        It holds something that cannot be copied; the message names it.

    Examples
    --------
    >>> copied(nn.utils.weight_norm(nn.Linear(2, 3))).weight.shape
    torch.Size([3, 2])
    """
    parts = list(module.modules())
    if not any(isinstance(part, torch.jit.ScriptModule) for part in parts):  # torch's copies of these cannot learn
        held = (value for part in parts for value in vars(part).values() if isinstance(value, torch.Tensor))
        computed = {id(tensor): tensor.detach().clone() for tensor in held if tensor.grad_fn is not None}
        try:
            return copy.deepcopy(module, computed)
        except Exception:  # of any class: it is the user's own objects
            pass
    made: nn.Module = pack(module, "module").open()
    return made
