"""``daskdl lab``: a cluster, and JupyterLab beside its dashboard, until Ctrl-C."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from daskdl import workspace
from daskdl.errors import MissingExtraError

if TYPE_CHECKING:
    from distributed import Client

NOTEBOOK = "notebooks/00_quickstart.ipynb"
STARTUP_SECONDS = 60
SHUTDOWN_SECONDS = 10


@dataclass(frozen=True)
class Options:
    """What the command line asks for; port 0 is any free one, and no token is a random one."""

    port: int = 8888
    dashboard_port: int = 8787
    n_workers: int | None = None
    notebook_dir: str = "."
    ip: str = "127.0.0.1"
    token: str | None = None
    browser: bool = True


def main(options: Options) -> int:
    """Run a cluster and JupyterLab until SIGINT or SIGTERM; return the exit status."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise MissingExtraError('daskdl lab needs JupyterLab: pip install "daskdl[lab]"')
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        client = stack.enter_context(_cluster(options))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="daskdl-lab-")))
        return _serve(options, client, folder, stack)
    return 0


def _serve(options: Options, client: Client, folder: Path, stack: contextlib.ExitStack) -> int:
    port = _free_port(options.ip, options.port)
    token = options.token or secrets.token_urlsafe(24)
    dashboard = dashboard_url(client.dashboard_link)
    write_configuration(folder, dashboard, Path(options.notebook_dir))
    environment = {**os.environ, **jupyter_environment(folder, token), **dask_environment(client.scheduler.address)}
    server = stack.enter_context(_server(command(options, port), environment))
    stack.callback(_ignore_signals)  # left first: a second Ctrl-C does not interrupt the clean-up
    host = "127.0.0.1" if options.ip in ("0.0.0.0", "", "*") else options.ip
    if not _wait_until_up(server, f"http://{host}:{port}/api"):
        print(f"JupyterLab did not start (exit status {server.poll()}); its messages are above.", file=sys.stderr)
        return 1
    url = f"http://{host}:{port}/lab/workspaces/{workspace.ID}?token={token}"
    _announce(options, client, port, url)
    return server.wait()


def _announce(options: Options, client: Client, port: int, url: str) -> None:
    taken = [("JupyterLab", options.port, port)]
    taken.append(("the dashboard", options.dashboard_port, urlsplit(client.dashboard_link).port or 0))
    for what, wanted, got in taken:
        if wanted not in (0, got):
            print(f"Port {wanted} is in use; {what} has {got} instead.")
    print(f"Cluster    {client.scheduler.address}, {len(client.nthreads())} workers; dashboard {client.dashboard_link}")
    print(f"JupyterLab {url}\nCtrl-C ends both.", flush=True)
    if options.browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin"):
        webbrowser.open(url)


def command(options: Options, port: int) -> list[str]:
    """Return the command that starts JupyterLab; the token goes by the environment, which others cannot read."""
    flags = ["--no-browser", "--Application.log_level=WARN", "--LabApp.extension_manager=readonly"]
    flags += [f"--ServerApp.ip={options.ip}", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    flags += [f"--ServerApp.root_dir={Path(options.notebook_dir).absolute()}"]
    flags += ["--KernelManager.transport=ipc"]  # kernels open no port that others on the machine could connect to
    flags += ["--allow-root"] if os.geteuid() == 0 else []
    return [sys.executable, "-m", "jupyterlab", *flags]


def jupyter_environment(folder: Path, token: str) -> dict[str, str]:
    """Return variables that keep JupyterLab and its kernels out of the user's home."""
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    return {"JUPYTER_TOKEN": token, **{name: str(folder / sub) for name, sub in folders.items()}}


def dask_environment(scheduler_address: str) -> dict[str, str]:
    """Return variables by which ``daskdl.connect()`` in a kernel joins the cluster and links its dashboard."""
    return {"DASKDL_ADDRESS": scheduler_address, "DASK_DISTRIBUTED__DASHBOARD__LINK": "/proxy/{port}/status"}


def dashboard_url(link: str) -> str:
    """Return where a browser on JupyterLab finds the dashboard: through JupyterLab when it is on this machine."""
    parts = urlsplit(link)
    return f"/proxy/{parts.port}" if parts.hostname in ("127.0.0.1", "localhost") else link.removesuffix("/status")


def write_configuration(folder: Path, dashboard: str, root: Path) -> None:
    """Write the layout and the settings of one JupyterLab below its own folder."""
    from jupyterlab_server.workspaces_handler import WorkspacesManager

    notebook = NOTEBOOK if (root / NOTEBOOK).exists() else None
    layout = workspace.workspace(dashboard, notebook)
    (folder / "workspaces").mkdir()
    WorkspacesManager(str(folder / "workspaces")).save(workspace.ID, json.dumps(layout))
    for name, text in workspace.extension().items():
        path = folder / "data" / "labextensions" / workspace.EXTENSION / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    overrides = folder / "config" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps(workspace.setting_overrides(dashboard)))


@contextlib.contextmanager
def _cluster(options: Options) -> Iterator[Client]:
    from daskdl.cluster import connect

    client = connect(n_workers=options.n_workers, dashboard_address=f"127.0.0.1:{options.dashboard_port}")
    try:
        yield client
    finally:
        if client.cluster is not None:  # not someone else's, named by DASKDL_ADDRESS
            client.shutdown()


@contextlib.contextmanager
def _server(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run JupyterLab in a process group of its own: Ctrl-C reaches only this process, which then ends it in order."""
    import psutil

    server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=0)
    try:
        yield server
    finally:
        family = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(SHUTDOWN_SECONDS)
        server.kill()
        server.wait()
        for process in psutil.wait_procs(family, timeout=2)[1]:  # kernels that did not listen
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _wait_until_up(server: subprocess.Popen[bytes], url: str) -> bool:
    deadline = time.monotonic() + STARTUP_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(URLError, OSError), urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
        time.sleep(0.1)
    return False


def _free_port(ip: str, wanted: int) -> int:
    """Return the port if nobody has it, else any that is free."""
    for port in (wanted, 0):
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((ip if ip != "*" else "", port))
            return int(probe.getsockname()[1])
    raise OSError(f"Cannot listen on {ip}; give an address of this machine with --ip.")
