"""Pass two over the rows of a training: encode them where they will be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from daskdl.data.arrays import Block
from daskdl.data.extras import Columns, read_extras
from daskdl.data.frame import LABEL, to_pandas
from daskdl.data.looking import content_digest
from daskdl.data.sampling import WEIGHT
from daskdl.data.schema import Schema
from daskdl.data.schema.target import Target
from daskdl.data.schema.values import column_of, numbers, raw_column
from daskdl.data.sources.base import Chunk, to_frame
from daskdl.errors import DataError
from daskdl.travel import Packed


@dataclass(frozen=True)
class TensorEncoder:
    """Encodes rows for a network: the fields of ``Schema.encode``, the labels as ``y``, and weights where there are.

    Attributes
    ----------
    label, weight : hashable
        Names of the columns that are no features; ``label`` may be a list of several.
    extras : dict
        Columns of each role, which become float32 fields of its name: ``block["sample_weight"]``.
    """

    schema: Schema
    target: Target | None
    label: Any = LABEL
    weight: Any = None
    extras: Columns = field(default_factory=dict)

    def __call__(self, chunk: Chunk) -> Block:
        """Encode a chunk."""
        block: dict[str, Any] = self.schema.encode(chunk)
        if self.target is not None:
            block["y"] = encode_labels(self.target, chunk, self.label)
        block |= {role: x.astype(np.float32) for role, x in read_extras(chunk, self.extras).items()}
        if self.weight is not None:
            block[WEIGHT] = numbers(column_of(chunk, self.weight)).astype(np.float64)
        return block


@dataclass(frozen=True)
class TableEncoder:
    """Encodes rows for trees: ``x``, a frame of float32 columns with NaN for missing, ``y``, and each extra."""

    schema: Schema
    target: Target
    label: Any = LABEL
    extras: Columns = field(default_factory=dict)

    def __call__(self, chunk: Chunk) -> dict[str, Any]:
        """Encode a chunk."""
        frame = to_frame(chunk)
        labels = {"y": encode_labels(self.target, frame, self.label)}
        return {"x": self.schema.table(frame), **labels, **read_extras(frame, self.extras)}


def encode_labels(target: Target, chunk: Chunk, label: Any) -> npt.NDArray[Any]:
    """Encode the label column of a chunk, shape (n_rows,), or several, shape (n_rows, n_targets)."""
    return (
        target.encode_several([raw_column(chunk, n) for n in label])
        if isinstance(label, list)
        else target.encode(raw_column(chunk, label))
    )


Encoder = Callable[[Chunk], Mapping[str, Any]]


def encode_piece(piece: Any, encoder: Encoder, digest: int) -> Mapping[str, Any]:
    """Encode a partition, or a group given as (source, group); runs where the block will lie.

    Raises
    ------
    DataError
        The partition was computed again and has other rows than the ones that were looked at.
    """
    if isinstance(piece, tuple):
        source, group = piece[0].value if isinstance(piece[0], Packed) else piece[0], piece[1]
        chunks = list(source.read(group, 0, int(source.counts[group])))
        return encoder(pd.concat([to_frame(c) for c in chunks], ignore_index=True) if chunks else source.head(0))
    piece = to_pandas(piece)
    if content_digest(piece) != digest:
        raise DataError(
            "a partition was computed a second time (its worker was lost, or its memory) and came out with other rows "
            "than before: its graph is not deterministic. Training on it would use some rows twice and others never. "
            "Give random functions a seed, sort before sampling, or write the frame to Parquet first and read that."
        )
    return encoder(piece)
