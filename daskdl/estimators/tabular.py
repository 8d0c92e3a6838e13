"""The network the Torch estimators use when they are given none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from daskdl.data.schema import Schema


class TabularNet(nn.Module):
    """Embeddings for categories and standardised numbers through a stack of dense layers.

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
    """

    def __init__(
        self, schema: Schema, n_outputs: int, hidden: Sequence[int] = (256, 128), dropout: float = 0.1
    ) -> None:
        super().__init__()
        widths = [min(32, 2 + n // 4) for n in schema.cardinalities]
        self.embeddings = nn.ModuleList(nn.Embedding(n, w) for n, w in zip(schema.cardinalities, widths, strict=True))
        for weight in self.embeddings.parameters():
            nn.init.normal_(weight, std=0.05)
        layers: list[nn.Module] = []
        n_inputs = schema.n_numbers + sum(widths)
        for width in hidden:
            layers += [nn.Linear(n_inputs, width), nn.ReLU(), nn.Dropout(dropout)]
            n_inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(n_inputs, n_outputs))

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor | None = None) -> torch.Tensor:
        """Outputs of shape (n_rows, n_outputs) from (n_rows, n_numbers) and (n_rows, n_categories)."""
        if codes is None:
            return self.layers(numbers)
        parts = [numbers, *(embedding(codes[:, i]) for i, embedding in enumerate(self.embeddings))]
        return self.layers(torch.cat(parts, dim=1))
