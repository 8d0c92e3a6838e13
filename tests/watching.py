"""Acting at a step of a run, while `fit` blocks."""

from __future__ import annotations

import threading
import time
from typing import Any

from daskdl.run import Run


def when_at(runs: list[Run], step: int, act: Any, number: int = 0) -> threading.Thread:
    """Act once a run has come to a step, in a thread of the client."""

    def wait_and_act() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (len(runs) <= number or runs[number].record.step < step):
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=wait_and_act, daemon=True)
    thread.start()
    return thread
