"""A deadlock of Python's that training on Dask's workers meets, and how it is kept away."""

from __future__ import annotations

import gc
import sys
from types import FrameType

_current_frames = sys._current_frames


def guard_frames() -> None:
    """Have ``sys._current_frames`` collect no garbage, in this process and from now on.

    Dask's profiler asks for the frames of all threads many times a second. Python gathers them with a lock held that a
    new thread needs, and before 3.13 (gh-106883) may collect garbage meanwhile. A tensor in that garbage lets go of the
    interpreter; a thread that then starts another one takes it, and each waits for what the other has, for ever.
    """
    if sys.version_info < (3, 13):
        sys._current_frames = _frames_without_collecting


def _frames_without_collecting() -> dict[int, FrameType]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        return _current_frames()
    finally:
        if enabled:
            gc.enable()
