"""Calling a function on workers of which some may be dying."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from distributed import Client

LOOK_SECONDS = 0.1  # between two looks at who has left


def call_workers(client: Client, function: Callable[..., Any], *args: Any, workers: Iterable[str]) -> dict[str, Any]:
    """Call ``function(*args)`` on each worker at once, even while it runs a task; those that leave are not waited for.

    ``Client.run`` waits half a minute for the connection to a process that has just been killed, and all others wait
    with it.

    Returns
    -------
    dict
        Answer of each worker that gave one, by address. An exception of the function is an answer.
    """
    found: dict[str, Any] = client.sync(_call, client, function, args, list(workers))
    return found


async def _call(
    client: Client, function: Callable[..., Any], args: tuple[Any, ...], workers: list[str]
) -> dict[str, Any]:
    tasks = {
        worker: asyncio.ensure_future(client.run(function, *args, workers=[worker], on_error="return"))
        for worker in workers
    }
    waiting = set(tasks.values())
    while waiting:
        _, waiting = await asyncio.wait(waiting, timeout=LOOK_SECONDS)
        if waiting:
            alive = (await client.scheduler.identity(n_workers=-1))["workers"]
            for worker in [worker for worker, task in tasks.items() if task in waiting and worker not in alive]:
                tasks[worker].cancel()
                waiting.discard(tasks[worker])
    return {
        worker: task.result()[worker]
        for worker, task in tasks.items()
        if task.done() and not task.cancelled() and task.exception() is None and worker in task.result()
    }
