"""Asked before anything is computed for a training: is there somebody to do it, and a place to keep it."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

from daskdl.clients import check_lies_here, current_client
from daskdl.errors import NotEnoughWorkers
from daskdl.tracking.folder import check_writable, is_remote, resolve_root
from daskdl.training.checkpoints import Checkpoints
from daskdl.workers import workers_of

if TYPE_CHECKING:
    from distributed import Client

PROBE_SECONDS = 1.0  # that a worker may take to say what is wrong with a path; if it says nothing, nothing is


def begin(client: Client | None, checkpoints: Checkpoints | str | None, *data: Any) -> Client | None:
    """Return the client that is to train on some data, or None where there is none.

    Raises
    ------
    TypeError, ConnectionFailed, ValueError
        The client cannot compute, or the data lies on the cluster of another one.
    NotEnoughWorkers
        The cluster has no workers, and none are on their way.
    OSError
        Runs cannot be kept where they would go, or checkpoints cannot be written to their path.
    """
    check_writable(resolve_root())
    found = current_client(client)
    if found is not None:
        check_lies_here(found, *data)
        _check_workers(found)
    path = checkpoints.path if isinstance(checkpoints, Checkpoints) else checkpoints
    if path is not None:
        _check_path(found, os.fspath(path))
    return found


def _check_workers(client: Client) -> None:
    adaptive = getattr(client.cluster, "_adaptive", None) is not None  # starts some when there is work
    if not adaptive and not workers_of(client):
        raise NotEnoughWorkers(
            f"the cluster at {client.scheduler.address} has no workers yet, so nothing was computed. Start some, "
            "client.cluster.scale(n), and wait for them: client.wait_for_workers(1)."
        )


def _check_path(client: Client | None, path: str) -> None:
    """Refuse a local path that a rank could not write to; a remote one may answer late, and its ranks say so then."""
    if is_remote(path):
        return
    if client is None:
        problem = _unwritable(path)
    else:
        from distributed import TimeoutError as Late

        probe = client.submit(_unwritable, path, pure=False, priority=100)
        try:
            problem = probe.result(timeout=PROBE_SECONDS)
        except Late:
            problem = None
    if problem is not None:
        raise OSError(
            f"checkpoints={path!r} cannot be written to by the workers ({problem}), so a training could not go on from "
            "there. Give a path that they can write to, or leave checkpoints= out."
        )


def _unwritable(path: str) -> str | None:
    """Say why nothing can be written below a path, or None; runs on a worker, and makes no folder."""
    place = os.path.abspath(path.removeprefix("file://"))
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"daskdl")
    except OSError as error:
        return f"{place}: {error.strerror or error}"
    return None
