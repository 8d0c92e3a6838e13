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
            if os.getsid(process.pid) == pid and alive(process):
                members.append(process)
        except ProcessLookupError:
            continue
    return members


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that only waits to be collected does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], object], seconds: float = 15.0) -> bool:
    """Ask again and again; False when `seconds` did not suffice."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
