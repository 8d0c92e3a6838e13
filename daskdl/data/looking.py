"""Pass one over the rows of a training: look at every piece where it lies, and send home what was seen."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from distributed import Client

from daskdl.data.extras import Columns, describe_extras, read_extra
from daskdl.data.frame import to_pandas
from daskdl.data.schema import ColumnStats, Kinds, describe
from daskdl.data.schema.target import describe_targets
from daskdl.data.schema.values import column_of, names_of, numbers, raw_column
from daskdl.data.sources.base import Chunk, Source
from daskdl.errors import DataError
from daskdl.travel import pack, submit
from daskdl.waiting import as_they_come
from daskdl.workers import again_if_lost, workers_of

PIECES_PER_WORKER = 4
LOOK_THREADS = 2  # without a cluster


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
    extras : dict of ColumnStats
        Between what the values of each role lie.
    copied : bool
        Whether the feature that is called as the label is has its values, too.
    queries : array or None
        The different ones, where rows have a query.
    """

    stats: dict[Any, ColumnStats]
    label: ColumnStats
    weight: float = 0.0
    digest: int = 0
    n_bytes: int = 0
    extras: dict[str, ColumnStats] = field(default_factory=dict)
    copied: bool = False
    queries: Any = None


@dataclass(frozen=True)
class Asked:
    """What the first pass is asked to find out; ``label`` is a name, a list of several, or None."""

    label: Any
    weight: Any
    classes: bool
    moments: bool
    kinds: Kinds
    extras: Columns = field(default_factory=dict)
    provenance: Sequence[Any] = ()  # columns that say where a row comes from
    twin: Any = None  # a feature that is called as the label is

    @property
    def labels(self) -> list[Any]:
        """Names of all label columns."""
        return self.label if isinstance(self.label, list) else [] if self.label is None else [self.label]

    @property
    def aside(self) -> list[Any]:
        """Names of the columns that are no features."""
        more = [] if self.weight is None else [self.weight]
        return [*self.labels, *more, *(name for names in self.extras.values() for name in names), *self.provenance]


def look_at(piece: Chunk, asked: Asked) -> Look | DataError:
    """Describe one partition; an error is returned, so that Dask does not log it as well."""
    piece = to_pandas(piece)
    try:
        look = _look(piece, asked)
    except DataError as error:
        return error.named(lambda row: f"row {row:,} of a partition (index {piece.index[row]!r})")
    look.digest = content_digest(piece)
    look.n_bytes = int(piece.memory_usage(deep=True).sum())
    return look


def _look(chunk: Chunk, asked: Asked) -> Look:
    aside = set(asked.aside)
    features = [name for name in names_of(chunk) if name not in aside]
    weights = 0.0 if asked.weight is None else _weight_sum(column_of(chunk, asked.weight))
    labels = ColumnStats("label", len(chunk))
    if asked.labels:
        labels = describe_targets([raw_column(chunk, name) for name in asked.labels], asked.classes)
    stats = {n: describe(raw_column(chunk, n), asked.moments, asked.kinds.get(n), n) for n in features}
    copied = asked.twin is not None and _same(raw_column(chunk, asked.twin), raw_column(chunk, asked.labels[0]))
    queries = np.unique(read_extra("qid", chunk, asked.extras["qid"])) if "qid" in asked.extras else None
    return Look(stats, labels, weights, extras=describe_extras(chunk, asked.extras), copied=copied, queries=queries)


def _same(x: Any, y: Any) -> bool:
    return bool(x.reset_index(drop=True).equals(y.reset_index(drop=True)) if isinstance(x, pd.Series) else x.equals(y))


def _weight_sum(weights: Any) -> float:
    values = numbers(weights).astype(np.float64)
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


def look_at_source(source: Source, asked: Asked, client: Client | None) -> list[Look]:
    """Look at every group, in tasks of about equal rows."""
    if not len(source.counts):
        raise DataError(f"{source!r} has no rows; there is nothing to learn from. Look at its path and filters.")
    n = LOOK_THREADS if client is None else PIECES_PER_WORKER * max(1, len(workers_of(client)))
    ends = np.searchsorted(np.cumsum(source.counts), source.n_rows * np.arange(1, n + 1) / n, side="left") + 1
    ends[-1] = len(source.counts)
    runs = [range(a, b) for a, b in pairwise([0, *np.minimum(ends, len(source.counts)).tolist()]) if a < b]
    if client is None:
        with ThreadPoolExecutor(LOOK_THREADS, "daskdl-look") as pool:
            found = list(pool.map(lambda run: look_at_groups(source, run, asked), runs))
    else:
        found = again_if_lost(partial(_look_on_workers, client, source, runs, asked))
    return [look for looks in refused(found) for look in looks]


def _look_on_workers(client: Client, source: Source, runs: list[range], asked: Asked) -> list[Any]:
    held, packed = client.scatter(pack(source, "the source"), hash=False), pack(asked, "kinds= with what they hold")
    futures = [submit(client, look_at_groups, held, run, packed) for run in runs]
    for future in as_they_come(client, futures, "a look at the source"):
        if future.status != "finished":
            break  # it is raised below
    return list(client.gather(futures))


def look_at_groups(source: Source, groups: Sequence[int], asked: Asked) -> list[Look] | DataError:
    """Describe some groups of a source; runs on a worker. An error is returned."""
    try:
        return [_look_at_group(source, group, asked) for group in groups]
    except DataError as error:
        return error


def _look_at_group(source: Source, group: int, asked: Asked) -> Look:
    count = int(source.counts[group])
    found: Look | None = None
    at = 0
    for chunk in source.read(group, 0, count):
        try:
            look = _look(chunk, asked)
        except DataError as error:
            raise error.moved(at).named(partial(source.where_row, group)) from error
        at += len(chunk)
        found = look if found is None else _merged(found, look)
    if found is None:
        if count:
            raise DataError(f"{source.where(group)} gave no rows, {count:,} were counted: it has changed since.")
        return Look({}, ColumnStats("label"))
    if found.label.n != count:
        raise DataError(f"{source.where(group)} gave {found.label.n:,} rows, {count:,} were counted: it has changed.")
    return found


def refused(found: Sequence[Any]) -> list[Any]:
    """Raise the first error among the answers, or return them."""
    for answer in found:
        if isinstance(answer, DataError):
            raise answer
    return list(found)


def _merged(one: Look, other: Look) -> Look:
    stats, label, extras = merge_looks([one, other])
    return Look(stats, label, one.weight + other.weight, extras=extras, copied=one.copied and other.copied)


def merge_looks(looks: Sequence[Look]) -> tuple[dict[Any, ColumnStats], ColumnStats, dict[str, ColumnStats]]:
    """Combine statistics of features, labels and extras over pieces; types that do not go together are refused."""
    label, extras = looks[0].label, dict(looks[0].extras)
    for more in looks[1:]:
        label = label.merge(more.label)
        for role, found in more.extras.items():
            extras[role] = extras[role].merge(found) if role in extras else found
    seen = [look for look in looks if look.stats and look.label.n] or [look for look in looks if look.stats]
    for look in seen[1:]:
        if look.stats.keys() != seen[0].stats.keys():
            raise _other_columns(seen[0].stats, look.stats)
    stats = {name: _merged_stats(name, [look.stats[name] for look in seen]) for name in (seen[0].stats if seen else ())}
    return stats, label, extras


def _merged_stats(name: Any, parts: Sequence[ColumnStats]) -> ColumnStats:
    merged = parts[0]
    for part in parts[1:]:
        try:
            merged = merged.merge(part)
        except TypeError as error:
            raise DataError(
                f"column {name!r} has different types in different partitions: {error}. Convert it to one type "
                f"before: df[{name!r}].astype(...)."
            ) from error
    return merged


def _other_columns(one: Iterable[Any], other: Iterable[Any]) -> DataError:
    a, b = list(one), list(other)
    return DataError(
        f"partitions have different columns: {[n for n in a if n not in b][:20]} are in one and not in another, "
        f"{[n for n in b if n not in a][:20]} the other way round. Every row needs them all: look at the function that "
        "makes the partitions, or the files they were read from."
    )


def refuse_copy(looks: Sequence[Look], name: Any) -> None:
    """Refuse features of which one is the label itself: what is learned from it cannot be known of other rows."""
    known = [look for look in looks if look.label.n]
    if known and all(look.copied for look in known):
        raise DataError(label_among_features(name))


def label_among_features(name: Any) -> str:
    """Say that the label is a feature, too."""
    return (
        f"X contains the label: its column {name!r} is called as y is and equals it in every row, so the model would "
        f"read the answer. Take it out, X.drop(columns={name!r}), or give the name alone: fit(X, {name!r})."
    )
