"""What ranks print and log: kept in a file of their worker's folder, where its nanny finds it too if it dies."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import logging.handlers
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

NAME = "daskdl-log"
FILE_BYTES = 256 << 10  # of which there are two: the older one goes
LINE_CHARACTERS = 2_000

Line = dict[str, Any]  # time, run, rank, level, text


class _File(logging.handlers.RotatingFileHandler):
    """Writes lines of one rank; a full disk is no reason not to train."""

    def __init__(self, folder: str, run: str, rank: int) -> None:
        path = os.path.join(folder, NAME)
        super().__init__(path, maxBytes=FILE_BYTES, backupCount=1, delay=True, encoding="utf-8")
        self.run, self.rank = run, rank

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)[:LINE_CHARACTERS]
        about = {"time": record.created, "run": self.run, "rank": self.rank, "level": record.levelname}
        return json.dumps({**about, "text": text})

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def say(self, level: str, text: str) -> None:
        record = logging.LogRecord("print", logging.INFO, "", 0, text, None, None)
        record.levelname = level
        self.handle(record)


class _Tee(io.TextIOBase):
    """A stream whose lines are kept as well, if they come from one thread where others share its process."""

    def __init__(self, stream: TextIO, file: _File, level: str, thread: int | None) -> None:
        self._stream, self._file, self._level, self._thread, self._begun = stream, file, level, thread, ""

    def write(self, text: str) -> int:
        if self._thread in (None, threading.get_ident()):
            *lines, self._begun = (self._begun + text).split("\n")
            for line in lines:
                if line := line.rpartition("\r")[2].rstrip():  # a progress bar writes over itself
                    self._file.say(self._level, line)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def recording(worker: Any, run: str, rank: int) -> Iterator[None]:
    """Keep what a worker's process prints and logs, as lines of a rank, while the block runs.

    Where the worker is a thread of the notebook's process, only what the calling thread prints is kept.
    """
    file = _File(worker.local_directory, run, rank)
    thread = threading.get_ident() if worker.address.startswith("inproc://") else None
    root = logging.getLogger()
    root.addHandler(file)
    try:
        with (
            contextlib.redirect_stdout(_Tee(sys.stdout, file, "stdout", thread)),
            contextlib.redirect_stderr(_Tee(sys.stderr, file, "stderr", thread)),
        ):
            yield
    except Exception as error:
        file.say("ERROR", f"{type(error).__name__}: {error}")
        raise
    finally:
        root.removeHandler(file)
        file.close()


def read_lines(folder: str) -> list[Line]:
    """Return what was kept in a worker's folder, oldest first; a line that was cut off is left out."""
    found = []
    for name in (f"{NAME}.1", NAME):
        with contextlib.suppress(OSError), open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
    return found


def lines_of(run: str, dask_worker: Any) -> list[Line]:
    """Return what the rank of a run has said on a worker."""
    return [line for line in read_lines(dask_worker.local_directory) if line["run"] == run]


def take_lines(run: str, dask_worker: Any) -> list[Line]:
    """Return what the rank of a run has said on a worker, and forget it there."""
    lines = lines_of(run, dask_worker)
    for name in (f"{NAME}.1", NAME):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(dask_worker.local_directory, name))
    return lines
