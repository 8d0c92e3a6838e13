"""Whether a client and all its workers see one folder, found out by writing there."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import fsspec

from daskdl.data.staging.leases import Lease
from daskdl.errors import DataError


@dataclass(frozen=True)
class Place:
    """A folder on some file system, to be opened in any process.

    Attributes
    ----------
    url : str
        Path or fsspec URL.
    options : dict
        Passed to the file system.
    """

    url: str
    options: dict[str, Any] = field(repr=False)  # may hold a password

    def open(self) -> tuple[Any, str]:
        """Return the file system and the folder's path on it."""
        fs, root = fsspec.core.url_to_fs(self.url, **self.options)
        return fs, root.rstrip("/")


def check_shared(place: Place, client: Any) -> None:
    """Refuse a cache that some worker cannot see or cannot write to; looks by writing and reading small files.

    Raises
    ------
    DataError
        Names a worker and what it has found.
    """
    try:
        fs, root = place.open()
        probe = Lease(fs, f"{root}/probes", "probe")
    except (OSError, ImportError, ValueError) as error:
        raise DataError(
            f"the cache {place.url} cannot be written to: {error}. A lazy frame is written there before training; give "
            "a folder or URL that can be: cache=..."
        ) from error
    with probe:
        answers = client.run(_answer, place, probe.path, on_error="return")
        fs.invalidate_cache(f"{root}/probes")
        wrong = {worker: _unseen(fs, answer) for worker, answer in answers.items()}
    wrong = {worker: reason for worker, reason in wrong.items() if reason}
    if wrong:
        worker, reason = next(iter(wrong.items()))
        raise DataError(
            f"{len(wrong)} of {len(answers)} workers do not share the cache {place.url}: worker {worker} {reason}. "
            "Each worker writes its partitions there and reads those of others. Give a folder that all hosts mount, "
            "or a URL: cache='/shared/staged' or cache='s3://bucket/staged'."
        )


def _answer(place: Place, probe: str) -> tuple[bool, str]:
    """Run on a worker: say whether it sees the probe, and where it has put a file beside it."""
    fs, _ = place.open()
    mine = f"{probe}.{uuid.uuid4().hex}"
    if not fs.exists(probe):
        return False, mine
    fs.pipe_file(mine, b"seen")
    return True, mine


def _unseen(fs: Any, answer: Any) -> str:
    if isinstance(answer, BaseException):
        return f"says {type(answer).__name__}: {answer}"
    seen, mine = answer
    if not seen:
        return "does not see a file that this process has written"
    if not fs.exists(mine):
        return "has written a file that this process does not see"
    fs.rm_file(mine)
    return ""
