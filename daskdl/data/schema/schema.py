"""How the columns of a frame become tensors a model can read: learned once, carried with the model."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from daskdl.data.arrays import Array as Rows
from daskdl.data.arrays import Block
from daskdl.data.schema.columns import Category, Column, Dense, Floats, Missing
from daskdl.data.schema.encoding import COLUMNS, fill_numbers, learn_column, other_names, read_column
from daskdl.data.schema.fields import Field
from daskdl.data.schema.kinds import Kind
from daskdl.data.schema.stats import ColumnStats, describe
from daskdl.data.schema.values import names_of, raw_column
from daskdl.errors import DataError

MISSING: tuple[Missing, ...] = ("impute", "indicator", "refuse")
FORMAT = 2  # of to_dict; 1 had numbers and categories only, and no "format"
RESERVED = ("numbers", "codes", "y")
Kinds = Mapping[Any, Kind]


def once_each(names: Iterable[str]) -> list[str]:
    """Make names differ: the second of two that are alike gets a number.

    Examples
    --------
    >>> once_each(["1", "x", "1", "1_2"])
    ['1', 'x', '1_3', '1_2']
    """
    wanted = list(names)
    taken = set(wanted)
    found: list[str] = []
    seen: set[str] = set()
    for name in wanted:
        number = 2
        new = name
        while new in seen or (new != name and new in taken):
            new, number = f"{name}_{number}", number + 1
        seen.add(new)
        found.append(new)
    return found


@dataclass(frozen=True, repr=False)
class Schema:
    """How the columns of a frame become the tensors of a model. It is learned in training and travels with the model.

    Numbers are standardised and dates become seven numbers each: together they are ``numbers``. Categories become
    ``codes``. Arrays, lists, images and texts become a tensor each, under the column's name.

    Attributes
    ----------
    columns : tuple of Column
        In the order of the frame.
    missing : {"impute", "indicator", "refuse"}
        What happens to missing numbers and dates: the mean stands in; that and one more 0/1 feature per column that
        had any in training; or an error. Missing categories are a category of their own; missing arrays and images
        are zeros, missing lists and texts are empty.

    Examples
    --------
    >>> frame = pd.DataFrame({"x": [1.0, 3.0, None], "city": ["Oslo", "Rome", "Oslo"], "visits": [[3], [1, 2], []]})
    >>> schema = Schema.learn(frame)
    >>> schema
    column  kind      values          missing
    x       number    mean 2, std 1   1
    city    category  2: Oslo, Rome   0
    visits  ragged    lists of int64  0
    >>> block = schema.encode(frame)
    >>> block["numbers"].tolist(), block["codes"].tolist()
    ([[-1.0], [1.0], [0.0]], [[1], [2], [1]])
    >>> batch = schema.finish(block)
    >>> batch["visits"].tolist(), batch["visits_length"].tolist()
    ([[3, 0], [1, 2], [0, 0]], [1, 2, 0])
    """

    columns: tuple[Column, ...]
    missing: Missing = "impute"

    def __post_init__(self) -> None:
        made = [*RESERVED, *(name for c in self.field_columns for name in c.example(0))]
        double = sorted(name for name, n in Counter(made).items() if n > 1)
        if double:
            raise DataError(
                f"columns would become tensors of the same name: {double}. The names {', '.join(RESERVED)} and, beside "
                "a list or a text, <name>_length are taken: rename these columns."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what follows from the columns."""
        return {"columns": self.columns, "missing": self.missing}

    @classmethod
    def learn(cls, frame: Any, missing: Missing = "impute", kinds: Kinds | None = None) -> Schema:
        """Learn from a frame in memory.

        Parameters
        ----------
        frame : pandas.DataFrame, pyarrow.Table or pyarrow.RecordBatch
        missing : {"impute", "indicator", "refuse"}
        kinds : dict, optional
            How columns are read that are not what their type says: ``"number"``, ``"category"``, ``"time"``,
            ``"array"``, ``"ragged"``, ``"image"``, ``"text"``, ``Array(28, 28)``, ``Image(224, 224)``, ``Text()``,
            ``Category(top=1000)``.

        Raises
        ------
        DataError
            A column that nothing can be learned from.

        Examples
        --------
        >>> import daskdl
        >>> frame = pd.DataFrame({"zip": [10115, 20095], "note": ["A garden", "No garden"]})
        >>> Schema.learn(frame, kinds={"zip": "category", "note": daskdl.Text()})
        column  kind      values                             missing
        zip     category  2: 10115, 20095                    0
        note    text      32,768 tokens of HashingTokenizer  0
        """
        kinds = {str(name): kind for name, kind in (kinds or {}).items()}
        stats = {name: describe(raw_column(frame, name), kind=kinds.get(name), name=name) for name in names_of(frame)}
        return cls.from_stats(stats, missing, kinds)

    @classmethod
    def from_stats(
        cls, stats: Mapping[Any, ColumnStats], missing: Missing = "impute", kinds: Kinds | None = None
    ) -> Schema:
        """Learn from the statistics of each column, which ``describe`` gave for the same ``kinds``."""
        if missing not in MISSING:
            raise ValueError(f"missing must be one of {', '.join(map(repr, MISSING))}, got {missing!r}")
        kinds = {str(name): kind for name, kind in (kinds or {}).items()}
        unknown = [name for name in kinds if name not in stats]
        if unknown:
            raise DataError(f"kinds names columns that are not there: {unknown}. The columns are {list(stats)[:20]}.")
        return cls(tuple(learn_column(name, s, missing, kinds.get(name)) for name, s in stats.items()), missing)

    # -- names and widths -------------------------------------------------------------------------------------

    def __getitem__(self, name: Any) -> Column:
        """The column of that name."""
        if str(name) not in self._by_name:
            raise KeyError(f"no column {name!r}; the columns are {self.names[:20]}")
        return self._by_name[str(name)]

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {str(column.name): column for column in self.columns}

    @property
    def names(self) -> list[Any]:
        """Column names, in order."""
        return [c.name for c in self.columns]

    @cached_property
    def number_columns(self) -> list[Dense]:
        """The columns that become ``numbers``: numbers and dates."""
        return [c for c in self.columns if isinstance(c, Dense)]

    @cached_property
    def category_columns(self) -> list[Category]:
        """The columns that are categories."""
        return [c for c in self.columns if isinstance(c, Category)]

    @cached_property
    def field_columns(self) -> list[Field]:
        """The columns that become a tensor of their own."""
        return [c for c in self.columns if isinstance(c, Field)]

    @cached_property
    def indicators(self) -> list[Dense]:
        """The columns that get one more feature in ``numbers``, which says where they were missing."""
        return [c for c in self.number_columns if self.missing == "indicator" and c.n_missing]

    @cached_property
    def n_numbers(self) -> int:
        """Width of ``numbers``."""
        return sum(c.width for c in self.number_columns) + len(self.indicators)

    @property
    def cardinalities(self) -> list[int]:
        """Codes of each category column, 0 included: the number of rows its embedding needs."""
        return [c.n_codes for c in self.category_columns]

    @property
    def feature_names(self) -> list[str]:
        """Names of the columns of ``table``, as trees know them: text without ``[``, ``]`` and ``<``, each once."""
        marks = str.maketrans({"[": "(", "]": ")", "<": "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}"})
        return once_each(label.translate(marks) for label in self.feature_labels)

    @property
    def feature_labels(self) -> list[str]:
        """The same columns by the names of the frame: a date or an array is several, such as ``time_hour``."""
        return once_each(str(name) for name, _ in self._table_names())

    @property
    def feature_types(self) -> list[str]:
        """XGBoost's types of the columns of ``table``: ``q`` for numbers, ``c`` for categories."""
        return [kind for _, kind in self._table_names()]

    @property
    def feature_columns(self) -> list[int]:
        """Which column of the frame each column of ``table`` comes from, by its place."""
        return [i for i, column in enumerate(self.columns) for _ in column.table_names()]

    def _table_names(self) -> list[tuple[Any, str]]:
        return [pair for column in self.columns for pair in column.table_names()]

    # -- frames to arrays -------------------------------------------------------------------------------------

    def check(self, names: Iterable[Any]) -> None:
        """Refuse a frame whose columns are not the ones learned; more columns are refused too, as in scikit-learn."""
        have = list(names)
        if have == self.names:
            return
        raise other_names(self.names, have)

    def encode(self, chunk: Any) -> dict[str, Rows]:
        """Turn rows into compact arrays, which are kept, shuffled and cut into batches.

        Parameters
        ----------
        chunk : pandas.DataFrame, pyarrow.Table or pyarrow.RecordBatch
            Columns that were not learned are left alone.

        Returns
        -------
        dict
            ``numbers``: float32 (n_rows, n_numbers); ``codes``: int32 (n_rows, n_categories), if there are
            categories; then the other columns in order: arrays (n_rows, ...), ``Ragged`` lists and tokens, and
            images as they are, compressed. ``numbers`` is left out if there are only other columns. Arrays may be
            views of the chunk, and read-only.

        Raises
        ------
        DataError
            A column is not there, or is not what it was in training.
        """
        block: dict[str, Rows] = {}
        if self.number_columns or self.category_columns:
            block["numbers"] = self.numbers(chunk)
        if self.category_columns:
            block["codes"] = self.codes(chunk)
        for column in self.field_columns:
            block[column.field] = read_column(column, chunk, partial(column.encode, refuse=self._refuses))
        return block

    @property
    def _refuses(self) -> bool:
        return self.missing == "refuse"

    def numbers(self, chunk: Any) -> Floats:
        """Standardised numbers and dates, then indicators: shape (n_rows, n_numbers), row-major."""
        read = [read_column(column, chunk, column.read) for column in self.number_columns]
        out = np.empty((len(chunk), self.n_numbers), dtype=np.float32)
        indicated = set(map(id, self.indicators))
        marked = [id(column) in indicated for column in self.number_columns]
        if not fill_numbers(out, self.number_columns, read, marked) and self._refuses:
            pairs = zip(self.number_columns, read, strict=True)
            self._refuse_nan(sum(int(column.missing(x).sum()) for column, x in pairs))
        return out

    def codes(self, chunk: Any) -> npt.NDArray[np.int32]:
        """Category codes: shape (n_rows, n_categories); 0 is missing or unseen."""
        out = np.empty((len(chunk), len(self.category_columns)), dtype=np.int32)
        for i, column in enumerate(self.category_columns):
            out[:, i] = read_column(column, chunk, column.codes)
        return out

    def table(self, chunk: Any) -> pd.DataFrame:
        """Every feature as it is, in order, NaN where missing or unseen: float32 columns, for trees.

        A number of more digits than float32 has is told from a near one all the same: see ``Number``.

        Columns that are float32 already are not copied; XGBoost reads columns faster than rows. A date becomes whole
        days, hour, weekday and day of the year, an array one column per element.

        Raises
        ------
        DataError
            There are images, texts or lists of any length.
        """
        names = self.feature_names
        read = [part for column in self.columns for part in read_column(column, chunk, column.table)]
        columns = dict(zip(names, read, strict=True))
        if self._refuses:
            self._refuse_nan(sum(int(np.isnan(x).sum()) for x in columns.values()))
        index = chunk.index if isinstance(chunk, pd.DataFrame) else pd.RangeIndex(len(chunk))
        return pd.DataFrame(columns, index=index, copy=False)

    def _refuse_nan(self, n_missing: int) -> None:
        if n_missing:
            raise DataError(
                f"Input contains NaN: {n_missing:,} missing values, and missing='refuse'. Fill them, or fit with "
                "missing='impute' or 'indicator'."
            )

    # -- arrays to batches ------------------------------------------------------------------------------------

    @property
    def needs_finish(self) -> bool:
        """Whether ``finish`` changes anything."""
        return any(c.needs_finish for c in self.field_columns)

    def finish(self, block: Block, pool: Executor | None = None) -> dict[str, Rows]:
        """Decode images and pad lists and tokens of a batch; done once per batch, what else it holds is not copied.

        Parameters
        ----------
        block : dict
            Rows of what ``encode`` gave, and other fields such as ``y``.
        pool : concurrent.futures.Executor, optional
            Threads to decode several images at a time.

        Returns
        -------
        dict
            Images as uint8 (n_rows, channels, height, width); lists and tokens as (n_rows, longest of the batch),
            each followed by ``<name>_length``, int64 (n_rows,).
        """
        made = {c.field: c for c in self.field_columns if c.needs_finish}
        out: dict[str, Rows] = {}
        for name, rows in block.items():
            out |= made[name].finish(rows, pool) if name in made else {name: rows}
        return out

    def example(self, n: int) -> dict[str, npt.NDArray[Any]]:
        """Return ``n`` finished rows of zeros in the right shapes and types, to try a module on.

        Examples
        --------
        >>> schema = Schema.learn(pd.DataFrame({"x": [1.0, 2.0], "v": [[1, 2], [3, 4]]}))
        >>> {name: x.shape for name, x in schema.example(3).items()}
        {'numbers': (3, 1), 'v': (3, 2)}
        """
        out: dict[str, npt.NDArray[Any]] = {}
        if self.number_columns or self.category_columns:
            out["numbers"] = np.zeros((n, self.n_numbers), dtype=np.float32)
        if self.category_columns:
            out["codes"] = np.zeros((n, len(self.category_columns)), dtype=np.int32)
        for column in self.field_columns:
            out |= column.example(n)
        return out

    # -- to keep and to show ----------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold.

        Raises
        ------
        TypeError
            A tokenizer is a function of the user's.
        """
        return {"format": FORMAT, "missing": self.missing, "columns": [c.to_dict() for c in self.columns]}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Schema:
        """Undo ``to_dict``, also of older versions.

        Raises
        ------
        ValueError
            It was written by a newer version.
        """
        if state.get("format", 1) > FORMAT:
            raise ValueError(
                f"the schema was saved in format {state['format']}, this daskdl reads up to {FORMAT}. Upgrade daskdl."
            )
        return cls(tuple(COLUMNS[c["kind"]].from_dict(c) for c in state["columns"]), state["missing"])

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [(str(c.name), c.kind, c.summary(), f"{c.n_missing:,}") for c in self.columns]

    def __repr__(self) -> str:
        rows = [("column", "kind", "values", "missing"), *self._rows()]
        widths = [max(len(r[i]) for r in rows) for i in range(4)]
        return "\n".join("  ".join(v.ljust(w) for v, w in zip(r, widths, strict=True)).rstrip() for r in rows)

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{h}</th>" for h in ("column", "kind", "values", "missing"))
        rows = ("".join(f"<td style='text-align:left'>{html.escape(v)}</td>" for v in row) for row in self._rows())
        return f"<table><tr>{head}</tr><tr>{'</tr><tr>'.join(rows)}</tr></table>"
