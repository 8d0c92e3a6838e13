"""Which columns Parquet files have together: of all files, of one type each, without the index of pandas or Dask."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from daskdl.errors import DataError

INDEX_NAMES = re.compile(r"__null_dask_index__|__index_level_\d+__")  # of an index without a name
LOOKED_GROUPS, LOOKED_CHUNKS = 64, 100_000  # row groups, and column chunks, that tell how long lists and texts are
OFFSET_BYTES = 4
WIDTHS = {"BOOLEAN": 0.125, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8}  # of a decoded value


@dataclass(frozen=True)
class FileSchema:
    """The columns of a file: their types, and which of them are the index that pandas or Dask wrote.

    Attributes
    ----------
    path : str
        Of the first file that has these columns.
    types : dict
        Column -> pyarrow.DataType.
    index : set of str
    """

    path: str
    types: dict[str, pa.DataType]
    index: frozenset[str]

    def only(self, names: set[str]) -> FileSchema:
        """Leave out the other columns."""
        return replace(self, types={name: kind for name, kind in self.types.items() if name in names})


def file_schemas(paths: Sequence[str], footers: Sequence[pq.FileMetaData]) -> tuple[list[FileSchema], list[int]]:
    """Return the different schemas of the files, and the number of its schema for each file."""
    kept: list[tuple[Any, frozenset[str]]] = []
    found: list[FileSchema] = []
    which: list[int] = []
    for path, footer in zip(paths, footers, strict=True):
        index = _index_of(footer)
        at = next((i for i, (s, names) in enumerate(kept) if names == index and footer.schema.equals(s)), len(kept))
        if at == len(kept):
            kept.append((footer.schema, index))
            schema = footer.schema.to_arrow_schema()
            found.append(FileSchema(path, dict(zip(schema.names, schema.types, strict=True)), index))
        which.append(at)
    return found, which


def _index_of(footer: pq.FileMetaData) -> frozenset[str]:
    """Columns that pandas reads as the index: they are named in its notes, which a wide table has megabytes of."""
    notes = (footer.metadata or {}).get(b"pandas", b"").decode(errors="replace")
    at = notes.find('"index_columns":')
    if at < 0:
        return frozenset()
    try:
        found, _ = json.JSONDecoder().raw_decode(notes[at + len('"index_columns":') :].lstrip())
    except ValueError:
        return frozenset()
    return frozenset(name for name in found if isinstance(name, str))  # a range is a dict, and stored nowhere


def index_columns(schemas: Iterable[FileSchema]) -> set[str]:
    """Columns that are an index in every file that has them; a name of its own is not needed for one without a name."""
    columns = {name for schema in schemas for name in schema.types if name not in schema.index}
    index = {name for schema in schemas for name in schema.index if name not in columns}
    return index | {name for name in columns if INDEX_NAMES.fullmatch(name)}


def common_types(schemas: Sequence[FileSchema]) -> dict[str, pa.DataType]:
    """Return every column of any file, with the one type that keeps the values of all.

    Raises
    ------
    DataError
        There is none: a number in one file and text in another.
    """
    types: dict[str, tuple[pa.DataType, str]] = {}
    for schema in schemas:
        for name, kind in schema.types.items():
            known, path = types.setdefault(name, (kind, schema.path))
            if known.equals(kind):
                continue
            both = _common(known, kind)
            if both is None:
                raise DataError(
                    f"column {name!r} is {known} in {path} and {kind} in {schema.path}: no type keeps the values of "
                    "both. Write the files again with one type, or select other columns: columns=[...]."
                )
            types[name] = (both, path if both.equals(known) else schema.path)
    return {name: kind for name, (kind, _) in types.items()}


def _common(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Return the type that keeps the values of both; the same whichever comes first."""
    t = pa.types
    if t.is_null(a) or t.is_null(b):  # a column without any value has no type
        return b if t.is_null(a) else a
    if t.is_dictionary(a) or t.is_dictionary(b):
        values = _common(*(kind.value_type if t.is_dictionary(kind) else kind for kind in (a, b)))
        whole = t.is_dictionary(a) and t.is_dictionary(b)
        return pa.dictionary(pa.int32(), values) if whole and values is not None else values
    if a.equals(b):
        return a
    if t.is_integer(a) and t.is_integer(b):
        return _common_integer(a, b)
    if _is_number(a) and _is_number(b):
        floats = pa.types.is_floating(a) and pa.types.is_floating(b) and max(a.bit_width, b.bit_width) <= 32
        return pa.float32() if floats else pa.float64()
    try:
        return pa.unify_schemas([pa.schema({"c": a}), pa.schema({"c": b})], promote_options="permissive").types[0]
    except pa.ArrowException:
        return None


def _common_integer(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    signed = {kind.bit_width for kind in (a, b) if pa.types.is_signed_integer(kind)}
    unsigned = {kind.bit_width for kind in (a, b) if not pa.types.is_signed_integer(kind)}
    if not signed:
        return a if a.bit_width > b.bit_width else b
    bits = max(*signed, *(2 * width for width in unsigned), 8)
    return {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits, pa.float64())


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


# -- bytes of a row -----------------------------------------------------------------------------------------------


def row_bytes(types: dict[str, pa.DataType], footers: Sequence[pq.FileMetaData]) -> float:
    """Bytes of a decoded row: the width of its types, and of the others what some footers say of their values."""
    widths = {name: _width(kind) for name, kind in types.items()}
    others = {name for name, width in widths.items() if width is None}
    fixed = sum(width for width in widths.values() if width is not None)
    return max(1.0, fixed + (_other_bytes(others, footers) if others else 0.0))


def _width(kind: pa.DataType) -> int | None:
    try:
        return max(1, kind.bit_width // 8)
    except ValueError:
        return None


def _other_bytes(columns: set[str], footers: Sequence[pq.FileMetaData]) -> float:
    """Bytes per row of columns without a fixed width."""
    groups = [(footer, g) for footer in footers for g in range(footer.num_row_groups) if footer.row_group(g).num_rows]
    most = max(1, min(LOOKED_GROUPS, LOOKED_CHUNKS // max((footer.num_columns for footer in footers), default=1)))
    n_bytes = n_rows = 0.0
    for footer, g in groups[:: -(-len(groups) // most) or 1]:
        group = footer.row_group(g)
        n_rows += group.num_rows
        for i in range(group.num_columns):
            chunk = group.column(i)
            if _top_level(chunk.path_in_schema, columns):
                lists = footer.schema.column(i).max_repetition_level
                n_bytes += OFFSET_BYTES * lists * group.num_rows + _value_bytes(chunk)
    return n_bytes / max(1.0, n_rows)


def _top_level(path: str, columns: set[str]) -> bool:
    """Whether a path such as ``visits.list.element`` lies in one of some columns; their names may have points."""
    parts = path.split(".")
    return any(".".join(parts[:n]) in columns for n in range(1, len(parts) + 1))


def _value_bytes(chunk: pq.ColumnChunkMetaData) -> float:
    """Bytes of the decoded values of a column chunk, whose dictionary may be far smaller.

    The length of texts is not in the footer. Stored plainly, they take as much as decoded; if they are stored in less
    than half of what the least and the greatest one would take on average, they are in a dictionary.
    """
    if chunk.physical_type in WIDTHS:
        return float(chunk.num_values * WIDTHS[chunk.physical_type])
    about, stored = chunk.statistics, float(chunk.total_uncompressed_size)
    if about is None:
        return stored
    stored += OFFSET_BYTES * (chunk.num_values - about.num_values)  # missing ones are not stored
    if chunk.physical_type != "BYTE_ARRAY" or not about.has_min_max:
        return stored
    length = (len(about.min_raw) + len(about.max_raw)) / 2
    alike = OFFSET_BYTES * chunk.num_values + length * about.num_values
    return stored if stored > alike / 2 else alike
