"""One background thread per process that writes what others ask for, so that nobody waits for a disk."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable

SECONDS_BETWEEN_WRITES = 1.0
SECONDS_TO_FIRST_WRITE = 20.0  # opening the store costs seconds of a core that a training can use, unless it has ended


class Writer:
    """Calls what it was given, each at most once a round, a round at most about once a second.

    The thread starts with the first request and is a daemon; :meth:`flush` also runs at interpreter exit.
    """

    def __init__(self) -> None:
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
                self._thread = threading.Thread(target=self._work, name="daskdl-writer", daemon=True)
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
            self._state.wait_for(lambda: self._hurry, SECONDS_TO_FIRST_WRITE)
        while True:
            with self._state:
                self._state.wait_for(lambda: self._jobs)
                jobs, self._jobs = self._jobs, {}
                self._busy, self._hurry = True, False
            for job in jobs:
                job()
            with self._state:
                self._busy = False
                self._state.notify_all()
                self._state.wait_for(lambda: self._hurry, SECONDS_BETWEEN_WRITES)


writer = Writer()
