"""Clusters on this machine: CPU processes forked warm, or one worker per GPU."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from daskdl.cluster import forkserver
from daskdl.errors import ConnectionFailed, MissingExtraError

if TYPE_CHECKING:
    from distributed import Client

HOST = "127.0.0.1"
# What every process of a cluster does many times a second, beside training: name, Dask's default, ours. Ranks that use
# all cores train some percent faster (benchmarks/LOG.md); the Profile page still gets 20 stacks a second of a worker.
CALMER = (
    ("distributed.admin.tick.interval", "20ms", "100ms"),
    ("distributed.worker.profile.interval", "10ms", "50ms"),
)


@dataclass(frozen=True)
class Request:
    """What a local cluster is asked to be.

    Attributes
    ----------
    kind : {"cpu", "cuda"}
    n_workers : int or None
        None takes any number.
    threads_per_worker : int
    memory_limit : str, float or None
        Of one worker; ``"auto"`` shares the machine's memory.
    options : tuple of (str, Any)
        Further arguments of the cluster's class, sorted by name.
    """

    kind: str
    n_workers: int | None
    threads_per_worker: int
    memory_limit: str | float | None
    options: tuple[tuple[str, Any], ...]

    def served_by(self, made: Request) -> bool:
        """Whether a cluster made for another request is good enough for this one."""
        return self.n_workers in (None, made.n_workers) and replace(self, n_workers=made.n_workers) == made


_started: list[tuple[Request, Client]] = []  # of this process, oldest first


def local_client(request: Request, dashboard_address: str | None) -> Client:
    """Return a client of a cluster on this machine, one that runs already if it serves the request.

    Raises
    ------
    ConnectionFailed
        The cluster does not come up.
    MissingExtraError
        GPUs are asked for and their packages are not installed.
    """
    if request.kind == "cpu":
        forkserver.start()  # first of all: it imports torch on one core while this process imports Dask on another
    _started[:] = [(made, client) for made, client in _started if client.status == "running"]
    for made, client in reversed(_started):
        if request.served_by(made):
            return client
    client = _start(request, dashboard_address)
    _started.append((replace(request, n_workers=len(client.nthreads())), client))
    return client


def _start(request: Request, dashboard_address: str | None) -> Client:
    options = {
        "host": HOST,
        "n_workers": request.n_workers,
        "threads_per_worker": request.threads_per_worker,
        "dashboard_address": _free(dashboard_address),
        **dict(request.options),
    }
    if request.memory_limit != "auto":  # left out, Dask divides by the number of workers; "auto" it would not
        options["memory_limit"] = request.memory_limit
    # the scheduler lives in this process and warns of every shuffle that begins and ends
    logging.getLogger("distributed.shuffle._scheduler_plugin").setLevel(logging.ERROR)
    import dask

    importlib.import_module("distributed")  # brings its settings; what the user has set stays
    calmer = {name: ours for name, default, ours in CALMER if dask.config.get(name) == default}
    try:
        with dask.config.set(calmer):
            return KINDS[request.kind](options)
    except (OSError, RuntimeError) as error:
        raise ConnectionFailed(
            f"The {request.kind} cluster on this machine did not start: {error}. The log above says why; "
            "fewer workers (n_workers=) or more memory for each (memory_limit=) are the usual remedies."
        ) from error


def _start_cpu(options: dict[str, Any]) -> Client:
    import dask
    from dask.system import CPU_COUNT
    from distributed import Client

    from daskdl.cluster.nanny import ForkingNanny

    if options["n_workers"] is None:
        options["n_workers"] = max(1, CPU_COUNT // options["threads_per_worker"])
    if importlib.util.find_spec("torch") is not None:  # this process has to wait for its workers anyway
        threading.Thread(target=importlib.import_module, args=("torch",), name="import torch").start()
    with dask.config.set({"scheduler-address": None}):
        return Client(worker_class=ForkingNanny, **options)  # a client that starts its cluster also closes it


def _start_cuda(options: dict[str, Any]) -> Client:
    missing = [name for name in ("dask_cuda", "cudf", "dask_cudf") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f'connect("cuda") needs {", ".join(missing)}, not installed here: pip install "daskdl[cuda]", '
            'or use connect("cpu").'
        )
    import dask
    from dask_cuda import LocalCUDACluster
    from distributed import Client

    dask.config.set({"dataframe.backend": "cudf"})
    pool = {"rmm_pool_size": 0.5, "rmm_allocator_external_lib_list": ["torch"]}  # one pool for cudf and torch
    return Client(LocalCUDACluster(**{**pool, **options}))


KINDS: dict[str, Callable[[dict[str, Any]], Client]] = {"cpu": _start_cpu, "cuda": _start_cuda}


def gpus_usable() -> bool:
    """Whether there is a GPU that this process may use, and dask-cuda to use it with."""
    if importlib.util.find_spec("dask_cuda") is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    from distributed.diagnostics import nvml

    return bool(nvml.device_get_count())


def _free(address: str | None) -> str | None:
    """Return the address, or port 0 on the same host when its port is in use; None is no dashboard."""
    if address is None:
        return None
    host, _, port = address.rpartition(":")
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return f"{host}:0"
    return address
