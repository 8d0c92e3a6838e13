"""A name for what a lazy frame would compute, the same in every process that writes the same expression."""

from __future__ import annotations

import functools
import hashlib
import inspect
import site
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dask._expr import Expr
from dask._task_spec import GraphNode
from dask.base import tokenize
from fsspec.core import OpenFile

# what read_parquet has learned of its files: differs from process to process, and is what `checksum` says already
CACHES = ("_dataset_info_cache", "_pq_length_stats")


def frame_token(frame: Any) -> str:
    """Return a name for the content of a Dask DataFrame without computing it.

    It is Dask's own token of the expression, with three differences, each of which a test holds:

    - ``read_parquet``: Dask lets a cache slip into the token, so that no two processes agree on it. Left out here; the
      files' checksums (size, time of change, or what the file system has) count.
    - ``read_csv`` and other readers of blocks of bytes: Dask's token does not notice that a file has changed. Here
      the keys of tasks count, and what the file system says of each file now (size, time of change).
    - functions: Dask counts those of an importable module by their name. Here the text of their module counts too,
      unless the module is an installed package.

    Two frames of one name hold the same rows as far as that can be told. It cannot when a function reads something
    that is not among its arguments: the clock, a random number, another file, another module.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame

    Returns
    -------
    str
        Frames of tasks with random keys (``dask.delayed`` without ``pure=True``), or with a seed drawn by Dask, have a
        new name each time they are made, and so are never taken for one another.

    Examples
    --------
    >>> import dask.dataframe as dd, pandas as pd
    >>> pieces = pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [1, 3]})
    >>> one, same, other = (frame_token(dd.from_pandas(pieces[i], npartitions=1)) for i in (0, 0, 1))
    >>> one == same, one == other
    (True, False)
    """
    return _token(frame.expr)


def _token(expr: Expr) -> str:
    facts: list[Any] = [type(expr).__name__]
    if "_dataset_info_cache" in expr._parameters:
        facts.append(expr.checksum)
    names = [*expr._parameters, *[""] * len(expr.operands)]
    facts += [_facts(operand) for name, operand in zip(names, expr.operands, strict=False) if name not in CACHES]
    return tokenize(*facts)


def _facts(operand: Any) -> Any:
    """Give what Dask can tokenize, the expressions, tasks and functions in it replaced by what counts of them."""
    if isinstance(operand, Expr):
        return _token(operand)
    if isinstance(operand, GraphNode):
        return ["task", str(operand.key), tokenize(operand), _facts(getattr(operand, "args", ()))]
    if isinstance(operand, OpenFile):  # asked now: Dask hands out an earlier, equal expression with the keys of then
        operand.fs.invalidate_cache(operand.path)
        return "file", tokenize(operand), operand.fs.ukey(operand.path)
    if isinstance(operand, functools.partial):
        return "partial", _facts(operand.func), _facts(operand.args), _facts(operand.keywords)
    if isinstance(operand, (list, tuple)):
        return [type(operand).__name__, *map(_facts, operand)]
    if type(operand) is dict or (isinstance(operand, Mapping) and len(operand) < 1_000):
        return ["dict", *sorted((str(key), tokenize(_facts(value))) for key, value in operand.items())]
    if inspect.isfunction(operand):
        return "function", tokenize(operand), _module_text(operand.__module__)
    return operand


def _module_text(name: str | None) -> str:
    """Digest of a module's file; nothing for installed packages, whose versions change seldom and loudly."""
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    if name == "__main__" or not file or not file.endswith(".py"):  # functions of __main__ are pickled by value
        return ""
    roots = [*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()]
    if any(Path(file).is_relative_to(root) for root in roots):
        return ""
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()
