"""What a process holds for a run of one rank, which would lose it with its own process.

Runs in workers and in nannies. A deposit comes in pieces, so that neither end is kept from its other work for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed.protocol import to_serialize

PIECE_BYTES = 4 << 20
HOLD, HELD, GIVE = "daskdl-hold", "daskdl-held", "daskdl-give"  # what a process that accepts deposits can be asked
MOST_OVER = 1_000  # runs
FILLED = 0.7  # of a worker's memory limit, with the deposit: Dask spills beyond


@dataclass
class Deposit:
    """State of a run after so many steps, as bytes."""

    step: int
    pieces: list[bytes] = field(default_factory=list)


_deposits: dict[str, Deposit] = {}  # by run
_arriving: dict[str, Deposit] = {}
_over: dict[str, None] = {}  # runs that have ended, oldest first: what still arrives is refused


def accept_deposits(dask_worker: Any) -> None:
    """Have a worker or a nanny take and give deposits."""
    dask_worker.handlers.update({HOLD: hold, HELD: deposited, GIVE: give})


def hold(run: str, step: int, number: int, n_pieces: int, piece: bytes) -> bool:
    """Take a piece of a deposit, which counts when it is complete; false if it is not wanted."""
    if run in _over:
        return False
    if number == 0:
        _arriving[run] = Deposit(step)
    arriving = _arriving.get(run)
    if arriving is None or arriving.step != step or len(arriving.pieces) != number:
        return False
    arriving.pieces.append(piece)
    if number + 1 == n_pieces:
        _deposits[run] = _arriving.pop(run)
    return True


def deposited(run: str) -> tuple[int, int]:
    """Return step and number of pieces of the deposit of a run; zeros if there is none."""
    deposit = _deposits.get(run, Deposit(0))
    return deposit.step, len(deposit.pieces)


def give(run: str, step: int, number: int) -> Any:
    """Return a piece of the deposit of that step, or None."""
    deposit = _deposits.get(run)
    return to_serialize(deposit.pieces[number]) if deposit is not None and deposit.step == step else None


def drop_deposit(run: str) -> None:
    """Free the memory of a deposit that is not needed now."""
    _deposits.pop(run, None)
    _arriving.pop(run, None)


def end_deposits(run: str) -> None:
    """Free the memory of the deposit of a run that is over; one that comes later is refused."""
    drop_deposit(run)
    _over[run] = None
    while len(_over) > MOST_OVER:
        del _over[next(iter(_over))]


@dataclass(frozen=True)
class Place:
    """A process that may hold a deposit.

    Attributes
    ----------
    address, host : str
    memory, limit : int
        Bytes it holds, and that it may hold; 0 is no limit.
    """

    address: str
    host: str
    memory: int = 0
    limit: int = 0


def choose(places: Sequence[Place], nanny: str | None, host: str, n_bytes: int, room: int) -> str | None:
    """Choose who is to hold a deposit: a worker, of another host if there is one, else the own nanny, else nobody.

    Parameters
    ----------
    places : sequence of Place
        The other workers.
    nanny, host : str
        Of the worker whose deposit it is.
    n_bytes : int
        Of the deposit. While a new one arrives the one before is held too.
    room : int
        Bytes that are free on its host.
    """
    free = {place: FILLED * place.limit - place.memory if place.limit else float("inf") for place in places}
    fitting = [p for p in places if free[p] > 2 * n_bytes and (p.host != host or room > 2 * n_bytes)]
    if fitting:
        return max(fitting, key=lambda place: (place.host != host, free[place], place.address)).address
    return nanny if room > 2 * n_bytes else None
