"""The nanny whose worker is forked from :mod:`daskdl.cluster.forkserver`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import dask
from distributed import Nanny
from distributed.utils import get_mp_context

from daskdl.cluster import forkserver


class ForkingNanny(Nanny):
    """A nanny that forks its worker, at the first start and at every restart, and leaves ``os.environ`` as it was.

    Dask takes the way to make processes from its configuration at every start, so the setting has to hold as long as
    one of these nannies lives. It is put back when the last one closes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pre_spawn_env = {}  # would be left in this process's environment; the fork server has it already
        self.env = {**forkserver.ENVIRONMENT, **self.env}
        self.env.pop("MALLOC_TRIM_THRESHOLD_", None)

    async def start_unsafe(self) -> Any:
        """Start the worker; runs in the client's process."""
        _settings.hold(self)
        return await super().start_unsafe()

    async def close(self, *args: Any, **kwargs: Any) -> Any:
        """Close the worker and let go of the setting."""
        try:
            return await super().close(*args, **kwargs)
        finally:
            _settings.release(self)


SETTINGS = {
    "distributed.worker.multiprocessing-method": "forkserver",
    # So long after a worker was lost, Dask's cluster closes its nanny if it has no worker at that very moment. One
    # that was lost again just then would never be back; these nannies start theirs again by themselves.
    "distributed.deploy.lost-worker-timeout": "1000 days",
}


class _Settings:
    """Dask's settings of how worker processes are made, held by any number of nannies."""

    def __init__(self) -> None:
        self._holders: set[ForkingNanny] = set()
        self._setting = ExitStack()

    def hold(self, nanny: ForkingNanny) -> None:
        if not self._holders:
            self._setting.enter_context(dask.config.set(SETTINGS))
            get_mp_context()  # chooses a list of modules of its own, once
            forkserver.preload()
        self._holders.add(nanny)

    def release(self, nanny: ForkingNanny) -> None:
        self._holders.discard(nanny)
        if not self._holders:
            self._setting.close()


_settings = _Settings()
