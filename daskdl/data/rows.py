"""The two passes over the rows of a training: look at them once, then encode them where they will be used."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from distributed import Client, futures_of

from daskdl.clients import how_to_get_one
from daskdl.data.carrying import with_code
from daskdl.data.encoders import Encoder, encode_piece
from daskdl.data.extras import Columns, Extras, check_extras
from daskdl.data.frame import LABEL, NO_TARGET, Frame, is_lazy, no_such_column, source_label
from daskdl.data.joining import joined, label_twin
from daskdl.data.looking import Asked, Look, look_at, look_at_source, merge_looks, refuse_copy, refused
from daskdl.data.queries import cut_between_queries, scattered, shuffled_by_query, sorted_by_query
from daskdl.data.schema import ColumnStats, Kinds, Missing, Schema
from daskdl.data.schema.target import Target
from daskdl.data.sources.base import Source
from daskdl.data.sources.parquet import ParquetSource
from daskdl.data.staging.stage import stage
from daskdl.errors import DataError
from daskdl.travel import pack, submit
from daskdl.waiting import as_they_come
from daskdl.workers import again_if_lost, workers_of

# Of a frame in memory. The order of the rows follows from how it is cut, so that does not follow from the cluster.
MIN_PIECE_ROWS, MOST_PIECES = 1_000, 16
HELD_SHARE = 0.5  # of the memory of the workers that the partitions of a frame may take
ENOUGH_PIECES = 3  # to tell from their size how large all will be


@dataclass
class Rows:
    """The rows of a training and what was learned of them.

    Attributes
    ----------
    pieces : list
        Not encoded yet: futures on the cluster, frames in memory, or the groups of ``source``. Emptied by ``encode``.
    counts : list of int
        Rows of each piece.
    stats : dict
        Statistics of each feature.
    label : ColumnStats
        Of all labels; ``looks`` has those of each piece.
    label_name, weight_name : hashable
        Columns of the pieces that are no features; a list of several labels.
    extras : dict
        The columns of the pieces that hold each role of ``daskdl.data.extras``; no features, either.
    notes : tuple of str
        What the user should know of how they were read.
    frame : DataFrame or None
        What the pieces are the pieces of, if they are not of a source.
    """

    pieces: list[Any]
    looks: list[Look]
    stats: dict[Any, ColumnStats]
    label: ColumnStats
    client: Client | None
    source: Source | None = None
    label_name: Any = LABEL
    weight_name: Any = None
    extras: Columns = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    frame: Any = None
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [look.label.n for look in self.looks]

    @property
    def n_rows(self) -> int:
        """Rows of all pieces."""
        return sum(self.counts)

    def layout(self, batch_size: int) -> dict[str, Any]:
        """Lanes and window of the order, where the place of the rows decides them: in files."""
        return {} if self.source is None else self.source.layout(batch_size)

    def encode(
        self,
        encoder: Encoder,
        workers: Callable[[int], list[str] | None] = lambda _: None,
        only: Sequence[int] | None = None,
    ) -> list[Any]:
        """Turn each piece into a block, on one of ``workers(piece)`` if it can be; raw rows are released in turn.

        With ``only``, those pieces are computed once more, for blocks that have been lost.
        """
        pieces, self.pieces = (self.pieces, []) if only is None else (self._pieces_again(only), self.pieces)
        numbers = list(range(len(pieces))) if only is None else list(only)
        digests = [self.looks[i].digest for i in numbers]
        if self.client is None:
            return [encode_piece(piece, encoder, digest) for piece, digest in zip(pieces, digests, strict=True)]
        blocks, packed = [], pack(encoder, "kinds= with what they hold")
        source = None
        if self.source is not None:  # sent once, and not once for every group: it may hold its rows
            source = self.client.scatter(pack(self.source, "the source"), hash=False)
        for i, number in enumerate(numbers):
            piece, pieces[i] = pieces[i], None
            places = workers(number)
            where = {"workers": places, "allow_other_workers": bool(places)}
            piece = (source, number) if source is not None else piece
            blocks.append(submit(self.client, encode_piece, piece, packed, digests[i], **where))
        return blocks

    def _pieces_again(self, numbers: Sequence[int]) -> list[Any]:
        assert self.client is not None
        if self.source is not None:
            return [(self.source, i) for i in numbers]
        if is_lazy(self.frame):
            parts = self.frame.to_delayed()
            return list(self.client.compute([parts[i] for i in numbers]))
        ends = np.cumsum(self.counts)
        cut = [self.frame.iloc[ends[i] - self.counts[i] : ends[i]] for i in numbers]
        client = self.client
        return list(again_if_lost(lambda: client.scatter(cut, hash=False)))


def read_rows(
    X: Any,
    y: Any,
    *,
    classes: bool,
    client: Client | None,
    moments: bool = True,
    weight: Any = None,
    kinds: Kinds | None = None,
    extras: Extras | None = None,
    several: bool = False,
) -> Rows:
    """Look at all rows once and learn what there is: types, ranges, categories, missing values, labels.

    Runs on the workers, one task per partition or per run of groups; nothing but statistics comes to the client. The
    partitions of a frame stay in worker memory, the rows of a source stay where they are. Without a client, frames in
    memory and sources are read in this process.

    Parameters
    ----------
    X, y
        Features and labels, see ``joined``; or a ``Source`` and the name of its label column.
    classes : bool
        Whether the labels are classes.
    client : distributed.Client or None
    moments : bool
        Whether means and variances are needed.
    weight : hashable, optional
        Column of sampling weights, which is no feature.
    kinds : dict, optional
        How columns are to be read, where it is not to be found out; see ``Schema.learn``.
    extras : dict, optional
        What else each row has, by its role (``sample_weight``, ``base_margin``, ``qid``, ...): as long as ``X``, or the
        name of a column, which is then no feature. Of a source: the name of a column.
    several : bool
        Whether a row may have several labels.

    Raises
    ------
    DataError
        For anything that cannot be learned from; see ``Schema`` and ``Target``.
    """
    kinds = {str(name): kind for name, kind in (kinds or {}).items()}
    asked = Asked(LABEL, None if weight is None else str(weight), classes, moments, kinds)
    if isinstance(X, Source):
        provenance = [name for name in X.provenance if name not in asked.kinds]
        asked = replace(asked, extras=source_extras(X, extras or {}), provenance=provenance)
        asked = replace(asked, label=source_labels(X, y, several))
        _check_weight(X.names, asked)
        return _rows_of_source(X, asked, client)
    frame, label, columns = joined(X, y, kinds, extras, several)
    frame = with_code(frame)
    twin = label_twin(y, frame.columns)
    asked = replace(asked, label=label, extras=columns, twin=twin)
    _check_weight(list(frame.columns), asked)
    query = columns["qid"][0] if "qid" in columns else None
    if query is not None and not is_lazy(frame):
        frame = sorted_by_query(frame, query)
    if client is None and not is_lazy(frame):
        pieces = _cut(frame, query)
        return _rows(pieces, refused([look_at(piece, asked) for piece in pieces]), asked, None)
    pieces, looks = again_if_lost(lambda: _pieces_and_looks(frame, asked, client))
    if looks is not None and scattered(looks):
        frame = shuffled_by_query(frame, query)
        pieces, looks = again_if_lost(lambda: _pieces_and_looks(frame, asked, client))
    if looks is None and query is not None:
        raise DataError(
            "the frame is larger than half the memory of the workers, and a ranking needs all rows of a query "
            "together. Add workers, or rank fewer rows."
        )
    if looks is None:
        return _rows_of_staged(frame, asked, client)
    return _rows(pieces, looks, asked, client, frame=frame)


def _check_weight(names: Sequence[Any], asked: Asked) -> None:
    others = set(replace(asked, weight=None).aside)
    features = [name for name in names if name not in others]
    if asked.weight is not None and asked.weight not in features:
        raise DataError(
            f"sampling={asked.weight!r} is no column of X beside the label; the others are {features[:20]}. Give the "
            "name of a column of weights, or 'balanced'."
        )


def source_labels(X: Source, y: Any, several: bool) -> Any:
    """Return the name of the label column of a source, or a list of several, or None."""
    if several and isinstance(y, (list, tuple)):
        return [source_label(X, name) for name in y]
    return None if y is None else source_label(X, y)


def source_extras(X: Source, extras: Extras) -> Columns:
    """Return the columns of a source that hold each role, or refuse them."""
    columns: dict[str, tuple[Any, ...]] = {}
    for role, names in extras.items():
        columns[role] = tuple(names) if isinstance(names, (list, tuple)) else (names,)
        for name in columns[role]:
            if not isinstance(name, str):
                raise DataError(
                    f"X is a {type(X).__name__}, so {role} must be the name of one of its columns, got "
                    f"{type(name).__name__}. The columns are {X.names[:20]}."
                )
            if name not in X.names:
                raise DataError(no_such_column(f"{role} column", name, X.names, role))
    return columns


def _rows(pieces: list[Any], looks: list[Look], asked: Asked, client: Client | None, **more: Any) -> Rows:
    stats, label, extras = merge_looks(looks)
    check_extras(extras)
    refuse_copy(looks, asked.twin)
    names = {"label_name": asked.label, "weight_name": asked.weight, "extras": asked.extras}
    return Rows(pieces, looks, stats, label, client, **names, **more)


def _rows_of_source(source: Source, asked: Asked, client: Client | None, **more: Any) -> Rows:
    pieces: list[Any] = [(source, group) for group in range(len(source.counts))]
    more = {"notes": source.notes, **more}
    return _rows(pieces, look_at_source(source, asked, client), asked, client, source=source, **more)


def _rows_of_staged(frame: Frame, asked: Asked, client: Client | None) -> Rows:
    """Write a frame that is too large into the staging cache, and read it from there."""
    assert client is not None
    client.run(_give_back_memory)  # workers that are paused for the memory of partitions that are gone go on
    staged = stage(frame, client=client)
    client.run(_give_back_memory)  # or those that are paused for what writing took wait without end
    source = ParquetSource(staged.path)
    source.keep = staged  # its lease ends with the source
    found = "found in" if staged.reused else "written to"
    note = (
        f"the frame is larger than half the memory of the workers: it was {found} {staged.path} "
        f"({staged.n_bytes / 2**30:.1f} GiB) and is read from there"
    )
    return _rows_of_source(source, asked, client, notes=(note,))


def _give_back_memory() -> None:
    """Return to the system what this process has freed."""
    pa.default_memory_pool().release_unused()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)


def _pieces_and_looks(frame: Frame, asked: Asked, client: Client | None) -> tuple[list[Any], list[Look] | None]:
    """Hold a frame in the memory of the workers and look at it there; nothing if it does not fit."""
    pieces = _pieces(frame, client, asked.extras.get("qid", (None,))[0])
    looks = _looks(pieces, asked, client)
    return ([], None) if looks is None else (pieces, looks)


def _looks(pieces: list[Any], asked: Asked, client: Client | None) -> list[Look] | None:
    """Look at all partitions; None as soon as it is clear that they will not fit into memory together."""
    assert client is not None
    packed = pack(asked, "kinds= with what they hold")
    futures = [submit(client, look_at, piece, packed) for piece in pieces]
    room = HELD_SHARE * sum(w["memory_limit"] or np.inf for w in workers_of(client).values())
    seen = 0
    for n, future in enumerate(as_they_come(client, futures, "the partitions of the frame"), start=1):
        look = future.result()
        if isinstance(look, DataError):
            raise look
        seen += look.n_bytes
        if seen > room or (n >= ENOUGH_PIECES and seen / n * len(futures) > room):
            client.cancel(futures)
            return None
    return client.gather(futures)


def _pieces(frame: Frame, client: Client | None, query: Any) -> list[Any]:
    if client is None:  # and the frame is lazy
        raise ValueError(f"X is a Dask DataFrame and there is no Dask client to compute it with. {how_to_get_one()}")
    if is_lazy(frame):
        return sorted(futures_of(client.persist(frame)), key=lambda future: future.key[-1])  # keys are (name, i)
    return list(client.scatter(_cut(frame, query), hash=False))


def _cut(frame: pd.DataFrame, query: Any = None) -> list[pd.DataFrame]:
    """Cut a frame in memory into pieces of about equal rows; between queries if there are any."""
    n = max(1, min(MOST_PIECES, len(frame) // MIN_PIECE_ROWS))
    if query is not None:
        return cut_between_queries(frame, query, n)
    return [frame.iloc[a:b] for a, b in pairwise(len(frame) * i // n for i in range(n + 1))]


def learn(
    rows: Rows, label_name: Any, *, classes: bool, missing: Missing, kinds: Kinds | None = None
) -> tuple[Schema, Target]:
    """Learn the schema and the target from what was seen; refuses data that nothing can be learned from.

    ``label_name`` is for messages; of several labels the list of their names, or they are ``y0``, ``y1``, ...
    """
    if rows.label_name is None:
        raise ValueError(NO_TARGET)
    if isinstance(rows.label_name, list) and not isinstance(label_name, list):
        label_name = [f"y{i}" for i in range(len(rows.label_name))]
    target = Target.from_stats(label_name, rows.label, classes)
    return Schema.from_stats(rows.stats, missing, kinds), target
