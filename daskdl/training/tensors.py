"""Batches as tensors on the device of a rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from daskdl.data.batches import Batch
from daskdl.data.extras import ROLES
from daskdl.training.clock import Clock

NO_LABELS = np.empty(0, dtype=np.float32)


@dataclass(frozen=True)
class TensorBatch:
    """One rank's part of a global batch, on its device.

    Attributes
    ----------
    inputs : tuple of tensor
        What a module takes: ``numbers`` of shape (n_rows, n_numbers), then, if the frame has categories, ``codes`` of
        shape (n_rows, n_categories), int64; then the other columns in their order: arrays of shape (n_rows, ...),
        images as uint8 of shape (n_rows, channels, height, width), lists and tokens of shape (n_rows, longest of the
        batch), each of these followed by the lengths of its rows, int64 of shape (n_rows,). A frame without numbers,
        dates and categories has no ``numbers``.
    y : tensor of shape (n_rows,)
        Class numbers (int64), or standardised labels (float32).
    epoch, step : int
        Epoch, and step from the start of training.
    last_of_epoch : bool
    n_rows, n_global : int
        Rows of this rank and of all ranks. A rank that has none in a short last batch gets rows it had before, whose
        gradient counts zero.
    weight : tensor of shape (n_rows,), optional
        Of the rows, if they were given weights.
    """

    inputs: tuple[torch.Tensor, ...]
    y: torch.Tensor
    epoch: int
    step: int
    last_of_epoch: bool
    n_rows: int
    n_global: int
    weight: torch.Tensor | None = None

    @property
    def x(self) -> torch.Tensor:
        """The first input: the numbers, if there are any."""
        return self.inputs[0]


def to_cpu(state: Any) -> Any:
    """Copy a state to the CPU: tensors cloned, containers rebuilt."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {k: to_cpu(v) for k, v in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(to_cpu(v) for v in state)
    return state


def seed_torch(seed: int, device: torch.device) -> None:
    """Set torch's random state on the CPU and on this device.

    ``torch.manual_seed`` notes the caller's whole stack wherever CUDA is not in use, which costs more than a layer.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def to_tensors(block: Any, device: torch.device) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Inputs and labels of a finished block on a device, the inputs in the order of a ``TensorBatch``.

    Signed integers, such as codes and tokens, become int64, as embeddings want them; uint8 stays, so that images take
    a quarter of the way. The labels of a block without ``y`` are empty.
    """

    def tensor(array: Any) -> torch.Tensor:
        # a view of a file's or a frame's memory is read-only, and a tensor of it could be written to
        array = np.require(array, requirements=["C", "W"])
        held = torch.from_numpy(array)
        if device.type == "cuda":
            held = held.pin_memory()  # or the copy would not be asynchronous
        moved = held.to(device, non_blocking=True)
        return moved.long() if array.dtype.kind == "i" else moved

    first = [name for name in ("numbers", "codes") if name in block]
    others = [name for name in block if name not in ("numbers", "codes", "y", *ROLES)]
    return tuple(tensor(block[name]) for name in first + others), tensor(block.get("y", NO_LABELS))


def on_device(
    batches: Iterable[Batch], device: torch.device, steps_per_epoch: int, clock: Clock
) -> Iterator[tuple[Batch, TensorBatch]]:
    """Batches on a device. A GPU gets the next one, on a stream of its own, while the loop works on this one."""
    stream = torch.cuda.Stream() if device.type == "cuda" else None
    waiting: tuple[Batch, TensorBatch] | None = None
    tensors: TensorBatch | None = None
    for batch in batches:
        clock.lap("data")
        with torch.cuda.stream(stream):
            tensors = _tensors(batch, tensors, device, (batch.step + 1) % steps_per_epoch == 0)
        clock.lap("to device")
        if stream is None:
            yield batch, tensors
            continue
        if waiting is not None:
            yield waiting
        torch.cuda.current_stream().wait_stream(stream)
        for tensor in (*tensors.inputs, tensors.y):
            tensor.record_stream(torch.cuda.current_stream())
        waiting = batch, tensors
    if waiting is not None:
        yield waiting


def _tensors(batch: Batch, previous: TensorBatch | None, device: torch.device, last_of_epoch: bool) -> TensorBatch:
    if batch.n_rows == 0 and previous is not None:
        inputs, y, weight = previous.inputs, previous.y, previous.weight
    else:
        inputs, y = to_tensors(batch.arrays, device)
        found = batch.arrays.get("sample_weight")
        weight = None if found is None else torch.from_numpy(np.require(found, requirements=["C", "W"])).to(device)
    return TensorBatch(inputs, y, batch.epoch, batch.step, last_of_epoch, batch.n_rows, batch.n_global, weight)
