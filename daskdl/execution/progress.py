"""How far each rank is, so that one that makes no progress is found and named."""

from __future__ import annotations

import sys
import sysconfig
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

STEPS = 100  # of the usual length that one step may take
LONGEST = 5  # or so many times the longest so far, such as one with a validation
SECONDS = 20.0  # or this long, if that is more
FIRST_SECONDS = 300.0  # before there was a step to compare with
COLLECTIVES = (  # where a rank waits for the others; a round of XGBoost computes and waits in the same call
    "distributed_c10d.py",
    "training/collectives.py",
    "agreement.py",
    "report.py",
    "xgboost/core.py",
    "xgboost/collective.py",
)
LIBRARIES = (str(Path(__file__).parents[1]), sysconfig.get_paths()["stdlib"])


@dataclass
class Progress:
    """Where a rank is: of this process, by run.

    Attributes
    ----------
    step : int
        That it is doing.
    since : float
        When it began it, by the monotonic clock.
    mean, longest : float
        Seconds that steps took before.
    n : int
        Steps done by this rank in this gang.
    first : float
        Seconds that it may take before there is a step to compare with.
    """

    step: int = 0
    since: float = field(default_factory=time.monotonic)
    mean: float = 0.0
    longest: float = 0.0
    n: int = 0
    first: float = FIRST_SECONDS
    thread: int = field(default_factory=threading.get_ident)

    def next(self, step: int) -> None:
        """Note that the step before is done and this one begins."""
        now = time.monotonic()
        if self.n:
            took = now - self.since
            self.mean += (took - self.mean) / self.n
            self.longest = max(self.longest, took)
        self.step, self.since, self.n = step, now, self.n + 1


_progress: dict[str, Progress] = {}


def begin_progress(run: str, step: int = 0, first: float = FIRST_SECONDS) -> Progress:
    """Begin to note where the rank of a run is, which this thread is."""
    _progress[run] = Progress(step, first=first)
    return _progress[run]


def end_progress(run: str) -> None:
    """Note nothing more of a run."""
    _progress.pop(run, None)


@dataclass(frozen=True)
class Place:
    """Where a rank was when it was asked.

    Attributes
    ----------
    step : int
    seconds, allowed : float
        That it has been at it, and that it may be.
    line : str
        Of the code it is in.
    waiting : bool
        Whether that is for the other ranks.
    """

    step: int
    seconds: float
    allowed: float
    line: str
    waiting: bool


def place_of(run: str) -> Place | None:
    """Say where the rank of a run in this process is; None if there is none."""
    if (at := _progress.get(run)) is None:
        return None
    allowed = max(SECONDS, STEPS * at.mean, LONGEST * at.longest) if at.n > 1 else at.first
    frame = sys._current_frames().get(at.thread)
    stack = traceback.extract_stack(frame) if frame is not None else []
    own = [entry for entry in stack if _is_users(entry)]
    entry = (own or stack or [traceback.FrameSummary("?", 0, "?")])[-1]
    line = f"{entry.filename}:{entry.lineno} in {entry.name}: {(entry.line or '').strip()}"
    return Place(at.step, time.monotonic() - at.since, allowed, line, _waits(stack))


def _waits(stack: list[traceback.FrameSummary]) -> bool:
    """Whether a collective was called last, and not code of the user's that it calls, such as an objective."""
    for call in reversed(stack[-4:]):
        if call.filename.endswith(COLLECTIVES):
            return True
        if _is_users(call):
            return False
    return False


def _is_users(call: traceback.FrameSummary) -> bool:
    return "site-packages" not in call.filename and not call.filename.startswith(LIBRARIES)
