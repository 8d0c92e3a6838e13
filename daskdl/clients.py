"""Which Dask client does the work, and whether it can."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from daskdl.errors import ConnectionFailed

if TYPE_CHECKING:
    from distributed import Client

KNOCK_SECONDS = 0.5


def client_at_hand(client: Client | None = None) -> Client | None:
    """Return the client given, or the current one, or None where there is none, as it is."""
    from distributed import Client

    try:
        return client if client is not None else Client.current()
    except ValueError:
        return None


def current_client(client: Any = None) -> Client | None:
    """Return the client given, or the current one, or None where there is none, to compute with.

    Raises
    ------
    TypeError
        What was given is no client, or it is asynchronous: its answers are awaited, and nothing here awaits.
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
        raise ValueError(f"{what}, and there is no Dask client to do it. Start one first: client = daskdl.connect().")
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
