"""What is known before a training: plain values, from one partition and the metadata, or from all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from daskdl.data.schema.stats import ColumnStats
from daskdl.workers import workers_of

if TYPE_CHECKING:
    from distributed import Client

    from daskdl.data.looking import Look
    from daskdl.data.rows import Rows

NEARLY_ALL = 0.95  # rows with another category each, from which a column is taken for an identifier
FEW_ROWS = 50  # of fewer nothing is said that chance could have made
MANY_CELLS = 100_000  # columns times pieces that fit compares with the label, at most


@dataclass(frozen=True)
class Pieces:
    """How the rows are cut.

    Attributes
    ----------
    what : str
        ``"partitions"``, ``"row groups"``, ``"groups"``, or ``"frame in memory"``.
    n : int
        How many there are.
    counts : tuple of int
        Rows of each, where that is known.
    divisions : bool, optional
        Whether a Dask frame knows its divisions.
    n_files, file_bytes : int
        Files and bytes of all of them.
    row_bytes, open_bytes : float
        As of a ``Source``.
    """

    what: str
    n: int
    counts: tuple[int, ...] = ()
    divisions: bool | None = None
    n_files: int = 0
    file_bytes: int = 0
    row_bytes: float = 0.0
    open_bytes: float = 0.0


@dataclass(frozen=True)
class Worker:
    """What is known of a worker.

    Attributes
    ----------
    address : str
    threads : int
        Tasks it runs at a time.
    memory_limit, memory, spilled : float
        Bytes; a limit of 0 is none. Memory is that of the last heartbeat.
    versions : dict
        Package -> version; empty if it was not asked.
    error : str
        Why it could not be asked.
    cores, gpus : int
        That it may use; on its host.
    trim : str
        ``MALLOC_TRIM_THRESHOLD_`` of its process.
    """

    address: str
    threads: int = 1
    memory_limit: float = 0.0
    memory: float = 0.0
    spilled: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    cores: int = 0
    gpus: int = 0
    trim: str = ""

    @property
    def host(self) -> str:
        """Its host."""
        return urlsplit(self.address).hostname or "this process"


@dataclass(frozen=True)
class Speed:
    """What was measured on the rows that were looked at; 0 where it was not.

    Attributes
    ----------
    look, encode : float
        Rows per second of one thread: gathering statistics, encoding.
    step_seconds : float
        One step of the default network on one rank.
    step_rows : int
        Rows of that step.
    """

    look: float = 0.0
    encode: float = 0.0
    step_seconds: float = 0.0
    step_rows: int = 0


@dataclass
class Facts:
    """Everything that ``findings`` judges.

    Attributes
    ----------
    rows : float, optional
        Of all pieces; ``exact`` says whether they were counted or are estimated from some.
    counted : dict
        Piece -> its rows, of those that were counted for the estimate.
    looked : int
        Rows that ``columns`` was gathered from; ``whole`` says whether these are all.
    pieces : Pieces, optional
    kinds : dict
        Column -> kind.
    columns : dict
        Column -> ColumnStats.
    refused : dict
        Column -> what fit says of it.
    identifiers : tuple
        Columns that have another value in every row.
    leaks : dict
        Column -> how it gives the label away.
    new_categories : dict
        Column -> the share of rows of the last piece with categories that the first one has not, and these.
    label_name : hashable
    label : ColumnStats, optional
    task : str
        ``"classes"`` or ``"number"``.
    label_refused : str
        What fit says of the label.
    sorted_by_label : bool
        Each piece has rows of one class, and not all of the same.
    row_bytes, encoded_row_bytes : float
        Of a row as it is and as it is trained on; 0 where not known.
    held : bool
        Whether the rows lie in memory while training; those of files do not.
    client : bool
    workers : tuple of Worker
    ranks, batch_size : int
    available_bytes : float
        Memory of this machine that is free, where there is no cluster.
    here : dict
        Versions of the client's packages.
    speed : Speed
    unfinished : str
        What was being done when time was up.
    incomplete : tuple of str
        What else could not be found out.
    failed : str
        Why the rows could not be looked at.
    """

    rows: float | None = None
    exact: bool = False
    counted: Mapping[int, int] = field(default_factory=dict)
    looked: int = 0
    whole: bool = False
    pieces: Pieces | None = None
    kinds: Mapping[Any, str] = field(default_factory=dict)
    columns: Mapping[Any, ColumnStats] = field(default_factory=dict)
    refused: Mapping[Any, str] = field(default_factory=dict)
    identifiers: Sequence[Any] = ()
    leaks: Mapping[Any, str] = field(default_factory=dict)
    new_categories: Mapping[Any, tuple[float, Sequence[Any]]] = field(default_factory=dict)
    label_name: Any = None
    label: ColumnStats | None = None
    task: str = ""
    label_refused: str = ""
    sorted_by_label: bool = False
    row_bytes: float = 0.0
    encoded_row_bytes: float = 0.0
    held: bool = True
    client: bool = False
    workers: Sequence[Worker] = ()
    ranks: int = 1
    batch_size: int = 1024
    available_bytes: float = 0.0
    here: Mapping[str, str] = field(default_factory=dict)
    speed: Speed = Speed()
    unfinished: str = ""
    incomplete: Sequence[str] = ()
    failed: str = ""


def facts_of_workers(client: Client | None) -> tuple[Worker, ...]:
    """What the client has been told of its workers; asks nobody."""
    if client is None:
        return ()
    found = workers_of(client)
    return tuple(_worker(address, about) for address, about in sorted(found.items()))


def _worker(address: str, about: Mapping[str, Any]) -> Worker:
    metrics = about.get("metrics", {})
    spilled = metrics.get("spilled_bytes", {})
    return Worker(
        address,
        int(about.get("nthreads", 1)),
        float(about.get("memory_limit") or 0),
        float(metrics.get("memory") or 0),
        float(spilled.get("disk", 0) if isinstance(spilled, dict) else 0),
    )


# -- from all rows, in fit ----------------------------------------------------------------------------------------


def facts_of_rows(rows: Rows, workers: Sequence[str], batch_size: int = 1024) -> Facts:
    """Facts of a fit that has read its rows: only what it has gathered anyway, in some milliseconds.

    Parameters
    ----------
    rows : Rows
    workers : sequence of str
        Addresses of the ranks; none without a cluster.
    batch_size : int

    Examples
    --------
    >>> import pandas as pd
    >>> from daskdl.data.rows import read_rows
    >>> frame = pd.DataFrame({"row": range(100), "y": [0, 1] * 50})
    >>> facts_of_rows(read_rows(frame, "y", classes=True, client=None), []).identifiers
    ('row',)
    """
    own = set(workers)
    source = rows.source
    what = "partitions" if rows.client is not None else "frame in memory"
    if source is not None:
        what = "row groups" if hasattr(source, "files") else "groups"
    return Facts(
        rows=rows.n_rows,
        exact=True,
        looked=rows.n_rows,
        whole=True,
        pieces=Pieces(what, len(rows.counts), tuple(rows.counts)),
        kinds={name: stats.kind for name, stats in rows.stats.items()},
        columns=rows.stats,
        identifiers=tuple(name for name, stats in rows.stats.items() if is_identifier(stats)),
        leaks=_leaks(rows.looks, rows.stats),
        label_name=None if source is None else rows.label_name,
        label=rows.label,
        task="classes" if rows.label.values else "number",
        sorted_by_label=sorted_by_label([look.label for look in rows.looks]),
        encoded_row_bytes=encoded_row_bytes(rows.stats),
        held=source is None,
        client=rows.client is not None,
        workers=tuple(w for w in facts_of_workers(rows.client) if w.address in own),
        ranks=max(1, len(workers)),
        batch_size=batch_size,
    )


def estimated_rows(counted: Mapping[int, int], n: int) -> tuple[float, int, int]:
    """Estimate the rows of ``n`` pieces from those of some.

    Returns
    -------
    (float, int, int)
        As if sizes changed evenly from one counted piece to the next; then the fewest and the most there can be if each
        piece is as large as the counted ones beside it or between the two.

    Examples
    --------
    >>> estimated_rows({0: 100, 2: 300, 3: 10}, 4)
    (610.0, 510, 710)
    """
    at = sorted(counted)
    rows = float(np.interp(np.arange(n), at, [counted[i] for i in at]).sum())
    low = high = sum(counted.values())
    for first, last in zip([-1, *at], [*at, n], strict=True):
        beside = [counted[i] for i in (first, last) if i in counted]
        low += (last - first - 1) * min(beside)
        high += (last - first - 1) * max(beside)
    return rows, low, high


def rows_in_words(facts: Facts) -> str:
    """Say how many rows there are; of an estimate also from what it is, and between what it lies.

    Examples
    --------
    >>> print(rows_in_words(Facts(rows=610.0, counted={0: 100, 2: 300, 3: 10}, pieces=Pieces("partitions", 4))))
    about 610 rows (estimated from 3 of 4 partitions; 510 to 710 if the others are like those beside them)
    """
    if facts.rows is None:
        return "rows not counted"
    if facts.exact or facts.pieces is None or not facts.counted:
        return f"{'' if facts.exact else 'about '}{facts.rows:,.0f} rows"
    _, low, high = estimated_rows(facts.counted, facts.pieces.n)
    between = f"{_about(low)} to {_about(high)}" if _about(low) != _about(high) else "as many"
    what = f"{len(facts.counted)} of {facts.pieces.n:,} {facts.pieces.what}"
    return (
        f"about {_about(facts.rows)} rows (estimated from {what}; {between} if the others are like those beside them)"
    )


def _about(n: float) -> str:
    """Write a number that is not known better than to three digits."""
    return f"{float(f'{n:.3g}'):,.0f}"


def is_identifier(stats: ColumnStats) -> bool:
    """Whether a column has another value in each row, as far as its statistics tell.

    Whole numbers are recognised if they are consecutive, in any order: then their variance is ``(n * n - 1) / 12``.
    """
    n = stats.n_seen
    if n < FEW_ROWS:
        return False
    if stats.kind == "category":
        return stats.n_different >= NEARLY_ALL * n
    if stats.kind != "number" or stats.high - stats.low + 1 != n or stats.low % 1:
        return False
    return abs(12 * stats.m2 / n / (n * n - 1.0) - 1) < 1e-9


def encoded_row_bytes(columns: Mapping[Any, ColumnStats]) -> float:
    """Bytes of a row as it is trained on: four for a number or a category; lists, images and texts are not counted."""
    width = {"number": 4, "category": 4, "time": 28}
    dense = sum(width.get(stats.kind, 0) for stats in columns.values())
    arrays = [s for s in columns.values() if s.kind == "array" and s.shape is not None and s.dtype]
    return float(dense + 8 + sum(float(np.prod(s.shape)) * np.dtype(s.dtype).itemsize for s in arrays if s.shape))


def sorted_by_label(labels: Sequence[ColumnStats]) -> bool:
    """Whether each piece has rows of one class only, and not all of the same class."""
    known = [label for label in labels if label.n >= FEW_ROWS]
    if len(known) < 2 or any(len(label.values) != 1 for label in known):
        return False
    return len({next(iter(label.values)) for label in known}) > 1


def _leaks(looks: Sequence[Look], columns: Mapping[Any, ColumnStats]) -> dict[Any, str]:
    """Columns whose statistics are those of the label in every piece, which chance does not bring about."""
    looks = [look for look in looks if look.label.n >= FEW_ROWS]
    if not looks or len(looks) * len(columns) > MANY_CELLS:
        return {}
    if looks[0].label.values:
        first = looks[0].label.values
        if len(looks) < 4 or len(first) > 100 or len({_share(look.label) for look in looks}) < 4:
            return {}
        same, how = _same_counts, "has in every partition as many rows of each value as the label has of each class"
    else:
        same, how = _same_moments, "has in every partition the mean and the variance of the label"
    return {name: how for name in columns if all(same(look, name) for look in looks)}


def _share(label: ColumnStats) -> tuple[int, ...]:
    return tuple(sorted(label.values.values()))


def _same_counts(look: Look, name: Any) -> bool:
    stats = look.stats.get(name)
    if stats is None or stats.n != look.label.n or stats.n_missing:
        return False
    if stats.kind == "category":
        return len(stats.values) == len(look.label.values) > 1 and _share(stats) == _share(look.label)
    return stats.kind == "number" and set(look.label.values) == {0, 1} and _zero_and_one(stats, look.label.values[1])


def _zero_and_one(stats: ColumnStats, ones: int) -> bool:
    p = ones / stats.n
    spread = bool(np.isclose(stats.mean, p) and np.isclose(stats.m2 / stats.n, p - p * p))
    return spread and (stats.low, stats.high) == (0.0, 1.0)


def _same_moments(look: Look, name: Any) -> bool:
    stats, label = look.stats.get(name), look.label
    if isinstance(label.m2, np.ndarray):  # of several labels
        return False
    if stats is None or stats.kind != "number" or not label.m2 or stats.n_seen != label.n_seen:
        return False
    return bool(np.isclose(stats.mean, label.mean, rtol=1e-12) and np.isclose(stats.m2, label.m2, rtol=1e-12))
