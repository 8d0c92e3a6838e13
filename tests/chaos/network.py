"""A worker with a nanny of its own, if need be behind a link that can be cut."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
_numbers = itertools.count()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Link:
    """A network namespace that is reached through one link. Needs root and iproute2.

    Attributes
    ----------
    name : str
        Of the namespace, 13 characters at most.
    here : str
        Address of this end.
    there : tuple of str
        Addresses of the other end, one below and one above ``here``: ranks are in the order of addresses.
    """

    name: str
    here: str
    there: tuple[str, str]

    def cut(self) -> None:
        """Nobody closes a connection; there is only silence."""
        ip("link", "set", f"{self.name}a", "down")

    def mend(self) -> None:
        ip("link", "set", f"{self.name}a", "up")


@contextmanager
def link() -> Iterator[Link | None]:
    """Make a link for the length of a block; None where that is not possible."""
    number = next(_numbers)
    net = f"10.213.{(os.getpid() + number) % 250}"
    found = Link(f"dk{os.getpid() % 1_000_000}n{number}", f"{net}.2", (f"{net}.1", f"{net}.3"))
    if not shutil.which("ip") or os.geteuid() != 0:
        yield None
        return
    try:
        _make(found)
    except subprocess.CalledProcessError:
        _remove(found)
        yield None
        return
    try:
        yield found
    finally:
        _remove(found)


def _make(link: Link) -> None:
    name = link.name
    ip("netns", "add", name)
    ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
    ip("addr", "add", f"{link.here}/24", "dev", f"{name}a")
    ip("link", "set", f"{name}a", "up")
    for address in link.there:
        ip("-n", name, "addr", "add", f"{address}/24", "dev", f"{name}b")
    ip("-n", name, "link", "set", f"{name}b", "up")
    ip("-n", name, "link", "set", "lo", "up")


def _remove(link: Link) -> None:
    subprocess.run(["ip", "netns", "del", link.name], capture_output=True)


@contextmanager
def worker(
    scheduler: str, folder: str, host: str = "127.0.0.1", link: Link | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a worker with a nanny from the command line, at the other end of a link if there is one."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--host", host, "--nthreads", "1"]
    command += ["--no-dashboard", "--name", "far", "--local-directory", folder, "--death-timeout", "30"]
    inside = ["ip", "netns", "exec", link.name] if link is not None else []
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}  # to unpickle what ranks are to do
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen([*inside, *command], env=environment, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
