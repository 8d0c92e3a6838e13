"""``connect()``: a Dask client for this machine, for a running scheduler, or for a cluster manager."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import socket
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from daskdl.clients import current_client
from daskdl.cluster.local import HOST, KINDS, Request, gpus_usable, local_client
from daskdl.errors import ConnectionFailed, MissingExtraError

if TYPE_CHECKING:
    from distributed import Client

SCHEMES = ("tcp", "tls", "ucx", "ucxx", "ws", "wss")


class BackEnd(NamedTuple):
    """A cluster manager's class, and the command that installs it."""

    class_path: str
    install: str


BACK_ENDS = {
    "slurm": BackEnd("dask_jobqueue.SLURMCluster", "pip install dask-jobqueue"),
    "kubernetes": BackEnd("dask_kubernetes.operator.KubeCluster", "pip install dask-kubernetes"),
    "gateway": BackEnd("dask_gateway.GatewayCluster", "pip install dask-gateway"),
}


def connect(
    where: Any = None,
    *,
    n_workers: int | None = None,
    threads_per_worker: int = 1,
    memory_limit: str | float | None = "auto",
    dashboard_address: str = f"{HOST}:8787",
    runs: str | os.PathLike[str] | None = None,
    timeout: float = 5.0,
    security: Any = None,
    **kwargs: Any,
) -> Client:
    """Return a Dask client, with the Training page on its dashboard.

    Parameters
    ----------
    where : None, str, cluster or Client
        - ``None``: the scheduler named by the environment variable ``DASKDL_ADDRESS`` or by Dask's own setting
          ``scheduler-address``; otherwise GPUs of this machine if there are any, otherwise its CPU cores.
        - ``"cpu"``, ``"cuda"``: a cluster on this machine. One that an earlier call started is used again when
          it is what this call asks for, so a notebook that is run again from the top has one cluster.
        - ``"tcp://host:port"``, ``"tls://host:port"``: a scheduler that runs.
        - ``"slurm"``, ``"kubernetes"``, ``"gateway"``: a new cluster of that manager; `kwargs` go to its class.
        - a cluster object; or a client, which is returned with the page added.
    n_workers : int, optional
        Number of worker processes of a new cluster; on this machine by default one per GPU, or one per CPU core that
        this process may use.
    threads_per_worker : int
        Task threads of each worker on this machine; training wants 1.
    memory_limit : str, float or None
        Of each worker on this machine, as Dask takes it; ``"auto"`` shares the memory between the workers.
    dashboard_address : str
        Where the dashboard of a cluster on this machine listens; a free port is taken when this one is in use.
    runs : path, optional
        Folder or fsspec URL that runs are kept in from now on.
    timeout : float
        Seconds to wait for a scheduler that should be running.
    security : distributed.Security, optional
        Certificates for ``tls://``.
    **kwargs
        Passed to the cluster's class.

    Returns
    -------
    distributed.Client
        ``client.shutdown()`` ends a cluster that was started here; so does the end of the program.

    Raises
    ------
    ConnectionFailed
        Nobody answers at the address within `timeout`, or the cluster does not start.
    MissingExtraError
        The package that makes such clusters is not installed.
    ValueError
        `where` is neither an address nor a known name.

    Notes
    -----
    This is one of the two places that read configuration; the command line is the other. A cluster on this machine
    listens on 127.0.0.1 only, unless `host` says otherwise. With ``"cuda"``, Dask's ``dataframe.backend`` becomes
    ``"cudf"`` in this process.

    Examples
    --------
    >>> import daskdl
    >>> client = daskdl.connect("cpu", n_workers=2)  # doctest: +SKIP
    """
    _refuse_while_main_is_imported()
    where = _configured() if where is None else where
    if not isinstance(where, str):
        client = _of_object(where, timeout)
    elif where in KINDS:
        options = {**kwargs, "security": security} if security is not None else kwargs
        request = Request(where, n_workers, threads_per_worker, memory_limit, tuple(sorted(options.items())))
        client = local_client(request, dashboard_address)
    elif where in BACK_ENDS:
        client = _managed(where, n_workers, kwargs)
    else:
        client = _join(where, timeout, security)
    current_client(client)  # says what is wrong with one that was given
    if runs is not None:
        from daskdl.tracking.folder import set_root

        set_root(runs)
    _add_page(client)
    return client


def _refuse_while_main_is_imported() -> None:
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "daskdl.connect() was reached while a new worker imported your script, so that every worker would start "
            "workers of its own. Put the call under `if __name__ == '__main__':`."
        )


def _configured() -> str:
    """Decide what ``connect()`` without a place means, from the environment and from this machine."""
    address = os.environ.get("DASKDL_ADDRESS")
    if address:
        return address
    import dask

    return dask.config.get("scheduler-address", None) or ("cuda" if gpus_usable() else "cpu")


def _managed(name: str, n_workers: int | None, kwargs: dict[str, Any]) -> Client:
    from distributed import Client

    class_path, install = BACK_ENDS[name]
    module, _, cls = class_path.rpartition(".")
    try:
        make = getattr(importlib.import_module(module), cls)
    except ImportError as error:
        raise MissingExtraError(
            f'connect("{name}") makes a {class_path}, which cannot be imported ({error}): {install}'
        ) from error
    cluster = make(**kwargs)
    if n_workers is not None:
        cluster.scale(n_workers)
    return Client(cluster)


def _join(address: str, timeout: float, security: Any) -> Client:
    host, port = _host_and_port(address)
    answers = address.startswith("tcp:")  # with tls it is the client who speaks first
    from distributed import Client, default_client

    with contextlib.suppress(ValueError):  # no client yet
        client = default_client()
        if client.scheduler is not None and client.scheduler.address == address:
            return client
    try:
        _knock(host, port, timeout / 2, answers)
        return Client(address, timeout=timeout / 2, security=security)
    except OSError as error:
        raise ConnectionFailed(
            f"No Dask scheduler answers at {address} ({error}). Start one there (`dask scheduler`), check the address "
            "and the firewall, or call connect() without an address for a cluster on this machine."
        ) from error


def _knock(host: str, port: int, timeout: float, answers: bool) -> None:
    """Raise OSError at once, where Dask would try again and again, or wait for ever for a server that says nothing."""
    with socket.create_connection((host, port), timeout) as door:
        if answers and not door.recv(1):
            raise ConnectionError("it closed the connection")


def _host_and_port(address: str) -> tuple[str, int]:
    parts = urlsplit(address)
    if parts.scheme not in SCHEMES or not parts.hostname or not parts.port:
        raise ValueError(
            "connect() takes an address with its port, such as tcp://127.0.0.1:8786, or one of the names "
            f"{', '.join([*KINDS, *BACK_ENDS])}; it got {address!r}."
        )
    return parts.hostname, parts.port


def _of_object(where: Any, timeout: float) -> Client:
    from distributed import Client

    if isinstance(where, Client):
        return where
    if not hasattr(where, "scheduler_address"):
        raise ValueError(
            f"connect() takes None, an address, a name ({', '.join([*KINDS, *BACK_ENDS])}), a cluster or a client; "
            f"it got {where!r}."
        )
    return Client(where, timeout=timeout)


def _add_page(client: Client) -> None:
    from daskdl import dashboard

    try:
        dashboard.install(client)
    except Exception as error:  # a scheduler of someone else's may lack daskdl or bokeh, or hold other versions
        warnings.warn(
            f"The Training page could not be added to the dashboard ({type(error).__name__}: {error}). Training works "
            "without it; install daskdl where the scheduler runs to see it.",
            stacklevel=3,
        )
