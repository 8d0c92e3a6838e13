"""A run: what one experiment was asked, what it said on the way, and what is left of it."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from daskdl.data.audit import audit_table, order_from_bytes, order_to_bytes
from daskdl.display import following
from daskdl.tracking.archive import list_runs, read_run
from daskdl.tracking.folder import Folder, resolve_root
from daskdl.tracking.logs import Line, lines_of
from daskdl.tracking.record import ENDED, RunRecord
from daskdl.tracking.recording import Recording

if TYPE_CHECKING:
    import pandas as pd

MAX_LINES = 20_000  # of what ranks say
LOOK_SECONDS = 1.0  # between two looks whether a run that is waited for can still be heard of
GONE = "its process and its scheduler are gone. What it did until then is in its checkpoints: daskdl.resume goes on"


class Run(Recording):
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
        super().__init__(record, folder, environment)
        self._order: Any = None
        self._lines: list[Line] = []  # of workers that are not asked any more

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
        if self._lines:
            files["logs.jsonl"] = "".join(json.dumps(line) + "\n" for line in self._lines).encode()
        if self._order is not None:
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

    def plot(self, **options: Any) -> Any:
        """Draw the curves, losses on a log scale with ``logy=True``; see :func:`daskdl.plotting.plot_run`."""
        from daskdl.plotting.runs import plot_run

        return plot_run(self, **options)

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
            kept = read_run(self.id, self.folder.rpartition("/")[0])[0]
            self.record = kept if kept.state in ENDED else self.record
        if self.state not in ENDED:
            self._apply({"run": self.id, "kind": "end", "time": time.time(), "state": "failed", "error": GONE})
        return False

    def __repr__(self) -> str:
        from daskdl.tracking.summary import one_line

        return f"<Run {self.id}: {one_line(self.record)}>"

    def _repr_html_(self) -> str:
        from daskdl.tracking.card import html_card

        return html_card(self.record, self.folder)


def runs(root: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """List the runs kept under ``root``, newest first, one row a run.

    Columns: ``id``, ``name``, ``algorithm``, ``state``, ``started`` (UTC), ``seconds``, then the parameters as
    ``params.<name>`` and the last value of each metric.
    """
    return list_runs(resolve_root(root))


def load_run(id: str, root: str | os.PathLike[str] | None = None) -> Run:
    """Read a run back from ``root``.

    Raises
    ------
    ValueError
        There is no such run; the message names the nearest.
    """
    return Run(*read_run(id, resolve_root(root)))
