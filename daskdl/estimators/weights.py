"""The state of a module as safetensors, whatever tensors it has, and back into a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from daskdl.estimators.plain import to_json

VIEWED = {torch.complex64: torch.float32, torch.complex128: torch.float64}  # safetensors has no word for these


def weights_of(module: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors that can be written, and notes of how to make the state of them.

    Tied weights are written once. Complex ones are written as pairs of numbers. What ``get_extra_state`` of a module
    gives goes to the notes.

    Raises
    ------
    TypeError
        A part of the state is neither a dense tensor nor a plain value; it is named.

    Examples
    --------
    >>> tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> tied[1].weight = tied[0].weight
    >>> weights_of(tied)[1]["same"]
    {'1.weight': '0.weight'}
    """
    tensors: dict[str, torch.Tensor] = {}
    notes: dict[str, Any] = {"same": {}, "complex": [], "extra": {}}
    first: dict[Any, str] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            _check_plain(name, value)
            notes["extra"][name] = value
            continue
        if value.layout is not torch.strided or value.is_quantized:
            kind = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
            raise TypeError(f"{name} of the module is {kind}, and a file of weights takes dense tensors only.")
        place = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride()) if value.numel() else name
        if first.setdefault(place, name) != name:
            notes["same"][name] = first[place]
            continue
        value = value.detach().cpu()
        if value.dtype in VIEWED:
            notes["complex"].append(name)
            value = torch.view_as_real(value.resolve_conj())
        tensors[name] = value.clone(memory_format=torch.contiguous_format)  # a view would be written with all it is of
    return tensors, notes


def _check_plain(name: str, value: Any) -> None:
    try:
        to_json(value)
    except TypeError as error:
        raise TypeError(f"{name} of the module cannot be saved: {error}. Let get_extra_state return it.") from None


def put_weights(module: nn.Module, tensors: dict[str, torch.Tensor], notes: dict[str, Any]) -> None:
    """Give a module a state that ``weights_of`` took apart.

    Raises
    ------
    ValueError
        It is not the module that was trained: other layers, or of other sizes.
    """
    state: dict[str, Any] = dict(tensors)
    for name in notes.get("complex", ()):
        state[name] = torch.view_as_complex(state[name])
    state |= {name: state[other] for name, other in notes.get("same", {}).items()}
    state |= notes.get("extra", {})
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"module is not the one that was saved: {error}. Pass the network that was trained, with the same layers "
            "of the same sizes: daskdl.load(path, module=net)."
        ) from error
