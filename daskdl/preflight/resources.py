"""What the facts mean for workers, memory and time; see ``findings``."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator

from daskdl.data.lanes import HELD_BYTES
from daskdl.preflight.facts import Facts, Pieces, Worker
from daskdl.preflight.report import Finding
from daskdl.tracking.summary import count, duration

ROWS_THAT_TAKE_TIME = 50_000  # with fewer it does not matter how they are cut
SKEW = 1.5  # a piece with so many times a rank's share of the rows
SPILLS = 0.6  # share of its limit at which a worker begins to spill to disk
MANY, TINY_BYTES, TINY_ROWS = 1_000, 1 << 20, 1_000
RANK_USES = ("python", "daskdl", "torch", "distributed", "dask", "pandas", "numpy", "pyarrow")


# -- how the rows are cut -----------------------------------------------------------------------------------------


def cut(facts: Facts) -> Iterator[Finding]:
    """Partitions, row groups and files: how many, how large, how even."""
    pieces = facts.pieces
    if pieces is None:
        return
    found = [*_too_few(facts, pieces), *_skew(facts, pieces), *_tiny(pieces), *_large_groups(facts, pieces)]
    yield from found
    yield Finding("partitions", "ok", _describe(facts, pieces))


def _describe(facts: Facts, pieces: Pieces) -> str:
    text = f"{pieces.n:,} {pieces.what}" if pieces.n > 1 or pieces.what != "frame in memory" else pieces.what
    if pieces.n_files:
        text += f" in {pieces.n_files:,} file{'s' * (pieces.n_files > 1)} of {gigabytes(pieces.file_bytes)}"
    if pieces.counts and pieces.n > 1:
        low, middle, high = min(pieces.counts), statistics.median(pieces.counts), max(pieces.counts)
        text += f"; rows: least {low:,}, median {middle:,.0f}, most {high:,}"
        if pieces.row_bytes:
            text += f" (about {gigabytes(low * pieces.row_bytes)}, {gigabytes(middle * pieces.row_bytes)}, "
            text += f"{gigabytes(high * pieces.row_bytes)} once read)"
    elif facts.rows is not None and not facts.exact:
        text += f", about {facts.rows / pieces.n:,.0f} rows each (estimated from {len(facts.counted)} of them)"
    if pieces.divisions is not None:
        text += f"; divisions {'known' if pieces.divisions else 'unknown'}"
    return text


def _too_few(facts: Facts, pieces: Pieces) -> Iterator[Finding]:
    filled = sum(n > 0 for n in pieces.counts) if pieces.counts else pieces.n
    if filled >= facts.ranks or pieces.what == "frame in memory" or not _takes_time(facts):
        return
    remedy = f"Repartition it: df.repartition(npartitions={2 * facts.ranks})."
    if pieces.what != "partitions":
        remedy = f"Write the files again with smaller row groups: row_group_size={_rows_for(facts):,}."
    yield Finding(
        "partitions",
        "warning",
        f"{filled:,} {pieces.what} with rows for {facts.ranks} ranks.",
        "Ranks share them: some are read more than once, and some workers wait while others read.",
        remedy,
    )


def _skew(facts: Facts, pieces: Pieces) -> Iterator[Finding]:
    total, most = sum(pieces.counts), max(pieces.counts, default=0)
    if facts.ranks < 2 or not _takes_time(facts) or len(pieces.counts) <= facts.ranks:
        return
    if most * facts.ranks < SKEW * total:
        return
    yield Finding(
        "partitions",
        "warning",
        f"the largest of {pieces.n:,} {pieces.what} has {most:,} of {total:,} rows ({most / total:.0%}), the median "
        f"{statistics.median(pieces.counts):,.0f}.",
        f"It is read and encoded by one worker while the others of {facts.ranks} wait, and must fit there.",
        f"Cut it: df.repartition(npartitions={4 * facts.ranks})."
        if pieces.what == "partitions"
        else f"Write the files again with row_group_size={_rows_for(facts):,}.",
    )


def _tiny(pieces: Pieces) -> Iterator[Finding]:
    if pieces.n_files >= MANY and pieces.file_bytes / pieces.n_files < TINY_BYTES:
        each = gigabytes(pieces.file_bytes / pieces.n_files)
        what, how = f"{pieces.n_files:,} files of {each} each.", "Write them again as fewer files of 100 MB and more."
    elif pieces.n >= MANY and pieces.counts and statistics.median(pieces.counts) < TINY_ROWS:
        each = f"{statistics.median(pieces.counts):,.0f} rows"
        what, how = f"{pieces.n:,} {pieces.what} of {each} each.", "Merge them: repartition, or larger row groups."
    else:
        return
    yield Finding("partitions", "warning", what, "Opening one costs more than reading what is in it.", how)


def _large_groups(facts: Facts, pieces: Pieces) -> Iterator[Finding]:
    largest = max(pieces.counts, default=0) * pieces.row_bytes
    if facts.held or largest <= HELD_BYTES:
        return
    limit = min((w.memory_limit for w in facts.workers if w.memory_limit), default=0.0)
    too_large = bool(limit) and pieces.open_bytes > SPILLS * limit
    yield Finding(
        "partitions",
        "warning" if too_large else "note",
        f"the largest row group is about {gigabytes(largest)} once read; a rank holds {gigabytes(HELD_BYTES)}.",
        "A rank reads it from the front and mixes only what it holds, so rows that lie together stay near each other"
        + (f"; one page of each column alone is {gigabytes(pieces.open_bytes)}." if too_large else "."),
        f"Write the files again with row_group_size={int(HELD_BYTES / 8 / pieces.row_bytes):,}, or shuffle them once.",
    )


def _takes_time(facts: Facts) -> bool:
    return (facts.rows or 0) >= ROWS_THAT_TAKE_TIME


def _rows_for(facts: Facts) -> int:
    return max(1_000, int((facts.rows or 0) / (4 * facts.ranks)) // 1_000 * 1_000)


# -- memory -------------------------------------------------------------------------------------------------------


def memory(facts: Facts) -> Iterator[Finding]:
    """Whether the rows fit into the workers."""
    yield from _spilled(facts)
    if not facts.held:
        yield Finding("memory", "ok", f"read from files while training; all ranks hold about {gigabytes(HELD_BYTES)}")
        return
    need = (facts.rows or 0) * (facts.row_bytes + facts.encoded_row_bytes)
    limits = [w.memory_limit for w in facts.workers]
    have = sum(limits) if facts.client else facts.available_bytes
    if not need:
        return
    if not have or (facts.client and not all(limits)):
        yield Finding("memory", "ok", f"about {gigabytes(need)} are held; the workers have no memory limit")
        return
    text = f"about {gigabytes(need)} are held ({_of_what(facts)}), "
    text += f"{len(limits)} workers may take {gigabytes(have)}" if facts.client else f"{gigabytes(have)} are free"
    if need <= SPILLS * have:
        yield Finding("memory", "ok", text)
        return
    yield Finding(
        "memory",
        "refused" if need > have else "warning",
        f"{text}: {need / have:.0%}.",
        f"A worker spills to disk from {SPILLS:.0%} on and is killed near its limit; every epoch then waits for disks."
        if facts.client
        else "The process would be killed, or the machine swap.",
        "Write the rows to Parquet once, df.to_parquet(path), and fit daskdl.ParquetSource(path), which holds little; "
        "or take more workers.",
    )


def _of_what(facts: Facts) -> str:
    n = facts.rows or 0
    raw = f"{gigabytes(n * facts.row_bytes)} as they are, " if facts.row_bytes else ""
    return f"{raw}{gigabytes(n * facts.encoded_row_bytes)} encoded{'' if facts.exact else ', of estimated rows'}"


def _spilled(facts: Facts) -> Iterator[Finding]:
    spilled = sum(w.spilled for w in facts.workers)
    if spilled < 1 << 26:
        return
    worst = max(facts.workers, key=lambda w: w.spilled)
    yield Finding(
        "memory",
        "warning",
        f"the workers have spilled {gigabytes(spilled)} to disk, most of it {worst.address}.",
        "What is spilled is read back from disk each time it is needed.",
        "Release what is not needed (del, client.cancel), train from daskdl.ParquetSource, or take more workers.",
    )


# -- workers ------------------------------------------------------------------------------------------------------


def workers(facts: Facts) -> Iterator[Finding]:
    """Who trains, with how many threads, and whether they are all of one kind."""
    if not facts.client:
        yield from _lazy_without_client(facts)
        yield Finding("workers", "ok", "no Dask client: training would run in this process")
        return
    if not facts.workers:
        yield Finding(
            "workers",
            "refused",
            "the cluster has no workers.",
            "Nothing can be computed.",
            "Add some: client.cluster.scale(2), or wait: client.wait_for_workers(1).",
        )
        return
    if facts.ranks > len(facts.workers):
        yield Finding(
            "workers",
            "refused",
            f"{facts.ranks} ranks are asked for, the cluster has {len(facts.workers)} workers.",
            "A gang starts all its ranks at once, one per worker.",
            "Ask for fewer, or add workers: client.cluster.scale(n).",
        )
    yield from _unable(facts)
    yield from _versions(facts)
    yield from _threads(facts)
    yield Finding("workers", "ok", _describe_workers(facts))


def _lazy_without_client(facts: Facts) -> Iterator[Finding]:
    if facts.pieces is not None and facts.pieces.what == "partitions":
        yield Finding(
            "workers",
            "refused",
            "the frame is lazy, and there is no Dask client to compute it with.",
            "fit refuses it, and nothing is known of the rows here.",
            "Start one first: client = daskdl.connect().",
        )


def _describe_workers(facts: Facts) -> str:
    hosts = Counter(w.host for w in facts.workers)
    threads = sorted({w.threads for w in facts.workers})
    text = f"{facts.ranks} ranks on {len(facts.workers)} workers, {len(hosts)} host{'s' * (len(hosts) > 1)}, "
    text += f"{' to '.join(map(str, dict.fromkeys([threads[0], threads[-1]])))} task thread(s) each"
    asked = [w for w in facts.workers if w.cores]
    if asked:
        text += f"; compute threads of a rank: {rank_threads(facts)}; {_gpus(asked)}"
        trims = {w.trim for w in asked if w.trim}
        if trims:
            text += f"; MALLOC_TRIM_THRESHOLD_={', '.join(sorted(trims))} (Dask's nanny) is lifted while a rank trains"
    return text


def rank_threads(facts: Facts) -> int:
    """Compute threads of a rank: the cores of its host, shared among the ranks there."""
    ranks = facts.workers[: facts.ranks]
    return max(1, min((w.cores // sum(v.host == w.host for v in ranks) for w in ranks), default=1))


def _gpus(asked: list[Worker]) -> str:
    by_host = {w.host: w.gpus for w in asked}
    return f"{sum(by_host.values())} GPUs" if any(by_host.values()) else "no GPUs"


def _unable(facts: Facts) -> Iterator[Finding]:
    wrong = [w for w in facts.workers if w.error]
    if wrong:
        yield Finding(
            "workers",
            "refused",
            f"{len(wrong)} of {len(facts.workers)} workers cannot run daskdl; {wrong[0].address}: {wrong[0].error}.",
            "Ranks run daskdl in the workers.",
            "Install the same daskdl there, for example with distributed.PipInstall as a worker plugin.",
        )


def _versions(facts: Facts) -> Iterator[Finding]:
    for package in RANK_USES:
        mine = facts.here.get(package)
        other = {w.address: w.versions.get(package, "none") for w in facts.workers if w.versions}
        other = {address: version for address, version in other.items() if version != mine}
        if mine is None or not other:
            continue
        address, version = next(iter(other.items()))
        yield Finding(
            "versions",
            "warning",
            f"{package} is {mine} here and {version} on {len(other)} of {len(facts.workers)} workers, first {address}.",
            "What one pickles the other may not read, or read as something else.",
            "Give client and workers one environment.",
        )


def _threads(facts: Facts) -> Iterator[Finding]:
    many = [w for w in facts.workers if w.threads > 1]
    if not many:
        return
    threads = max(w.threads for w in many)
    yield Finding(
        "workers",
        "note",
        f"{len(many)} of {len(facts.workers)} workers run up to {threads} tasks at a time, and a rank is one of them.",
        "Other tasks run beside the rank, in its memory and on its cores; as workers of their own the threads would be "
        "more ranks.",
        f"Start them with one thread: daskdl.connect(n_workers={sum(w.threads for w in facts.workers)}), or "
        "dask worker --nthreads 1.",
    )


# -- time ---------------------------------------------------------------------------------------------------------


def seconds(facts: Facts) -> Iterator[Finding]:
    """How long an epoch takes, about."""
    speed, rows = facts.speed, facts.rows or 0
    parts = []
    threads = max(1, sum(w.threads for w in facts.workers))
    if speed.look and rows:
        parts.append(f"statistics pass {_seconds(rows / speed.look / threads)}")
    if speed.encode and rows:
        again = "" if facts.held else " an epoch"
        parts.append(f"encoding {_seconds(rows / speed.encode / facts.ranks)}{again} ({count(speed.encode)} rows/s)")
    if speed.step_seconds and rows:
        steps = math.ceil(rows / facts.batch_size)
        parts.append(
            f"an epoch of the default network {_seconds(steps * speed.step_seconds)} ({steps:,} steps of "
            f"{facts.batch_size:,} rows, {speed.step_seconds * 1e3:.1f} ms each, communication not counted)"
        )
    if parts:
        yield Finding("time", "ok", "estimated: " + "; ".join(parts))


def _seconds(n: float) -> str:
    return duration(n) if n >= 0.1 else "under 0.1 s"


def gigabytes(n: float) -> str:
    """Write a number of bytes: ``3.2 GB``, ``812 kB``."""
    return f"{count(float(n))}B"


JUDGES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (cut, memory, workers, seconds)
