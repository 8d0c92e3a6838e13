"""Why a worker is gone, in words. Pure: what is known of it was gathered by the scheduler and the nannies."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dask.utils import format_bytes

NEAR_LIMIT = 0.8  # of its memory limit: killed there, a worker was most likely killed for it
GROWTH = 0.1  # of its memory limit, within the samples: worth telling
TRACE_LINES = 3
LOG_LINES = 3

STOPPED, BLOCKED, UNREACHABLE = "stopped", "blocked", "unreachable"
SILENCE = {
    STOPPED: "its process was stopped (SIGSTOP, a debugger or a batch system) and had been silent for {:.1f} s; it was "
    "killed to make room for a new one",
    BLOCKED: "its process hung: it had been silent for {:.1f} s without computing, as in a native call that waits and "
    "keeps Python's lock",
    UNREACHABLE: "its machine or network went away: neither it nor its nanny had answered for {:.1f} s",
}
FOR_MEMORY = "the system ended a process for lack of memory then"


@dataclass
class Death:
    """What is known of a worker that left.

    Attributes
    ----------
    address, name, host : str
    pid : int
    limit : int
        Its memory limit in bytes; 0 is none.
    nanny : bool
        Whether it had a nanny, which sees how a process ends.
    memory : list of (float, int)
        Seconds since the epoch and bytes, oldest first.
    exitcode : int or None
        As of ``multiprocessing.Process``: that of a process killed by a signal is negative.
    over_budget : int or None
        Bytes it held when its nanny ended it for its memory.
    oom_kill : bool
        Whether the kernel killed a process of its machine for lack of memory at that time.
    silent : (str, float) or None
        ``STOPPED``, ``BLOCKED`` or ``UNREACHABLE``, and for how many seconds it had been when it was given up.
    retired : bool
        The cluster was told to do without it.
    trace : list of str
        Python's stack at a crash in native code, the innermost call first.
    lines : list of dict
        What its rank had printed and logged: ``time``, ``run``, ``rank``, ``level``, ``text``.
    """

    address: str
    name: str = ""
    host: str = ""
    pid: int = 0
    limit: int = 0
    nanny: bool = True
    memory: list[tuple[float, int]] = field(default_factory=list)
    exitcode: int | None = None
    over_budget: int | None = None
    oom_kill: bool = False
    silent: tuple[str, float] | None = None
    retired: bool = False
    trace: list[str] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        """Whether no more is to be learned of it."""
        return self.exitcode is not None or self.silent is not None or self.retired or not self.nanny

    @property
    def who(self) -> str:
        """Its address, name, process and machine."""
        if not self.pid:
            return self.address
        name = f"worker {self.name}, " if self.name not in ("", self.address) else ""
        return f"{self.address} ({name}process {self.pid} on {self.host})"


def cause_of(death: Death) -> str:
    """Say why a worker is most likely gone."""
    code, number = death.exitcode, -(death.exitcode or 0)
    if death.silent is not None:
        return SILENCE[death.silent[0]].format(death.silent[1])
    if death.over_budget is not None:
        code_told = f" (exit code {code})" if code is not None else ""
        return f"out of memory: {_share(death, death.over_budget)}, so its nanny ended it{code_told}{_trend(death)}"
    if death.retired:
        return "it was retired: the cluster was told to do without it"
    if code is None:
        what = "neither its process nor its nanny said why" if death.nanny else "it has no nanny to say why"
        return f"its machine, container or network went away: {what}{_held(death)}{_trend(death)}"
    if code == 255:
        return f"its process ended in an unknown way (exit code 255){_held(death)}"
    if code >= 0:
        return _exited(code, death)
    told = f"signal {number}{_name_of(number)}"
    if number == signal.SIGKILL:
        return _killed(told, death)
    if number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT):
        return f"crash in native code: {told}{_where(death)}"
    return f"its process was ended by {told}: by a person, a batch system or its machine's shutdown{_held(death)}"


def _exited(code: int, death: Death) -> str:
    if code == 0:
        return "its process closed in good order (exit code 0): it was restarted or the cluster scaled down"
    return f"its process ended itself with exit code {code}: os._exit, or a library that gives up{_held(death)}"


def _killed(told: str, death: Death) -> str:
    last = death.memory[-1][1] if death.memory else 0
    if death.oom_kill or (death.limit and last >= NEAR_LIMIT * death.limit):
        why = f", and {FOR_MEMORY}" if death.oom_kill else ""
        return f"out of memory: killed by {told} at {_share(death, last)}{why}{_trend(death)}"
    return f"its process was killed by {told}: by a person, a batch system or the system{_held(death)}{_trend(death)}"


def _share(death: Death, n_bytes: int) -> str:
    return f"it held {format_bytes(n_bytes)}" + (f" of {format_bytes(death.limit)}" if death.limit else "")


def _held(death: Death) -> str:
    return f"; {_share(death, death.memory[-1][1])}" if death.memory else ""


def _trend(death: Death) -> str:
    """How its memory grew, if it did so markedly."""
    if len(death.memory) < 2:
        return ""
    end, last = death.memory[-1]
    start, least = min(death.memory, key=lambda sample: sample[1])
    if end <= start or last - least < GROWTH * (death.limit or last):
        return ""
    return f"; it had grown by {format_bytes(last - least)} in the {end - start:.0f} s before"


def _where(death: Death) -> str:
    return f", in {' < '.join(death.trace[:TRACE_LINES])}" if death.trace else ""


def _name_of(number: int) -> str:
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:
        return ""


def trace_of(text: str) -> list[str]:
    """Calls of the thread that crashed, innermost first, from what ``faulthandler`` wrote; without daskdl's own."""
    _, _, mine = text.partition("\nCurrent thread ")
    calls = []
    for line in mine.splitlines()[1:]:
        call = re.fullmatch(r'  File "(.+)", line (\d+) in (.+)', line)
        if call is None or call[1].endswith("daskdl/execution/spmd.py"):
            break
        calls.append(f"{call[3]} ({'/'.join(call[1].split('/')[-2:])}:{call[2]})")
    return calls


def report(death: Death, rank: int, world_size: int, reached: int, step: int) -> str:
    """Say who was lost, why and what it cost.

    Parameters
    ----------
    reached : int
        Step that was last heard of.
    step : int
        Step of the commit from which the run goes on.
    """
    lost = max(0, reached - step)
    cost = f"{lost:,} step{'s' * (lost != 1)} since the commit of step {step:,} to do again"
    words = " / ".join(line["text"] for line in death.lines[-LOG_LINES:])
    log = f" The last lines of its log: {words}" if words else ""
    return f"rank {rank} of {world_size}, {death.who}, at step {reached:,}: {cause_of(death)}. Lost: {cost}.{log}"


def told(deaths: Sequence[Death]) -> str:
    """Say why workers are gone, for the end of an error."""
    return " ".join(f"Likely cause for {death.who}: {cause_of(death)}." for death in deaths)
