"""Values of parameters, schemas and labels as JSON, and back: what JSON has no word for is written with its type."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import importlib
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

TYPE = "__type__"
# daskdl's own values, which hold nothing but plain ones; of those with a secret, all but that
OWN = {
    "Array": "daskdl.data.schema.kinds",
    "Image": "daskdl.data.schema.kinds",
    "Text": "daskdl.data.schema.kinds",
    "HashingTokenizer": "daskdl.data.schema.text",
    "Checkpoints": "daskdl.training.checkpoints",
}
SECRET = ("storage_options",)


def to_json(value: Any) -> Any:
    """Return what JSON can hold, with the types of what it has no word for.

    Raises
    ------
    TypeError
        It has a part that is no plain value, such as a function.

    Examples
    --------
    >>> from_json(to_json({1: (2, 3.5), "day": pd.Timestamp("2026-11-27")}))
    {1: (2, 3.5), 'day': Timestamp('2026-11-27 00:00:00')}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [to_json(item) for item in value]
    if type(value) is dict and all(type(key) is str and key != TYPE for key in value):
        return {key: to_json(item) for key, item in value.items()}
    for kind, name, plain in _TYPES:
        if isinstance(value, kind):
            return {TYPE: name, "value": to_json(plain(value))}
    name = type(value).__name__
    if OWN.get(name) == type(value).__module__:
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in SECRET}
        return {TYPE: name, "value": {key: to_json(item) for key, item in fields.items()}}
    raise TypeError(f"{value!r} is a {name}, and a file of plain values cannot hold it")


def from_json(value: Any) -> Any:
    """Undo ``to_json``."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if TYPE not in value:
        return {key: from_json(item) for key, item in value.items()}
    name, held = value[TYPE], from_json(value["value"])
    if name in OWN:
        cls = getattr(importlib.import_module(OWN[name]), name)
        made = object.__new__(cls)  # as an Array takes other arguments than it has fields
        for field in dataclasses.fields(cls):
            default = None if field.default is dataclasses.MISSING else field.default
            object.__setattr__(made, field.name, held.get(field.name, default))
        return made
    return _MAKE[name](held)


def _array(held: dict[str, Any]) -> Any:
    return np.array(held["items"], dtype=held["dtype"])


# type, name, what is written of it; the first that fits counts
_TYPES: tuple[tuple[Any, str, Callable[[Any], Any]], ...] = (
    (tuple, "tuple", list),
    ((set, frozenset), "set", lambda v: sorted(v, key=repr)),
    (dict, "dict", lambda v: [list(item) for item in v.items()]),
    (bytes, "bytes", lambda v: base64.b64encode(v).decode()),
    (pd.Timestamp, "timestamp", lambda v: v.isoformat()),
    (pd.Timedelta, "timedelta", lambda v: v.isoformat()),
    (datetime.datetime, "datetime", lambda v: v.isoformat()),
    (datetime.date, "date", lambda v: v.isoformat()),
    (Decimal, "decimal", str),
    (np.datetime64, "datetime64", lambda v: [int(v.astype(np.int64)), str(v.dtype)]),
    (np.generic, "scalar", lambda v: [v.item(), str(v.dtype)]),
    (np.ndarray, "array", lambda v: {"items": v.tolist(), "dtype": str(v.dtype)}),
    (bool, "bool", bool),
    (int, "int", int),
    (float, "float", float),
    (str, "str", str),
)
_MAKE: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "set": set,
    "dict": dict,
    "bytes": lambda held: base64.b64decode(held),
    "timestamp": pd.Timestamp,
    "timedelta": pd.Timedelta,
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "decimal": Decimal,
    "datetime64": lambda held: np.int64(held[0]).astype(held[1]),
    "scalar": lambda held: np.dtype(held[1]).type(held[0]),
    "array": _array,
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
}
