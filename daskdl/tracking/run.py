"""A run: what one experiment was asked, what it said on the way, and what is left of it."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import threading
import time
from collections import Counter
from contextlib import suppress
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from daskdl.clients import client_at_hand
from daskdl.tracking.environment import describe_environment
from daskdl.tracking.folder import Folder, new_id, resolve_root, set_root
from daskdl.tracking.logs import Line, lines_of
from daskdl.tracking.plain import plain, shorten
from daskdl.tracking.record import RunRecord

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

    from daskdl.tracking.feed import Feed
    from daskdl.tracking.store import Store

__all__ = ["Run", "load_run", "runs", "set_root"]

ENDED = ("finished", "failed", "stopped")
MAX_LINES = 20_000  # of what ranks say
LOOK_SECONDS = 1.0  # between two looks whether a run that is waited for can still be heard of
GONE = "its process and its scheduler are gone. What it did until then is in its checkpoints: daskdl.resume goes on"

_reserved: list[str] = []  # the id of the next run of this process, where another process has named it


class Run:
    """One experiment, live while it runs and readable afterwards. Make it with :meth:`Run.start`.

    Attributes
    ----------
    id : str
        Sorts by time and reads well: ``20261121-093012-brave-finch``.
    record : RunRecord
        State, curves and events so far; updated as messages of the workers come in.
    folder : str
        Path or URL under which the artifacts lie.
    asked_to_stop : str or None
        Why it is to stop at its next step, if it is.
    awaited : bool
        Whether another process has begun it, and reads what it leaves as soon as it has ended.
    environment : dict of str to str
        Versions and platform at the start.

    Examples
    --------
    >>> with Run.start("flights", "torch", {"lr": 1e-3}) as run:  # doctest: +SKIP
    ...     run.log(1, train_loss=0.7)
    """

    def __init__(self, record: RunRecord, folder: str, environment: dict[str, str] | None = None) -> None:
        self.record = record
        self.folder = folder
        self.environment = environment or {}
        self._feed: Feed | None = None
        self._store: Store | None = None
        self._from_workers: Counter[int] = Counter()  # messages, by the generation of the gang
        self._order: Any = None
        self._follower: Client | None = None
        self._lines: list[Line] = []  # of workers that are not asked any more
        self.asked_to_stop: str | None = None
        self.awaited = False
        self._changed = threading.Condition()

    @classmethod
    def start(
        cls,
        name: str,
        algorithm: str,
        params: dict[str, Any],
        *,
        seed: int | None = None,
        total_steps: int | None = None,
        num_workers: int | None = None,
        client: Client | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> Run:
        """Begin a run; returns at once, MLflow is written in the background.

        Parameters
        ----------
        name, algorithm : str
            What a person would call it, and what trains: ``"flights"``, ``"torch"``.
        params : dict
            Recorded as plain values; anything else by its ``repr``.
        seed : int, optional
        total_steps : int, optional
            Steps until the end, for progress and time left.
        num_workers : int, optional
            Ranks of the gang.
        client : distributed.Client, optional
            Its dashboard shows the run, and its workers may send messages. Default: the current client, if any.
        root : str or path, optional
            Directory or fsspec URL; default what ``connect(runs=...)`` set.
        """
        from daskdl.tracking.feed import feed_of
        from daskdl.tracking.store import store_of

        root = resolve_root(root)
        awaited = bool(_reserved)
        run_id = _reserved.pop() if awaited else new_id(root)
        run = cls(RunRecord(run_id), f"{root}/{run_id}", describe_environment())
        run.awaited = awaited
        run._store = store_of(root)
        client = client_at_hand(client)
        if client is not None:
            run._feed = feed_of(client)
            run._feed.add(run_id, run)
        asked = {"name": name, "algorithm": algorithm, "params": plain(params), "seed": seed}
        run._say("start", **asked, total_steps=total_steps, num_workers=num_workers)
        run._store.create(run.record, run.environment)
        return run

    # what the client says

    def log(self, step: int, **values: float) -> None:
        """Record the values of one step, such as ``run.log(10, train_loss=0.5)``."""
        self._must_run("log")
        self._say("metrics", points=[[int(step), {k: float(v) for k, v in values.items()}]], epoch=None)

    def event(self, kind: str, text: str, step: int | None = None) -> None:
        """Record that something happened: ``commit``, ``early_stop``, ``note``, ..."""
        self._must_run("record an event of")
        self._say("event", event=kind, text=shorten(text), step=step)

    def finish(self, state: str = "finished", error: str | None = None) -> None:
        """End the run as ``finished``, ``failed`` or ``stopped``; a run that has ended stays as it is."""
        if state not in ENDED:
            raise ValueError(f"A run ends as one of {', '.join(ENDED)}; got {state!r}.")
        if self.state in ENDED:
            return
        error = None if error is None else shorten(error, 2_000)
        message = {"run": self.id, "kind": "end", "time": time.time(), "state": state, "error": error}
        self._apply(message)
        if self._store is not None:
            self._store.end(self.record, self._files())
            if self.awaited:
                self._store.flush()
        if self._feed is not None:
            self._feed.send(message)
            self._feed.flush()

    def stop(self, why: str = "run.stop()") -> None:
        """Have a training stop at its next step: it commits, frees its workers and ends as ``stopped``.

        Returns at once, from any thread or, for a run that ``daskdl.attach`` gave, from anywhere. ``daskdl.resume``
        goes on from there.
        """
        self._must_run("stop")
        if self._store is None and self._feed is not None:  # another process trains
            self._feed.send({"run": self.id, "kind": "stop", "time": time.time(), "why": why})
        else:
            self.asked_to_stop = self.asked_to_stop or why

    def wait(self, timeout: float | None = None, verbose: int = 1) -> str:
        """Follow a run that another process trains until it has ended; return its state.

        If that process goes away with its scheduler, the run has failed. One that is only read back is not followed.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.
        verbose : int
            0 shows nothing. To interrupt the cell ends the watching, not the run.
        """
        from daskdl.display import following

        deadline = time.monotonic() + (timeout if timeout is not None else math.inf)
        with following(self, verbose), self._changed:
            while self.state not in ENDED and (left := deadline - time.monotonic()) > 0 and self._is_heard_of():
                self._changed.wait(min(left, LOOK_SECONDS))
        return self.state

    def _is_heard_of(self) -> bool:
        """Whether there is somebody to say how the run ends; if there was one, it is what is kept, or has failed."""
        if self._follower is None or self._follower.status != "closed":
            return self._store is not None or self._follower is not None
        with suppress(ValueError):  # nothing is kept
            kept = load_run(self.id, self.folder.rpartition("/")[0]).record
            self.record = kept if kept.state in ENDED else self.record
        if self.state not in ENDED:
            self._apply({"run": self.id, "kind": "end", "time": time.time(), "state": "failed", "error": GONE})
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish(*outcome(error))

    def _must_run(self, what: str) -> None:
        if self.state in ENDED:
            raise RuntimeError(
                f"Cannot {what} run {self.id}: it has {self.state}. Start a new run with Run.start(...)."
            )

    def _say(self, kind: str, **keys: Any) -> None:
        message = {"run": self.id, "kind": kind, "time": time.time(), **keys}
        self._apply(message)
        if self._feed is not None:
            self._feed.send(message)

    # what the workers say

    def follow(self, client: Client, record: RunRecord | None) -> None:
        """Hear what another process says of its run from now on, after what is known; the client closes at its end."""
        from daskdl.tracking.feed import feed_of

        self._feed, self._follower = feed_of(client), client
        self._feed.add(self.id, self)
        with self._changed:
            self.record = record or self.record

    def receive(self, message: dict[str, Any]) -> None:
        """Take one message of a worker or the dashboard; the feed calls it on the client's event loop."""
        if message["kind"] == "stop":
            self.asked_to_stop = self.asked_to_stop or str(message.get("why", "the dashboard's stop button"))
        else:
            self._apply(message, from_worker=True)
        if self._follower is not None and self.state in ENDED:
            loop: Any = self._follower.loop
            loop.add_callback(self._follower.close)
            self._follower = None

    def wait_for_messages(self, count: int, generation: int = 0, timeout: float = 5.0) -> bool:
        """Block until ``count`` messages of a gang were applied; False when ``timeout`` seconds did not suffice."""
        with self._changed:
            return self._changed.wait_for(lambda: self._from_workers[generation] >= count, timeout)

    def _apply(self, message: dict[str, Any], from_worker: bool = False) -> None:
        with self._changed:
            self.record.apply(message)
            if self._store is not None:
                self._store.keep(self.record, message)
            self._from_workers[message.get("generation", 0)] += from_worker
            self._changed.notify_all()

    # what is left

    @property
    def id(self) -> str:
        """The run's name in folders, lists and messages."""
        return self.record.id

    @property
    def name(self) -> str:
        """What the caller called it."""
        return self.record.name

    @property
    def algorithm(self) -> str:
        """What trained."""
        return self.record.algorithm

    @property
    def params(self) -> dict[str, Any]:
        """The parameters as plain values."""
        return self.record.params

    @property
    def seed(self) -> int | None:
        """The seed it was asked to use."""
        return self.record.seed

    @property
    def state(self) -> str:
        """``running``, ``finished``, ``failed`` or ``stopped``."""
        return self.record.state

    @property
    def error(self) -> str | None:
        """Why it failed, else None."""
        return self.record.error

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a step, one column a metric; long curves are thinned evenly."""
        import pandas as pd

        with self._changed:
            curves = {name: curve.xy() for name, curve in self.record.curves.items()}
        columns = {name: pd.Series(values, index=steps, dtype="float64") for name, (steps, values) in curves.items()}
        return pd.DataFrame(columns).rename_axis("step").sort_index()

    @property
    def events(self) -> pd.DataFrame:
        """One row an event: ``time`` (UTC), ``event``, ``text``, ``step``."""
        import pandas as pd

        with self._changed:
            frame = pd.DataFrame(self.record.events, columns=["time", "event", "text", "step"])
        frame["time"] = pd.to_datetime(frame["time"].astype("float64"), unit="s", utc=True)
        frame["step"] = frame["step"].astype("Int64")
        return frame

    def open(self, path: str, mode: str = "rb") -> IO[Any]:
        """Open an artifact of the folder for reading or writing, local or remote."""
        return Folder(self.folder).open(path, mode)

    def artifacts(self) -> list[str]:
        """List the artifacts by their path inside the folder."""
        return Folder(self.folder).names()

    def keep_lines(self, lines: list[Line]) -> None:
        """Keep what ranks have printed and logged, for :meth:`logs`; of too many the newest."""
        with self._changed:
            self._lines = sorted([*self._lines, *lines], key=lambda line: line["time"])[-MAX_LINES:]

    def logs(self) -> pd.DataFrame:
        """Return what the ranks have printed and logged: from their workers while the run lasts, kept with it after.

        Of each rank the newest lines are there, some thousands; what it prints is still seen where its worker's output
        goes. Without a cluster there are none, for they are seen in the notebook.

        Returns
        -------
        DataFrame
            One row a line: ``time`` (UTC), ``rank``, ``level`` (``stdout``, ``stderr``, ``WARNING``, ...), ``text``.

        Examples
        --------
        >>> run.logs().query("rank == 1").tail()  # doctest: +SKIP
        """
        import pandas as pd

        lines = list(self._lines)
        client = self._feed.client if self._feed is not None and self.state not in ENDED else None
        if client is not None:
            lines += [line for said in client.run(lines_of, self.id, on_error="ignore").values() for line in said or ()]
        elif not lines:
            with suppress(FileNotFoundError), self.open("logs.jsonl", "r") as file:
                lines = [json.loads(line) for line in file]
        frame = pd.DataFrame(lines, columns=["time", "rank", "level", "text"]).sort_values("time", ignore_index=True)
        frame["time"] = pd.to_datetime(frame["time"].astype("float64"), unit="s", utc=True)
        return frame

    def remember_order(self, order: Any) -> None:
        """Keep the sample order of the run, for :meth:`audit`."""
        self._order = order

    def _files(self) -> dict[str, bytes]:
        files = {}
        if self.record.ranks is not None:
            files["ranks.json"] = json.dumps(dataclasses.asdict(self.record.ranks)).encode()
        if self._lines:
            files["logs.jsonl"] = "".join(json.dumps(line) + "\n" for line in self._lines).encode()
        if self._order is not None:
            from daskdl.data.audit import order_to_bytes

            files |= {"order.npz": order_to_bytes(self._order), "uses.json": json.dumps(self.record.uses).encode()}
        return files

    def audit(self) -> pd.DataFrame:
        """Tell how often each row was used, as the ranks recorded it while they read.

        Returns
        -------
        DataFrame
            One row an epoch, ``epoch`` as the index: ``steps`` done, ``rows`` used, the ``min`` and ``max`` number of
            times a row was used, the ``digest`` of which row stood where (16 hexadecimal digits, the same for any
            number of ranks), and ``as_planned``: whether it is that of the sample order. An epoch that is not over has
            rows used 0 times.

        Raises
        ------
        ValueError
            The run used no sample order: it was not a training of a network.
        """
        from daskdl.data.audit import audit_table, order_from_bytes

        order, uses = self._order, self.record.uses
        if order is None:
            try:
                with self.open("order.npz") as order_file, self.open("uses.json") as uses_file:
                    order, uses = order_from_bytes(order_file.read()), [tuple(use) for use in json.load(uses_file)]
            except FileNotFoundError:
                raise ValueError(
                    f"run {self.id} recorded no use of rows: trainings of networks do, and keep it when they end."
                ) from None
        return audit_table(order, uses)

    def breakdown(self) -> pd.DataFrame:
        """Tell where the time of each rank goes, and which of them the others wait for.

        Returns
        -------
        DataFrame
            One row a rank of the newest gang, one column a thing that it does, in milliseconds a step (of XGBoost: a
            round). ``attrs["verdict"]`` says in words what it means. ``all-reduce`` is the wait for the gradients of
            the other ranks: the rank that waits least is the one they wait for.

        Examples
        --------
        >>> run.breakdown().attrs["verdict"]  # doctest: +SKIP
        'Rank 2 is the straggler: 61 % of its step is waiting for data. The others wait 40 % of a step for it.'
        """
        import pandas as pd

        from daskdl.tracking.breakdown import verdict

        with self._changed:
            per_step = self.record.ranks.per_step() if self.record.ranks is not None else []
        frame = (pd.DataFrame(per_step) * 1_000).rename_axis("rank")
        frame.attrs["verdict"] = verdict(per_step)
        return frame

    def plot(self, **options: Any) -> Any:
        """Draw the curves, losses on a log scale with ``logy=True``; see :func:`daskdl.plotting.plot_run`."""
        from daskdl.plotting import plot_run

        return plot_run(self, **options)

    def __repr__(self) -> str:
        from daskdl.tracking.summary import one_line

        return f"<Run {self.id}: {one_line(self.record)}>"

    def _repr_html_(self) -> str:
        from daskdl.tracking.card import html_card

        return html_card(self.record, self.folder)

    def __getstate__(self) -> dict[str, Any]:
        """Keep what is known now: a copy neither listens nor writes."""
        with self._changed:
            return {"record": copy.deepcopy(self.record), "folder": self.folder, "environment": self.environment}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def outcome(error: BaseException | None) -> tuple[str, str | None]:
    """Return state and text of a run that ends with ``error``, or with None."""
    if error is None:
        return "finished", None
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "stopped by KeyboardInterrupt"
    return "failed", f"{type(error).__name__}: {error}"


def reserve(run_id: str) -> None:
    """Give the next run of this process an id that another process has chosen."""
    _reserved[:] = [run_id]


def runs(root: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """List the runs kept under ``root``, newest first, one row a run.

    Columns: ``id``, ``name``, ``algorithm``, ``state``, ``started`` (UTC), ``seconds``, then the parameters as
    ``params.<name>`` and the last value of each metric.
    """
    from daskdl.tracking.archive import list_runs

    return list_runs(resolve_root(root))


def load_run(id: str, root: str | os.PathLike[str] | None = None) -> Run:
    """Read a run back from ``root``.

    Raises
    ------
    ValueError
        There is no such run; the message names the nearest.
    """
    from daskdl.tracking.archive import read_run

    return Run(*read_run(id, resolve_root(root)))
