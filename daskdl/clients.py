"""Which Dask client does the work, and whether it can."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from daskdl.errors import ConnectionFailed

if TYPE_CHECKING:
    from distributed import Client

KNOCK_SECONDS = 0.5
LET_GO = (
    "A task of Dask's that waits for others must let its thread go meanwhile, or it may wait for itself: "
    "with distributed.worker_client(): ..."
)


def how_to_get_one() -> str:
    """Say what to do where there is no client to compute with."""
    return LET_GO if _holds_a_thread() else "Start one first: client = daskdl.connect()."


def _holds_a_thread() -> bool:
    """Whether this is a task of Dask's, or a thread it has started, that others may have to wait for."""
    if "distributed.worker" not in sys.modules:
        return False
    from distributed import Client, Worker, get_worker
    from distributed.threadpoolexecutor import thread_state

    try:
        get_worker()
    except ValueError:  # no task; but in a worker's process its own client is the current one
        with contextlib.suppress(ValueError):
            return Client.current() in Worker._initialized_clients
        return False
    return bool(getattr(thread_state, "proceed", True))


def client_at_hand(client: Client | None = None) -> Client | None:
    """Return the client given, or the current one, or None where there is none, as it is."""
    from distributed import Client

    if client is None and _holds_a_thread():
        return None
    try:
        return client if client is not None else Client.current()
    except ValueError:
        return None


def current_client(client: Any = None) -> Client | None:
    """Return the client given, or the current one, or None where there is none, to compute with.

    In a task of Dask's there is none, as ranks would wait for the thread that the task holds: what is in memory is
    computed where the task is. A task that has let its thread go, as ``distributed.worker_client`` does, has one.

    Raises
    ------
    TypeError
        What was given is no client, or it is asynchronous: its answers are awaited, and nothing here awaits.
    ValueError
        One was given in a task that holds its thread.
    ConnectionFailed
        It was closed, or its scheduler is gone.

    Examples
    --------
    >>> current_client("tcp://127.0.0.1:8786")
    Traceback (most recent call last):
        ...
    TypeError: client= takes a distributed.Client, got a str. daskdl.connect(...) makes one of an address or a cluster.
    """
    from distributed import Client

    if client is not None and _holds_a_thread():
        raise ValueError(f"client= was given in a task that holds its thread. {LET_GO}")
    found = client_at_hand(client)
    if found is None:
        return None
    if not isinstance(found, Client):
        raise TypeError(
            f"client= takes a distributed.Client, got a {type(found).__name__}. daskdl.connect(...) makes one of an "
            "address or a cluster."
        )
    _check_usable(found)
    return found


def needed_client(client: Any, what: str) -> Client:
    """Return the client given or the current one, for something that has to be done on a cluster.

    Raises
    ------
    ValueError
        There is none; ``what`` begins the sentence.
    """
    found = current_client(client)
    if found is None:
        raise ValueError(f"{what}, and there is no Dask client to do it. {how_to_get_one()}")
    return found


def check_lies_here(client: Client, *data: Any) -> None:
    """Refuse collections, and tuples of them, whose rows lie on the cluster of another client.

    Raises
    ------
    ValueError
        What is persisted elsewhere cannot be found by this client's workers.
    """
    from dask.base import is_dask_collection
    from distributed import futures_of

    things = [thing for given in data for thing in (given if isinstance(given, (tuple, list)) else [given])]
    for future in (f for thing in things if is_dask_collection(thing) for f in futures_of(thing)):
        other = future.client
        if other is client or (other.status == "running" and _address(other) == _address(client)):
            continue
        if other.status in ("closed", "closing"):
            raise ValueError(
                "the frame was persisted by a client that is closed, so its rows are gone. Give the frame as it was "
                "before persist(), or persist it again."
            )
        raise ValueError(
            f"the frame lies in the memory of the cluster at {_address(other)}, where another client persisted it, and "
            f"this client's is {_address(client)}. Compute there, `with that_client.as_current(): ...`, or give the "
            "frame as it was before persist()."
        )


def _check_usable(client: Client) -> None:
    if client.asynchronous:
        raise TypeError(
            f"this client of {_address(client)} is asynchronous (Client(asynchronous=True), or a call from its own "
            "event loop): whatever it is asked comes later, as a coroutine, and a training needs answers. Connect a "
            "second one, client = daskdl.connect(address), and call daskdl from a thread: "
            "await asyncio.to_thread(clf.fit, X, y)."
        )
    if client.status in ("closed", "closing", "newly-created"):
        raise ConnectionFailed(
            f"the client of {_address(client)} is {client.status.replace('newly-created', 'not started')}, so it "
            "cannot compute. Connect again: client = daskdl.connect(...)."
        )
    if client.status == "connecting" and not _answers(_address(client)):
        raise ConnectionFailed(
            f"the scheduler at {_address(client)} does not answer: it has ended, or cannot be reached. Connect to one "
            "that runs: client = daskdl.connect(...)."
        )


def _address(client: Any) -> str:
    return str(client.scheduler.address if client.scheduler is not None else client._start_arg)


def _answers(address: str) -> bool:
    """Whether somebody listens there; what is no plain address (``inproc``) is believed."""
    parts = urlsplit(address)
    if parts.scheme not in ("tcp", "tls") or not parts.hostname or not parts.port:
        return True
    with contextlib.suppress(OSError), socket.create_connection((parts.hostname, parts.port), KNOCK_SECONDS):
        return True
    return False
