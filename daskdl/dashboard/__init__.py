"""The Training page of the Dask dashboard. Importing this loads no Bokeh; the scheduler does, when it draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client, Scheduler

__all__ = ["dask_setup", "install"]


def install(client: Client) -> Any:
    """Add the Training page to the dashboard of a client's scheduler; a second call changes nothing.

    Returns
    -------
    None, or an awaitable if the client is asynchronous.
    """
    from daskdl.dashboard.plugin import TrainingPlugin

    return client.register_plugin(TrainingPlugin())


async def dask_setup(scheduler: Scheduler) -> None:
    """Add the page when a scheduler starts: ``dask scheduler --preload daskdl.dashboard``."""
    from daskdl.dashboard.plugin import TrainingPlugin

    await scheduler.register_scheduler_plugin(TrainingPlugin(), idempotent=True)
