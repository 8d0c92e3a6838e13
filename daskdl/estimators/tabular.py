"""The network the Torch estimators use when they are given none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from daskdl.data.schema import Schema
from daskdl.data.schema.fields import ArrayColumn
from daskdl.errors import DataError


class TabularNet(nn.Module):
    """Embeddings for categories, standardised numbers and flattened arrays through a stack of dense layers.

    The entity embeddings are those of Guo and Berkhahn, "Entity Embeddings of Categorical Variables" (2016).

    Parameters
    ----------
    schema : Schema
    n_outputs : int
        1 for a regression or two classes, else the number of classes.
    hidden : sequence of int
        Widths of the hidden layers.
    dropout : float
        Share of hidden units left out in training.

    Raises
    ------
    DataError
        There are images, texts or lists of any length: they want a module made for them.

    Examples
    --------
    >>> import pandas as pd
    >>> schema = Schema.learn(pd.DataFrame({"x": [1.0, 2.0], "v": [[1, 2], [3, 4]]}))
    >>> TabularNet(schema, n_outputs=3)(torch.zeros(5, 1), torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self, schema: Schema, n_outputs: int, hidden: Sequence[int] = (256, 128), dropout: float = 0.1
    ) -> None:
        super().__init__()
        arrays = _arrays(schema)
        self.has_numbers = "numbers" in schema.example(0)
        widths = [min(32, 2 + n // 4) for n in schema.cardinalities]
        self.embeddings = nn.ModuleList(nn.Embedding(n, w) for n, w in zip(schema.cardinalities, widths, strict=True))
        for weight in self.embeddings.parameters():
            nn.init.normal_(weight, std=0.05)
        self.array_means, self.array_scales = [c.mean for c in arrays], [c.scale for c in arrays]
        layers: list[nn.Module] = []
        n_inputs = schema.n_numbers + sum(widths) + sum(math.prod(c.shape) for c in arrays)
        for width in hidden:
            layers += [nn.Linear(n_inputs, width), nn.ReLU(), nn.Dropout(dropout)]
            n_inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(n_inputs, n_outputs))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of shape (n_rows, n_outputs).

        Inputs are ``numbers`` (n_rows, n_numbers), ``codes`` (n_rows, n_categories) and arrays (n_rows, ...), each if
        the schema has them, in this order.
        """
        rest = list(inputs)
        parts = [rest.pop(0)] if self.has_numbers else []
        if len(self.embeddings):
            codes = rest.pop(0)
            parts += [embedding(codes[:, i]) for i, embedding in enumerate(self.embeddings)]
        for x, mean, scale in zip(rest, self.array_means, self.array_scales, strict=True):
            parts.append((x.flatten(1).float() - mean) / scale)
        return self.layers(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])


def _arrays(schema: Schema) -> list[ArrayColumn]:
    """The columns that are flattened; what cannot be is refused."""
    arrays = [c for c in schema.field_columns if isinstance(c, ArrayColumn)]
    other = [c for c in schema.field_columns if not isinstance(c, ArrayColumn)]
    if other:
        shapes = ", ".join(f"{name} {x.dtype} {x.shape}" for name, x in schema.example(2).items())
        raise DataError(
            f"the default network takes numbers, dates, categories and arrays, and column {other[0].name!r} is "
            f"{other[0].word}. Pass a module of your own, TorchClassifier(module=net), whose forward takes these "
            f"tensors in this order (here for two rows): {shapes}."
        )
    return arrays
