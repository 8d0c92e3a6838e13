"""Which workers a cluster has now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client


def workers_of(client: Client) -> dict[str, Any]:
    """What the scheduler knows of each worker there is now, by address.

    ``Client.scheduler_info`` may answer with no workers at all: it returns what the client's clock, which asks every
    two seconds for the rest only, may just have put in its place.
    """
    found: dict[str, Any] = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
    return found
