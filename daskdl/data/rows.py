"""The two passes over the rows of a training: look at them once, then encode them where they will be used."""

from __future__ import annotations

import ctypes
import hashlib
import pickle
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from distributed import Client, as_completed, futures_of

from daskdl.data.arrays import Block
from daskdl.data.frame import LABEL, Frame, is_lazy, joined, source_label, to_pandas
from daskdl.data.sampling import WEIGHT
from daskdl.data.schema import ColumnStats, Kinds, Missing, Schema, describe
from daskdl.data.schema.target import Target, describe_target
from daskdl.data.schema.values import names_of
from daskdl.data.sources.base import Chunk, Source, to_frame
from daskdl.data.sources.parquet import ParquetSource
from daskdl.data.staging.stage import stage
from daskdl.errors import DataError

MIN_PIECE_ROWS = 1_000  # a frame in memory is not cut finer than this
PIECES_PER_WORKER = 4
LOOK_THREADS = 2  # without a cluster
HELD_SHARE = 0.5  # of the memory of the workers that the partitions of a frame may take
ENOUGH_PIECES = 3  # to tell from their size how large all will be


@dataclass(frozen=True)
class TensorEncoder:
    """Encodes rows for a network: the fields of ``Schema.encode``, the labels as ``y``, and weights where there are.

    Attributes
    ----------
    label, weight : hashable
        Names of the columns that are no features.
    """

    schema: Schema
    target: Target | None
    label: Any = LABEL
    weight: Any = None

    def __call__(self, chunk: Chunk) -> Block:
        """Encode a chunk."""
        block: dict[str, Any] = self.schema.encode(chunk)
        if self.target is not None:
            block["y"] = self.target.encode(chunk[self.label])
        if self.weight is not None:
            block[WEIGHT] = np.asarray(chunk[self.weight], dtype=np.float64)
        return block


@dataclass(frozen=True)
class TableEncoder:
    """Encodes rows for trees: ``x``, a frame of float32 columns with NaN for missing, and ``y``."""

    schema: Schema
    target: Target
    label: Any = LABEL

    def __call__(self, chunk: Chunk) -> dict[str, Any]:
        """Encode a chunk."""
        frame = to_frame(chunk)
        return {"x": self.schema.table(frame), "y": self.target.encode(frame[self.label])}


Encoder = Callable[[Chunk], Mapping[str, Any]]


@dataclass
class Look:
    """What was seen of one piece or group.

    Attributes
    ----------
    stats : dict of ColumnStats
    label : ColumnStats
    weight : float
        Sum of its sampling weights.
    digest, n_bytes : int
        Checksum and size of a piece of a frame.
    """

    stats: dict[Any, ColumnStats]
    label: ColumnStats
    weight: float = 0.0
    digest: int = 0
    n_bytes: int = 0


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
        Columns of the pieces that are no features.
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
    notes: tuple[str, ...] = ()
    frame: Any = None
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [look.label.n for look in self.looks]

    @property
    def n_rows(self) -> int:
        """Rows of all pieces."""
        return sum(self.counts)

    @property
    def fingerprint(self) -> str:
        """The same for the same rows in the same pieces."""
        if self.source is not None:
            return self.source.fingerprint
        seen = [(look.label.n, look.digest) for look in self.looks]
        return hashlib.sha256(repr(seen).encode()).hexdigest()

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
        blocks = []
        for i, number in enumerate(numbers):
            piece, pieces[i] = pieces[i], None
            places = workers(number)
            submit = {"workers": places, "allow_other_workers": bool(places), "pure": False}
            blocks.append(self.client.submit(encode_piece, piece, encoder, digests[i], **submit))
        return blocks

    def _pieces_again(self, numbers: Sequence[int]) -> list[Any]:
        assert self.client is not None
        if is_lazy(self.frame):
            parts = self.frame.to_delayed()
            return list(self.client.compute([parts[i] for i in numbers]))
        ends = np.cumsum(self.counts)
        cut = [self.frame.iloc[ends[i] - self.counts[i] : ends[i]] for i in numbers]
        return list(self.client.scatter(cut, hash=False))


def read_rows(
    X: Any,
    y: Any,
    *,
    classes: bool,
    client: Client | None,
    moments: bool = True,
    weight: Any = None,
    kinds: Kinds | None = None,
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

    Raises
    ------
    DataError
        For anything that cannot be learned from; see ``Schema`` and ``Target``.
    """
    asked = Asked(LABEL, weight, classes, moments, kinds or {})
    if isinstance(X, Source):
        asked = replace(asked, label=None if y is None else source_label(X, y))
        _check_weight(X.names, asked)
        return _rows_of_source(X, asked, client)
    frame = joined(X, y, kinds or {})
    _check_weight(list(frame.columns), asked)
    if client is None and not is_lazy(frame):
        return _rows([frame], _refused([look_at(frame, asked)]), asked, None)
    pieces = _pieces(frame, client)
    looks = _looks(pieces, asked, client)
    if looks is None:  # it does not fit into the memory of the workers
        pieces.clear()
        return _rows_of_staged(frame, asked, client)
    return _rows(pieces, looks, asked, client, frame=frame)


def _check_weight(names: Sequence[Any], asked: Asked) -> None:
    features = [name for name in names if name != asked.label]
    if asked.weight is not None and asked.weight not in features:
        raise DataError(
            f"sampling={asked.weight!r} is no column of X beside the label; the others are {features[:20]}. Give the "
            "name of a column of weights, or 'balanced'."
        )


def _rows(pieces: list[Any], looks: list[Look], asked: Asked, client: Client | None, **more: Any) -> Rows:
    return Rows(pieces, looks, *_merge(looks), client, label_name=asked.label, weight_name=asked.weight, **more)


def _rows_of_source(source: Source, asked: Asked, client: Client | None, **more: Any) -> Rows:
    pieces: list[Any] = [(source, group) for group in range(len(source.counts))]
    return _rows(pieces, _look_at_source(source, asked, client), asked, client, source=source, **more)


def _rows_of_staged(frame: Frame, asked: Asked, client: Client | None) -> Rows:
    """Write a frame that is too large into the staging cache, and read it from there."""
    assert client is not None
    client.run(_give_back_memory)  # workers that are paused for the memory of partitions that are gone go on
    staged = stage(frame, client=client)
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


def _looks(pieces: list[Any], asked: Asked, client: Client | None) -> list[Look] | None:
    """Look at all partitions; None as soon as it is clear that they will not fit into memory together."""
    assert client is not None
    futures = [client.submit(look_at, piece, asked, pure=False) for piece in pieces]
    room = HELD_SHARE * sum(
        w["memory_limit"] or np.inf for w in client.scheduler_info(n_workers=-1)["workers"].values()
    )
    seen = 0
    for n, future in enumerate(as_completed(futures, raise_errors=False), start=1):
        look = future.result()
        if isinstance(look, DataError):
            raise look
        seen += look.n_bytes
        if seen > room or (n >= ENOUGH_PIECES and seen / n * len(futures) > room):
            client.cancel(futures)
            return None
    return client.gather(futures)


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


# -- pass one: look at the rows -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What the first pass is asked to find out."""

    label: Any
    weight: Any
    classes: bool
    moments: bool
    kinds: Kinds


def look_at(piece: Chunk, asked: Asked) -> Look | DataError:
    """Describe one partition; an error is returned, so that Dask does not log it as well."""
    piece = to_pandas(piece)
    try:
        look = _look(piece, asked)
    except DataError as error:
        return error
    look.digest = content_digest(piece)
    look.n_bytes = int(piece.memory_usage(deep=True).sum())
    return look


def _look(chunk: Chunk, asked: Asked) -> Look:
    features = [name for name in names_of(chunk) if name not in (asked.label, asked.weight)]
    weights = 0.0 if asked.weight is None else _weight_sum(chunk[asked.weight])
    labels = ColumnStats("label", len(chunk))
    if asked.label is not None:
        labels = describe_target(chunk[asked.label], asked.classes)
    stats = {n: describe(chunk[n], asked.moments, asked.kinds.get(n), n) for n in features}
    return Look(stats, labels, weights)


def _weight_sum(weights: Any) -> float:
    values = np.asarray(weights, dtype=np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        raise DataError(
            f"sampling weights must be 0 or more and finite; found "
            f"{values[~(np.isfinite(values) & (values >= 0))][0]}. Fill or clip them."
        )
    return float(values.sum())


def content_digest(piece: pd.DataFrame) -> int:
    """Checksum of the values of a frame and their order: it tells whether a graph gave the same rows again."""
    value = 0
    for name in piece.columns:
        column = piece[name]
        if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biufcmM":
            data = np.ascontiguousarray(column.to_numpy()).view(np.uint8)
        else:
            try:
                data = pd.util.hash_pandas_object(column, index=False).to_numpy().view(np.uint8)
            except TypeError:  # lists, arrays, images
                data = np.frombuffer(pickle.dumps(column.tolist()), dtype=np.uint8)
        value = zlib.crc32(data.data, value)
    return value


def _look_at_source(source: Source, asked: Asked, client: Client | None) -> list[Look]:
    """Look at every group, in tasks of about equal rows."""
    if not len(source.counts):
        raise DataError(f"{source!r} has no rows; there is nothing to learn from. Look at its path and filters.")
    n = (
        LOOK_THREADS
        if client is None
        else PIECES_PER_WORKER * max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    )
    ends = np.searchsorted(np.cumsum(source.counts), source.n_rows * np.arange(1, n + 1) / n, side="left") + 1
    ends[-1] = len(source.counts)
    runs = [range(a, b) for a, b in pairwise([0, *np.minimum(ends, len(source.counts)).tolist()]) if a < b]
    if client is None:
        with ThreadPoolExecutor(LOOK_THREADS, "daskdl-look") as pool:
            found = list(pool.map(lambda run: look_at_groups(source, run, asked), runs))
    else:
        held = client.scatter(source, hash=False)
        found = client.gather([client.submit(look_at_groups, held, run, asked, pure=False) for run in runs])
    return [look for looks in _refused(found) for look in looks]


def look_at_groups(source: Source, groups: Sequence[int], asked: Asked) -> list[Look] | DataError:
    """Describe some groups of a source; runs on a worker. An error is returned."""
    try:
        return [_look_at_group(source, group, asked) for group in groups]
    except DataError as error:
        return error


def _look_at_group(source: Source, group: int, asked: Asked) -> Look:
    count = int(source.counts[group])
    found: Look | None = None
    for chunk in source.read(group, 0, count):
        look = _look(chunk, asked)
        found = look if found is None else _merged(found, look)
    if found is None:
        if count:
            raise DataError(f"{source.where(group)} gave no rows, {count:,} were counted: it has changed since.")
        return Look({}, ColumnStats("label"))
    if found.label.n != count:
        raise DataError(f"{source.where(group)} gave {found.label.n:,} rows, {count:,} were counted: it has changed.")
    return found


def _refused(found: Sequence[Any]) -> list[Any]:
    for answer in found:
        if isinstance(answer, DataError):
            raise answer
    return list(found)


def _merged(one: Look, other: Look) -> Look:
    stats, label = _merge([one, other])
    return Look(stats, label, one.weight + other.weight)


def _merge(looks: Sequence[Look]) -> tuple[dict[Any, ColumnStats], ColumnStats]:
    label = looks[0].label
    for more in looks[1:]:
        label = label.merge(more.label)
    seen = [look for look in looks if look.stats]
    stats = {}
    for name in seen[0].stats if seen else ():
        merged = seen[0].stats[name]
        for look in seen[1:]:
            try:
                merged = merged.merge(look.stats[name])
            except TypeError as error:
                raise DataError(
                    f"column {name!r} has different types in different partitions: {error}. Convert it to one type "
                    f"before: df[{name!r}].astype(...)."
                ) from error
        stats[name] = merged
    return stats, label


def learn(
    rows: Rows, label_name: Any, *, classes: bool, missing: Missing, kinds: Kinds | None = None
) -> tuple[Schema, Target]:
    """Learn the schema and the target from what was seen; refuses data that nothing can be learned from."""
    target = Target.from_stats(label_name, rows.label, classes)
    return Schema.from_stats(rows.stats, missing, kinds), target


# -- pass two: encode ---------------------------------------------------------------------------------------------


def encode_piece(piece: Any, encoder: Encoder, digest: int) -> Mapping[str, Any]:
    """Encode a partition, or a group given as (source, group); runs where the block will lie.

    Raises
    ------
    DataError
        The partition was computed again and has other rows than the ones that were looked at.
    """
    if isinstance(piece, tuple):
        source, group = piece
        chunks = list(source.read(group, 0, int(source.counts[group])))
        return encoder(pd.concat([to_frame(c) for c in chunks], ignore_index=True) if chunks else source.head(0))
    piece = to_pandas(piece)
    if content_digest(piece) != digest:
        raise DataError(
            "a partition was computed a second time (its worker was lost, or its memory) and came out with other rows "
            "than before: its graph is not deterministic. Training on it would use some rows twice and others never. "
            "Give random functions a seed, sort before sampling, or write the frame to Parquet first and read that."
        )
    return encoder(piece)
