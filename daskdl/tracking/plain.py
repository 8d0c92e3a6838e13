"""Any value as one that travels in a message, and as a text for MLflow."""

from __future__ import annotations

from typing import Any

MAX_TEXT = 500  # characters of one parameter; more is no parameter but data
MAX_DEPTH = 20  # of lists and dicts in one another
MAX_BITS = 1_000


def plain(value: Any, deep: int = MAX_DEPTH) -> Any:
    """Return None, bool, int, float, str, list or dict; what is none of them becomes its ``repr``, cut short."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value) if value.bit_length() <= MAX_BITS else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return shorten(value)
    if isinstance(value, dict) and deep:
        return {shorten(str(k)): plain(v, deep - 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and len(value) <= 100 and deep:
        return [plain(v, deep - 1) for v in value]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # numpy and torch scalars
        return plain(value.item(), deep - 1) if deep else "..."
    if isinstance(value, type) or callable(value):
        return shorten(getattr(value, "__name__", None) or _said(value))
    return shorten(_said(value))


def _said(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # a training is not to fail for how a thing describes itself
        return f"a {type(value).__name__} that cannot be described ({type(error).__name__})"


def shorten(text: str, limit: int = MAX_TEXT) -> str:
    """Cut a text at ``limit`` characters, an ellipsis included; halves of characters are escaped."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def to_text(value: Any) -> str:
    """Write a plain value for a person."""
    return shorten(str(value))
