"""Going on with a run after everything it ran on is gone: its checkpoint, and what it was asked to do."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle
from distributed import futures_of

from daskdl.data.frame import is_lazy
from daskdl.errors import DataError
from daskdl.tracking.run import Run, load_run
from daskdl.training.checkpoints import CheckpointFolder, Checkpoints
from daskdl.training.commit import Commit
from daskdl.training.gangs import reachable

MAX_CALL_BYTES = 64 << 20
MAX_CALLS_BYTES = 1 << 30  # of all runs; the oldest go


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on, and with what data.

    Attributes
    ----------
    run : Run
        The one that is gone on with.
    commit : Commit
    fingerprint : str
        Of its data.
    """

    run: Run
    commit: Commit
    fingerprint: str

    def check(self, fingerprint: str) -> None:
        """Refuse other data than that of the run."""
        if fingerprint != self.fingerprint:
            raise DataError(
                f"the data is not what run {self.run.id} was trained on: rows, their order or their values have "
                "changed since, so rows would be used twice or never. Restore the data, or begin a new run with fit."
            )

    def tell(self, run: Run) -> None:
        """Give a run the curves of the one it goes on with."""
        history = self.run.metrics
        history = history[history.index <= self.commit.step]
        for step, values in history.to_dict("index").items():
            run.log(step, **{name: value for name, value in values.items() if value == value})
        run.event("resumed", f"goes on with run {self.run.id} from step {self.commit.step:,}", self.commit.step)


def workers_for(resumed: Resumed | None, num_workers: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
    """What to ask of the cluster: a run that goes on begins with the workers there are."""
    return (1, num_workers) if resumed is not None and isinstance(num_workers, int) else num_workers


def checkpoints_of(run: Run, rules: Checkpoints, workers: list[str]) -> tuple[CheckpointFolder | None, Any]:
    """Where a run's checkpoints lie, and the rules with that as their path; twice None if ranks cannot write there."""
    if rules.path is None and not reachable(run.folder, workers):
        run.event(
            "note",
            f"no checkpoints: the workers are on other hosts than {run.folder}. Give a path that they and you can "
            "reach: checkpoints='s3://bucket/checkpoints'.",
        )
        return None, None
    url = f"{run.folder}/checkpoints" if rules.path is None else f"{rules.path.rstrip('/')}/{run.id}"
    return CheckpointFolder(url, rules.storage_options), replace(rules, path=url)


# -- what was called ----------------------------------------------------------------------------------------------


class _Bounded(io.BytesIO):
    """Memory that takes so much and no more."""

    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > MAX_CALL_BYTES:
            raise OverflowError
        return super().write(data)


def remember_call(run: Run, rules: Checkpoints, fingerprint: str, function: Callable[..., Any], *args: Any) -> None:
    """Write down what a run is doing, so that ``resume`` can do it again: in the user's home, not beside the run.

    It holds what was given, passwords of storages included, and whoever can write it can have anything done.
    ``function(resumed, *args)`` is what will be called. What cannot be kept is said in the run's events.
    """
    why = None
    things = [thing for arg in args for thing in (arg if isinstance(arg, tuple) else [arg])]
    if any(is_lazy(thing) and futures_of(thing) for thing in things):
        why = "the frame is persisted, and what lies in the memory of workers goes with them"
    else:
        file = _Bounded()
        try:
            cloudpickle.dump((rules, fingerprint, function, args), file)
            _write_call(run.id, file.getbuffer())
        except OverflowError:
            why = f"the data given is larger than {MAX_CALL_BYTES >> 20} MiB"
        except (OSError, TypeError, AttributeError, pickle.PicklingError) as error:
            why = f"{type(error).__name__}: {error}"
    if why:
        run.event("note", f"this run cannot be resumed in another session: {why}. Read the data from files, lazily.")


def _calls() -> Path:
    """Folder of what was called, this user's only."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "daskdl" / "calls"


def _write_call(run_id: str, data: memoryview) -> None:
    folder = _calls()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(os.open(folder / run_id, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    room = MAX_CALLS_BYTES
    for path in sorted(folder.iterdir(), key=lambda path: path.name, reverse=True):  # names begin with the time
        with suppress(FileNotFoundError):  # another process makes room too
            room -= path.stat().st_size
            if room < 0:
                path.unlink()


def _read_call(run: Run) -> Any:
    """Read what a run was doing.

    Raises
    ------
    ValueError
        It is not known.
    PermissionError
        Others than this user could have written it; it is not even read.
    """
    path = _calls() / run.id
    try:
        about = path.stat()
    except FileNotFoundError:
        said = run.events[run.events.text.str.contains("cannot be resumed", regex=False)].text.tolist()
        raise ValueError(
            f"run {run.id} cannot be resumed: {said[0] if said else f'what it was doing is not in {path.parent}.'} Its "
            f"checkpoints, if there are any, are in {run.folder}/checkpoints: see daskdl.load_checkpoint."
        ) from None
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise PermissionError(
            f"{path} can be written by others than you, so it is not read: it could run anything. Call fit or train "
            "again yourself."
        )
    return pickle.loads(path.read_bytes())


def resume(run_id: str, root: str | os.PathLike[str] | None = None) -> Any:
    """Go on with a run that was stopped or that died with its cluster or its notebook, from its newest checkpoint.

    It is trained on the current client, on any number of workers, as a run of its own that begins with the curves of
    the one before. The order of the rows is that of the one before, so each is used as often as if nothing had
    happened.

    Parameters
    ----------
    run_id : str
    root : str or path, optional
        Where the run is kept; by default where runs are kept now.

    Returns
    -------
    estimator or Result
        What ``fit`` or ``train`` would have returned.

    Raises
    ------
    ValueError
        There is no such run, or it left nothing to go on from.
    DataError
        The data has changed since.
    PermissionError
        What is to be done could have been written down by others; it is not even read.

    Examples
    --------
    >>> classifier = daskdl.resume("20261121-093012-brave-finch")  # doctest: +SKIP
    """
    run = load_run(run_id, root)
    rules, fingerprint, function, args = _read_call(run)
    folder, _ = checkpoints_of(run, rules, [])
    commit = folder.newest() if folder is not None else None
    if commit is None:
        warnings.warn(f"run {run_id} left no checkpoint: it begins again at step 0", stacklevel=2)
    return function(Resumed(run, commit or Commit(), fingerprint), *args)
