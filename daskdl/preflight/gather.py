"""Gathers the facts of a check in a thread: what is known at once first, then what takes longer."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import psutil
from dask.dataframe.utils import has_known_categories
from distributed import Client, wait

from daskdl.data.frame import (
    LABEL,
    NO_TARGET,
    doubles,
    is_lazy,
    is_name,
    label_column,
    names_column,
    source_label,
    with_text_names,
)
from daskdl.data.given import rows_as_frame
from daskdl.data.joining import joined, label_names
from daskdl.data.schema import column_kind
from daskdl.data.schema.stats import ColumnStats
from daskdl.data.sources.base import Source
from daskdl.errors import DataError
from daskdl.preflight.facts import Facts, Pieces, Speed, estimated_rows, facts_of_workers, sorted_by_label
from daskdl.preflight.look import Seen, encode_rate, label_refused, look, other_categories
from daskdl.preflight.probe import asked, describe_process
from daskdl.preflight.resources import rank_threads

LOOK_SECONDS = 2.0  # for one partition
TRIES = 3  # partitions that are looked at until one has rows
COUNTED = 8  # partitions whose rows are counted for an estimate of all, at most
COUNT_SECONDS = 1.0  # that more of them may take; those that take longer each are left alone

Step = Callable[[Mapping[Any, ColumnStats], int, int, int], float]


class Gathering:
    """Gathers facts in a thread, cheap ones first, so that there are some whenever time is up.

    Parameters
    ----------
    X, y, client
        As of ``daskdl.check``.
    step : callable
        ``step(columns, n_outputs, n_rows, threads)`` gives the seconds of a training step; called on a worker.
    """

    def __init__(self, X: Any, y: Any, client: Client | None, step: Step) -> None:
        self.step = step
        self.client = client
        self.asked: list[Any] = []  # futures
        self.stopped = threading.Event()
        self.wrong: Exception | None = None  # an argument, found out late
        self.facts = Facts(client=client is not None, workers=facts_of_workers(client))
        self.label: Any = LABEL
        self.first: int | None = None  # piece that was looked at
        self.fixed: list[Any] = []  # columns whose type says the categories of all partitions
        self.parts: list[Any] = []  # the partitions of a lazy frame, not computed
        self.pieces: dict[int, Any] = {}  # futures of partitions
        self.took = math.inf  # seconds until one was there
        self.data = self._arranged(X, y)

    def within(self, seconds: float) -> Facts:
        """Gather until done or time is up, and hand back a copy of what is known."""
        thread = threading.Thread(target=self._all, name="daskdl-check", daemon=True)
        thread.start()
        thread.join(seconds)
        facts = copy.copy(self.facts)
        if thread.is_alive():
            self.stopped.set()
            # in a thread of its own, for a scheduler that is busy answers late
            threading.Thread(target=self._cancel, name="daskdl-check-cancel", daemon=True).start()
        elif self.wrong is not None:
            raise self.wrong
        else:
            facts.unfinished = ""
        return facts

    def _cancel(self) -> None:
        """Cancel what was asked; partitions are only let go of, for they may be those of a persisted frame."""
        if self.client is not None and self.asked:
            self.client.cancel(list(self.asked), force=True)
        self.pieces.clear()

    # -- what is known at once --------------------------------------------------------------------------------

    def _arranged(self, X: Any, y: Any) -> Any:
        """Return the rows with their label; refuses wrong arguments, and notes columns that cannot be read."""
        if isinstance(X, Source):
            if not is_name(y):
                source_label(X, y)
            self.label = self.facts.label_name = str(y)
            self._cut_of_source(X)
            return X
        if y is None:
            raise ValueError(NO_TARGET)
        X, y = self._split(X, y)
        if X is None:
            return None
        frame = joined(X, y)[0]
        self.facts.label_name = label_names(y)
        self.facts.kinds = {n: column_kind(n, d) for n, d in frame.dtypes.items() if n != LABEL}
        if is_lazy(frame):
            self.fixed = [n for n, d in frame.dtypes.items() if _categories_known(d)]
            self.facts.pieces = Pieces("partitions", frame.npartitions, divisions=frame.known_divisions)
        else:
            self.facts.pieces = Pieces("frame in memory", 1)
            self.facts.rows, self.facts.exact = len(frame), True
        return frame

    def _split(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Take the label out of a frame, and the columns that no model can read; X is None if none is left."""
        cut, X = X, rows_as_frame(X)
        names = list(map(str, X.columns))
        double = doubles(names)
        self.facts.refused = {n: f"{names.count(n)} columns are named {n!r}. Rename them." for n in double}
        if double:
            return None, y
        if names_column(X, y):
            X, y = label_column(X, y)
        X = with_text_names(X)
        self.facts.refused = {name: why for name, dtype in X.dtypes.items() if (why := _unreadable(name, dtype))}
        readable = [name for name in X.columns if name not in self.facts.refused]
        if self.facts.refused:
            return X[readable] if readable else None, y
        return cut if isinstance(cut, da.Array) else X, y

    def _cut_of_source(self, source: Source) -> None:
        files = getattr(source, "files", ())
        self.facts.pieces = Pieces(
            "row groups" if files else "groups",
            len(source.counts),
            tuple(source.counts.tolist()),
            n_files=len(files),
            file_bytes=sum(getattr(file, "size", 0) for file in files),
            row_bytes=source.row_bytes,
            open_bytes=source.open_bytes,
        )
        self.facts.rows, self.facts.exact = source.n_rows, True
        self.facts.held = False

    # -- stage by stage ---------------------------------------------------------------------------------------

    def _all(self) -> None:
        stages: list[tuple[str, Callable[[], None]]] = [
            ("the names of the columns were being read", self._check_label),
            ("the graph was being made", self._begin),
            ("the workers were being asked about themselves", self._ask_workers),
            ("a partition was still being computed", self._look_at_first),
            ("encoding and a step were being timed", self._measure),
            ("the last partition was still being computed", self._look_at_last),
            ("", self._count_some),  # without them the estimate says that it is from fewer
        ]
        for doing, stage in stages:
            self.facts.unfinished = doing
            try:
                stage()
            except Exception as error:
                self._failed(doing, stage, error)
            if self.stopped.is_set() or self.wrong or self.facts.failed:
                return

    def _failed(self, doing: str, stage: Callable[[], None], error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if not doing:
            return
        if stage == self._check_label:
            self.wrong = error
        elif stage in (self._look_at_first, self._look_at_last) and not isinstance(error, CancelledError):
            self.facts.failed = text
        else:
            self.facts.incomplete = (*self.facts.incomplete, f"{doing}, and that failed ({text})")

    def _check_label(self) -> None:
        if isinstance(self.data, Source):
            source_label(self.data, self.label)

    def _begin(self) -> None:
        """Begin to compute the first partition and the last, which may come from one shuffle."""
        if is_lazy(self.data) and self.client is not None:
            # not data.partitions[i]: of a lazy merge, Dask 2026.7 gives all rows as the first partition
            self.parts = self.data.to_delayed()
            self.began = time.perf_counter()
            self._compute(sorted({0, len(self.parts) - 1}))

    def _compute(self, partitions: list[int]) -> None:
        assert self.client is not None
        futures = self.client.compute([self.parts[i] for i in partitions])
        self.pieces |= dict(zip(partitions, futures, strict=True))

    def _ask_workers(self) -> None:
        self.facts.here = describe_process()["versions"]
        if self.client is None:
            self.facts.available_bytes = float(psutil.virtual_memory().available)
        else:
            self.facts.workers = asked(self.client, self.facts.workers)

    def _look_at_first(self) -> None:
        if self.data is None or (is_lazy(self.data) and self.client is None):
            return
        for i in self._candidates()[:TRIES]:
            self.first, self.piece = i, self._piece(i)
            if self.parts:
                wait([self.piece])
                self.took = min(self.took, time.perf_counter() - self.began)
            seen: Seen = self._ask(look, self.piece, self.label, self.facts.label_name, LOOK_SECONDS)
            self._counted({i: seen.rows})
            if seen.rows:
                self._take(seen)
                return

    def _take(self, seen: Seen) -> None:
        facts = self.facts
        facts.looked = seen.looked
        facts.whole = facts.exact and seen.label is not None and facts.rows == seen.label.n
        facts.refused = {**facts.refused, **seen.refused}
        facts.kinds = {**facts.kinds, **{name: stats.kind for name, stats in seen.columns.items()}}
        facts.kinds = {name: kind for name, kind in facts.kinds.items() if name not in facts.refused}
        facts.columns, facts.identifiers, facts.leaks = seen.columns, tuple(seen.identifiers), seen.leaks
        facts.label, facts.label_refused, facts.task = seen.label, seen.label_refused, seen.task
        facts.row_bytes = seen.bytes / max(1, seen.rows)
        facts.speed = Speed(look=seen.per_second)

    def _measure(self) -> None:
        facts, speed = self.facts, self.facts.speed
        if not facts.columns:
            return
        encode, facts.encoded_row_bytes = self._ask(encode_rate, self.piece, facts.columns)
        facts.speed = Speed(speed.look, encode)
        rows = max(1, facts.batch_size // facts.ranks)
        n_outputs = len(facts.label.values) if facts.label and facts.task == "classes" else 1
        threads = rank_threads(facts) if self.client else 0
        step = self._ask(self.step, facts.columns, 1 if n_outputs <= 2 else n_outputs, rows, threads)
        facts.speed = Speed(speed.look, encode, step, rows)

    def _look_at_last(self) -> None:
        last = self._candidates()[-1] if self.facts.columns else self.first
        if last is None or (last == self.first and not self._has_more(last)):
            return
        piece = (*self._piece(last), True) if isinstance(self.data, Source) else self._piece(last)
        seen: Seen = self._ask(look, piece, self.label, self.facts.label_name, LOOK_SECONDS)
        self._counted({last: seen.rows})
        if not seen.rows:
            return
        facts = self.facts
        facts.new_categories = other_categories(facts.columns, seen.columns, self.fixed)
        self._both_kinds(seen)
        if facts.label is not None and seen.label is not None and facts.task == seen.task:
            facts.sorted_by_label = facts.task == "classes" and sorted_by_label([facts.label, seen.label])
            facts.label = facts.label.merge(seen.label)
            facts.label_refused = label_refused(facts.label_name, facts.label, facts.task)

    def _has_more(self, group: int) -> bool:
        """Whether a group of a source has rows that were not looked at."""
        seen = self.facts.label.n if self.facts.label is not None else 0
        return isinstance(self.data, Source) and int(self.data.counts[group]) > seen

    def _count_some(self) -> None:
        """Count rows of a few more partitions: filters and joins leave partitions that differ."""
        in_vain = self.took > COUNT_SECONDS or not self.facts.columns
        if self.client is None or not self.parts or self.facts.exact or in_vain:
            return
        n = len(self.parts)  # the last but one too, as the last is often short
        more = {round(i) for i in np.linspace(0, n - 2, COUNTED - 1)} - self.facts.counted.keys()
        futures = dict(zip(more, self.client.compute([dask.delayed(len)(self.parts[i]) for i in more]), strict=True))
        self.asked += futures.values()
        with suppress(TimeoutError):
            wait(list(futures.values()), timeout=COUNT_SECONDS)
        self._counted({i: future.result() for i, future in futures.items() if future.status == "finished"})
        self.client.cancel([future for future in futures.values() if not future.done()], force=True)

    def _counted(self, rows: dict[int, int]) -> None:
        """Note how many rows pieces have, and estimate those of all."""
        facts, n = self.facts, self.facts.pieces.n if self.facts.pieces else 1
        if not facts.exact:
            facts.counted = {**facts.counted, **rows}
            facts.rows, facts.exact = estimated_rows(facts.counted, n)[0], len(facts.counted) == n

    def _both_kinds(self, seen: Seen) -> None:
        """Note columns that are of one type in one partition and of another in the other."""
        odd = {}
        for name in self.facts.columns.keys() & seen.columns.keys():
            try:
                self.facts.columns[name].merge(seen.columns[name])
            except TypeError as error:
                odd[name] = (
                    f"column {name!r} has different types in different partitions: {error}. Convert it to one type "
                    f"before: df[{name!r}].astype(...)."
                )
        self.facts.refused = {**self.facts.refused, **odd, **seen.refused}

    # -- pieces, and where they are looked at -----------------------------------------------------------------

    def _candidates(self) -> list[int]:
        """Pieces that may have rows, in order."""
        if isinstance(self.data, Source):
            return [int(i) for i in np.flatnonzero(self.data.counts)]
        return list(range(self.data.npartitions)) if is_lazy(self.data) else [0]

    def _piece(self, i: int) -> Any:
        if isinstance(self.data, Source):
            return (self.data, i)
        if not is_lazy(self.data):
            return self.data
        if i not in self.pieces:
            self._compute([i])
        return self.pieces[i]

    def _ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call on a worker; here without a cluster, and for frames that are here."""
        if self.client is None or any(isinstance(arg, pd.DataFrame) for arg in args):
            return function(*args)
        future = self.client.submit(function, *args, pure=False)
        self.asked.append(future)
        return future.result()


def _unreadable(name: Any, dtype: Any) -> str:
    try:
        column_kind(name, dtype)
    except DataError as error:
        return str(error)
    return ""


def _categories_known(dtype: Any) -> bool:
    """Whether a categorical type of a Dask frame says its categories; they are then those of every partition."""
    return isinstance(dtype, pd.CategoricalDtype) and bool(has_known_categories(pd.Series([], dtype=dtype)))
