"""From a frame, lazy or in memory, to blocks of arrays on the workers: two passes, each partition released in turn."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.dataframe.dask_expr._expr import are_co_aligned
from distributed import Client, futures_of

from daskdl.data.batches import Block
from daskdl.data.schema import ColumnStats, Missing, Schema, column_kind, describe
from daskdl.data.target import Target, describe_target
from daskdl.errors import DataError

LABEL = "__label__"
MIN_PIECE_ROWS = 1_000  # a frame in memory is not cut finer than this
PIECES_PER_WORKER = 4

Frame = Any  # a pandas, cudf or Dask DataFrame
Encode = Callable[[Schema, Target, pd.DataFrame, pd.Series], Mapping[str, Any]]


# -- what the user gave -------------------------------------------------------------------------------------------


def is_lazy(x: Any) -> bool:
    """Whether ``x`` is a Dask DataFrame."""
    return isinstance(x, dd.DataFrame)


def as_frame(X: Any) -> Frame:
    """Give features as a frame: Dask, pandas and cudf frames as they are, arrays with columns ``x0``, ``x1``, ...

    Raises
    ------
    DataError
        A column that is neither number nor category, known from the types alone.
    """
    if not is_lazy(X) and not isinstance(X, pd.DataFrame) and not _is_cudf(X):
        from sklearn.utils import check_array

        values = check_array(X, dtype="numeric", ensure_all_finite=False, ensure_min_samples=0)
        X = pd.DataFrame(values, columns=[f"x{i}" for i in range(values.shape[1])])
    if not len(X.columns):
        raise DataError("X has no columns (0 feature(s)); a model needs at least one feature.")
    if len(set(X.columns)) < len(X.columns):
        raise DataError(f"X has columns of the same name: {sorted(X.columns[X.columns.duplicated()])}. Rename them.")
    for name, dtype in X.dtypes.items():
        column_kind(name, dtype)
    return X


def _is_cudf(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] == "cudf"


def to_pandas(frame: Any) -> Any:
    """Return a pandas frame or series; cudf ones are copied to the host."""
    return frame.to_pandas() if _is_cudf(frame) else frame


def label_column(X: Any, name: Any) -> tuple[Any, Any]:
    """Split a frame into features and the label column called ``name``."""
    columns = list(getattr(X, "columns", ()))
    if name not in columns:
        near = difflib.get_close_matches(str(name), [str(c) for c in columns], n=3)
        raise DataError(
            f"label column {name!r} is not in X. {f'Did you mean {near}? ' if near else ''}X has {len(columns)} "
            f"columns: {columns[:20]}. Give y as a column of X or as a Series."
        )
    return X.drop(columns=[name]), X[name]


def joined(X: Any, y: Any) -> Frame:
    """Put features and labels into one frame, the labels last, under the name ``__label__``."""
    if y is None:
        raise ValueError(
            "requires y to be passed, but the target y is None. Give y as a Series as long as X, or as the name of a "
            "column of X."
        )
    if isinstance(y, str):
        X, y = label_column(X, y)
    X = as_frame(X)
    if is_lazy(X):
        return _joined_lazy(X, y)
    X = to_pandas(X)
    if hasattr(y, "dask"):
        raise DataError("X is in memory and y is lazy. Give both as Dask collections, or compute y first.")
    y = _as_series(y)
    if len(y) != len(X):
        raise DataError(
            f"Found input variables with inconsistent numbers of samples: X has {len(X):,} rows and y {len(y):,}."
        )
    return X.assign(**{LABEL: y.array})


def _as_series(y: Any) -> pd.Series:
    y = to_pandas(y)
    if isinstance(y, pd.Series):
        return y
    from sklearn.utils import column_or_1d

    return pd.Series(column_or_1d(np.asarray(y), warn=True))


def _joined_lazy(X: dd.DataFrame, y: Any) -> dd.DataFrame:
    if isinstance(y, dd.DataFrame) and len(y.columns) == 1:
        y = y[y.columns[0]]
    if not isinstance(y, dd.Series):
        raise DataError(
            f"X is a Dask DataFrame, so y must be a Dask Series or the name of a column of X; got {type(y).__name__}. "
            "Keep the label in the frame and pass df[features], df['label']."
        )
    known = X.known_divisions and y.known_divisions
    if not known and not are_co_aligned(X.expr, y.expr):  # Dask would shuffle by index, and pair rows by chance
        raise DataError(
            f"X ({X.npartitions} partitions) and y ({y.npartitions}) come from different frames of unknown divisions, "
            "so which label belongs to which row cannot be told. Take both from one frame: X = df[features], "
            "y = df['label']."
        )
    return X.assign(**{LABEL: y})


# -- pass one: look at the rows -----------------------------------------------------------------------------------


@dataclass
class Rows:
    """The rows of a frame in pieces, each a future on the cluster or a frame in memory, and what was learned of them.

    Attributes
    ----------
    pieces : list of Future or pandas.DataFrame
        Features and label, not encoded yet; emptied by ``encode``.
    counts : list of int
        Rows of each piece.
    stats : dict
        Statistics of each feature.
    label : ColumnStats
    """

    pieces: list[Any]
    counts: list[int]
    stats: dict[Any, ColumnStats]
    label: ColumnStats
    client: Client | None

    @property
    def n_rows(self) -> int:
        """Rows of all pieces."""
        return sum(self.counts)

    def encode(
        self,
        encode: Encode,
        schema: Schema,
        target: Target,
        workers: Callable[[int], list[str] | None] = lambda _: None,
    ) -> list[Any]:
        """Turn each piece into a block, on one of ``workers(piece)`` if it can be; raw rows are released in turn."""
        pieces, self.pieces = self.pieces, []
        if self.client is None:
            return [_encode_piece(piece, encode, schema, target) for piece in pieces]
        blocks = []
        for i in range(len(pieces)):
            piece, pieces[i] = pieces[i], None
            places = workers(i)
            blocks.append(
                self.client.submit(
                    _encode_piece,
                    piece,
                    encode,
                    schema,
                    target,
                    workers=places,
                    allow_other_workers=bool(places),
                    pure=False,
                )
            )
        return blocks


def read_rows(X: Any, y: Any, *, classes: bool, client: Client | None, moments: bool = True) -> Rows:
    """Bring the rows into worker memory and learn what there is: types, ranges, categories, missing values, labels.

    Runs on the workers, one task per partition; nothing but statistics comes to the client. Without a client, frames
    in memory are read in this process.

    Parameters
    ----------
    X, y
        Features and labels, see ``joined``.
    classes : bool
        Whether the labels are classes.
    client : distributed.Client or None
    moments : bool
        Whether means and variances are needed.

    Raises
    ------
    DataError
        For anything that cannot be learned from; see ``Schema`` and ``Target``.
    """
    frame = joined(X, y)
    pieces = _pieces(frame, client)
    if client is None:
        found = [_look_at(piece, classes, moments) for piece in pieces]
    else:
        found = client.gather([client.submit(_look_at, piece, classes, moments, pure=False) for piece in pieces])
    for answer in found:
        if isinstance(answer, DataError):
            raise answer
    counts, stats, label = _merge(found, [c for c in frame.columns if c != LABEL])
    return Rows(pieces, counts, stats, label, client)


def _pieces(frame: Frame, client: Client | None) -> list[Any]:
    if is_lazy(frame):
        if client is None:
            raise ValueError(
                "X is a Dask DataFrame and there is no Dask client to compute it with. Start one first: "
                "client = daskdl.connect()."
            )
        return sorted(futures_of(client.persist(frame)), key=lambda future: future.key[-1])  # keys are (name, i)
    if client is None:
        return [frame]
    n_workers = len(client.scheduler_info(n_workers=-1)["workers"])
    n = max(1, min(PIECES_PER_WORKER * n_workers, len(frame) // MIN_PIECE_ROWS))
    cuts = [len(frame) * i // n for i in range(n + 1)]
    return list(client.scatter([frame.iloc[a:b] for a, b in pairwise(cuts)], hash=False))


def _look_at(piece: Any, classes: bool, moments: bool) -> tuple[dict[Any, ColumnStats], ColumnStats] | DataError:
    """Describe one partition; an error is returned, so that Dask does not log it as well."""
    piece = to_pandas(piece)
    try:
        label = describe_target(piece[LABEL], classes)
        return {name: describe(piece[name], moments) for name in piece.columns if name != LABEL}, label
    except DataError as error:
        return error


def _merge(found: Sequence[Any], names: Sequence[Any]) -> tuple[list[int], dict[Any, ColumnStats], ColumnStats]:
    counts = [label.n for _, label in found]
    label = found[0][1]
    for _, more in found[1:]:
        label = label.merge(more)
    stats = {}
    for name in names:
        merged = found[0][0][name]
        for piece, _ in found[1:]:
            try:
                merged = merged.merge(piece[name])
            except TypeError as error:
                raise DataError(
                    f"column {name!r} has different types in different partitions: {error}. Convert it to one type "
                    f"before: df[{name!r}].astype(...)."
                ) from error
        stats[name] = merged
    return counts, stats, label


# -- pass two: encode ---------------------------------------------------------------------------------------------


def _encode_piece(piece: Any, encode: Encode, schema: Schema, target: Target) -> Mapping[str, Any]:
    piece = to_pandas(piece)
    return encode(schema, target, piece, piece[LABEL])


def encode_tensors(schema: Schema, target: Target, piece: pd.DataFrame, y: pd.Series) -> Block:
    """Encode a piece for a network: ``numbers`` float32, ``codes`` int32 if there are categories, and ``y``."""
    block = {"numbers": schema.numbers(piece), "y": target.encode(y)}
    if schema.category_columns:
        block["codes"] = schema.codes(piece)
    return block


def encode_table(schema: Schema, target: Target, piece: pd.DataFrame, y: pd.Series) -> dict[str, Any]:
    """Encode a piece for trees: ``x``, a frame of float32 columns with NaN for missing, and ``y``."""
    return {"x": schema.table(piece), "y": target.encode(y)}


def learn(rows: Rows, label_name: Any, *, classes: bool, missing: Missing) -> tuple[Schema, Target]:
    """Learn the schema and the target from what was seen; refuses data that nothing can be learned from."""
    target = Target.from_stats(label_name, rows.label, classes)
    return Schema.from_stats(rows.stats, missing), target


def owner_of_pieces(counts: Sequence[int], groups: Sequence[Sequence[int]]) -> list[int]:
    """Rank that should hold each piece, given the pieces each rank reads; shared ones go to the emptier rank."""
    readers: dict[int, list[int]] = {}
    for rank, mine in enumerate(groups):
        for piece in mine:
            readers.setdefault(piece, []).append(rank)
    load = [0] * len(groups)
    owners = [0] * len(counts)
    for piece in sorted(range(len(counts)), key=lambda p: len(readers.get(p, ()))):
        owners[piece] = min(readers.get(piece, range(len(groups))), key=lambda r: load[r])
        load[owners[piece]] += counts[piece]
    return owners
