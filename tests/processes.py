"""What tests need to know about processes of other sessions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil


def session_of(pid: int) -> list[psutil.Process]:
    """The live processes of the session that `pid` leads or led."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members


def wait_until(condition: Callable[[], object], seconds: float = 15.0) -> bool:
    """Ask again and again; False when `seconds` did not suffice."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
