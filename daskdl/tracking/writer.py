"""One background thread per process that writes what others ask for, so that nobody waits for a disk."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable

SECONDS_BETWEEN_WRITES = 1.0
REST, MOST_REST = 20, 60.0  # as many times as long as a round took, seconds: a slow storage is written to less often


class Writer:
    """Calls what it was given, each at most once a round, a round at most about once a second.

    The thread starts with the first request and is a daemon; :meth:`flush` also runs at interpreter exit.

    Parameters
    ----------
    name : str
        Of the thread.
    seconds_to_first : float
        That the first round waits, unless somebody is in a hurry.
    """

    def __init__(self, name: str = "daskdl-writer", seconds_to_first: float = 0.0) -> None:
        self.name, self.seconds_to_first = name, seconds_to_first
        self._jobs: dict[Callable[[], None], None] = {}  # a set that keeps the order
        self._busy = False
        self._hurry = False
        self._state = threading.Condition()
        self._thread: threading.Thread | None = None

    def ask(self, job: Callable[[], None], hurry: bool = False) -> None:
        """Have ``job`` called soon; asking twice before it is called is asking once. ``job`` must not raise."""
        with self._state:
            self._jobs[job] = None
            self._hurry |= hurry
            self._state.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
                self._thread.start()
                atexit.register(self.flush)

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until all that was asked for is done; False when ``timeout`` seconds did not suffice."""
        with self._state:
            self._hurry = True
            self._state.notify_all()
            return self._state.wait_for(lambda: not self._jobs and not self._busy, timeout)

    def _work(self) -> None:
        with self._state:
            self._state.wait_for(lambda: self._hurry, self.seconds_to_first)
        while True:
            with self._state:
                self._state.wait_for(lambda: self._jobs)
                jobs, self._jobs = self._jobs, {}
                self._busy, self._hurry = True, False
            began = time.monotonic()
            for job in jobs:
                job()
            rest = max(SECONDS_BETWEEN_WRITES, min(MOST_REST, REST * (time.monotonic() - began)))
            with self._state:
                self._busy = False
                self._state.notify_all()
                self._state.wait_for(lambda: self._hurry, rest)


writer = Writer()
