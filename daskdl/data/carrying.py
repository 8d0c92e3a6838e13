"""Functions of the user's own modules in a lazy frame: Dask sends their names, which ends a worker without the module.

A worker that cannot read a task from its scheduler closes its connection, and ends; so does the next one that gets it.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

from daskdl.data.frame import is_lazy
from daskdl.travel import Packed, pack, users_modules


class Carried:
    """A function that is sent with its code, and called as it would be."""

    def __init__(self, function: Any) -> None:
        self.__name__ = str(getattr(function, "__name__", type(function).__name__))
        self._function, self._packed = function, pack(function, f"{self.__name__}(), of which the frame is made,")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it, here or in a worker."""
        if self._function is None:
            self._function = self._packed.value
        return self._function(*args, **kwargs)

    def __reduce__(self) -> Any:
        return _carried, (self.__name__, self._packed)

    def __dask_tokenize__(self) -> Any:
        from dask.base import normalize_token

        return "carried", self.__name__, normalize_token(self._function or self._packed.data)


def _carried(name: str, packed: Packed) -> Carried:
    made = object.__new__(Carried)
    made.__name__, made._function, made._packed = name, None, packed
    return made


def with_code(frame: Any) -> Any:
    """Return a lazy frame whose functions of the user's own modules travel with their code; any other as it is."""
    mine = users_modules()
    if not is_lazy(frame) or not mine:
        return frame
    expr = frame.expr
    for function in {id(f): f for f in _functions(frame.expr, mine)}.values():
        expr = expr.substitute(function, Carried(function))
    return frame if expr is frame.expr else type(frame)(expr)


def _functions(expr: Any, mine: dict[str, types.ModuleType]) -> Iterator[Any]:
    from dask._expr import Expr

    for node in expr.walk():
        for operand in node.operands:
            if isinstance(operand, (Expr, str, bytes, type(None))) or not callable(operand):
                continue
            inner = getattr(operand, "func", operand)  # of a partial
            module = getattr(inner, "__module__", None) or type(inner).__module__
            if module in mine or type(inner).__module__ in mine:
                yield operand
