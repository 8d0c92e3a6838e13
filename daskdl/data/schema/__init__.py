"""How columns become tensors."""

from daskdl.data.schema.columns import Missing, to_float
from daskdl.data.schema.kinds import Array, Category, Image, Text, column_kind
from daskdl.data.schema.schema import Kinds, Schema
from daskdl.data.schema.stats import MAX_CATEGORIES, ColumnStats, describe

__all__ = [
    "MAX_CATEGORIES",
    "Array",
    "Category",
    "ColumnStats",
    "Image",
    "Kinds",
    "Missing",
    "Schema",
    "Text",
    "column_kind",
    "describe",
    "to_float",
]
