"""Columns of images and of text: kept compact, decoded and padded once per batch."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from daskdl.data.arrays import Array as Rows
from daskdl.data.arrays import Ragged
from daskdl.data.schema.fields import Field, Finished, padded, padded_example, show
from daskdl.data.schema.kinds import Image, Kind, Text
from daskdl.data.schema.pictures import decode_image
from daskdl.data.schema.stats import ColumnStats
from daskdl.data.schema.text import HashingTokenizer, Tokenizer, as_tokenizer, ragged, tokenizer_from_dict
from daskdl.data.schema.values import Values, blobs, strings
from daskdl.errors import DataError


@dataclass(frozen=True)
class ImageColumn(Field):
    """Compressed images, decoded and resized once per batch to uint8; a missing one is black."""

    height: int = 0
    width: int = 0
    channels: int = 3
    kind: ClassVar[str] = "image"
    word: ClassVar[str] = "an image"
    needs_finish: ClassVar[bool] = True

    @classmethod
    def learn(cls, name: Any, stats: ColumnStats, kind: Kind | None = None) -> ImageColumn:
        """Learn the size from statistics, if ``kind`` does not say it."""
        wanted = kind if isinstance(kind, Image) else Image()
        if wanted.height is None and (stats.shape is None or -1 in stats.shape[1:]):
            what = "no image at all" if stats.shape is None else "images of different sizes"
            raise DataError(
                f"column {name!r} has {what}, so the size of the tensor is not known. Say it, and images are resized: "
                f"kinds={{{name!r}: Image(224, 224)}}."
            )
        channels, height, width = stats.shape or (3, 0, 0)
        return cls(
            name,
            stats.n_missing,
            wanted.height or height,
            wanted.width or width,
            wanted.channels or (1 if channels == 1 else 3),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.height, self.width

    def summary(self) -> str:
        """Shape once decoded."""
        return f"uint8 {show(self.shape)}"

    def encode(self, values: Values, refuse: bool) -> npt.NDArray[np.object_]:
        """Bytes, still compressed; None for a missing image."""
        found = blobs(values)
        if refuse:
            self.refuse(sum(data is None for data in found))
        return found

    def finish(self, rows: Rows, pool: Executor | None = None) -> Finished:
        """Decode: shape (n_rows, channels, height, width)."""
        assert not isinstance(rows, Ragged)
        if rows.dtype != object:  # finished before
            return {self.field: rows}
        out = np.zeros((len(rows), *self.shape), dtype=np.uint8)

        def decode(i: int) -> None:
            if rows[i] is not None:
                out[i] = self._decoded(rows[i], i)

        for _ in (pool.map if pool else map)(decode, range(len(rows))):
            pass  # the first error is raised here
        return {self.field: out}

    def _decoded(self, data: bytes, row: int) -> npt.NDArray[np.uint8]:
        try:
            return decode_image(data, self.height, self.width, self.channels)
        except DataError as error:
            raise DataError(f"column {self.name!r}: {error}", rows=(row,)) from error

    def example(self, n: int) -> Finished:
        """Black images."""
        return {self.field: np.zeros((n, *self.shape), dtype=np.uint8)}


@dataclass(frozen=True)
class TextColumn(Field):
    """Text as token numbers, padded with 0 to the longest row of a batch."""

    tokenizer: Tokenizer = field(default_factory=HashingTokenizer)
    max_length: int | None = None
    kind: ClassVar[str] = "text"
    word: ClassVar[str] = "a text"
    needs_finish: ClassVar[bool] = True

    @classmethod
    def learn(cls, name: Any, stats: ColumnStats, kind: Kind | None = None) -> TextColumn:
        """Take the tokenizer that ``kind`` says."""
        wanted = kind if isinstance(kind, Text) else Text()
        return cls(name, stats.n_missing, as_tokenizer(wanted.tokenizer), wanted.max_length)

    @property
    def n_tokens(self) -> int | None:
        """Rows of the embedding it needs; None if a function of one's own makes the tokens."""
        return self.tokenizer.n_tokens

    def summary(self) -> str:
        """How many tokens there are."""
        tokens = "tokens" if self.n_tokens is None else f"{self.n_tokens:,} tokens"
        return f"{tokens} of {type(self.tokenizer).__name__}"

    def encode(self, values: Values, refuse: bool) -> Ragged:
        """Token numbers, laid end to end."""
        texts = strings(values)
        if refuse:
            self.refuse(texts.null_count)
        return _cut(self.tokenizer.rows(texts), self.max_length)

    def finish(self, rows: Rows, pool: Executor | None = None) -> Finished:
        """Pad, and say how long each row is."""
        return padded(self.field, rows)

    def example(self, n: int) -> Finished:
        """Padding only."""
        return padded_example(self.field, n, (), "int32")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; a function of one's own cannot be saved."""
        state = {"kind": self.kind, **{f.name: getattr(self, f.name) for f in fields(self)}}
        return {**state, "tokenizer": self.tokenizer.to_dict()}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """Undo ``to_dict``."""
        return cls(state["name"], state["n_missing"], tokenizer_from_dict(state["tokenizer"]), state["max_length"])


def _cut(rows: Ragged, longest: int | None) -> Ragged:
    if longest is None or rows.lengths.max(initial=0) <= longest:
        return rows
    place = np.arange(len(rows.values)) - np.repeat(rows.offsets[:-1], rows.lengths)
    return ragged(rows.values[place < longest], np.minimum(rows.lengths, longest))
