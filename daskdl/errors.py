"""The few errors daskdl raises by name.

Everything else is the standard library's ``ValueError`` and ``TypeError``, with a message that says what was
expected, what came, why it matters and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

NAMED = 5  # rows at fault, in a message


class DaskdlError(Exception):
    """Base class of the named errors."""

    def _repr_html_(self) -> str:
        """Show the message, and what was added to it, as a card: for one that was caught and is looked at."""
        notes = "".join(f'<div style="opacity:.65">{escape(note)}</div>' for note in getattr(self, "__notes__", ()))
        return (
            '<div style="font:13px/1.5 system-ui,sans-serif;border-left:3px solid #d64545;padding:.2em .9em;'
            f'max-width:56em;white-space:pre-wrap"><b>{type(self).__name__}</b>\n{escape(str(self))}{notes}</div>'
        )


class DataError(DaskdlError, ValueError):
    """The data cannot be trained on as it is; the message names the column, the value and the remedy.

    Attributes
    ----------
    rows : tuple of int
        Which of the rows that were being read are at fault, where it is some of them: who knows where they come from
        puts their names before the message, see ``named``.
    """

    def __init__(self, message: str = "", rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)

    def moved(self, by: int) -> DataError:
        """The same error, of rows that follow ``by`` others."""
        return DataError(str(self), [row + by for row in self.rows])

    def named(self, name: Callable[[int], str]) -> DataError:
        """The same error with the names of its rows before the message.

        Examples
        --------
        >>> print(DataError("is no image.", rows=[3, 5]).named(lambda row: f"file {row}.png"))
        file 3.png, file 5.png: is no image.
        """
        if not self.rows:
            return self
        names = ", ".join(name(row) for row in self.rows[:NAMED])
        more = f" and {len(self.rows) - NAMED:,} more" if len(self.rows) > NAMED else ""
        return DataError(f"{names}{more}: {self}")


class CannotTravel(DaskdlError, TypeError):
    """What was given, or made, cannot be sent to another process; the message names what in it belongs to this one."""


class MissingExtraError(DaskdlError, ImportError):
    """An optional package is needed; the message says which command installs it."""


class ConnectionFailed(DaskdlError, ConnectionError):
    """Nobody answers at the address, or the cluster cannot be started."""


class NotEnoughWorkers(DaskdlError, ValueError):
    """The cluster has fewer workers than the call asked for."""


class RankFailed(DaskdlError, RuntimeError):
    """One rank of a gang failed first and took the others with it.

    Attributes
    ----------
    rank : int
        The rank that failed first.
    world_size : int
        Number of ranks in the gang.
    worker : str
        Address of the Dask worker that held the rank.
    """

    def __init__(self, message: str, rank: int = -1, world_size: int = 0, worker: str = "") -> None:
        super().__init__(message)
        self.rank = rank
        self.world_size = world_size
        self.worker = worker

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.rank, self.world_size, self.worker)


class WorkerLost(RankFailed):
    """The worker process that held a rank is gone."""


class LossDiverged(DaskdlError, FloatingPointError):
    """The training loss became NaN or infinite.

    Attributes
    ----------
    step : int
        Global step at which the loss was not finite.
    good_step : int
        The last step whose state was kept.
    state : dict of str to torch.Tensor
        ``state_dict`` of the model after ``good_step`` steps, on the CPU.
    """

    def __init__(self, message: str, step: int = -1, good_step: int = 0, state: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.good_step = good_step
        self.state = state or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.step, self.good_step, self.state)
