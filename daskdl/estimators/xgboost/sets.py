"""The sets of rows that are evaluated after every round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daskdl.data.sources.base import Source

Sets = list[tuple[Any, Any, dict[str, Any]]]


def sets_of(validation_data: Any, extras: Mapping[str, Any]) -> Sets:
    """Give the sets of validation rows, each with its extras; columns named for training are named for these, too."""
    named = {role: name for role, name in extras.items() if isinstance(name, str)}
    given = validation_data if isinstance(validation_data, list) else [validation_data]
    found: Sets = []
    for one in given:
        if one is None:
            continue
        if not isinstance(one, tuple) or len(one) not in (2, 3):
            raise TypeError(f"validation_data must be (X, y) or (X, y, extras), got {type(one).__name__}")
        X, y, own = one if len(one) == 3 else (*one, {})
        if not isinstance(own, Mapping):
            raise TypeError(f"the third of validation_data must be a dict such as {{'qid': ...}}, got {own!r}")
        columns = X.names if isinstance(X, Source) else list(getattr(X, "columns", ()))
        found.append((X, y, {**{role: name for role, name in named.items() if name in columns}, **own}))
    return found
