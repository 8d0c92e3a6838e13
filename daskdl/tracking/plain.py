"""Any value as one that travels in a message, and back from the text MLflow keeps."""

from __future__ import annotations

import ast
from typing import Any

MAX_TEXT = 500  # characters of one parameter; more is no parameter but data


def plain(value: Any) -> Any:
    """Return None, bool, int, float, str, list or dict; what is none of them becomes its ``repr``, cut short."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return shorten(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and len(value) <= 100:
        return [plain(v) for v in value]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # numpy and torch scalars
        return plain(value.item())
    if isinstance(value, type) or callable(value):
        return shorten(getattr(value, "__name__", None) or repr(value))
    return shorten(repr(value))


def shorten(text: str, limit: int = MAX_TEXT) -> str:
    """Cut a text at ``limit`` characters, an ellipsis included."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def to_text(value: Any) -> str:
    """Write a plain value so that :func:`from_text` reads the same value, and a person a short one."""
    text = str(value)
    if isinstance(value, str) and not isinstance(from_text(text), str):
        text = repr(value)  # the string '1' must not come back as a number
    return shorten(text)


def from_text(text: str) -> Any:
    """Read back what :func:`to_text` wrote."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
