"""A network made for a schema, and its outputs for the rows of a frame."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from daskdl.data.arrays import Ragged
from daskdl.data.schema import Schema
from daskdl.errors import DataError
from daskdl.estimators.tabular import TabularNet
from daskdl.training.copies import copied
from daskdl.training.outputs import Reads, by_rows, class_scores, first_output, values
from daskdl.training.randomness import random_state
from daskdl.training.tensors import to_tensors

PREDICT_ROWS = 65_536  # rows per forward pass, at most
PREDICT_BYTES = 64 * 2**20  # of their inputs

Module = nn.Module | Callable[[Schema, int], nn.Module] | None


def make_module(module: Module, schema: Schema, n_outputs: int, seed: int) -> nn.Module:
    """Copy a module, or build one, with the random state of a seed.

    Raises
    ------
    TypeError
        It is neither a module nor a function that makes one.
    """
    with random_state(seed):
        made = copied(module) if isinstance(module, nn.Module) else _built(module, schema, n_outputs)
        _complete(made, schema)
    return made


def _complete(module: nn.Module, schema: Schema) -> None:
    """Have a module make what it makes at its first call, or every rank would make another, after its optimizer."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    training = module.training
    with suppress(Exception), torch.no_grad():  # what is wrong with it is found and said by the trial
        module.eval()(*to_tensors(schema.example(2), device)[0])
    module.train(training)


def _built(module: Any, schema: Schema, n_outputs: int) -> nn.Module:
    wanted = "Expected a torch.nn.Module, or a function module(schema, n_outputs) that makes one"
    build = TabularNet if module is None else module
    if not callable(build):
        raise TypeError(f"{wanted}; got {module!r}.")
    try:
        made = build(schema, n_outputs)
    except Exception as error:
        error.add_note(f"It was raised by module(schema, {n_outputs}). {wanted}; got {module!r}.")
        raise
    if not isinstance(made, nn.Module):
        raise TypeError(f"{wanted}; this one made {type(made).__name__}.")
    return made


def class_outputs(model: nn.Module, schema: Schema, frame: pd.DataFrame, reads: Reads) -> npt.NDArray[np.float32]:
    """Probabilities, or scores, of shape (n_rows, n_classes)."""
    found: npt.NDArray[np.float32] = class_scores(_forward(model, schema, frame), reads).numpy()
    return found


def number_outputs(model: nn.Module, schema: Schema, frame: pd.DataFrame, reads: Reads) -> npt.NDArray[np.float64]:
    """Numbers as the loss saw the label: shape (n_rows,), or (n_rows, n_outputs) of several."""
    found: npt.NDArray[np.float64] = values(_forward(model, schema, frame), reads).numpy()
    return found


@torch.no_grad()
def _forward(model: nn.Module, schema: Schema, frame: pd.DataFrame) -> torch.Tensor:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    block = schema.encode(frame)
    model = model.to(device).eval()
    row_bytes = sum(x.nbytes for x in schema.example(1).values())  # decoded, and padded to the longest row
    row_bytes += sum(
        8 * int(x.lengths.max(initial=0)) * x.values[:1].size for x in block.values() if isinstance(x, Ragged)
    )
    rows = max(1, min(PREDICT_ROWS, PREDICT_BYTES // max(1, row_bytes)))
    outputs = []
    for i in range(0, len(frame), rows):
        n = min(rows, len(frame) - i)
        try:
            finished = schema.finish({name: x[i : i + n] for name, x in block.items()})
        except DataError as error:
            raise error.moved(i) from error
        inputs, _ = to_tensors(finished, device)
        outputs.append(first_output(by_rows(model(*inputs), n)).cpu())
    return torch.cat(outputs)
