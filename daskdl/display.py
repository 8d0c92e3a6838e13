"""One live display per fit: a card in a notebook, a bar in a terminal, one last line anywhere else.

All of it only reads ``run.record``; nothing here can change or slow the training.
"""

from __future__ import annotations

import contextvars
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from daskdl.tracking import summary
from daskdl.tracking.card import html_card
from daskdl.tracking.record import ENDED, RunRecord, outcome
from daskdl.tracking.recording import Recording

if TYPE_CHECKING:
    from rich.console import RenderableType

UPDATES_PER_SECOND = 4


@contextmanager
def live(run: Recording, verbose: int = 1) -> Iterator[None]:
    """Show a run while the block runs, and how it ended afterwards.

    It may stand inside or outside of ``with run``: how the block ends is shown even if the run does not know yet.

    Parameters
    ----------
    run : Recording
    verbose : int, default 1
        0 shows nothing.

    Examples
    --------
    >>> with Run.start("flights", "torch", {}) as run, live(run):  # doctest: +SKIP
    ...     train(run)
    """
    seen: list[RunRecord] = []  # the record as it is to be shown, once the block has ended

    def record() -> RunRecord:
        return seen[0] if seen else run.record

    with _display(record, run.folder, verbose):
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            seen.append(_ended(run.record, error))


def following(run: Recording, verbose: int = 1) -> AbstractContextManager[None]:
    """Show a run of another process while the block runs."""
    return _display(lambda: run.record, run.folder, verbose)


def _ended(record: RunRecord, error: BaseException | None) -> RunRecord:
    if record.state in ENDED:
        return record
    state, text = outcome(error)
    return dataclasses.replace(record, state=state, error=text, ended=time.time())


def _display(record: Callable[[], RunRecord], folder: str, verbose: int) -> AbstractContextManager[None]:
    if verbose <= 0:
        return _nothing()
    if _in_notebook():
        return _notebook(record, folder)
    return _terminal(record) if sys.stdout.isatty() else _last_line(record)


def _in_notebook() -> bool:
    """Say whether a Jupyter kernel shows what is displayed; imports no IPython."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _last_line(record: Callable[[], RunRecord]) -> Iterator[None]:
    try:
        yield
    finally:
        print(summary.one_line(record()))


@contextmanager
def _notebook(record: Callable[[], RunRecord], folder: str) -> Iterator[None]:
    """Update a display handle from a thread, so that it moves while the cell blocks; the last card stays."""
    from IPython.display import display

    def bundle() -> dict[str, str]:
        return {"text/html": html_card(record(), folder), "text/plain": summary.one_line(record())}

    handle: Any = display(bundle(), raw=True, display_id=True)
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(1 / UPDATES_PER_SECOND):
            handle.update(bundle(), raw=True)

    # the context tells the kernel which cell the output belongs to
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="daskdl-display", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        handle.update(bundle(), raw=True)


@contextmanager
def _terminal(record: Callable[[], RunRecord]) -> Iterator[None]:
    from rich.live import Live

    with Live(get_renderable=lambda: _bar(record()), refresh_per_second=UPDATES_PER_SECOND):
        yield


def _bar(record: RunRecord) -> RenderableType:
    """Return one line for a terminal: name, bar, share, loss, speed, time left or taken; and the error below."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    running = record.state not in ENDED
    done = record.progress
    bar = ProgressBar(total=1.0, completed=done or 0.0, width=24, pulse=running and done is None)
    cells: list[RenderableType] = [
        Text(record.name, style="bold"),
        bar,
        Text(f"{done:.0%}" if done is not None else f"step {record.step:,}"),
    ]
    if (loss := summary.last_loss(record)) is not None:
        cells.append(Text(f"loss {summary.number(loss)}"))
    if (top := summary.best(record)) is not None and not summary.lower_is_better(top[0]):
        cells.append(Text(f"{top[0]} {summary.number(top[2])}"))
    if running and (speed := summary.rows_per_second(record)) is not None:
        cells.append(Text(f"{summary.count(speed)} rows/s"))
    left = record.seconds_left(time.time())
    state = f"{summary.duration(left)} left" if left is not None else record.state
    cells.append(Text(state if running else f"{state} in {summary.duration(summary.seconds_of(record))}"))
    line = Table.grid(padding=(0, 2))
    line.add_row(*cells)
    below = [Text(text, style="dim") for _, text in summary.news(record, 2)]
    if record.error:
        below.append(Text(record.error, style="red"))
    return Group(line, *below) if below else line
