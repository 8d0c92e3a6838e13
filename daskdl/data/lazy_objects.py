"""Lists, bytes and numbers held as Python objects in lazy frames, which Dask would turn into text."""

from __future__ import annotations

from typing import Any

import dask.dataframe as dd
import pandas as pd
from dask.dataframe._pyarrow import to_pyarrow_string
from dask.dataframe.dask_expr import new_collection
from dask.dataframe.dask_expr._concat import Concat
from dask.dataframe.dask_expr._expr import ArrowStringConversion, Blockwise, Expr, Partitions
from dask.dataframe.dask_expr._repartition import Repartition
from dask.dataframe.dask_expr.io.io import FromPandas

from daskdl.data.schema.objects import holds_text_only
from daskdl.errors import DataError

KEEPS_OBJECTS = (Blockwise, Concat, Partitions, Repartition)  # a shuffle sends rows as Arrow, which wants one type


def with_objects(frame: Any) -> Any:
    """Give a lazy frame or series in which Dask turns text into Arrow's text, and nothing else.

    With ``dataframe.convert-string``, which is on, Dask reads every column of Python objects as text: a list becomes
    ``"[1, 2]"``, a Decimal ``"1.50"``. So the same rows would be read otherwise lazily than in memory.

    Raises
    ------
    DataError
        There are such columns and the frame was shuffled since, so that their values are text for good.

    Examples
    --------
    >>> lazy = dd.from_pandas(pd.DataFrame({"visits": [[1], [2, 3]], "city": ["Oslo", "Rome"]}), npartitions=1)
    >>> lazy.compute().visits.tolist(), with_objects(lazy).compute().visits.tolist()
    (['[1]', '[2, 3]'], [[1], [2, 3]])
    """
    nodes = list(frame.expr.walk())
    if not any(_converts(node) for node in nodes):
        return frame
    if all(isinstance(node, KEEPS_OBJECTS) or not node.dependencies() for node in nodes):
        return new_collection(_rebuilt(frame.expr, {}))
    _refuse(frame, nodes)
    return frame


class TextConversion(ArrowStringConversion):
    """Turn text into Arrow's text, partition by partition."""

    @staticmethod
    def operation(part: Any) -> Any:
        """Convert a partition; an empty one, such as Dask's ``_meta``, as if it held text."""
        if not isinstance(part, pd.DataFrame):
            return part if isinstance(part, pd.Series) and _is_odd(part) else to_pyarrow_string(part)
        odd = [i for i in range(part.shape[1]) if _is_odd(part.iloc[:, i])]
        if not odd:
            return to_pyarrow_string(part)
        text = to_pyarrow_string(part.iloc[:, [i for i in range(part.shape[1]) if i not in set(odd)]])
        return pd.concat([text, part.iloc[:, odd]], axis=1)[list(part.columns)]


def _is_odd(column: pd.Series) -> bool:
    return pd.api.types.is_object_dtype(column.dtype) and not holds_text_only(column.to_numpy())


def _odd_columns(node: FromPandas) -> list[Any]:
    data = node.operand("frame")._data
    if isinstance(data, pd.Series):
        return [data.name] if _is_odd(data) else []
    return [name for i, name in enumerate(data.columns) if _is_odd(data.iloc[:, i])]


def _converts(node: Expr) -> bool:
    """Whether a step turns objects that may be no text into text."""
    if isinstance(node, FromPandas):
        return bool(node.pyarrow_strings_enabled and _odd_columns(node))
    if type(node) is not ArrowStringConversion:
        return False
    meta = node.frame._meta
    dtypes = meta.dtypes if isinstance(meta, pd.DataFrame) else [getattr(meta, "dtype", None)]
    return any(pd.api.types.is_object_dtype(dtype) for dtype in dtypes)


def _rebuilt(node: Expr, done: dict[str, Expr]) -> Expr:
    """Make an expression anew with our conversion in place of Dask's."""
    if node._name not in done:
        operands = [_rebuilt(op, done) if isinstance(op, Expr) else op for op in node.operands]
        same = all(a is b for a, b in zip(operands, node.operands, strict=True))
        made = node if same else type(node)(*operands)
        if _converts(node):
            held = isinstance(node, FromPandas)
            made = TextConversion(
                made.substitute_parameters({"pyarrow_strings_enabled": False}) if held else made.frame
            )
        done[node._name] = made
    return done[node._name]


def _refuse(frame: Any, nodes: list[Expr]) -> None:
    odd = {name for node in nodes if isinstance(node, FromPandas) and _converts(node) for name in _odd_columns(node)}
    have = set(frame.columns) if isinstance(frame, dd.DataFrame) else {frame.name}
    if odd & have:
        name = sorted(odd & have, key=str)[0]
        raise DataError(
            f"column {name!r} of the lazy frame holds Python objects that are no text, and Dask has turned them into "
            "text before it shuffled the rows: numbers would be categories. Give it a type of its own before, "
            f"df[{name!r}].astype(float), or make the frame within dask.config.set({{'dataframe.convert-string': "
            "False})."
        )
