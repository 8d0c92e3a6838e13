"""Text to token numbers: words hashed without anything to download, or a tokenizer of the user's."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from daskdl.data.arrays import Ragged
from daskdl.errors import MissingExtraError

BETWEEN_WORDS = r"[^\pL\pN_]+"  # whatever is no letter and no digit, of any alphabet


class Tokenizer(Protocol):
    """What turns texts into rows of token numbers. 0 is padding."""

    @property
    def n_tokens(self) -> int | None:
        """Rows of the embedding it needs, if it is known."""

    def rows(self, texts: pa.Array) -> Ragged:
        """Tokens of each text, none for a missing one."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""


@dataclass(frozen=True)
class HashingTokenizer:
    """Lower-cased words, each hashed (CRC-32) to one of ``n_tokens - 1`` numbers.

    It learns nothing and needs no vocabulary, so it is the same everywhere; rare words share numbers by chance, the
    "hashing trick" of Weinberger et al., "Feature Hashing for Large Scale Multitask Learning" (2009).

    Parameters
    ----------
    n_tokens : int
        Rows of the embedding it needs: token numbers are 1 to ``n_tokens - 1``, and 0 is padding.

    Examples
    --------
    >>> HashingTokenizer()("Two roads, two roads!")
    [11772, 23763, 11772, 23763]
    """

    n_tokens: int = 32_768

    def __post_init__(self) -> None:
        if self.n_tokens < 2:
            raise ValueError(f"n_tokens must be at least 2, padding and one word; got {self.n_tokens}")

    def __call__(self, text: str) -> list[int]:
        """Tokens of one text."""
        return self.rows(pa.array([text], pa.large_string())).values.tolist()

    def rows(self, texts: pa.Array) -> Ragged:
        """Tokens of each text, none for a missing one."""
        words = pc.split_pattern_regex(pc.utf8_lower(texts.fill_null("")), BETWEEN_WORDS)
        lengths = pc.list_value_length(words).to_numpy(zero_copy_only=False).astype(np.int64)
        known = words.flatten().dictionary_encode()  # each word is hashed once
        ids = np.array([self._token(word) for word in known.dictionary.to_pylist()], dtype=np.int32)
        tokens = ids[known.indices.to_numpy(zero_copy_only=False)]
        row = np.repeat(np.arange(len(texts)), lengths)[tokens > 0]  # texts that begin or end between words
        return ragged(tokens[tokens > 0], np.bincount(row, minlength=len(texts)))

    def _token(self, word: str) -> int:
        return 1 + zlib.crc32(word.encode()) % (self.n_tokens - 1) if word else 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {"type": "hashing", "n_tokens": self.n_tokens}


@dataclass(frozen=True)
class JsonTokenizer:
    """A tokenizer of the package `tokenizers <https://huggingface.co/docs/tokenizers>`_, kept as its JSON."""

    json: str

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer itself."""
        try:
            from tokenizers import Tokenizer as HuggingFace
        except ImportError as error:
            raise MissingExtraError(
                "the schema has a tokenizer of the package 'tokenizers', which is not installed here, so text cannot "
                "be read. Install it: pip install tokenizers."
            ) from error
        return HuggingFace.from_str(self.json)

    @property
    def n_tokens(self) -> int:
        """Rows of the embedding it needs."""
        return int(self.tokenizer.get_vocab_size())

    def rows(self, texts: pa.Array) -> Ragged:
        """Tokens of each text, none for a missing one."""
        found = self.tokenizer.encode_batch(texts.fill_null("").to_pylist())
        lengths = np.array([len(each.ids) for each in found], dtype=np.int64)
        lengths[texts.is_null().to_numpy(zero_copy_only=False)] = 0
        return from_rows([each.ids[:n] for each, n in zip(found, lengths, strict=True)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {"type": "tokenizers", "json": self.json}


@dataclass(frozen=True)
class CallableTokenizer:
    """A function of the user's."""

    function: Callable[[str], Sequence[int]]
    n_tokens: int | None = None

    def rows(self, texts: pa.Array) -> Ragged:
        """Tokens of each text, none for a missing one."""
        return from_rows([[] if text is None else self.function(text) for text in texts.to_pylist()])

    def to_dict(self) -> dict[str, Any]:
        """Refuse: code is no plain value.

        Raises
        ------
        TypeError
            Always.
        """
        raise TypeError(
            f"the tokenizer {self.function!r} is a function of your own, and a saved schema holds plain values, no "
            "code. Use Text() or a tokenizers.Tokenizer for a model that is to be saved."
        )


def as_tokenizer(given: Any) -> Tokenizer:
    """Return what the user gave as a tokenizer.

    Raises
    ------
    TypeError
        It is none.

    Examples
    --------
    >>> as_tokenizer(None)
    HashingTokenizer(n_tokens=32768)
    """
    if given is None:
        return HashingTokenizer()
    if isinstance(given, (HashingTokenizer, JsonTokenizer, CallableTokenizer)):
        return given
    backend = getattr(given, "backend_tokenizer", given)  # what transformers' fast tokenizers wrap
    if hasattr(backend, "to_str") and hasattr(backend, "encode_batch"):
        return JsonTokenizer(backend.to_str())
    if callable(given):
        return CallableTokenizer(given)
    raise TypeError(
        f"a tokenizer must be a function from a text to a list of integers, or a tokenizers.Tokenizer; got "
        f"{type(given).__name__}"
    )


def tokenizer_from_dict(state: dict[str, Any]) -> Tokenizer:
    """Undo ``to_dict`` of a tokenizer."""
    if state["type"] == "hashing":
        return HashingTokenizer(state["n_tokens"])
    return JsonTokenizer(state["json"])


def ragged(values: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> Ragged:
    """Rows of given lengths out of values laid end to end."""
    return Ragged(values, np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]))


def from_rows(rows: Sequence[Sequence[int]]) -> Ragged:
    """Token numbers, one list per text, as rows of int32."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    values = np.concatenate([np.asarray(row) for row in rows if len(row)]) if lengths.any() else np.empty(0, np.int32)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise TypeError(f"a tokenizer must give a list of integers per text, got {values.dtype} of {values.ndim} axes")
    return ragged(values.astype(np.int32), lengths)
