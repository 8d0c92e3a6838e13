"""Columns that stand in the paths of files, as in ``year=2013/month=1/part-0.parquet``."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

MISSING = "__HIVE_DEFAULT_PARTITION__"  # how Hive, Spark, Dask and Arrow write a missing value into a path

Keys = dict[str, Any]


def keys_in_paths(roots: Sequence[str], paths: Sequence[str]) -> list[Keys]:
    """Read the keys of each path that stand below the folder that all ``roots`` have in common.

    What is above was not asked for. Names and values are decoded as Arrow encodes them (``%20``), and the marker of
    missing values is None. Where all values of a key are whole numbers as one writes them, they are numbers; with a
    leading zero they are text.

    Examples
    --------
    >>> keys_in_paths(["/run=3/t"], ["/run=3/t/city=San%20Jose/zip=007/a.pq", "/run=3/t/city=Bonn/zip=53111/b.pq"])
    [{'city': 'San Jose', 'zip': '007'}, {'city': 'Bonn', 'zip': '53111'}]
    >>> keys_in_paths(["/t"], ["/t/year=2013/a.pq", "/t/year=__HIVE_DEFAULT_PARTITION__/b.pq"])
    [{'year': 2013}, {'year': None}]
    """
    root = posixpath.commonpath([_absolute(one) for one in roots])
    found = [_pairs(_absolute(path)[len(root) :]) for path in paths]
    names = list(dict.fromkeys(name for keys in found for name in keys))
    for name in names:
        values = {keys[name] for keys in found if keys.get(name) is not None}
        if all(_is_whole(value) for value in values):
            for keys in found:
                if keys.get(name) is not None:
                    keys[name] = int(keys[name])
    return found


def root_of(one: str, files: Sequence[str]) -> str:
    """Return the folder whose keys were not asked for: the one given, or that of a file, or before a pattern's stars.

    Examples
    --------
    >>> root_of("/t/year=2013", ["/t/year=2013/a.pq"]), root_of("/t/a.pq", ["/t/a.pq"]), root_of("/t/y*/*.pq", [])
    ('/t/year=2013', '/t', '/t')
    """
    if one in files:
        return posixpath.dirname(one)
    parts = one.split("/")
    first = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts))
    return "/".join(parts[:first])


def _absolute(path: str) -> str:
    return "/" + path.strip("/")


def _pairs(inside: str) -> Keys:
    pairs = [part.split("=", 1) for part in inside.split("/")[:-1] if "=" in part]
    return {unquote(name): None if value == MISSING else unquote(value) for name, value in pairs}


def _is_whole(value: str) -> bool:
    digits = value.removeprefix("-")
    return digits.isascii() and digits.isdigit() and str(int(value)) == value and abs(int(value)) < 1 << 63
