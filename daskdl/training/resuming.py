"""Going on with a run after everything it ran on is gone: its checkpoint, and what it was asked to do."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from daskdl.errors import CannotTravel, DataError
from daskdl.run import Run, load_run
from daskdl.training.checkpoints import CheckpointFolder, Checkpoints
from daskdl.training.commit import Commit
from daskdl.training.following import persisted
from daskdl.training.gangs import reachable
from daskdl.training.private import private_folder, read_private, write_private
from daskdl.travel import pack

MAX_CALL_BYTES = 64 << 20


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


def remember_call(run: Run, rules: Checkpoints, fingerprint: str, function: Callable[..., Any], *args: Any) -> None:
    """Write down what a run is doing, so that ``resume`` can do it again: in the user's home, not beside the run.

    It holds what was given, passwords of storages included, and whoever can write it can have anything done.
    ``function(resumed, *args)`` is what will be called. What cannot be kept is said in the run's events.
    """
    why = None
    if persisted(args):
        why = "the frame is persisted, and what lies in the memory of workers goes with them"
    else:
        try:
            call = pack((rules, fingerprint, function, args), "what was given", "to another session", MAX_CALL_BYTES)
            write_private("calls", run.id, call)
        except OverflowError:
            why = f"the data given is larger than {MAX_CALL_BYTES >> 20} MiB"
        except (OSError, CannotTravel) as error:
            why = f"{type(error).__name__}: {error}"
    if why:
        run.event("note", f"this run cannot be resumed in another session: {why}. Read the data from files, lazily.")


def _read_call(run: Run) -> Any:
    """Read what a run was doing; raises ``ValueError`` if it is not known."""
    try:
        return read_private("calls", run.id).open(home=True)
    except FileNotFoundError:
        said = run.events[run.events.text.str.contains("cannot be resumed", regex=False)].text.tolist()
        why = said[0] if said else f"what it was doing is not in {private_folder('calls')}."
        raise ValueError(
            f"run {run.id} cannot be resumed: {why} Its checkpoints, if there are any, are in "
            f"{run.folder}/checkpoints: see daskdl.load_checkpoint."
        ) from None


def resume(run_id: str, root: str | os.PathLike[str] | None = None) -> Any:
    """Go on with a run that was stopped or that died with its cluster or its notebook, from its newest checkpoint.

    It is trained on the current client, on any number of workers, as a run of its own that begins with the curves of
    the one before. The order of the rows is that of the one before, so each is used as often as if nothing had
    happened.

    Parameters
    ----------
    run_id : str
    root : str or path, optional
        Where the run is kept; by default where runs are kept now, as the new one always is.

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
