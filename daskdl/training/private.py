"""Files in the user's home that nobody else may touch: what runs were asked to do, and what they returned.

They are pickles, as anything may be given and returned. Whoever can write one can have anything done by who reads it.
"""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

MOST_BYTES = {"calls": 1 << 30, "results": 4 << 30}  # of all runs; the oldest go


def private_folder(kind: str) -> Path:
    """Folder of the ``calls`` or the ``results``, this user's only."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "daskdl" / kind


def write_private(kind: str, run_id: str, thing: Any) -> None:
    """Write a file of a run that appears complete, or not at all; makes room for it among those of other runs."""
    folder = private_folder(kind)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = folder / f"{run_id}.part"
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            pickle.dump(thing, file)
        os.replace(part, folder / run_id)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    room = MOST_BYTES[kind]
    for path in sorted(folder.iterdir(), key=lambda path: path.name, reverse=True):  # names begin with the time
        with suppress(FileNotFoundError):  # another process makes room too
            room -= path.stat().st_size
            if room < 0 and path.name != run_id:
                path.unlink()


def read_private(kind: str, run_id: str) -> Any:
    """Read what was written for a run.

    Raises
    ------
    FileNotFoundError
    PermissionError
        Others than this user could have written it; it is not even read.
    """
    path = private_folder(kind) / run_id
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        if about.st_uid != os.getuid() or about.st_mode & 0o022:
            raise PermissionError(
                f"{path} can be written by others than you, so it is not read: it could run anything. Call fit or "
                "train again yourself."
            )
        return pickle.load(file)
