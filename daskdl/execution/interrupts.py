"""Interrupts that arrive where Python would drop them, or where they would do harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_noting: list[threading.Event] = []  # of the outermost block of the main thread


@contextmanager
def noted_interrupts() -> Iterator[threading.Event]:
    """Note the interrupts of a block, and raise them as ever.

    One that arrives during a garbage collection is handled in the first Python code that runs after it: a finalizer or
    a callback, as Dask has one, whose exceptions are ignored. Whoever waits looks at the event as well. Blocks may be
    nested: a long one for what leads to the waiting, a short one where it is done.

    Yields
    ------
    threading.Event
        Set by an interrupt. Who has heeded it clears it.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield threading.Event()
        return
    if _noting:
        yield _noting[0]
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.set()
        usual(number, frame)

    noted = threading.Event()
    _noting.append(noted)
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, usual)
        _noting.clear()


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Hold the interrupts of a block back until its end.

    For what imports large modules: an import that is cut leaves halves of modules behind, which no later one repairs.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    held: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if held:
            usual(signal.SIGINT, held[0])
